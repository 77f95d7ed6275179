"""The scores equal plain Python over fractions, for any batching (processes: test_evaluator)."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.evaluation.metrics import PRECISION_THRESHOLDS, SegmentationScores

TENTHS = {threshold: Fraction(round(threshold * 10), 10) for threshold in PRECISION_THRESHOLDS}
Sample = tuple[list[bool], list[bool]]


def oracle(samples: list[Sample]) -> dict[str, Fraction]:
    """Score lists of pixels with exact fractions."""
    ious, intersections, unions = [], 0, 0
    for prediction, truth in samples:
        both = sum(p and t for p, t in zip(prediction, truth, strict=True))
        either = sum(p or t for p, t in zip(prediction, truth, strict=True))
        ious.append(Fraction(both, either) if either else Fraction(1))
        intersections, unions = intersections + both, unions + either
    scores = {
        "mIoU": sum(ious, Fraction(0)) / len(ious),
        "oIoU": Fraction(intersections, unions) if unions else Fraction(1),
        "samples": Fraction(len(samples)),
    }
    for threshold, exact in TENTHS.items():
        scores[f"Pr@{threshold}"] = Fraction(sum(iou > exact for iou in ious), len(ious))
    return scores


def batch(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    prediction = torch.tensor([p for p, _ in samples]).reshape(len(samples), 2, 5)
    truth = torch.tensor([t for _, t in samples]).reshape(len(samples), 2, 5)
    return prediction, truth


pixels = st.lists(st.booleans(), min_size=10, max_size=10)
many = st.lists(st.tuples(pixels, pixels), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(samples=many, cut=st.integers(0, 12))
def test_scores_equal_the_oracle_for_any_batching(samples: list[Sample], cut: int) -> None:
    whole, parts = SegmentationScores(), SegmentationScores()
    whole.update(*batch(samples))
    for part in (samples[cut:], samples[:cut]):  # another order too; one of them may be empty
        if part:
            parts.update(*batch(part))
    scores = whole.compute()
    assert scores == parts.compute()
    expected = oracle(samples)
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-11), name


def test_iou_of_exactly_the_threshold_is_not_above_it() -> None:
    truth = torch.ones(1, 1, 10, dtype=torch.bool)
    for threshold in PRECISION_THRESHOLDS:
        prediction = torch.arange(10).reshape(1, 1, 10) < round(threshold * 10)
        scores = SegmentationScores()
        scores.update(prediction, truth)
        expected = {f"Pr@{other}": float(threshold > other) for other in PRECISION_THRESHOLDS}
        assert {name: scores.compute()[name] for name in expected} == expected


def test_empty_prediction_of_an_empty_truth_scores_one() -> None:
    scores = SegmentationScores()
    nothing = torch.zeros(1, 3, 3, dtype=torch.bool)
    scores.update(nothing, nothing)
    assert scores.compute() | {"samples": 1} == {
        "mIoU": 1.0,
        "oIoU": 1.0,
        "samples": 1,
        **{f"Pr@{threshold}": 1.0 for threshold in PRECISION_THRESHOLDS},
    }


def test_wrong_masks_are_refused() -> None:
    scores = SegmentationScores()
    mask = torch.zeros(2, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"prediction must be a bool tensor .*threshold"):
        scores.update(mask.float(), mask)
    with pytest.raises(ValueError, match=r"truth must be a bool tensor .*\(3, 3\)"):
        scores.update(mask, mask[0])
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 3\) and \(1, 3, 3\)"):
        scores.update(mask, mask[:1])
    scores.update(mask[:0], mask[:0])
    with pytest.raises(ValueError, match="no sample was scored"):
        scores.compute()
