"""From 8-bit pictures and tokens to what a model takes, and from its logits to probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from masksd.data.transforms import normalize
from masksd.engine.checkpoints import Checkpoint


def predict_logits(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> Tensor:
    """Run the model on 8-bit pictures and tokens.

    Args:
        checkpoint: the model with its mean and std.
        images: uint8 ``(B, 3, S, S)`` on the model's device.
        tokens: int64 ``(B, L)`` there.

    Returns:
        Logits ``(B, 1, h, w)``.
    """
    config = checkpoint.config
    logits: Tensor = checkpoint.model(normalize(images, config.mean, config.std), tokens)
    return logits


def resize_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits bilinearly to a picture's own size, then take the sigmoid.

    Args:
        logits: ``(1, h, w)`` of one sample.
        size: height and width of the picture in pixels.

    Returns:
        float32 ``(H, W)`` in [0, 1].

    Example:
        >>> import torch
        >>> resize_probabilities(torch.zeros(1, 2, 2), (3, 5)).shape
        torch.Size([3, 5])
    """
    resized = F.interpolate(logits.float()[None], size=size, mode="bilinear", align_corners=False)
    return resized[0, 0].sigmoid()
