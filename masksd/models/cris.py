"""Neck and vision-language decoder in the manner of CRIS (CVPR 2022).

CRIS is written for the pyramid of a ResNet; here all levels come from one vision transformer and
share one grid, so nothing is pooled or enlarged before the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from masksd.errors import check_fraction
from masksd.models.text_to_pixel import TextToPixelHead, convolution, normalization


class Fused(NamedTuple):
    """What the neck hands to the decoder (``F`` of Eq. 1).

    Attributes:
        features: fused features, ``(B, D, h, w)``.
        sentence: the sentence vector, ``(B, P)``, which the text-to-pixel head turns into weights.
    """

    features: Tensor
    sentence: Tensor


class Neck(nn.Module):
    """Fuse hidden states of several depths with the sentence: ``F = neck(V, w_global)``.

    As in CRIS the deepest level is multiplied by the projected sentence, the shallower ones are
    joined to it one after the other, and all stages are gathered into one map which also gets the
    coordinates of its cells. What differs: all levels share one grid and meet a 3x3 convolution
    each; the sentence is normalised by LayerNorm instead of BatchNorm1d, so that a batch of one can
    be trained on; and one convolution follows the coordinates instead of two.

    Args:
        inputs: channels of each level, shallow to deep.
        sentence: width P of the sentence vector.
        hidden: channels of the deepest stage, where the sentence comes in.
        outputs: channels D of the result.
        norm: ``"batch"`` or ``"group"``.

    Raises:
        ValueError: unknown ``norm``.

    Example:
        >>> neck = Neck(inputs=(8, 6), sentence=6, hidden=16, outputs=12, norm="group")
        >>> maps = torch.zeros(1, 8, 3, 4), torch.zeros(1, 6, 3, 4)
        >>> neck(maps, torch.zeros(1, 6)).features.shape
        torch.Size([1, 12, 3, 4])
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
        """Fuse.

        Args:
            maps: one ``(B, C, h, w)`` a level, shallow to deep, C that of the level.
            sentence: ``(B, P)``.

        Returns:
            ``features (B, D, h, w)`` and the sentence as it came.

        Raises:
            ValueError: another number of levels than the neck was built for, or as many sentences
                as there are not pictures.
        """
        if len(maps) != len(self.smooth):
            raise ValueError(f"the neck takes {len(self.smooth)} levels, got {len(maps)}")
        if len(maps[-1]) != len(sentence):
            raise ValueError(
                f"one sentence a picture is needed, got {len(maps[-1])} pictures and "
                f"{len(sentence)} sentences"
            )
        gate = self.sentence(sentence)[:, :, None, None]
        stages = [self.modulated(self.deepest(maps[-1]) * gate)]
        for level, lateral, merge in zip(
            reversed(maps[:-1]), self.laterals, self.merges, strict=True
        ):
            stages.append(merge(torch.cat([lateral(level), stages[-1]], dim=1)))
        smooth = [layer(stage) for layer, stage in zip(self.smooth, stages, strict=True)]
        features = self.gather(torch.cat(smooth, dim=1))
        return Fused(self.coordinates(with_coordinates(features)), sentence)


def with_coordinates(features: Tensor) -> Tensor:
    """Append x and y of every cell, each from -1 to 1: ``(B, D, h, w)`` to ``(B, D + 2, h, w)``.

    Example:
        >>> with_coordinates(torch.zeros(1, 1, 2, 3))[0, 1, 0].tolist()
        [-1.0, 0.0, 1.0]
    """
    batch, _, height, width = features.shape
    x = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    y = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    x = x.expand(batch, 1, height, width)
    y = y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], dim=1)


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sine and cosine positions of a grid, half of the channels for y and half for x.

    Args:
        height: rows.
        width: columns.
        channels: D, a multiple of 4.
        like: tensor whose dtype and device the result takes.

    Returns:
        ``(height * width, D)``, row-major, values in [-1, 1].

    Example:
        >>> sine_positions(2, 3, 8, torch.zeros(1)).shape
        torch.Size([6, 8])
    """
    quarter = channels // 4
    steps = torch.arange(quarter, dtype=torch.float32, device=like.device)
    frequency = torch.exp(steps * (-math.log(10000.0) / quarter))  # 1 ... 1/10000

    def waves(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float32, device=like.device)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (count, D / 2)

    y = waves(height)[:, None].expand(-1, width, -1)
    x = waves(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1).to(like.dtype)


class Attention(nn.Module):
    """Multi-head attention whose keys may be masked, without NaN where a row has none left.

    Args:
        width: D, a multiple of ``heads``.
        heads: how many heads.
        dropout: share of attention weights dropped in training.

    Example:
        >>> attend = Attention(8, 2, dropout=0.0)
        >>> q, k = torch.zeros(1, 5, 8), torch.zeros(1, 3, 8)
        >>> attend(q, k, k, torch.tensor([[True, True, False]])).shape
        torch.Size([1, 5, 8])
    """

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

        ``mask`` is bool ``(B, K)``, True for keys that may be seen; a row without any sees all, as
        an average of nothing is NaN.
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
    """Pixels attend to pixels, then to words, then pass a feed-forward net (each pre-norm).

    Args:
        width: D.
        heads: attention heads.
        dropout: in [0, 1], on attention weights, inside the feed-forward net and on each residual.

    Example:
        >>> layer = DecoderLayer(8, 2, dropout=0.1)
        >>> pixels, words = torch.zeros(1, 6, 8), torch.zeros(1, 3, 8)
        >>> layer(pixels, torch.zeros(6, 8), words, torch.ones(1, 3, dtype=torch.bool)).shape
        torch.Size([1, 6, 8])
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_pixels = nn.LayerNorm(width)
        self.norm_words = nn.LayerNorm(width)
        self.norm_feed = nn.LayerNorm(width)
        self.pixels = Attention(width, heads, dropout)
        self.words = Attention(width, heads, dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, positions: Tensor, words: Tensor, valid: Tensor) -> Tensor:
        """Update ``pixels (B, h*w, D)`` from positions ``(h*w, D)`` and words ``(B, L, D)``."""
        x = self.norm_pixels(pixels)
        pixels = pixels + self.dropout(self.pixels(x + positions, x + positions, x))
        x = self.norm_words(pixels)
        pixels = pixels + self.dropout(self.words(x + positions, words, words, valid))
        return pixels + self.dropout(self.feed(self.norm_feed(pixels)))


class Decoder(nn.Module):
    """Vision-language decoder and text-to-pixel head: ``M = decoder(F, W_local)``.

    Args:
        width: channels D of the fused features, a multiple of 4 and of ``heads``.
        words: width P of words and sentence.
        layers: how many :class:`DecoderLayer`; CRIS has 3.
        heads: attention heads.
        head_width: channels of the text-to-pixel head at its full size.
        dropout: in [0, 1]; CRIS has 0.1.
        norm: ``"batch"`` or ``"group"``, in the head.
        prior: share of foreground that an untrained decoder predicts, in (0, 1).

    Raises:
        ValueError: a size or option that is impossible.

    Example:
        >>> decoder = Decoder(width=8, words=6, layers=1, heads=2, head_width=4)
        >>> fused = Fused(torch.zeros(2, 8, 3, 5), torch.zeros(2, 6))
        >>> decoder(fused, torch.zeros(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)).shape
        torch.Size([2, 1, 12, 20])
    """

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
        self.layers = nn.ModuleList(DecoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = TextToPixelHead(
            inputs=width, hidden=head_width, sentence=words, norm=norm, prior=prior
        )

    def forward(self, fused: Fused, words: Tensor, valid: Tensor) -> Tensor:
        """Decode.

        Args:
            fused: what the neck returned: ``features (B, D, h, w)`` and ``sentence (B, P)``.
            words: ``(B, L, P)``.
            valid: bool ``(B, L)``, True for words that pixels may attend to; a row without any is
                treated as if all were.

        Returns:
            Logits ``(B, 1, 4h, 4w)``.
        """
        height, width = fused.features.shape[2:]
        pixels = rearrange(fused.features, "b d h w -> b (h w) d")
        positions = sine_positions(height, width, pixels.shape[2], pixels)
        words = self.words(words)
        for layer in self.layers:
            pixels = layer(pixels, positions, words, valid)
        features = rearrange(self.norm(pixels), "b (h w) d -> b d h w", h=height, w=width)
        return self.head(features, fused.sentence)
