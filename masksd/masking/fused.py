"""The masking kernels in whole-batch tensor operations.

No host synchronisation and no data-dependent shape: they run in a CUDA graph and compile
full-graph with dynamic batch and length. ``reference.py`` says what they mean.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def correlate(local: Tensor, pooled: Tensor, normalize: bool) -> Tensor:
    """Scores in at least float32, whatever autocast says: fp16 overflows and reorders them."""
    dtype = torch.promote_types(torch.promote_types(local.dtype, pooled.dtype), torch.float32)
    with _without_autocast(local.device.type):
        local, pooled = local.to(dtype), pooled.to(dtype)
        if normalize:
            local, pooled = F.normalize(local, dim=-1), F.normalize(pooled, dim=-1)
        return torch.einsum("bnc,bc->bn", local, pooled)


def select_tokens(
    scores: Tensor,
    top_k: float,
    ratio: float,
    noise: Tensor,
    valid: Tensor | None,
    selection: str,
    rounding: str,
    count: str,
) -> Tensor:
    """Two thresholds a row: the T-th best score, and the m-th smallest noise of what passes it."""
    usable = ~scores.isnan() if valid is None else valid & ~scores.isnan()
    if valid is None or count == "sequence":
        n: Any = scores.shape[1]
    else:
        n = valid.sum(-1, keepdim=True).double()  # (B, 1)
    kept = -_floor(-top_k * n)
    candidate = _smallest(-scores if selection == "top" else scores, usable, kept)
    return _smallest(noise, candidate, _round(ratio * kept, rounding, noise))


def _smallest(keys: Tensor, usable: Tensor, count: int | Tensor) -> Tensor:
    """Mark the ``count`` smallest usable keys of each row ``(B, N)``; of equal ones, the first.

    A count that is the same for all rows takes a selection, others a sort. Both are much cheaper
    than sorting indices by key, which nothing here needs.
    """
    if isinstance(count, int) and not 0 < count < keys.shape[1]:
        return usable if count else torch.zeros_like(usable)
    keys = torch.where(usable, keys, torch.nan)  # which torch takes for the largest
    if isinstance(count, int):
        last = keys.kthvalue(count, dim=-1, keepdim=True).values
    else:
        place = (count - 1).clamp(0, keys.shape[1] - 1)
        last = keys.sort(dim=-1).values.gather(-1, place)
    smaller = usable & ~(keys >= last)  # all that are usable, where fewer than count are
    equal = usable & (keys == last)
    wanted = count - smaller.sum(-1, keepdim=True)
    return smaller | equal & (equal.cumsum(-1) <= wanted)


def apply_mask(embeddings: Tensor, mask: Tensor, token: Tensor, channel_dim: int) -> Tensor:
    """One ``torch.where``: reads and writes the embeddings once, forward and backward."""
    token = token.to(embeddings.dtype)
    if token.ndim == 1:
        token = token.reshape(-1, *[1] * (embeddings.ndim - 1 - channel_dim % embeddings.ndim))
    else:
        token = token.movedim(-1, channel_dim % embeddings.ndim - 1)
    return torch.where(mask.unsqueeze(channel_dim), token, embeddings)


def _round(share: Any, rounding: str, noise: Tensor) -> Any:
    """Round the expected number of masked tokens ``α·T``, one or ``(B, 1)``, to a whole one."""
    if rounding == "ceil":
        return -_floor(-share)
    if rounding == "nearest":
        half_up = _floor(share + 0.5)
        if isinstance(share, Tensor):
            return torch.where(share > 0, half_up.clamp_min(1), 0)
        return max(1, half_up) if share > 0 else 0
    whole = _floor(share)
    if rounding == "floor":
        return whole
    # The fractional part of the row's sum is uniform and, as the noise is exchangeable, independent
    # of its order, which decides who is masked. Multiples of 2**-24 add up exactly in float64.
    draw = noise.sum(-1, keepdim=True, dtype=torch.float64) % 1.0
    return whole + (draw < share - whole)


def _floor(share: Any) -> Any:
    """Round down, one number or a tensor, but for what float64 has left below a whole one."""
    if isinstance(share, Tensor):
        return torch.floor(share.double() + 1e-9).long()
    return math.floor(share + 1e-9)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    if device_type == "meta":  # which has no autocast to be without
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
