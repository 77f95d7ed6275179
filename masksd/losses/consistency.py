"""The self-distillation losses ``Loss_LMVSD`` and ``Loss_VMLSD`` of Eq. 9."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from masksd.losses.shapes import check_logits, foreground, in_full_precision


def consistency_loss(logits: Tensor, main_logits: Tensor, detach_target: bool = True) -> Tensor:
    """Binary cross-entropy of a masked branch against the main branch's probabilities (Eq. 9).

    Args:
        logits: the masked branch, ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of
            background and foreground before the softmax.
        main_logits: the main branch, the same shape; its probabilities are the target. For two
            channels this is the cross-entropy of one softmax against the other.
        detach_target: keep the gradient out of the main branch. The paper does not say.

    Returns:
        0-d loss, a mean over pixels, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> import torch
        >>> same = torch.zeros(1, 1, 2, 2)
        >>> round(consistency_loss(same, same).item(), 4)  # the entropy of a fair coin
        0.6931
    """
    check_logits("logits", logits)
    if logits.shape != main_logits.shape:
        raise ValueError(
            f"main_logits must be {tuple(logits.shape)} as logits are, "
            f"got {tuple(main_logits.shape)}"
        )
    target = foreground(in_full_precision(main_logits)).sigmoid()
    if detach_target:
        target = target.detach()
    return F.binary_cross_entropy_with_logits(foreground(in_full_precision(logits)), target)
