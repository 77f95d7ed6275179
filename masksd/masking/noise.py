"""Uniform noise from a key instead of a random stream.

The numbers depend on (seed, stream, step, position of the sample, token) alone: runs repeat,
resume and pair exactly, torch's random state is never read or moved, and the whole thing is
integer tensor arithmetic, so that it compiles into the caller's graph.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the 32-bit range

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


def keyed_noise(
    batch: int,
    tokens: int,
    *,
    seed: int,
    step: int | Tensor,
    first: int = 0,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return noise uniform in [0, 1) that is a pure function of its key.

    Args:
        batch: samples, ``B``.
        tokens: tokens a sample, ``N``.
        seed: any integer; its low 64 bits are used.
        step: the training step, an integer or a 0-d int64 tensor on ``device`` (reading it costs no
            synchronisation).
        first: global position in the batch of the first sample here (rank times local batch).
        stream: separates draws of one step that must be independent, such as patches and words.
        device: where the noise is made.

    Returns:
        ``(B, N)`` float32, multiples of 2**-24.

    Example:
        >>> a = keyed_noise(4, 9, seed=0, step=7)
        >>> b = keyed_noise(2, 9, seed=0, step=7, first=2)  # the second of two ranks
        >>> torch.equal(a[2:], b)
        True
    """
    key = _mix(_mix(seed & _MASK) ^ (seed >> 32 & _MASK))
    key = _mix(key ^ _mix(stream & _MASK))
    position = torch.arange(batch, device=device, dtype=torch.int64) + first
    token = torch.arange(tokens, device=device, dtype=torch.int64)
    # The step may be a tensor; arange + step puts both cases on one path.
    row = _mix(_mix((position * 0 + step) & _MASK ^ key) ^ (position & _MASK))
    cell = _mix(_mix((row[:, None] + _product(token, _GOLDEN)[None, :]) & _MASK))
    return (cell >> 8).to(torch.float32) * 2.0**-24


def _product(x: IntOrTensor, factor: int) -> IntOrTensor:
    """Multiply modulo 2**32; a factor of 32 bits is taken as signed, so that no int64 overflows."""
    return x * (factor - ((factor & 0x80000000) << 1)) & _MASK


def _mix(x: IntOrTensor) -> IntOrTensor:
    """Scramble 32 bits (the finaliser of MurmurHash3, in the public domain)."""
    x = _product(x ^ (x >> 16), 0x85EBCA6B)
    x = _product(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)
