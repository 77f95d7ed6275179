"""What all losses ask of logits and truth."""

from __future__ import annotations

import torch
from torch import Tensor


def check_logits(name: str, logits: Tensor) -> None:
    """Raise a ``ValueError`` unless ``logits`` are ``(B, 1, H, W)`` or ``(B, 2, H, W)``.

    Example:
        >>> check_logits("logits", torch.zeros(2, 1, 4, 4))
    """
    if logits.ndim != 4 or logits.shape[1] not in (1, 2):
        raise ValueError(f"{name} must be (B, 1 or 2, H, W), got {tuple(logits.shape)}")


def in_full_precision(logits: Tensor) -> Tensor:
    """Return the logits in at least float32: a mean over 10**5 pixels has no room in 16 bits.

    Example:
        >>> in_full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def foreground(logits: Tensor) -> Tensor:
    """Return the logit of the foreground against the background, ``(B, 1, H, W)``.

    A softmax over two channels is the sigmoid of their difference, the second being foreground.

    Args:
        logits: ``(B, 1, H, W)``, or ``(B, 2, H, W)`` of background and foreground.

    Example:
        >>> foreground(torch.tensor([[[[1.0]], [[3.0]]]])).item()
        2.0
    """
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


def with_channel(target: Tensor, batch: int) -> Tensor:
    """Return the truth as ``(B, 1, h, w)``.

    Args:
        target: ``(B, h, w)`` or ``(B, 1, h, w)``.
        batch: the ``B`` it must have.

    Raises:
        ValueError: a target of another batch or number of dimensions; on a CPU also one above 1,
            such as a mask of 0 and 255 (on a GPU looking would stop the device).

    Example:
        >>> with_channel(torch.zeros(2, 4, 4), batch=2).shape
        torch.Size([2, 1, 4, 4])
    """
    shape = tuple(target.shape)
    if target.ndim == 3:
        target = target[:, None]
    if target.ndim != 4 or target.shape[:2] != (batch, 1):
        raise ValueError(f"target must be (B, h, w) or (B, 1, h, w) with B={batch}, got {shape}")
    if not torch.compiler.is_compiling() and target.device.type == "cpu" and (target > 1).any():
        raise ValueError(
            f"target must be in [0, 1], got values up to {target.max().item()}: divide a mask of 0 "
            "and 255, or compare it with 0"
        )
    return target
