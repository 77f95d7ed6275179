"""Cross-entropy of background and foreground with a weight each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.losses.segmentation import resize_target
from masksd.losses.shapes import check_logits, in_full_precision


def class_weighted_loss(logits: Tensor, target: Tensor, weights: tuple[float, float]) -> Tensor:
    """Mean of the pixels' cross-entropies, weighted by the pixel's true class.

    ``Σ w_c · -log p_c / Σ w_c`` over all pixels of the batch, as torch's ``cross_entropy``. LAVT
    trains with it, weights 0.9 and 1.1.

    Args:
        logits: ``(B, 2, H, W)`` of background and foreground, or ``(B, 1, H, W)`` before the
            sigmoid, which is the same as a background of 0.
        target: truth of 0 and 1, ``(B, h, w)`` or ``(B, 1, h, w)`` at any size: it is resized to
            the logits by nearest neighbour.
        weights: of background and foreground, above 0.

    Returns:
        0-d loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> class_weighted_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), (0.9, 1.1))
        tensor(0.6931)
    """
    check_logits("logits", logits)
    logits = in_full_precision(logits)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    truth = resize_target(target, logits)[:, 0] > 0.5
    return F.cross_entropy(logits, truth.long(), weight=logits.new_tensor(weights))
