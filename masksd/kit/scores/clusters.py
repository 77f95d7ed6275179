"""What the cluster bootstrap is made of: samples paired, summed over pictures, pictures drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksd.kit.data.records import DataError
from masksd.kit.scores.protocols import Protocol

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
LOWER_IS_BETTER = ("mOver", "mUnder")
_CHUNK = 2**21  # draws held in memory at a time


def pair_rows(a: Rows, b: Rows, names: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """Sort both by sample, or say which samples do not agree.

    Args:
        a: one row a sample, as :class:`masksd.kit.evaluation.scoring.Evaluation` holds them.
        b: the same samples in any order.
        names: of the two, for errors.

    Raises:
        DataError: a sample that comes twice, is in one of them only, or has another truth.

    Example:
        >>> row = {"ref_id": 1, "sent_id": 2, "image_id": 3, "truth_area": 9}
        >>> pair_rows([row], [{**row, "truth_area": 8}], ("A", "B"))
        Traceback (most recent call last):
        masksd.kit.data.records.DataError: ref 1 sentence 2: field 'truth_area' is 9 in A and ...
    """
    keyed: list[dict[tuple[int, int], Mapping[str, Any]]] = []
    for rows, name in zip((a, b), names, strict=True):
        keyed.append({(row["ref_id"], row["sent_id"]): row for row in rows})
        if len(keyed[-1]) != len(rows):
            raise DataError(f"{name}: a sample (ref_id, sent_id) comes twice")
    for side, name in enumerate(names):
        lone = sorted(keyed[side].keys() - keyed[1 - side].keys())
        if lone:
            listed = ", ".join(f"ref {ref} sentence {sent}" for ref, sent in lone[:5])
            more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
            raise DataError(
                f"{len(lone)} samples are in {name} only: {listed}{more}; "
                "score both models on the same split with the same --limit"
            )
    order = sorted(keyed[0])
    for key in order:
        first, second = keyed[0][key], keyed[1][key]
        for field in ("image_id", "truth_area"):
            if first[field] != second[field]:
                raise DataError(
                    f"ref {key[0]} sentence {key[1]}: field {field!r} is {first[field]} in "
                    f"{names[0]} and {second[field]} in {names[1]}; the data are not the same"
                )
    return [keyed[0][key] for key in order], [keyed[1][key] for key in order]


def picture_sums(sides: Sequence[Rows], protocol: Protocol) -> tuple[list[Floats], int]:
    """Add up, picture by picture, what the scores are made of.

    Args:
        sides: evaluations of the same samples in the same order.
        protocol: whose Pr@X is taken.

    Returns:
        One array ``(pictures, columns)`` a side, for :func:`scores_of_sums`, and how many pictures
        there are.
    """
    images = np.array([row["image_id"] for row in sides[0]])
    pictures, cluster = np.unique(images, return_inverse=True)
    return [_cluster_sums(_columns(side, protocol), cluster, len(pictures)) for side in sides], len(
        pictures
    )


def picture_draws(pictures: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw as many pictures as there are, with replacement, again and again.

    Args:
        pictures: how many there are.
        resamples: how often they are drawn.
        seed: of the draws, at least 0.

    Yields:
        How often each picture is drawn, ``(n, pictures)``; all n together are ``resamples``.

    Example:
        >>> [part.sum(axis=1).tolist() for part in picture_draws(5, 2, seed=0)]
        [[5.0, 5.0]]
    """
    random = np.random.default_rng([seed, pictures])
    most = max(1, _CHUNK // pictures)
    for start in range(0, resamples, most):
        n = min(most, resamples - start)
        drawn = random.integers(pictures, size=(n, pictures))
        drawn += pictures * np.arange(n)[:, None]  # each resample counts in a range of its own
        counts = np.bincount(drawn.ravel(), minlength=n * pictures)
        yield counts.reshape(n, pictures).astype(np.float64)


def scores_of_sums(sums: Floats, protocol: Protocol) -> dict[str, Floats]:
    """Turn sums over samples into scores.

    Args:
        sums: ``(n, columns)`` of :func:`picture_sums`, weighted and added up.
        protocol: whose empty IoU is taken.

    Returns:
        ``(n,)`` by name: mIoU, oIoU, Pr@X, mOver and mUnder.
    """
    count, inter, union, iou, over, under, *hits = sums.T
    overall = np.where(union > 0, inter / np.maximum(union, 1), protocol.empty_iou)
    names = [f"Pr@{threshold}" for threshold in protocol.thresholds]
    return {
        "mIoU": iou / count,
        "oIoU": overall,
        **{name: hit / count for name, hit in zip(names, hits, strict=True)},
        "mOver": over / count,
        "mUnder": under / count,
    }


def _columns(rows: Rows, protocol: Protocol) -> Floats:
    """What each sample adds to the sums, ``(samples, 6 + thresholds)``."""
    fields = ("intersection", "union", "predicted_area", "truth_area", "iou")
    values = np.array([[row[field] for field in fields] for row in rows], dtype=np.float64)
    inter, union, predicted, truth, iou = values.T
    over = (predicted - inter) / np.maximum(predicted, 1)
    under = (truth - inter) / np.maximum(truth, 1)
    compare = np.greater if protocol.comparisons[0] == ">" else np.greater_equal
    hits = [compare(iou, threshold) for threshold in protocol.thresholds]
    return np.stack([np.ones_like(iou), inter, union, iou, over, under, *hits], axis=1)


def _cluster_sums(columns: Floats, cluster: NDArray[np.intp], count: int) -> Floats:
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, cluster, columns)
    return sums
