"""Variants of a training run, each with several seeds: paired differences over seeds and pictures.

A gain has two sources of luck. Another seed trains another model, and other pictures would have
been scored otherwise. With the seeds' gains g of variance s² (n - 1), the variance of their mean is

    s² / n + c,

where c is how far two seeds' gains go up and down together when the same pictures are drawn for
both: every seed is scored on the same ones, so their luck does not average out, while that of a
picture with one seed is in s² already. c comes from the cluster bootstrap over pictures. The
interval is the mean ± Student's t with n - 1 degrees of freedom times the root: exact where
pictures have no luck in common, a little wide where they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from masksd.kit.data.records import DataError
from masksd.kit.scores.bootstrap import (
    LOWER_IS_BETTER,
    Floats,
    Rows,
    pair_rows,
    picture_draws,
    picture_sums,
    scores_of_sums,
)
from masksd.kit.scores.protocols import Protocol

NO_DIFFERENCE = "no difference could be shown"


class SeedDifference(NamedTuple):
    """One score of two variants over the same seeds.

    Attributes:
        a: mean over seeds of the first, in [0, 1].
        b: of the second.
        difference: ``b - a``.
        low: lower end of its 95 % interval.
        high: upper end of it.
        seeds: how many there are.
        lower_is_better: of the score.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    seeds: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """What the interval allows to say of the second.

        Example:
            >>> SeedDifference(0.5, 0.6, 0.1, 0.02, 0.2, seeds=3).verdict
            'better'
            >>> SeedDifference(0.5, 0.6, 0.1, -0.02, 0.2, seeds=3).verdict
            'no difference could be shown'
        """
        if self.low <= 0 <= self.high:
            return NO_DIFFERENCE
        return "better" if (self.low > 0) != self.lower_is_better else "worse"


def compare_seeds(
    a: Mapping[int, Rows],
    b: Mapping[int, Rows],
    protocol: Protocol,
    *,
    names: tuple[str, str] = ("A", "B"),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, SeedDifference]:
    """Compare two variants, seed by seed and picture by picture.

    Args:
        a: by seed of the run: one row a sample, as :class:`masksd.kit.evaluation.scoring.Evaluation` holds
            them; at least two seeds.
        b: the same seeds and samples.
        protocol: whose Pr@X and empty IoU are taken.
        names: of the two, for errors.
        resamples: how often pictures are drawn, at least 100.
        seed: of the draws, at least 0.

    Returns:
        By name of the score: mIoU, oIoU, Pr@X, mOver, mUnder; a score of a variant is the mean of
        its seeds' scores.

    Raises:
        DataError: samples that are not the same in all runs.
        ValueError: seeds that are not the same, fewer than two of them or two pictures.

    Example:
        >>> from masksd.kit.scores.protocols import get_protocol
        >>> row = {"sent_id": 1, "intersection": 1, "union": 4, "predicted_area": 2,
        ...        "truth_area": 3, "iou": 0.25}
        >>> one = [{**row, "image_id": n, "ref_id": n} for n in range(9)]
        >>> two = [{**each, "intersection": 2, "union": 3, "iou": 2 / 3} for each in one]
        >>> found = compare_seeds({0: one, 1: one}, {0: two, 1: two}, get_protocol("original"))
        >>> found["mIoU"].verdict, round(found["mIoU"].difference, 3)
        ('better', 0.417)
    """
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    seeds = sorted(a)
    if seeds != sorted(b) or len(seeds) < 2:
        raise ValueError(
            f"seeds of {names[0]} are {seeds} and of {names[1]} {sorted(b)}; an interval needs the "
            "same ones, two or more"
        )
    first: Rows = a[seeds[0]]
    sides: list[Rows] = []
    for one in seeds:
        labels = (f"{names[0]}, seed {one}", f"{names[1]}, seed {one}")
        sides += pair_rows(a[one], b[one], labels)
        pair_rows(first, a[one], (f"{names[0]}, seed {seeds[0]}", labels[0]))
    sums, pictures = picture_sums(sides, protocol)
    if pictures < 2:
        raise DataError("an interval needs samples of at least two pictures")
    parts: list[list[Floats]] = [[] for _ in sums]
    for weights in picture_draws(pictures, resamples, seed):
        for part, side in zip(parts, sums, strict=True):
            part.append(weights @ side)
    drawn = [scores_of_sums(np.concatenate(part), protocol) for part in parts]
    whole = [scores_of_sums(side.sum(axis=0)[None], protocol) for side in sums]
    widening = student_t(len(seeds) - 1)
    found = {}
    for name in whole[0]:
        mean_a = float(np.mean([side[name] for side in whole[::2]]))
        mean_b = float(np.mean([side[name] for side in whole[1::2]]))
        pairs = zip(drawn[::2], drawn[1::2], strict=True)
        spread = _standard_error(
            np.array(
                [y[name][0] - x[name][0] for x, y in zip(whole[::2], whole[1::2], strict=True)]
            ),
            np.stack([y[name] - x[name] for x, y in pairs]),
        )
        gain = mean_b - mean_a
        low, high = gain - widening * spread, gain + widening * spread
        lower = name in LOWER_IS_BETTER
        found[name] = SeedDifference(mean_a, mean_b, gain, low, high, len(seeds), lower)
    return found


def _standard_error(gains: Floats, drawn: Floats) -> float:
    """Of the mean over seeds; gains ``(seeds,)``, with other pictures ``(seeds, resamples)``."""
    seeds = len(gains)
    together = np.cov(drawn)
    shared = (together.sum() - np.trace(together)) / (seeds * (seeds - 1))
    return float(np.sqrt(gains.var(ddof=1) / seeds + max(0.0, shared)))


def student_t(freedom: int) -> float:
    """Return the 97.5 % point of Student's t.

    Args:
        freedom: degrees of freedom, at least 1.

    Example:
        >>> [round(student_t(freedom), 3) for freedom in (1, 2, 4, 30)]
        [12.706, 4.303, 2.776, 2.042]
    """
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    # t = sqrt(freedom) tan(angle) turns the density into cos(angle) ** (freedom - 1)
    angles = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(0.95, mass / mass[-1], angles)
    return float(np.sqrt(freedom) * np.tan(angle))
