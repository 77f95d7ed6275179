"""Modes that code runs in for a while: evaluation, a trial that leaves no trace, no autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part back into the mode it was in.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [layer.training for layer in model]
        [False, False]
        >>> [layer.training for layer in model]
        [True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def try_out(module: nn.Module, run: Callable[..., T], example: tuple[Any, ...]) -> T:
    """Run something of a module in evaluation mode without gradients, keeping the random state.

    Args:
        module: whose modes are kept.
        run: what to call.
        example: its arguments.

    Example:
        >>> dropout = nn.Dropout()
        >>> try_out(dropout, dropout, (torch.ones(2),)).tolist()
        [1.0, 1.0]
    """
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), evaluating(module), torch.no_grad():
        return run(*example)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off for operations on a device.

    Example:
        >>> with torch.autocast("cpu"), without_autocast(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    if device.type == "meta":  # which has no autocast to be without
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
