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


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off for operations on a device; the meta device has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def correlate(local: Tensor, pooled: Tensor, normalize: bool) -> Tensor:
    """Scores in at least float32, whatever autocast says: fp16 overflows and reorders them."""
    dtype = torch.promote_types(torch.promote_types(local.dtype, pooled.dtype), torch.float32)
    with without_autocast(local.device):
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
    """Two partial selections, of the T best scores and of the m smallest noises among them.

    Keys are whole numbers that hold value and position, so that none are equal and no order has to
    be stable; where T and m are the same for all rows, nothing is sorted at all.
    """
    batch, length = scores.shape
    usable = ~scores.isnan() if valid is None else valid & ~scores.isnan()
    if valid is None or count == "sequence":
        n: Any = length
    else:
        n = valid.sum(-1, keepdim=True).double()  # (B, 1)
    kept = -_floor(-top_k * n)
    # No row keeps more than the top K of the full length, nor masks more than it keeps.
    widest = -_floor(-top_k * length)
    place = torch.arange(length, device=scores.device)
    keys = _keys(scores if selection == "bottom" else -scores, place, usable)
    leading, keys = _smallest(keys, kept, widest)
    mask = torch.zeros(batch, length, dtype=torch.bool, device=scores.device)
    if rounding == "independent":
        below = noise.gather(1, leading).double() < ratio  # as exact as Python compares
        return mask.scatter(1, leading, below & (keys < _LAST))
    masked = _round(ratio * kept, rounding, noise)
    draws = _keys(noise.gather(1, leading), leading, keys < _LAST)
    most = widest if isinstance(masked, Tensor) else min(masked, widest)
    drawn, draws = _smallest(draws, masked, most)
    return mask.scatter(1, leading.gather(1, drawn), draws < _LAST)


_LAST = 2**63 - 1  # the key of what may not be selected


def _keys(values: Tensor, place: Tensor, usable: Tensor) -> Tensor:
    """Order values ``(B, N)`` as float32, then places: int64 ``(B, N)``, all different."""
    bits = (values.float() + 0.0).view(torch.int32)  # adding 0 makes one zero of two
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down
    return torch.where(usable, (bits.long() << 32) + place, _LAST)


def _smallest(keys: Tensor, count: Any, widest: int) -> tuple[Tensor, Tensor]:
    """Return where the smallest keys of each row are, and these keys, in no order.

    ``count`` is one number, or ``(B, 1)``, at most ``widest``; what a row has beyond its count is
    ``_LAST``.
    """
    same = not isinstance(count, Tensor)
    keys, where = keys.topk(widest, dim=-1, largest=False, sorted=not same)
    if not same:
        rank = torch.arange(widest, device=keys.device)
        keys = torch.where(rank < count, keys, _LAST)
    return where, keys


def apply_mask(embeddings: Tensor, mask: Tensor, token: Tensor, channel_dim: int) -> Tensor:
    """Read and write the embeddings once, forward and backward."""
    last = embeddings.movedim(channel_dim, -1)  # a view: (B, N, C) or (B, h, w, C)
    # A compiler fuses where and its gradient by itself; functorch knows it and not ours.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        masked = torch.where(mask[..., None], token.to(last.dtype), last)
    else:
        masked = _Replace.apply(last, mask, token.to(last.dtype))
    return masked.movedim(-1, channel_dim)


class _Replace(torch.autograd.Function):
    """``where(mask, token, embeddings)``, with a gradient of two passes over memory, not five."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.positions = token.ndim > 1
        return _replaced(embeddings, mask, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (mask,) = ctx.saved_tensors
        embeddings = token = None
        if ctx.needs_input_grad[0]:
            embeddings = _replaced(grad, mask, grad.new_zeros(grad.shape[-1]))
        if ctx.needs_input_grad[2]:
            token = _sum_where(mask, grad, ctx.positions)
        return embeddings, None, token


def _replaced(embeddings: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    if not embeddings.is_cpu:  # indices would have to be read, which stops the device
        return torch.where(mask[..., None], token, embeddings)
    # Copying all and overwriting some takes two thirds of the time of where.
    result = embeddings.clone()
    result[mask] = token if token.ndim == 1 else token.expand_as(embeddings)[mask]
    return result


def _sum_where(mask: Tensor, grad: Tensor, positions: bool) -> Tensor:
    if grad.is_cpu and not positions:
        return grad[mask].sum(0)
    hidden = torch.where(mask[..., None], grad, 0)
    return hidden.sum(0) if positions else hidden.flatten(0, -2).sum(0)


def _round(share: Any, rounding: str, noise: Tensor) -> Any:
    """Round the expected number of masked tokens ``α·T``, one or ``(B, 1)``, to a whole one."""
    if rounding == "ceil":
        return -_floor(-share)
    if rounding in ("nearest", "floor_or_one"):
        some = _floor(share + 0.5 if rounding == "nearest" else share)
        if isinstance(share, Tensor):
            return torch.where(share > 0, some.clamp_min(1.0), 0.0)
        return max(1, some) if share > 0 else 0
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
        return torch.floor(share + 1e-9)  # stays float64: a share of it may be tiny
    return math.floor(share + 1e-9)
