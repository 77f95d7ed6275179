"""The cluster bootstrap: evaluations of the same samples, scored on images drawn again and again.

Several expressions share an image and stand or fall together, so images are drawn, not samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from masksd.kit.data.records import DataError
from masksd.kit.scores.metrics import Floats, Rows, sample_columns
from masksd.kit.scores.protocols import Protocol

LOWER_IS_BETTER = ("mOver", "mUnder")
_CHUNK = 2**21  # draws held in memory at a time


class Resampled(NamedTuple):
    """The scores of every side: of all samples, and ``(resamples,)`` of the images drawn."""

    scores: list[dict[str, float]]
    drawn: list[dict[str, Floats]]
    images: int


def bootstrap(
    sides: Sequence[Rows], protocol: Protocol, *, resamples: int, seed: int = 0
) -> Resampled:
    """Score paired evaluations as a whole and on resampled images, the same ones for every side."""
    for name, value, least in (("resamples", resamples, 100), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    sums, images = picture_sums(sides, protocol)
    if images < 2:
        raise DataError("an interval needs samples of at least two images")
    parts: list[list[Floats]] = [[] for _ in sides]
    for weights in picture_draws(images, resamples, seed):
        for part, side_sums in zip(parts, sums, strict=True):
            part.append(weights @ side_sums)
    wholes = [scores_of_sums(each.sum(axis=0)[None], protocol) for each in sums]
    return Resampled(
        [{name: float(value[0]) for name, value in whole.items()} for whole in wholes],
        [scores_of_sums(np.concatenate(part), protocol) for part in parts],
        images,
    )


def pair_rows(a: Rows, b: Rows, names: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """Sort two evaluations by sample; a ``DataError`` names samples that do not pair."""
    keyed: list[dict[tuple[int, int], Mapping[str, Any]]] = []
    for rows, name in zip((a, b), names, strict=True):
        keyed.append({(row["ref_id"], row["sent_id"]): row for row in rows})
        if len(keyed[-1]) != len(rows):
            raise DataError(f"{name}: a sample (ref_id, sent_id) comes twice")
    for own, other, name in ((keyed[0], keyed[1], names[0]), (keyed[1], keyed[0], names[1])):
        alone = sorted(own.keys() - other.keys())
        if alone:
            listed = ", ".join(f"ref {ref} sentence {sent}" for ref, sent in alone[:5])
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            raise DataError(
                f"{len(alone)} samples are in {name} only: {listed}{more}; "
                "score both models on the same split with the same --eval-samples"
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
    """Add up image by image what :func:`scores_of_sums` takes; also return how many images."""
    image_ids = [row["image_id"] for row in sides[0]]
    images, image_of_row = np.unique(image_ids, return_inverse=True)
    sums = []
    for side in sides:
        counts, shares, hits = sample_columns(side, protocol)
        first = hits[:, : len(protocol.thresholds)]  # of the first comparison alone
        columns = np.column_stack([np.ones(len(side)), counts[:, :2], shares, first])
        sums.append(np.zeros((len(images), columns.shape[1])))
        np.add.at(sums[-1], image_of_row, columns)
    return sums, len(images)


def picture_draws(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each image is drawn, ``(n, images)``; all n together are ``resamples``."""
    random = np.random.default_rng([seed, images])
    most = max(1, _CHUNK // images)
    for start in range(0, resamples, most):
        n = min(most, resamples - start)
        drawn = random.integers(images, size=(n, images))
        drawn += images * np.arange(n)[:, None]  # each resample counts in a range of its own
        counts = np.bincount(drawn.ravel(), minlength=n * images)
        yield counts.reshape(n, images).astype(np.float64)


# The formulas of metrics._scores over an axis of resamples: change both.
def scores_of_sums(sums: Floats, protocol: Protocol) -> dict[str, Floats]:
    """Turn sums over samples ``(n, columns)`` into scores ``(n,)`` by name."""
    count, inter, union, iou, plain, over, under, *hits = sums.T
    return {
        "mIoU": iou / count,
        "oIoU": np.where(union > 0, inter / np.maximum(union, 1), protocol.empty_iou),
        "gIoU": plain / count,
        "cIoU": np.where(union > 0, inter / np.maximum(union, 1), 1.0),
        **{name: hit / count for name, hit in zip(protocol.precisions, hits, strict=False)},
        "mOver": over / count,
        "mUnder": under / count,
    }
