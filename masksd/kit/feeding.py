"""From 8-bit images and tokens to what a model takes, and from its logits to probabilities."""

from __future__ import annotations

from torch import Tensor

from masksd.kit.checkpoints import Checkpoint, CheckpointConfig
from masksd.kit.data.transforms import normalize
from masksd.kit.scores.resampling import resize, unletterbox


def model_inputs(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Turn uint8 images and tokens into what the model takes; for some, also an attention mask."""
    config = checkpoint.config
    normalized = normalize(images, config.mean, config.std)
    if checkpoint.model.takes_attention_mask:
        return normalized, tokens, checkpoint.tokenizer.attention_mask(tokens)
    return normalized, tokens


def predict_logits(checkpoint: Checkpoint, images: Tensor, tokens: Tensor) -> Tensor:
    """Run the model on what :func:`model_inputs` takes; foreground logits ``(B, 1, h, w)``."""
    logits: Tensor = checkpoint.model(*model_inputs(checkpoint, images, tokens))
    return foreground_logits(logits)


def foreground_logits(logits: Tensor) -> Tensor:
    """Turn logits of one channel, or of background and foreground, into ``(B, 1, h, w)``."""
    is_tensor = isinstance(logits, Tensor)
    if not is_tensor or logits.ndim != 4 or logits.shape[1] not in (1, 2):
        came = tuple(logits.shape) if is_tensor else f"a {type(logits).__name__}"
        raise ValueError(f"the model must return logits (B, 1 or 2, h, w), a tensor; got {came}")
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


def probabilities_of(config: CheckpointConfig, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits ``(1, h, w)`` bilinearly to the image's own size; probabilities ``(H, W)``."""
    if config.fit == "letterbox":
        resized = unletterbox(logits, size, config.image_size)
    else:
        resized = resize(logits, size)
    return resized[0].sigmoid_()  # in place: an image may have 64 Mi pixels
