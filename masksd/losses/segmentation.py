"""The segmentation loss ``Loss_seg`` of Eq. 9, with an optional Dice term."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from masksd.losses.shapes import check_logits, foreground, in_full_precision, with_channel


def segmentation_loss(logits: Tensor, target: Tensor, dice_weight: float = 0.0) -> Tensor:
    """Binary cross-entropy of a mask against the truth (Eq. 9), plus a weighted Dice loss.

    The Dice loss of a sample is ``1 - (2 Σ p y + 1) / (Σ p + Σ y + 1)`` (Milletari et al., V-Net,
    with linear sums and one for smoothing); both terms are means over the batch.

    Args:
        logits: ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of background and
            foreground before the softmax; the loss of two channels is their cross-entropy.
        target: truth in [0, 1], bool, integer or floating, ``(B, h, w)`` or ``(B, 1, h, w)`` at any
            size: it is resized to the logits by nearest neighbour.
        dice_weight: weight of the Dice term, 0 or more.

    Returns:
        0-d loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[[9.0, -9.0]]]])
        >>> segmentation_loss(logits, torch.tensor([[[1, 0]]])) < 0.001
        tensor(True)
    """
    check_logits("logits", logits)
    logits = foreground(in_full_precision(logits))
    truth = resize_target(target, logits)
    loss = F.binary_cross_entropy_with_logits(logits, truth)
    if dice_weight:
        probability, truth = logits.sigmoid().flatten(1), truth.flatten(1)
        overlap = 2.0 * (probability * truth).sum(1) + 1.0
        total = probability.sum(1) + truth.sum(1) + 1.0
        loss = loss + dice_weight * (1.0 - overlap / total).mean()
    return loss


def resize_target(target: Tensor, logits: Tensor) -> Tensor:
    """Bring the truth to the logits' size and dtype, by nearest neighbour.

    Args:
        target: ``(B, h, w)`` or ``(B, 1, h, w)``.
        logits: ``(B, 1, H, W)``.

    Returns:
        ``(B, 1, H, W)`` in the logits' dtype.

    Raises:
        ValueError: a target of another batch or number of dimensions.

    Example:
        >>> import torch
        >>> resize_target(torch.eye(4)[None], torch.zeros(1, 1, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """
    target = with_channel(target, logits.shape[0]).to(logits.dtype)
    if target.shape == logits.shape:
        return target
    # "nearest-exact" samples cell centres; "nearest" would shift the truth by half a cell.
    return F.interpolate(target, size=logits.shape[-2:], mode="nearest-exact")
