"""Neck and vision-language decoder in the manner of CRIS (CVPR 2022).

CRIS is written for the pyramid of a ResNet; here all levels come from one vision transformer and
share one grid, so nothing is pooled or enlarged before the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from masksd.errors import check_fraction
from masksd.models.text_to_pixel import TextToPixelHead, convolution, normalization


class Fused(NamedTuple):
    """What the neck gives the decoder (``F`` of Eq. 1)."""

    features: Tensor  # (B, D, h, w)
    sentence: Tensor  # (B, P), which the text-to-pixel head turns into weights
    spatial_attention: Tensor | None = None  # (B, 1, h, w); relevance "neck" ranks by it


class Neck(nn.Module):
    """Fuse hidden states of several depths with the sentence: ``F = neck(V, w_global)``.

    As in CRIS the deepest level is multiplied by the projected sentence, the shallower ones are
    joined to it one after the other, and all stages are gathered into one map which also gets the
    coordinates of its cells. What differs: all levels share one grid and get a 3x3 convolution
    each; LayerNorm instead of BatchNorm1d normalises the sentence, so that a batch of one can be
    trained on; and one convolution follows the coordinates instead of two.
    """

    def __init__(
        self, *, inputs: Sequence[int], sentence: int, hidden: int, outputs: int, norm: str
    ) -> None:
        super().__init__()
        *shallow, deepest = inputs
        self.sentence = nn.Sequential(nn.Linear(sentence, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.deepest = convolution(deepest, hidden, 3, norm)
        self.modulated = nn.Sequential(normalization(hidden, norm), nn.ReLU())
        widths = [hidden] + [outputs] * len(shallow)  # of the stages, deep to shallow
        self.laterals = nn.ModuleList(
            convolution(width, outputs, 3, norm) for width in reversed(shallow)
        )
        self.merges = nn.ModuleList(
            convolution(width + outputs, outputs, 1, norm) for width in widths[:-1]
        )
        self.smooth = nn.ModuleList(convolution(width, outputs, 3, norm) for width in widths)
        self.gather = convolution(len(inputs) * outputs, outputs, 1, norm)
        self.coordinates = convolution(outputs + 2, outputs, 3, norm)

    def forward(self, maps: Sequence[Tensor], sentence: Tensor) -> Fused:
        """Fuse ``maps (B, C, h, w)``, shallow to deep, with ``sentence (B, P)``."""
        check_levels(maps, sentence, len(self.smooth))
        gate = self.sentence(sentence)[:, :, None, None]
        stages = [self.modulated(self.deepest(maps[-1]) * gate)]
        for level, lateral, merge in zip(
            reversed(maps[:-1]), self.laterals, self.merges, strict=True
        ):
            stages.append(merge(torch.cat([lateral(level), stages[-1]], dim=1)))
        smooth = [layer(stage) for layer, stage in zip(self.smooth, stages, strict=True)]
        features = self.gather(torch.cat(smooth, dim=1))
        return Fused(self.coordinates(with_coordinates(features)), sentence)


def check_levels(maps: Sequence[Tensor], sentence: Tensor, levels: int) -> None:
    """Raise a ``ValueError`` unless a neck gets its number of maps and one sentence an image."""
    if len(maps) != levels:
        raise ValueError(f"the neck takes {levels} levels, got {len(maps)}")
    if len(maps[-1]) != len(sentence):
        raise ValueError(
            f"each image needs one sentence, got {len(maps[-1])} images and "
            f"{len(sentence)} sentences"
        )


def with_coordinates(features: Tensor) -> Tensor:
    """Append x and y of every cell, each from -1 to 1: ``(B, D, h, w)`` to ``(B, D + 2, h, w)``."""
    batch, _, height, width = features.shape
    x = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    y = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    x = x.expand(batch, 1, height, width)
    y = y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Positions of a grid ``(h * w, D)``: sines and cosines of y, then those of x."""
    y, x = (angles(count, channels // 2, like) for count in (height, width))
    y = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(-1, width, -1)
    x = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1).to(like.dtype)


def angles(count: int, channels: int, like: Tensor) -> Tensor:
    """Angles ``(count, channels / 2)`` of positions, at wavelengths from 2π to 20000π."""
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=like.device)
    frequency = torch.exp(steps * (-math.log(10000.0) / channels))  # 1 ... 1/10000
    return torch.arange(count, dtype=torch.float32, device=like.device)[:, None] * frequency


class Attention(nn.Module):
    """Multi-head attention whose keys may be masked, without NaN where a row has none left."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query (B, Q, D)`` to ``key, value (B, K, D)``; returns ``(B, Q, D)``.

        ``mask`` is bool ``(B, K)``, True for keys that may be seen; a row without any sees all,
        because an average over nothing is NaN.
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, D/heads)

        if mask is not None:
            mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]  # (B, 1, 1, K)
        mixed = F.scaled_dot_product_attention(
            split(self.query(query)),
            split(self.key(key)),
            split(self.value(value)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Pixels attend to pixels, then to words, then pass a feed-forward net (each pre-norm)."""

    def __init__(self, width: int, heads: int, dropout: float, feed_width: int) -> None:
        super().__init__()
        self.norm_pixels = nn.LayerNorm(width)
        self.norm_words = nn.LayerNorm(width)
        self.norm_feed = nn.LayerNorm(width)
        self.pixels = Attention(width, heads, dropout)
        self.words = Attention(width, heads, dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, feed_width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feed_width, width),
        )
        self.dropout = nn.Dropout(dropout)
        self.norm_pixels_out: nn.Module = nn.Identity()
        self.norm_words_out: nn.Module = nn.Identity()

    def forward(
        self, pixels: Tensor, positions: Tensor, keys: Tensor, words: Tensor, valid: Tensor
    ) -> Tensor:
        """Update ``pixels (B, h*w, D)`` at ``positions (h*w, D)`` from ``words (B, L, D)``.

        ``keys (B, L, D)`` are what words are found by; ``valid (B, L)`` may be seen.
        """
        x = self.norm_pixels(pixels)
        x = self.norm_pixels_out(self.pixels(x + positions, x + positions, x))
        pixels = pixels + self.dropout(x)
        x = self.norm_words(pixels)
        x = self.norm_words_out(self.words(x + positions, keys, words, valid))
        pixels = pixels + self.dropout(x)
        return pixels + self.dropout(self.feed(self.norm_feed(pixels)))


class Decoder(nn.Module):
    """Vision-language decoder and text-to-pixel head: ``M = decoder(F, W_local)``."""

    def __init__(
        self,
        *,
        width: int,
        words: int,
        layers: int = 3,
        heads: int = 8,
        head_width: int = 256,
        dropout: float = 0.1,
        norm: str = "batch",
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        check_fraction("dropout", dropout)
        if width % 4 or width % heads:
            raise ValueError(f"width {width} must be a multiple of 4 and of heads {heads}")
        self.words = nn.Linear(words, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, dropout, 4 * width) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = TextToPixelHead(
            inputs=width, hidden=head_width, sentence=words, norm=norm, prior=prior
        )

    def forward(self, fused: Fused, words: Tensor, valid: Tensor) -> Tensor:
        """Turn ``words (B, L, P)``, the ``valid (B, L)`` ones, into logits ``(B, 1, 4h, 4w)``."""
        height, width = fused.features.shape[2:]
        positions = sine_positions(height, width, fused.features.shape[1], fused.features)
        words = self.words(words)
        return decode(self, fused, positions, words, words, valid)


def decode(
    decoder: Any, fused: Fused, positions: Tensor, keys: Tensor, words: Tensor, valid: Tensor
) -> Tensor:
    """Run the layers, the norm and the head of a decoder; see :class:`DecoderLayer`."""
    height, width = fused.features.shape[2:]
    pixels = rearrange(fused.features, "b d h w -> b (h w) d")
    for layer in decoder.layers:
        pixels = layer(pixels, positions, keys, words, valid)
    features = rearrange(decoder.norm(pixels), "b (h w) d -> b d h w", h=height, w=width)
    return decoder.head(features, fused.sentence)
