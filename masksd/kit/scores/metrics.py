"""Scores of referring image segmentation, as sums that are exact.

Every state is an int64 sum, so the score does not depend on batch size, order or the number of
processes. Importing this module imports torchmetrics, which takes 2-3 s: import it late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SIZES = {"small object": (0, 32**2), "medium object": (32**2, 96**2), "large object": (96**2, None)}
"""COCO's sizes of an object: its area in pixels of the original picture, from ... to below."""
LENGTHS = {
    "1-2 words": (1, 3),
    "3-5 words": (3, 6),
    "6-10 words": (6, 11),
    "> 10 words": (11, None),
}
"""Lengths of an expression: its words between blanks, from ... to below."""
GROUPS = ("all", *SIZES, *LENGTHS)
_ONE = 2**40  # shares are summed in units of 2**-40, so that sums have no rounding order
_SHARES = ("mIoU", "mOver", "mUnder")
_COUNTS = ("samples", "intersection", "union", "predicted", "truth")


class SampleShares(NamedTuple):
    """Shares of single samples, float64 ``(B,)`` in [0, 1]; see :class:`SegmentationScores`."""

    iou: Tensor
    over: Tensor
    under: Tensor


def sample_shares(
    intersection: Tensor,
    union: Tensor,
    predicted: Tensor,
    truth: Tensor,
    *,
    epsilon: float = 0.0,
    empty_iou: float = 1.0,
) -> SampleShares:
    """Compute IoU, over- and under-segmentation of single samples.

    Args:
        intersection: pixels, int64 ``(B,)``.
        union: pixels, int64 ``(B,)``.
        predicted: pixels of the prediction, int64 ``(B,)``.
        truth: pixels of the truth, int64 ``(B,)``.
        epsilon: added to the union.
        empty_iou: IoU where the union is empty.

    Returns:
        :class:`SampleShares` on the CPU.

    Example:
        >>> sample_shares(*torch.tensor([[1], [3], [2], [2]])).over
        tensor([0.5000], dtype=torch.float64)
    """
    # float64 on the CPU: not every accelerator has it, and B numbers cost nothing
    inter, both, found, wanted = (
        value.cpu().double() for value in (intersection, union, predicted, truth)
    )
    empty = torch.full_like(inter, empty_iou)
    return SampleShares(
        iou=torch.where(both == 0, empty, inter / (both + epsilon).clamp(min=epsilon or 1.0)),
        over=(found - inter) / found.clamp(min=1),
        under=(wanted - inter) / wanted.clamp(min=1),
    )


class SegmentationScores(Metric):
    """Scores over samples that are one picture and one expression each, and over groups of them.

    With ``I``, ``U``, ``P`` and ``T`` the pixels of intersection, union, prediction and truth:

    - ``mIoU``: the mean of ``I / U`` over samples; ``empty_iou`` where ``U`` is 0;
    - ``oIoU``: the sum of ``I`` over the sum of ``U`` (``empty_iou`` where that is 0);
    - ``Pr@X``: the share of samples with ``I / U > X``, or ``>=``; where both are asked for, the
      second one is ``Pr@X (>=)``;
    - ``mOver``: over-segmentation, the mean of ``(P - I) / P``, the share of the predicted area
      that lies outside the truth (0 for an empty prediction, which has nothing outside);
      ``oOver``: the same of the sums;
    - ``mUnder``: under-segmentation, the mean of ``(T - I) / T``, the share of the truth that is
      missed (0 for an empty truth, of which nothing can be missed); ``oUnder``: of the sums.

    The groups are :data:`SIZES` of the object and :data:`LENGTHS` of the expression. The paper's
    "mIoU" for LAVT is LAVT's overall IoU: name the one you mean.

    Args:
        thresholds: the X of Pr@X, each in [0, 1].
        comparisons: ``">"``, ``">="`` or both; the first one is called Pr@X.
        epsilon: added to the union of a sample: ``I / (U + epsilon)``.
        empty_iou: IoU of an empty prediction of an empty truth.

    Example:
        >>> scores = SegmentationScores()
        >>> prediction = torch.tensor([[[True, True, False, False]]])
        >>> truth = torch.tensor([[[False, True, True, False]]])
        >>> scores.update(count_pixels(prediction, truth), words=torch.tensor([2]))
        >>> scores.update(count_pixels(truth, truth), words=torch.tensor([4]))
        >>> found = scores.compute()
        >>> round(found["all"]["mIoU"], 4), found["3-5 words"]["mIoU"]
        (0.6667, 1.0)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    sums: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = PRECISION_THRESHOLDS,
        comparisons: Sequence[str] = (">",),
        epsilon: float = 0.0,
        empty_iou: float = 1.0,
    ) -> None:
        super().__init__()
        if not comparisons or not set(comparisons) <= {">", ">="}:
            raise ValueError(f"comparisons must be of '>' and '>=', got {comparisons!r}")
        self.thresholds, self.comparisons = tuple(thresholds), tuple(comparisons)
        self.epsilon, self.empty_iou = epsilon, empty_iou
        hits = [(c, t) for c in self.comparisons for t in self.thresholds]
        self.precisions = [f"Pr@{t}" + (f" ({c})" if c != comparisons[0] else "") for c, t in hits]
        columns = len(_COUNTS) + len(_SHARES) + len(hits)
        zeros = torch.zeros(len(GROUPS), columns, dtype=torch.int64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(
        self, counts: Tensor, areas: Tensor | None = None, words: Tensor | None = None
    ) -> None:
        """Add samples.

        Args:
            counts: int64 ``(4, B)`` of :func:`count_pixels`; ``B`` may be 0 (a process without a
                sample).
            areas: of the objects in pixels of the original pictures, int64 ``(B,)``; None takes
                those of the truth that is scored.
            words: of the expressions, int64 ``(B,)``; None or 0 is in no group of lengths.

        Raises:
            ValueError: for another dtype or shape.
        """
        if counts.dtype != torch.int64 or counts.ndim != 2 or len(counts) != 4:
            raise ValueError(
                "counts must be int64 (4, B) as count_pixels returns it, "
                f"got {counts.dtype} {tuple(counts.shape)}"
            )
        areas = counts[3] if areas is None else areas
        words = torch.zeros_like(areas) if words is None else words
        counts, areas, words = counts.cpu(), areas.cpu(), words.cpu()
        shares = sample_shares(*counts, epsilon=self.epsilon, empty_iou=self.empty_iou)
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        iou = shares.iou[:, None]
        hits = [iou > thresholds if c == ">" else iou >= thresholds for c in self.comparisons]
        columns = [
            torch.ones_like(areas)[:, None],
            counts.T,
            (torch.stack(tuple(shares), dim=1) * _ONE).round().long(),
            *(hit.long() for hit in hits),
        ]
        values = torch.cat(columns, dim=1)  # (B, columns) int64
        members = [torch.ones_like(areas, dtype=torch.bool)]
        members += [_within(areas, bounds) for bounds in SIZES.values()]
        members += [_within(words, bounds) for bounds in LENGTHS.values()]
        grouped = torch.stack([values[member].sum(dim=0) for member in members])
        self.sums += grouped.to(self.sums.device)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the scores by group, each in [0, 1], with ``samples``, their number.

        A group without a sample is left out; ``"all"`` is there.

        Raises:
            ValueError: if no sample came.
        """
        scores = {}
        for group, row in zip(GROUPS, self.sums.tolist(), strict=True):
            if row[0]:
                scores[group] = self._scores(row)
        if not scores:
            raise ValueError("no sample was scored: the data set or the limit leaves none")
        return scores

    def _scores(self, row: list[int]) -> dict[str, float]:
        count, inter, union, predicted, truth, *others = row
        means = dict(zip(_SHARES, (value / _ONE / count for value in others), strict=False))
        hits = others[len(_SHARES) :]
        return {
            "mIoU": means["mIoU"],
            "oIoU": inter / union if union else self.empty_iou,
            **{name: hit / count for name, hit in zip(self.precisions, hits, strict=True)},
            "mOver": means["mOver"],
            "oOver": (predicted - inter) / predicted if predicted else 0.0,
            "mUnder": means["mUnder"],
            "oUnder": (truth - inter) / truth if truth else 0.0,
            "samples": count,
        }


def count_pixels(prediction: Tensor, truth: Tensor) -> Tensor:
    """Count the pixels of intersection, union, prediction and truth.

    Args:
        prediction: bool ``(B, H, W)``.
        truth: bool ``(B, H, W)``.

    Returns:
        int64 ``(4, B)`` in that order.

    Raises:
        ValueError: for another dtype or shape.

    Example:
        >>> mask = torch.ones(1, 2, 2, dtype=torch.bool)
        >>> count_pixels(mask, ~mask)[:, 0].tolist()
        [0, 4, 4, 0]
    """
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


def headline(scores: Mapping[str, float]) -> dict[str, float]:
    """Keep what a short table shows: mIoU, oIoU, Pr@X and the number of samples.

    Example:
        >>> headline({"mIoU": 0.5, "Pr@0.5": 0.2, "Pr@0.5 (>=)": 0.4, "mOver": 0.1, "samples": 5})
        {'mIoU': 0.5, 'Pr@0.5': 0.2, 'samples': 5}
    """
    extra = ("mOver", "oOver", "mUnder", "oUnder")
    return {k: v for k, v in scores.items() if k not in extra and not k.endswith(")")}


def _within(values: Tensor, bounds: tuple[int, int | None]) -> Tensor:
    least, end = bounds
    return (values >= least) if end is None else (values >= least) & (values < end)
