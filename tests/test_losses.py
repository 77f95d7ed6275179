from __future__ import annotations

import pytest
import torch

from masksd import consistency_loss, segmentation_loss


def entropy(p, y):
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def test_segmentation_loss_is_the_cross_entropy_plus_the_dice_of_each_sample():
    logits = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    truth = (torch.rand(3, 4, 4) > 0.5).double()
    p, y = logits.sigmoid(), truth[:, None]
    torch.testing.assert_close(segmentation_loss(logits, truth), entropy(p, y))
    overlap = (p * y).sum((1, 2, 3))
    dice = (1 - (2 * overlap + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) + 1)).mean()
    torch.testing.assert_close(segmentation_loss(logits, truth, 0.3), entropy(p, y) + 0.3 * dice)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_truth_of_any_dtype_and_size_is_sampled_at_cell_centres(dtype):
    truth = torch.zeros(1, 6, 6, dtype=dtype)
    truth[0, 1, 4] = 1  # the centre of cell (0, 1) of a 2 x 2 grid
    logits = torch.tensor([[[[-40.0, 40.0], [-40.0, -40.0]]]])
    assert segmentation_loss(logits, truth) < 1e-6
    assert segmentation_loss(logits, truth[:, None]) < 1e-6


@pytest.mark.parametrize("detach", [True, False])
def test_consistency_is_the_cross_entropy_against_the_main_mask(detach):
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    main = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = consistency_loss(logits, main, detach)
    torch.testing.assert_close(loss, entropy(logits.sigmoid(), main.sigmoid()))
    loss.backward()
    assert (main.grad is None) == detach


@pytest.mark.parametrize("detach", [True, False])
def test_two_channels_are_compared_by_soft_cross_entropy(detach):
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    main = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = consistency_loss(logits, main, detach)
    expected = -(main.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(expected, (logits, main))
    loss.backward()
    torch.testing.assert_close(logits.grad, wanted[0], rtol=1e-12, atol=1e-16)
    if detach:
        assert main.grad is None
    else:
        torch.testing.assert_close(main.grad, wanted[1], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dice", [0.0, 0.3])
def test_two_channels_are_one_channel_of_the_difference(dice):
    logits = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    truth = torch.rand(3, 4, 4) > 0.5
    difference = logits[:, 1:] - logits[:, :1]
    loss = segmentation_loss(logits, truth, dice)
    torch.testing.assert_close(loss, segmentation_loss(difference, truth, dice), rtol=0, atol=0)
    if not dice:
        by_class = torch.nn.functional.cross_entropy(logits, truth.long())
        torch.testing.assert_close(loss, by_class, rtol=1e-12, atol=0)
    other = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        consistency_loss(logits, other),
        consistency_loss(difference, other[:, 1:] - other[:, :1]),
        rtol=0,
        atol=0,
    )


def test_two_channels_against_one_are_refused():
    with pytest.raises(ValueError, match=r"main_logits must be \(2, 2, 4, 4\)"):
        consistency_loss(torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 4))


def test_losses_are_taken_in_float32_from_half_precision_logits():
    logits = torch.randn(2, 1, 64, 64)
    half = logits.bfloat16()
    assert segmentation_loss(half, torch.zeros(2, 64, 64)).dtype == torch.float32
    expected = consistency_loss(half.float(), half.float())
    assert torch.equal(consistency_loss(half, half), expected)


def test_a_mask_of_0_and_255_is_refused():
    with pytest.raises(ValueError, match=r"target must be in \[0, 1\], got values up to 255"):
        segmentation_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2), 255, dtype=torch.uint8))


def test_errors_name_what_came():
    logits = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"logits must be \(B, 1 or 2, H, W\), got \(2, 3, 4, 4\)"):
        segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"target must be .* with B=2, got \(3, 4, 4\)"):
        segmentation_loss(logits, torch.zeros(3, 4, 4))
    with pytest.raises(
        ValueError, match=r"main_logits must be \(2, 1, 4, 4\) .* got \(2, 1, 8, 8\)"
    ):
        consistency_loss(logits, torch.zeros(2, 1, 8, 8))
