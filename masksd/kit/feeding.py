"""From 8-bit pictures and tokens to what a model takes, and from its logits to probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data.transforms import normalize


def model_inputs(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Prepare what ``checkpoint.model`` takes, in the order in which it takes it.

    Args:
        checkpoint: the model with its tokenizer, mean and std.
        images: uint8 ``(B, 3, S, S)`` on the model's device.
        tokens: int64 ``(B, L)`` there.

    Returns:
        Normalised images float32 ``(B, 3, S, S)``, the tokens and, where the model's
        ``takes_attention_mask`` says so, the attention mask int64 ``(B, L)``.

    Example:
        >>> import torch
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> checkpoint = build_model(TrainConfig())
        >>> tokens = checkpoint.tokenizer.encode("the red circle")[None]
        >>> inputs = model_inputs(checkpoint, torch.zeros(1, 3, 96, 96, dtype=torch.uint8), tokens)
        >>> [tuple(each.shape) for each in inputs]
        [(1, 3, 96, 96), (1, 17)]
    """
    config = checkpoint.config
    normalized = normalize(images, config.mean, config.std)
    if checkpoint.model.takes_attention_mask:
        return normalized, tokens, checkpoint.tokenizer.attention_mask(tokens)
    return normalized, tokens


def predict_logits(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> Tensor:
    """Run the model on 8-bit pictures and tokens.

    Of a model with two channels (background and foreground) it is their difference: the sigmoid of
    that is the softmax of the two.

    Args:
        checkpoint: the model with its tokenizer, mean and std.
        images: uint8 ``(B, 3, S, S)`` on the model's device.
        tokens: int64 ``(B, L)`` there.

    Returns:
        Logits ``(B, 1, h, w)``; positive is foreground.
    """
    logits: Tensor = checkpoint.model(*model_inputs(checkpoint, images, tokens))
    return foreground_logits(logits)


def foreground_logits(logits: Tensor) -> Tensor:
    """Turn logits of one or two classes into those of the foreground.

    Args:
        logits: ``(B, 1, h, w)``, or ``(B, 2, h, w)`` of background and foreground.

    Returns:
        ``(B, 1, h, w)``; foreground minus background where there are two.

    Raises:
        ValueError: another number of channels.

    Example:
        >>> import torch
        >>> logits = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> bool(foreground_logits(logits).sigmoid() == logits.softmax(1)[:, 1:])
        True
    """
    if logits.ndim != 4 or logits.shape[1] not in (1, 2):
        raise ValueError(f"logits must be (B, 1 or 2, h, w), got {tuple(logits.shape)}")
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


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
    return resized[0, 0].sigmoid_()  # in place: a picture may have 64 Mi pixels
