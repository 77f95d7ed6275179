"""Variants with several seeds each: paired differences over seeds and images.

A gain depends on chance twice: another seed trains another model, and other images would have been
scored otherwise. If the seeds' gains have variance s² (n - 1), the variance of their mean is

    s² / n + c,

where c is the covariance of two seeds' gains when the same images are drawn for both. Every seed is
scored on the same images, so what these have in common does not average out, while the luck of an
image with one seed is in s² already. c comes from the cluster bootstrap over images. The interval
is the mean ± Student's t with n - 1 degrees of freedom times the root: exact where images add
nothing, slightly wide where they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from masksd.kit.scores.bootstrap import LOWER_IS_BETTER, bootstrap, pair_rows
from masksd.kit.scores.metrics import Floats, Rows
from masksd.kit.scores.protocols import Protocol

NO_DIFFERENCE = "no difference could be shown"


class SeedDifference(NamedTuple):
    """One score of variants A and B over the same seeds: means, and B - A with a 95 % interval."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    seeds: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """What the interval says of B.

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
    """Compare two variants by score, paired by seed and image; inputs are samples by seed."""
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
    whole, drawn, _ = bootstrap(sides, protocol, resamples=resamples, seed=seed)
    widening = student_t(len(seeds) - 1)
    found = {}
    for name in whole[0]:
        mean_a = float(np.mean([side[name] for side in whole[::2]]))
        mean_b = float(np.mean([side[name] for side in whole[1::2]]))
        pairs = zip(drawn[::2], drawn[1::2], strict=True)
        spread = _standard_error(
            np.array([y[name] - x[name] for x, y in zip(whole[::2], whole[1::2], strict=True)]),
            np.stack([y[name] - x[name] for x, y in pairs]),
        )
        gain = mean_b - mean_a
        low, high = gain - widening * spread, gain + widening * spread
        lower = name in LOWER_IS_BETTER
        found[name] = SeedDifference(mean_a, mean_b, gain, low, high, len(seeds), lower)
    return found


def _standard_error(gains: Floats, drawn: Floats) -> float:
    """Of the mean over seeds, from gains ``(seeds,)`` and resampled ones ``(seeds, resamples)``."""
    seeds = len(gains)
    together = np.cov(drawn)
    shared = (together.sum() - np.trace(together)) / (seeds * (seeds - 1))
    return float(np.sqrt(gains.var(ddof=1) / seeds + max(0.0, shared)))


def student_t(freedom: int) -> float:
    """Return the 97.5 % point of Student's t, by bisection."""
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(-t < T < t) for t = √freedom · tan(angle) (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
