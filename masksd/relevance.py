"""Relevance: scores ``(B, N)`` that rank the tokens, higher first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from masksd.losses import alignment_loss, foreground, in_full_precision, with_channel
from masksd.masking import correlate
from masksd.masking.fused import without_autocast
from masksd.passes.truth import Truth
from masksd.segmenter import Pass, Segmenter
from masksd.tapping.modules import try_out

WordMap = Callable[[int, int], "Tensor | None"]


class Projection(nn.Module):
    """Linear maps of patches and words into a shared space, for hosts that have none.

    They see detached features and are trained by :func:`masksd.losses.alignment_loss` alone, so the
    host never feels them.
    """

    def __init__(self, patches: int, words: int, space: int = 256) -> None:
        super().__init__()
        self.patches = nn.Linear(patches, space)
        self.words = nn.Linear(words, space)

    def forward(self, plain: Pass) -> Pass:
        """Return the pass in the shared space, where the image's vector is its mean patch."""
        local, pooled = plain.image.local, plain.text.pooled
        if local is None or pooled is None:
            raise ValueError("relevance 'projection' needs features of patches and of the sentence")
        dtype = self.patches.weight.dtype
        patches = self.patches(local.detach().to(dtype))
        words = plain.text.local
        if words is not None and words.shape[-1] != pooled.shape[-1]:
            raise ValueError(
                f"relevance 'projection' needs words as wide as the sentence, {pooled.shape[-1]}, "
                f"got {words.shape[-1]}"
            )
        words = None if words is None else self.words(words.detach().to(dtype))
        return plain._replace(
            image=plain.image._replace(local=patches, pooled=patches.mean(1)),
            text=plain.text._replace(local=words, pooled=self.words(pooled.detach().to(dtype))),
        )

    def loss(self, projected: Pass, truth: Truth) -> Tensor:
        """Return the alignment loss of a projected pass, 0-d."""
        local, pooled = projected.image.local, projected.text.pooled
        if local is None or pooled is None:
            raise ValueError("the pass was not projected")
        if truth.target is None:
            raise ValueError("relevance 'projection' needs a target: call sd(..., target=masks)")
        weights = truth.weights(local)
        return alignment_loss(local, pooled, truth.target, projected.image.grid, weights=weights)


def rank_tokens(
    kind: str,
    modality: str,
    plain: Pass,
    target: Tensor | None,
    noise: Callable[[], Tensor],
    word_map: WordMap | None = None,
) -> Tensor:
    """Score every patch or word for the correlation filter (Sec. III-B), at least in float32."""
    if kind == "random":
        return noise()
    if kind == "prediction":
        share = foreground(in_full_precision(plain.logits)).sigmoid()
        return _on_patches(share, plain)
    if kind == "ground_truth":
        if target is None:
            raise ValueError("relevance 'ground_truth' needs a target: call sd(..., target=masks)")
        truth = with_channel(target, batch=plain.logits.shape[0])
        return _on_patches(truth.float(), plain)
    if kind == "attention":
        return word_attention(plain, word_map)
    if kind == "neck":
        return neck_attention(plain)
    return _dot(kind, modality, plain)


def word_attention(plain: Pass, word_map: WordMap | None) -> Tensor:
    """Say of every patch how much of its attention the word it attends to most has, ``(B, N)``.

    The greatest entry of a softmax over the words of ``V · Linear(T)``, as in AMLRIS (arXiv
    2602.22740), for patches ``V (B, N, C)`` and words ``T (B, L, D)``: all positions of a sentence,
    start, end and padding too, as in its code. AMLRIS trains nothing by this, so its ``Linear``
    stays as it was initialised, and so does ours. Where the host's patches and words share a
    space, there is none.
    ``word_map`` takes the widths ``D`` and ``C`` and gives the weights and, last, the bias of the
    map, ``(C, D + 1)``, or None.
    """
    patches, words = plain.image.local, plain.text.local
    if patches is None or words is None:
        raise ValueError(
            "relevance 'attention' needs features of patches and words: name them with "
            "wrap(host, taps=masksd.Taps(patches=..., words=...)). "
            "Possible here: 'prediction', 'random', 'ground_truth'"
        )
    with without_autocast(patches.device):
        patches, words = in_full_precision(patches), in_full_precision(words)
        mapping = None if word_map is None else word_map(words.shape[-1], patches.shape[-1])
        if mapping is not None:
            mapping = mapping.to(words.dtype)
            words = F.linear(words, mapping[:, :-1], mapping[:, -1])
        return (patches @ words.transpose(1, 2)).softmax(-1).amax(-1)


def neck_attention(plain: Pass) -> Tensor:
    """Average over every patch how much the neck attends to each place, ``(B, N)``."""
    attention, batch = plain.neck, plain.logits.shape[0]
    if attention is None or attention.ndim != 4 or attention.shape[:2] != (batch, 1):
        came = "nothing" if attention is None else f"shape {tuple(attention.shape)}"
        raise ValueError(
            "relevance 'neck' needs a neck whose result has spatial_attention (B, 1, h, w), as "
            f"masksd.models.lda.LdaNeck's has, got {came}; a segmenter of your own returns "
            "masksd.Pass(..., neck=...). Possible here: 'prediction', 'random', 'ground_truth'"
        )
    return _on_patches(in_full_precision(attention), plain)


def _on_patches(places: Tensor, plain: Pass) -> Tensor:
    """Average maps ``(B, 1, h, w)`` over every patch, ``(B, N)``."""
    return F.adaptive_avg_pool2d(places, plain.image.grid).flatten(1)


def on_grid(plain: Pass, grid: tuple[int, int]) -> Pass:
    """Return the pass with patches on another grid; the features of a cell are the mean there."""
    local = plain.image.local
    if grid == plain.image.grid:
        return plain
    if local is not None:
        maps = local.transpose(1, 2).unflatten(2, plain.image.grid)
        local = F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)
    return plain._replace(image=plain.image._replace(local=local, grid=grid))


def _dot(kind: str, modality: str, plain: Pass) -> Tensor:
    """``p_i = w_global · v_i`` (Eq. 3) or ``q_i = v_global · w_i`` (Eq. 6)."""
    image = modality == "image"
    local = plain.image.local if image else plain.text.local
    pooled = plain.text.pooled if image else plain.image.pooled
    if local is None or pooled is None or pooled.shape[-1] != local.shape[-1]:
        came = ["nothing" if x is None else f"width {x.shape[-1]}" for x in (local, pooled)]
        possible = "'prediction', 'random', 'ground_truth'" if image else "'random'"
        raise ValueError(
            f"relevance {kind!r} of {modality} needs its tokens and a pooled vector of "
            f"{'text' if image else 'image'} in one space; got {came[0]} and {came[1]}. "
            f"Possible here: {possible}; a host by taps may name where they are in "
            "Taps(patches=, image_vector=, words=, sentence=)"
        )
    return correlate(local, pooled)


def projection_for(segmenter: Segmenter, example: tuple[Any, ...] | None) -> Projection:
    """Build the learned relevance for the widths of an example; take the hooks off on failure."""
    with contextlib.ExitStack() as stack:
        stack.callback(segmenter.release)  # unless all goes well
        if example is None:
            raise ValueError("relevance 'projection' needs example=(…), to see the widths")
        plain = try_out(segmenter, segmenter.plain, example)
        if plain.image.local is None or plain.text.pooled is None:
            raise ValueError(
                "relevance 'projection' needs features of patches and of the sentence: name them "
                "with Taps(patches=…, sentence=…)"
            )
        stack.pop_all()
    return Projection(plain.image.local.shape[-1], plain.text.pooled.shape[-1])
