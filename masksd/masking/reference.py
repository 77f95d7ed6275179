"""What the masking kernels mean, as loops to check by eye. Slow, and never called in training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def correlate(local: Tensor, pooled: Tensor, normalize: bool) -> Tensor:
    """Scores ``p_i = w · v_i`` (Eq. 3), one sample and one token at a time."""
    dtype = torch.promote_types(torch.promote_types(local.dtype, pooled.dtype), torch.float32)
    rows = []
    for tokens, vector in zip(local.to(dtype), pooled.to(dtype), strict=True):
        scores = []
        for token in tokens:
            score = (token * vector).sum()
            if normalize:
                score = score / (token.norm().clamp_min(1e-12) * vector.norm().clamp_min(1e-12))
            scores.append(score)
        rows.append(torch.stack(scores) if scores else vector.new_zeros(0))
    return torch.stack(rows) if rows else local.new_zeros(local.shape[:2], dtype=dtype)


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
    """The filter and the draw of Sec. III-B for one row after another."""
    if (scores.isnan() if valid is None else scores.isnan() & valid).any():
        raise ValueError("scores hold NaN; the fused implementation leaves such tokens unmasked")
    batch, length = scores.shape
    mask = torch.zeros(batch, length, dtype=torch.bool, device=scores.device)
    for row in range(batch):
        tokens = [i for i in range(length) if valid is None or valid[row, i]]
        n = len(tokens) if count == "words" else length
        kept = math.ceil(top_k * n - 1e-9)
        share = ratio * kept
        ranks = [float(s) for s in scores[row].float()]
        tokens.sort(key=ranks.__getitem__, reverse=selection == "top")  # Python's sort is stable
        candidates = sorted(tokens[:kept])
        if rounding == "independent":  # each for itself
            for i in candidates:
                mask[row, i] = float(noise[row, i]) < ratio
            continue
        if rounding == "floor":
            masked = math.floor(share + 1e-9)
        elif rounding == "ceil":
            masked = math.ceil(share - 1e-9)
        elif rounding == "nearest":
            masked = max(1, math.floor(share + 0.5 + 1e-9)) if share > 0 else 0
        elif rounding == "floor_or_one":
            masked = max(1, math.floor(share + 1e-9)) if share > 0 else 0
        else:  # stochastic: the fraction is the probability of one more
            whole = math.floor(share + 1e-9)
            draw = sum(float(u) for u in noise[row]) % 1.0
            masked = whole + (draw < share - whole)
        draws = noise[row].float().tolist()
        candidates.sort(key=draws.__getitem__)
        for i in candidates[:masked]:
            mask[row, i] = True
    return mask


def apply_mask(embeddings: Tensor, mask: Tensor, token: Tensor, channel_dim: int) -> Tensor:
    """Replace the masked vectors (Eq. 4, 7), one at a time."""
    vectors = embeddings.movedim(channel_dim, -1)
    channels = vectors.shape[-1]
    tokens = token.to(embeddings.dtype).expand(*vectors.shape[1:-1], channels)
    rows = [
        token if hidden else vector
        for sample, sample_mask in zip(vectors, mask, strict=True)
        for vector, hidden, token in zip(
            sample.reshape(-1, channels),
            sample_mask.flatten(),
            tokens.reshape(-1, channels),
            strict=True,
        )
    ]
    stacked = torch.stack(rows) if rows else vectors.reshape(0, channels)
    return stacked.reshape(vectors.shape).movedim(-1, channel_dim)
