"""The scores of referring image segmentation, computed from one row a sample.

With ``I``, ``U``, ``P`` and ``T`` the pixels of intersection, union, prediction and truth:

- ``mIoU``: the mean of ``I / U`` over samples; the protocol's ``empty_iou`` where ``U`` is 0;
- ``oIoU``: the sum of ``I`` over the sum of ``U`` (``empty_iou`` where that is 0);
- ``gIoU`` and ``cIoU``: the same by the names and rules of LISA, gRefCOCO and SAM 3, whatever the
  protocol: the mean of ``I / U`` and the share of the sums, 1 where ``U`` is 0;
- ``N-acc`` and ``T-acc``, of gRefCOCO, only where there are empty truths: the share of these whose
  prediction is empty, and the share of the others whose prediction is not;
- ``Pr@X``: the share of samples with ``I / U > X``, or ``>=``; where a protocol has both, the
  second is ``Pr@X (>=)``;
- ``mOver``: over-segmentation, the mean of ``(P - I) / P``: the share of the predicted area outside
  the truth (0 for an empty prediction); ``oOver``: the same of the sums;
- ``mUnder``: under-segmentation, the mean of ``(T - I) / T``: the share of the truth that is missed
  (0 for an empty truth); ``oUnder``: the same of the sums.

The paper's "mIoU" for LAVT is LAVT's overall IoU: name the one you mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksd.kit.scores.protocols import Protocol

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
COUNTS = ("intersection", "union", "predicted_area", "truth_area")
SIZES = {
    "small object": (1, 32**2),  # an empty truth is no object
    "medium object": (32**2, 96**2),
    "large object": (96**2, math.inf),
}  # COCO's object sizes: the area in pixels of the original image, from ... to below
LENGTHS = {
    "1-2 words": (1, 3),
    "3-5 words": (3, 6),
    "6-10 words": (6, 11),
    "> 10 words": (11, math.inf),
}  # lengths of an expression in words between blanks, from ... to below
GROUPS = ("all", *SIZES, *LENGTHS)
_ONE = 2**40  # shares are summed in units of 2**-40, so that no order of adding changes a sum


class SampleColumns(NamedTuple):
    """Samples as columns: ``counts`` (N, 4), ``shares`` (N, 4) and ``hits`` of Pr@X (N, H)."""

    counts: NDArray[np.int64]
    shares: Floats  # IoU by the protocol and of gIoU, over- and under-segmentation
    hits: NDArray[np.bool_]  # by threshold, of the first comparison first


def count_pixels(prediction: Tensor, truth: Tensor) -> Tensor:
    """Count pixels of intersection, union and both masks, bool ``(B, H, W)``: int64 ``(4, B)``."""
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != torch.bool or mask.ndim != 3:
            raise ValueError(
                f"{name} must be a bool tensor (B, H, W), "
                f"got {mask.dtype} {tuple(mask.shape)}; threshold the probabilities first"
            )
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have one shape, got {tuple(prediction.shape)} and "
            f"{tuple(truth.shape)}; resize the prediction to the truth"
        )
    masks = (prediction & truth, prediction | truth, prediction, truth)
    return torch.stack([mask.sum(dim=(1, 2)) for mask in masks])


def sample_iou(intersection: int, union: int, protocol: Protocol) -> float:
    """Return the IoU of one sample."""
    return intersection / (union + protocol.epsilon) if union else protocol.empty_iou


def sample_columns(rows: Rows, protocol: Protocol) -> SampleColumns:
    """Turn rows with :data:`COUNTS` and ``iou`` into columns."""
    counts = np.array([[row[field] for field in COUNTS] for row in rows], dtype=np.int64)
    inter, union, predicted, truth = counts.T
    iou = np.array([row["iou"] for row in rows], dtype=np.float64)
    # an object that vanished when its mask was resized is no empty truth
    areas = np.array([row.get("object_area", row["truth_area"]) for row in rows], dtype=np.int64)
    plain = np.where(union > 0, inter / np.maximum(union, 1), areas == 0)
    over = (predicted - inter) / np.maximum(predicted, 1)
    under = (truth - inter) / np.maximum(truth, 1)
    compare = {">": np.greater, ">=": np.greater_equal}
    hits = [compare[sign](iou, x) for sign in protocol.comparisons for x in protocol.thresholds]
    return SampleColumns(
        counts, np.stack([iou, plain, over, under], axis=1), np.stack(hits, axis=1)
    )


def group_scores(
    rows: Rows, words: Sequence[int], protocol: Protocol
) -> dict[str, dict[str, float]]:
    """Score all samples, and those of each size of object and length of expression in words.

    All sums are of whole numbers, so that the order of the rows does not matter. Empty groups are
    left out; 0 words are in no group.
    """
    if not rows:
        raise ValueError("no sample was scored: the data set or the limit leaves none")
    counts, shares, hits = sample_columns(rows, protocol)
    ones = np.ones(len(rows), dtype=np.int64)
    exact = np.rint(shares * _ONE).astype(np.int64)
    areas = np.array([row["object_area"] for row in rows])
    predicted, truth = counts[:, 2] > 0, areas > 0
    found = np.column_stack([truth, ~truth & ~predicted, truth & predicted])
    columns = np.column_stack([ones, counts, found, exact, hits])
    members = {"all": ones > 0}
    for values, groups in ((areas, SIZES), (np.array(words), LENGTHS)):
        for group, (least, end) in groups.items():
            members[group] = (values >= least) & (values < end)
    return {
        group: _scores(columns[inside].sum(axis=0).tolist(), protocol)
        for group, inside in members.items()
        if inside.any()
    }


def headline(scores: Mapping[str, float]) -> dict[str, float]:
    """Keep what a short table shows: all kinds of IoU, N-acc, Pr@X and the number of samples."""
    extra = ("mOver", "oOver", "mUnder", "oUnder")
    return {k: v for k, v in scores.items() if k not in extra and not k.endswith(")")}


# bootstrap.scores_of_sums has the same formulas for intervals: change both.
def _scores(sums: list[int], protocol: Protocol) -> dict[str, float]:
    count, inter, union, predicted, truth, objects, none_right, some_right, *shares = sums
    iou, plain, over, under, *hits = shares
    empty = count - objects
    return {
        "mIoU": iou / _ONE / count,
        "oIoU": inter / union if union else protocol.empty_iou,
        "gIoU": plain / _ONE / count,
        "cIoU": inter / union if union else 1.0,
        **({"N-acc": none_right / empty} if empty else {}),
        **({"T-acc": some_right / objects} if empty and objects else {}),
        **{name: hit / count for name, hit in zip(protocol.precisions, hits, strict=True)},
        "mOver": over / _ONE / count,
        "oOver": (predicted - inter) / predicted if predicted else 0.0,
        "mUnder": under / _ONE / count,
        "oUnder": (truth - inter) / truth if truth else 0.0,
        "samples": count,
    }
