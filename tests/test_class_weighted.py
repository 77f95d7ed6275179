"""The class-weighted loss is torch's cross-entropy, and that of one channel agrees with two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from masksd.losses import class_weighted_loss, segmentation_loss


@pytest.fixture
def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 6, 8, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(3, 6, 8, generator=generator) < 0.3).to(torch.float64)


def test_it_is_the_weighted_mean_over_pixels(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = draws
    total = weight = 0.0
    for sample in range(3):
        for row in range(6):
            for column in range(8):
                own = int(target[sample, row, column])
                pixel = logits[sample, :, row, column]
                w = (0.9, 1.1)[own]
                total += w * float(pixel.logsumexp(0) - pixel[own])
                weight += w
    found = class_weighted_loss(logits, target, (0.9, 1.1))
    assert float(found) == pytest.approx(total / weight, rel=1e-12)


def test_one_channel_is_two_with_a_background_of_zero(
    draws: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, target = draws
    one = logits[:, 1:] - logits[:, :1]
    both = class_weighted_loss(logits, target, (0.9, 1.1))
    assert torch.allclose(class_weighted_loss(one, target, (0.9, 1.1)), both)


def test_equal_weights_are_the_segmentation_loss(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = draws
    found = class_weighted_loss(logits, target, (3.0, 3.0))
    assert torch.allclose(found, segmentation_loss(logits, target))


def test_the_truth_is_resized_to_the_logits(draws: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = draws
    large = F.interpolate(target[:, None], scale_factor=3.0, mode="nearest")[:, 0]
    same = class_weighted_loss(logits, target, (0.9, 1.1))
    assert torch.equal(class_weighted_loss(logits, large, (0.9, 1.1)), same)


def test_sixteen_bits_are_computed_in_full_precision() -> None:
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.float16)
    found = class_weighted_loss(logits, torch.zeros(1, 4, 4), (0.9, 1.1))
    assert found.dtype == torch.float32


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"logits must be \(B, 1 or 2, H, W\)"):
        class_weighted_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), (1.0, 1.0))
