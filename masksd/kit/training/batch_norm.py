"""BatchNorm needs more than one value a channel in training: said before a run is started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def checking_batch_norm(model: nn.Module, batch_size: int) -> Iterator[None]:
    """Refuse passes that a BatchNorm could not normalise in training, whatever mode it is in.

    Args:
        model: whose layers are watched while the context lasts.
        batch_size: pictures a step on each device, for the error.

    Raises:
        ValueError: a layer gets one value a channel.

    Example:
        >>> import torch
        >>> layer = nn.BatchNorm2d(3).eval()
        >>> with checking_batch_norm(layer, batch_size=1):
        ...     layer(torch.ones(1, 3, 1, 1))
        Traceback (most recent call last):
        ValueError: batch_size 1 leaves BatchNorm layer '' one value a channel, which it cannot ...
    """
    handles = [
        layer.register_forward_pre_hook(partial(_check, name=name, batch_size=batch_size))
        for name, layer in model.named_modules()
        if isinstance(layer, _LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(layer: nn.Module, inputs: tuple[Any, ...], *, name: str, batch_size: int) -> None:
    values = inputs[0]  # (B, C, ...)
    if values.numel() == values.shape[1]:
        raise ValueError(
            f"batch_size {batch_size} leaves BatchNorm layer {name!r} one value a channel, which "
            "it cannot normalise; take a larger batch_size"
        )
