"""The scores equal plain Python over fractions in any order (processes: test_evaluator)."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.kit.scores.metrics import (
    COUNTS,
    GROUPS,
    count_pixels,
    group_scores,
    headline,
    sample_iou,
)
from masksd.kit.scores.protocols import PRECISION_THRESHOLDS, Protocol, get_protocol

TENTHS = {threshold: Fraction(round(threshold * 10), 10) for threshold in PRECISION_THRESHOLDS}
Sample = tuple[list[bool], list[bool], int, int]


def group_names(area: int, words: int) -> set[str]:
    """The groups of a sample, from the words of the documentation."""
    if area == 0:
        names = {"all"}
    elif area < 32 * 32:
        names = {"all", "small object"}
    elif area < 96 * 96:
        names = {"all", "medium object"}
    else:
        names = {"all", "large object"}
    if 1 <= words <= 2:
        names.add("1-2 words")
    elif 3 <= words <= 5:
        names.add("3-5 words")
    elif 6 <= words <= 10:
        names.add("6-10 words")
    elif words > 10:
        names.add("> 10 words")
    return names


def share(part: int, whole: int, empty: Fraction) -> Fraction:
    return Fraction(part, whole) if whole else empty


def oracle(samples: list[Sample], empty: Fraction = Fraction(1)) -> dict[str, Fraction]:
    """Score lists of pixels with exact fractions."""
    ious, plain, over, under, none_right, some_right = [], [], [], [], [], []
    total = [0, 0, 0, 0]
    for prediction, truth, area, _ in samples:
        both = sum(p and t for p, t in zip(prediction, truth, strict=True))
        either = sum(p or t for p, t in zip(prediction, truth, strict=True))
        ious.append(share(both, either, empty))
        plain.append(share(both, either, Fraction(not area)))  # an object may vanish in the mask
        (some_right if area else none_right).append(any(prediction) == bool(area))
        over.append(share(sum(prediction) - both, sum(prediction), Fraction(0)))
        under.append(share(sum(truth) - both, sum(truth), Fraction(0)))
        new = (both, either, sum(prediction), sum(truth))
        total = [a + b for a, b in zip(total, new, strict=True)]
    count, zero = len(samples), Fraction(0)
    scores = {
        "mIoU": sum(ious, zero) / count,
        "oIoU": share(total[0], total[1], empty),
        "gIoU": sum(plain, zero) / count,
        "cIoU": share(total[0], total[1], Fraction(1)),
        "mOver": sum(over, zero) / count,
        "oOver": share(total[2] - total[0], total[2], zero),
        "mUnder": sum(under, zero) / count,
        "oUnder": share(total[3] - total[0], total[3], zero),
        "samples": Fraction(count),
    }
    if none_right:
        scores["N-acc"] = Fraction(sum(none_right), len(none_right))
    if none_right and some_right:
        scores["T-acc"] = Fraction(sum(some_right), len(some_right))
    for threshold, exact in TENTHS.items():
        scores[f"Pr@{threshold}"] = Fraction(sum(iou > exact for iou in ious), count)
        scores[f"Pr@{threshold} (>=)"] = Fraction(sum(iou >= exact for iou in ious), count)
    return scores


def rules(empty_iou: float = 1.0, **changes: Any) -> Protocol:
    """By default Pr@X is strict and not."""
    return dataclasses.replace(get_protocol("original"), empty_iou=empty_iou, **changes)


def scores_of(
    counts: torch.Tensor,
    protocol: Protocol,
    areas: list[int] | None = None,
    words: list[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Score pixels counted as (4, B)."""
    rows = [
        {**dict(zip(COUNTS, pixels, strict=True)), "iou": sample_iou(*pixels[:2], protocol)}
        for pixels in counts.T.tolist()
    ]
    areas = [row["truth_area"] for row in rows] if areas is None else areas
    rows = [{**row, "object_area": area} for row, area in zip(rows, areas, strict=True)]
    return group_scores(rows, [0] * len(rows) if words is None else words, protocol)


def scores_of_samples(samples: list[Sample], protocol: Protocol) -> dict[str, dict[str, float]]:
    prediction = torch.tensor([p for p, _, _, _ in samples]).reshape(len(samples), 2, 5)
    truth = torch.tensor([t for _, t, _, _ in samples]).reshape(len(samples), 2, 5)
    areas, words = [area for _, _, area, _ in samples], [words for _, _, _, words in samples]
    return scores_of(count_pixels(prediction, truth), protocol, areas, words)


pixels = st.lists(st.booleans(), min_size=10, max_size=10)
areas = st.sampled_from([0, 1, 1023, 1024, 9215, 9216, 10**6])
many = st.lists(st.tuples(pixels, pixels, areas, st.integers(0, 14)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(samples=many, cut=st.integers(0, 12), empty=st.integers(0, 1))
def test_scores_of_every_group_equal_the_oracle_in_any_order(
    samples: list[Sample], cut: int, empty: int
) -> None:
    protocol = rules(float(empty))
    scores = scores_of_samples(samples, protocol)
    assert scores == scores_of_samples(samples[cut:] + samples[:cut], protocol)
    members = {g: [s for s in samples if g in group_names(s[2], s[3])] for g in GROUPS}
    assert list(scores) == [group for group in GROUPS if members[group]]
    for group, found in scores.items():
        expected = oracle(members[group], Fraction(empty))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value), abs=1e-11), (group, name)


def test_iou_of_exactly_the_threshold_is_not_above_it() -> None:
    truth = torch.ones(1, 1, 10, dtype=torch.bool)
    for threshold in PRECISION_THRESHOLDS:
        prediction = torch.arange(10).reshape(1, 1, 10) < round(threshold * 10)
        found = scores_of(count_pixels(prediction, truth), rules())["all"]
        for other in PRECISION_THRESHOLDS:
            assert found[f"Pr@{other}"] == float(threshold > other)
            assert found[f"Pr@{other} (>=)"] == float(threshold >= other)


def test_epsilon_in_the_union_keeps_an_exact_half_below_its_threshold() -> None:
    counts = torch.tensor([[5], [10], [5], [10]])
    found = {}
    for epsilon in (0.0, 1e-6):
        protocol = rules(0.0, comparisons=(">=",), epsilon=epsilon)
        found[epsilon] = scores_of(counts, protocol)["all"]
    assert (found[0.0]["Pr@0.5"], found[1e-6]["Pr@0.5"]) == (1.0, 0.0)
    assert found[1e-6]["mIoU"] == pytest.approx(5 / (10 + 1e-6), abs=1e-11)


def test_what_empty_masks_score() -> None:
    nothing = torch.zeros(1, 3, 3, dtype=torch.bool)
    something = ~nothing
    found = {}
    for name, pair in {
        "both": (nothing, nothing),
        "prediction": (nothing, something),
        "truth": (something, nothing),
    }.items():
        row = scores_of(count_pixels(*pair), rules())["all"]
        found[name] = [row[key] for key in ("mIoU", "oIoU", "mOver", "oOver", "mUnder", "oUnder")]
    assert found["both"] == [1, 1, 0, 0, 0, 0]
    assert found["prediction"] == [0, 0, 0, 0, 1, 1]
    assert found["truth"] == [0, 0, 1, 1, 0, 0]


def test_empty_truths_are_scored_as_in_grefcoco() -> None:
    """Four samples by hand: both empty; truth empty; prediction empty; half of the truth found."""
    counts = torch.tensor([[0, 0, 0, 5], [0, 4, 6, 10], [0, 4, 0, 5], [0, 0, 6, 10]])
    found = scores_of(counts, rules(0.0))
    assert found["all"]["N-acc"] == 1 / 2
    assert found["all"]["T-acc"] == 1 / 2
    assert found["all"]["gIoU"] == (1 + 0 + 0 + 0.5) / 4
    assert found["all"]["cIoU"] == found["all"]["oIoU"] == 5 / 20
    assert found["all"]["mIoU"] == 0.5 / 4  # by this protocol an empty pair counts 0
    assert found["small object"]["samples"] == 2  # an empty truth is no object
    assert "N-acc" not in found["small object"]
    alone = scores_of(counts[:, :1], rules(0.0))["all"]
    assert (alone["gIoU"], alone["cIoU"], alone["oIoU"], alone["N-acc"]) == (1, 1, 0, 1)
    assert "T-acc" not in alone


def test_headline_is_the_short_table() -> None:
    short = headline(scores_of(torch.tensor([[5], [10], [5], [10]]), rules())["all"])
    assert list(short) == [
        "mIoU",
        "oIoU",
        "gIoU",
        "cIoU",
        *(f"Pr@{t}" for t in PRECISION_THRESHOLDS),
        "samples",
    ]


def test_wrong_masks_and_counts_are_refused() -> None:
    mask = torch.zeros(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"prediction must be a bool tensor .*threshold"):
        count_pixels(mask.float(), mask)
    with pytest.raises(ValueError, match=r"truth must be a bool tensor .*\(3, 3\)"):
        count_pixels(mask, mask[0])
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 3\) and \(1, 3, 3\)"):
        count_pixels(mask, mask[:1])
    with pytest.raises(ValueError, match="no sample was scored"):
        scores_of(count_pixels(mask[:0], mask[:0]), rules())
    with pytest.raises(ValueError, match="comparisons must be '>' or '>='"):
        rules(comparisons=("<",))
