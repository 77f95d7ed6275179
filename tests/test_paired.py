"""Intervals over seeds and pictures cover the truth, and equal their definition."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.study.paired import compare_seeds, student_t
from masksd.kit.data.records import DataError
from masksd.kit.scores.compare import compare_rows
from masksd.kit.scores.protocols import get_protocol

ORIGINAL = get_protocol("original")
Sides = tuple[dict[int, list[dict[str, int | float]]], dict[int, list[dict[str, int | float]]]]


def made_runs(
    key: list[int],
    seeds: int,
    pictures: int,
    gain: float,
    seed_luck: float,
    picture_luck: float,
    both_luck: float = 0.05,
) -> Sides:
    """Draw two variants whose gain has parts from the seed, from the picture and from both."""
    random = np.random.default_rng(key)
    easy = random.uniform(0.3, 0.6, pictures)
    liked = random.normal(0, picture_luck, pictures)
    sides: Sides = ({}, {})
    for seed in range(seeds):
        luck = random.normal(0, seed_luck)
        for side, shift in zip(sides, (0 * liked, gain + luck + liked), strict=True):
            shares = np.clip(easy + shift + random.normal(0, both_luck, pictures), 0, 1)
            side[seed] = [
                {
                    "ref_id": number,
                    "sent_id": number,
                    "image_id": number,
                    "intersection": round(1000 * share),
                    "union": 1000,
                    "predicted_area": round(1000 * share),
                    "truth_area": 1000,
                    "iou": float(share),
                }
                for number, share in enumerate(shares)
            ]
    return sides


@pytest.mark.parametrize(
    ("seeds", "seed_luck", "picture_luck"), [(2, 0.03, 0.0), (3, 0.03, 0.05), (5, 0.03, 0.2)]
)
def test_intervals_cover_the_gain(seeds: int, seed_luck: float, picture_luck: float) -> None:
    """Of 200 studies 95 in 100 should; 3 standard deviations of the count are 9."""
    covered = 0
    for number in range(200):
        sides = made_runs([number, seeds], seeds, 40, 0.05, seed_luck, picture_luck)
        found = compare_seeds(*sides, ORIGINAL, resamples=200, seed=number)["mIoU"]
        covered += found.low <= 0.05 <= found.high
    assert covered >= 0.95 * 200 - 9


def test_the_seeds_part_is_students_interval() -> None:
    """Where pictures have no luck of their own, the interval is that of the seeds' means."""
    rows = made_runs([1], 4, 30, 0.05, 0.0, 0.0)[0][0]
    gains = [0.02, 0.05, 0.03, 0.08]
    a = dict.fromkeys(range(4), rows)
    b = {s: [{**row, "iou": row["iou"] + gain} for row in rows] for s, gain in enumerate(gains)}
    found = compare_seeds(a, b, ORIGINAL, resamples=20_000)["mIoU"]
    half = student_t(3) * np.std(gains, ddof=1) / np.sqrt(4)
    assert found.difference == pytest.approx(np.mean(gains))
    assert found.high - found.difference == pytest.approx(half, rel=0.02)
    assert found.difference - found.low == pytest.approx(half, rel=0.02)


def test_the_luck_of_a_picture_with_a_seed_is_counted_once() -> None:
    """It is in the spread of the seeds' gains; what all seeds share is added."""
    a, b = made_runs([5], 4, 60, 0.05, 0.01, 0.05, both_luck=0.1)
    found = compare_seeds(a, b, ORIGINAL, resamples=20_000)["mIoU"]
    gains = np.array([[y["iou"] - x["iou"] for x, y in zip(a[s], b[s], strict=True)] for s in a])
    together = np.cov(gains) / 60  # of means over pictures
    shared = together[~np.eye(4, dtype=bool)].mean()
    assert shared > 0
    half = student_t(3) * np.sqrt(gains.mean(axis=1).var(ddof=1) / 4 + shared)
    assert found.high - found.difference == pytest.approx(half, rel=0.03)


def test_intervals_are_no_wider_than_they_must() -> None:
    """The half-widths of 200 studies, against those of the true standard error and Student's t."""
    seeds, pictures, seed_luck, picture_luck, both_luck = 4, 40, 0.01, 0.02, 0.1
    halves = []
    for number in range(200):
        sides = made_runs([number, 6], seeds, pictures, 0.05, seed_luck, picture_luck, both_luck)
        found = compare_seeds(*sides, ORIGINAL, resamples=200, seed=number)["mIoU"]
        halves.append(found.high - found.difference)
    alone = seed_luck**2 + 2 * both_luck**2 / pictures
    true = np.sqrt(alone / seeds + picture_luck**2 / pictures)
    assert np.sqrt(np.mean(np.square(halves))) == pytest.approx(student_t(3) * true, rel=0.1)


def test_scores_are_means_of_the_seeds_scores() -> None:
    a, b = made_runs([2], 3, 20, 0.05, 0.02, 0.02)
    found = compare_seeds(a, b, ORIGINAL, resamples=100)
    singles = [compare_rows(a[s], b[s], ORIGINAL, resamples=100).differences for s in a]
    for name, one in found.items():
        assert one.a == pytest.approx(np.mean([each[name].a for each in singles]))
        assert one.b == pytest.approx(np.mean([each[name].b for each in singles]))
        assert one.seeds == 3
    assert found["mUnder"].lower_is_better
    assert not found["oIoU"].lower_is_better


def test_a_large_gain_is_shown_and_none_is_not() -> None:
    a, b = made_runs([3], 5, 40, 0.2, 0.01, 0.01)
    assert compare_seeds(a, b, ORIGINAL)["mIoU"].verdict == "better"
    assert compare_seeds(a, b, ORIGINAL)["mUnder"].verdict == "better"
    assert compare_seeds(b, a, ORIGINAL)["mIoU"].verdict == "worse"
    same = compare_seeds(a, a, ORIGINAL)["mIoU"]
    assert (same.low, same.difference, same.high) == (0, 0, 0)
    assert same.verdict == "no difference could be shown"


def test_runs_that_do_not_pair_are_named() -> None:
    a, b = made_runs([4], 2, 5, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"seeds of A are \[0, 1\] and of B \[0\]"):
        compare_seeds(a, {0: b[0]}, ORIGINAL)
    with pytest.raises(ValueError, match="two or more"):
        compare_seeds({0: a[0]}, {0: b[0]}, ORIGINAL)
    with pytest.raises(DataError, match="1 samples are in A, seed 1 only"):
        compare_seeds(a, {**b, 1: b[1][:-1]}, ORIGINAL)
    with pytest.raises(DataError, match="in A, seed 0 only"):
        compare_seeds({**a, 1: a[1][:-1]}, {**b, 1: b[1][:-1]}, ORIGINAL)
    with pytest.raises(ValueError, match="at least 100"):
        compare_seeds(a, b, ORIGINAL, resamples=10)


def test_student_t_equals_the_tables() -> None:
    # Student's t, 97.5 %, as printed everywhere
    for freedom, printed in ((1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (120, 1.980)):
        assert student_t(freedom) == pytest.approx(printed, abs=6e-4)
