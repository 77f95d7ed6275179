"""The masking kernels in whole-batch tensor operations.

No host synchronisation and no data-dependent shape: they run in a CUDA graph and compile
full-graph with dynamic batch and length. ``reference.py`` says what they mean.
"""

from __future__ import annotations

import contextlib
import math

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
    """Two stable sorts: all tokens by score, then the leading ones by noise."""
    batch, length = scores.shape
    usable = ~scores.isnan() if valid is None else valid & ~scores.isnan()
    # torch sorts NaN last, so that an unusable token comes after a usable one of score -inf.
    key = torch.where(usable, -scores if selection == "top" else scores, torch.nan)
    order = key.argsort(dim=-1, stable=True)  # (B, N)

    available = usable.sum(-1, keepdim=True)  # (B, 1)
    n = available if count == "words" else torch.full_like(available, length)
    kept = torch.ceil(top_k * n.double() - 1e-9)
    masked = _round(ratio * kept, rounding, noise)

    # No row keeps more than the top K of the full length: the second sort is that much narrower.
    widest = math.ceil(top_k * length - 1e-9)
    leading = order[:, :widest]
    rank = torch.arange(widest, device=scores.device)
    candidate = rank < torch.minimum(kept, available)
    draw = torch.where(candidate, noise.gather(1, leading), torch.inf)
    drawn = draw.argsort(dim=-1, stable=True)
    chosen = rank < torch.minimum(masked, available)
    mask = torch.zeros(batch, length, dtype=torch.bool, device=scores.device)
    return mask.scatter(1, leading.gather(1, drawn), chosen)


def apply_mask(embeddings: Tensor, mask: Tensor, token: Tensor, channel_dim: int) -> Tensor:
    """One ``torch.where``: reads and writes the embeddings once, forward and backward."""
    token = token.to(embeddings.dtype)
    if token.ndim == 1:
        token = token.reshape(-1, *[1] * (embeddings.ndim - 1 - channel_dim % embeddings.ndim))
    else:
        token = token.movedim(-1, channel_dim % embeddings.ndim - 1)
    return torch.where(mask.unsqueeze(channel_dim), token, embeddings)


def _round(share: Tensor, rounding: str, noise: Tensor) -> Tensor:
    """Round the expected number of masked tokens ``α·T``, ``(B, 1)`` float64, to a whole one."""
    if rounding == "floor":
        return torch.floor(share + 1e-9)
    if rounding == "ceil":
        return torch.ceil(share - 1e-9)
    if rounding == "nearest":
        return torch.where(share > 0, torch.floor(share + 0.5 + 1e-9).clamp_min(1.0), 0.0)
    whole = torch.floor(share + 1e-9)
    # The fractional part of the row's sum is uniform and, as the noise is exchangeable, independent
    # of its order, which decides who is masked. Multiples of 2**-24 add up exactly in float64.
    draw = noise.sum(-1, keepdim=True, dtype=torch.float64) % 1.0
    return whole + (draw < share - whole)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    if device_type == "meta":  # which has no autocast to be without
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
