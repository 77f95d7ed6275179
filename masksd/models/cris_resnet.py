"""CRIS (CVPR 2022) for CLIP's ResNets: neck, vision-language decoder and the whole model.

Beside :mod:`masksd.models.cris`, which is for transformers, everything here computes what the
published weights of CRIS were trained for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from masksd.errors import check_fraction
from masksd.models.base import CrisModel, ModelConfig
from masksd.models.clip_resnet import STRIDE, ClipResNetEncoder
from masksd.models.clip_text import text_config
from masksd.models.cris import Attention, Fused, with_coordinates
from masksd.models.text_to_pixel import TextToPixelHead, convolution


@dataclass(frozen=True)
class ResNetCrisConfig(ModelConfig):
    """All sizes and options of :class:`ResNetCris`; the defaults are those of ``clip_cris_rn50``.

    Attributes:
        image_size: side in pixels that the model is meant for, a multiple of 32; it takes others.
        stem: width of the ResNet's stem.
        blocks: blocks of its four stages.
        pool_side: rows and columns that positions of the attention pool are stored at.
        vocab_size: token ids are 0 ... vocab_size - 1.
        end_token: id that ends a sentence; -1 stands for the largest id, as in CLIP.
        max_length: longest sentence in tokens, start and end included.
        text_width: width of the text tower and D of the decoder, a multiple of ``text_heads``, of
            ``decoder_heads`` and of 4.
        text_layers: its layers.
        text_heads: its attention heads.
        projection: width P of the sentence and of the deepest map.
        neck_widths: channels of the neck, shallow to deep; the middle one is ``text_width``.
        decoder_layers: layers of the vision-language decoder.
        decoder_heads: its attention heads.
        feed_width: inner width of its feed-forward nets.
        head_width: channels of the text-to-pixel head.
        dropout: of the decoder, in [0, 1].
        prior: share of foreground that an untrained model predicts, in (0, 1).

    Raises:
        ValueError: a field that is out of range or does not fit another.

    Example:
        >>> ResNetCrisConfig(blocks=[3, 4, 23, 3], projection=512).blocks
        (3, 4, 23, 3)
    """

    image_size: int = 416
    stem: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    pool_side: int = 7
    vocab_size: int = 49408
    end_token: int = -1
    max_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    projection: int = 1024
    neck_widths: tuple[int, ...] = (256, 512, 1024)
    decoder_layers: int = 3
    decoder_heads: int = 8
    feed_width: int = 2048
    head_width: int = 256
    dropout: float = 0.1
    prior: float = 0.1

    def __post_init__(self) -> None:
        for name, length in (("blocks", 4), ("neck_widths", 3)):
            values = getattr(self, name)
            if (
                not isinstance(values, Sequence)
                or len(values) != length
                or not all(isinstance(value, int) and value > 0 for value in values)
            ):
                raise ValueError(f"{name} must be {length} positive whole numbers, got {values!r}")
            object.__setattr__(self, name, tuple(values))  # JSON makes lists of tuples
        self.check_integers()
        check_fraction("dropout", self.dropout)
        check_fraction("prior", self.prior)
        for size, unit in (
            ("image_size", STRIDE),
            ("stem", 2),
            ("text_width", self.text_heads),
            ("text_width", self.decoder_heads),
            ("text_width", 4),
        ):
            if getattr(self, size) % unit:
                raise ValueError(f"{size} {getattr(self, size)} must be a multiple of {unit}")
        if self.neck_widths[1] != self.text_width:
            raise ValueError(
                f"the middle one of neck_widths {self.neck_widths} must be text_width "
                f"{self.text_width}: pixels and words meet in the decoder"
            )
        self.settle_end_token()


class ResNetCris(CrisModel):
    """CRIS with a ResNet of CLIP; what :class:`masksd.models.ClipCris` says holds here.

    Attributes:
        config: the :class:`ResNetCrisConfig` that it was built from.
        encoder: :class:`masksd.models.clip_resnet.ClipResNetEncoder`.
        neck: :class:`PyramidNeck`.
        decoder: :class:`CrisDecoder`.

    Example:
        >>> config = ResNetCrisConfig(
        ...     stem=4, blocks=(1, 1, 1, 1), vocab_size=50, text_width=16, text_layers=1,
        ...     text_heads=2, projection=12, neck_widths=(8, 16, 24), decoder_layers=1,
        ...     decoder_heads=2, feed_width=32, head_width=8)
        >>> model = ResNetCris(config).eval()
        >>> tokens = torch.tensor([[48, 7, 12, 49, 0]])  # start, two words, end, padding
        >>> model(torch.zeros(1, 3, 64, 96), tokens).shape
        torch.Size([1, 1, 16, 24])
    """

    config_class = ResNetCrisConfig

    def __init__(self, config: ResNetCrisConfig) -> None:
        super().__init__()
        self.config = config
        text = text_config(config, "quick_gelu", "sdpa")
        self.encoder = ClipResNetEncoder(
            stem=config.stem,
            blocks=config.blocks,
            pool_side=config.pool_side,
            text=text,
            projection=config.projection,
            end_token=config.end_token,
        )
        self.neck = PyramidNeck(
            inputs=(8 * config.stem, 16 * config.stem, config.projection),
            widths=config.neck_widths,
        )
        self.decoder = CrisDecoder(
            width=config.text_width,
            sentence=config.projection,
            layers=config.decoder_layers,
            heads=config.decoder_heads,
            feed_width=config.feed_width,
            head_width=config.head_width,
            dropout=config.dropout,
            prior=config.prior,
        )

    def load_cris(self, path: str | Path) -> None:
        """Take a checkpoint that CRIS.pytorch wrote, ``best_model.pth`` or ``last_model.pth``.

        Args:
            path: the file; it is read as tensors and plain containers only.

        Raises:
            ValueError: not such a file, or of another size; nothing has been changed then.
        """
        from masksd.models.official import convert_cris, cris_checkpoint, load_converted

        length = self.encoder.text.config.max_position_embeddings
        load_converted(self, convert_cris(cris_checkpoint(path), length), str(path))


class PyramidNeck(nn.Module):
    """Fuse maps of strides 8, 16 and 32 with the sentence, on the middle grid.

    Args:
        inputs: channels of the three maps, shallow to deep; the last is also the sentence's width.
        widths: channels inside, shallow to deep; the middle one is that of the result.

    Example:
        >>> neck = PyramidNeck(inputs=(8, 16, 6), widths=(4, 8, 12)).eval()
        >>> maps = torch.zeros(1, 8, 4, 8), torch.zeros(1, 16, 2, 4), torch.zeros(1, 6, 1, 2)
        >>> neck(maps, torch.zeros(1, 6)).features.shape
        torch.Size([1, 8, 2, 4])
    """

    def __init__(self, *, inputs: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        shallow, middle, deep = widths
        self.sentence = nn.Sequential(
            nn.Linear(inputs[2], deep, bias=False), nn.BatchNorm1d(deep), nn.ReLU()
        )
        self.lateral5 = convolution(inputs[2], deep, 1, "batch")
        self.modulated = nn.Sequential(nn.BatchNorm2d(deep), nn.ReLU())
        self.lateral4 = convolution(inputs[1], middle, 3, "batch")
        self.merge4 = convolution(deep + middle, middle, 1, "batch")
        self.lateral3 = convolution(inputs[0], shallow, 3, "batch")
        self.merge3 = convolution(shallow + middle, middle, 1, "batch")
        self.smooth5 = convolution(deep, middle, 3, "batch")
        self.smooth4 = convolution(middle, middle, 3, "batch")
        self.smooth3 = convolution(middle, middle, 3, "batch")
        self.gather = convolution(3 * middle, middle, 1, "batch")
        self.coordinates = nn.Sequential(
            convolution(middle + 2, middle, 3, "batch"), convolution(middle, middle, 3, "batch")
        )

    def forward(self, maps: Sequence[Tensor], sentence: Tensor) -> Fused:
        """Fuse three ``maps (B, C, h, w)`` with ``sentence (B, P)``.

        Returns:
            ``features (B, D, h, w)`` on the grid of stride 16, and the sentence as it came.
        """
        stride8, stride16, stride32 = maps
        gate = self.sentence(sentence)[:, :, None, None]
        deep = self.modulated(self.lateral5(stride32) * gate)
        middle = self.merge4(torch.cat([self.lateral4(stride16), enlarge(deep)], dim=1))
        shallow = F.avg_pool2d(self.lateral3(stride8), 2)
        shallow = self.merge3(torch.cat([shallow, middle], dim=1))
        stages = [self.smooth3(shallow), self.smooth4(middle), enlarge(self.smooth5(deep))]
        features = self.gather(torch.cat(stages, dim=1))
        return Fused(self.coordinates(with_coordinates(features)), sentence)


class CrisDecoderLayer(nn.Module):
    """Pixels attend to pixels, then to words, then pass a feed-forward net.

    Each step is normalised before, and its result once more before it is added.

    Args:
        width: D.
        heads: attention heads.
        feed_width: inner width of the feed-forward net.
        dropout: in [0, 1].
    """

    def __init__(self, width: int, heads: int, feed_width: int, dropout: float) -> None:
        super().__init__()
        self.norm_pixels = nn.LayerNorm(width)
        self.pixels = Attention(width, heads, dropout)
        self.norm_pixels_out = nn.LayerNorm(width)
        self.norm_words = nn.LayerNorm(width)
        self.words = Attention(width, heads, dropout)
        self.norm_words_out = nn.LayerNorm(width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, feed_width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LayerNorm(feed_width),
            nn.Linear(feed_width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, pixels: Tensor, places: Tensor, words: Tensor, order: Tensor, valid: Tensor
    ) -> Tensor:
        """Update ``pixels (B, h*w, D)``.

        Args:
            pixels: what the layer before gave.
            places: positions ``(h*w, D)``.
            words: ``(B, L, D)``.
            order: positions ``(L, D)`` of the words.
            valid: bool ``(B, L)``, words that may be seen.
        """
        x = self.norm_pixels(pixels)
        x = self.norm_pixels_out(self.pixels(x + places, x + places, x))
        pixels = pixels + self.dropout(x)
        x = self.norm_words(pixels)
        x = self.norm_words_out(self.words(x + places, words + order, words, valid))
        pixels = pixels + self.dropout(x)
        return pixels + self.dropout(self.feed(self.norm_feed(pixels)))


class CrisDecoder(nn.Module):
    """Vision-language decoder and text-to-pixel head: ``M = decoder(F, W_local)``.

    Args:
        width: D of pixels and words.
        sentence: width P of the sentence.
        layers: how many layers.
        heads: attention heads.
        feed_width: inner width of the feed-forward nets.
        head_width: channels of the head.
        dropout: in [0, 1].
        prior: share of foreground that an untrained decoder predicts, in (0, 1).

    Example:
        >>> decoder = CrisDecoder(
        ...     width=8, sentence=6, layers=1, heads=2, feed_width=16, head_width=4, dropout=0.1,
        ...     prior=0.1)
        >>> fused = Fused(torch.zeros(2, 8, 3, 5), torch.zeros(2, 6))
        >>> decoder(fused, torch.zeros(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)).shape
        torch.Size([2, 1, 12, 20])
    """

    def __init__(
        self,
        *,
        width: int,
        sentence: int,
        layers: int,
        heads: int,
        feed_width: int,
        head_width: int,
        dropout: float,
        prior: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CrisDecoderLayer(width, heads, feed_width, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = TextToPixelHead(
            inputs=width, hidden=head_width, sentence=sentence, norm="batch", prior=prior
        )

    def forward(self, fused: Fused, words: Tensor, valid: Tensor) -> Tensor:
        """Decode.

        Args:
            fused: ``features (B, D, h, w)`` and ``sentence (B, P)``.
            words: ``(B, L, D)``.
            valid: bool ``(B, L)``, words that pixels may attend to.

        Returns:
            Logits ``(B, 1, 4h, 4w)``.
        """
        height, width = fused.features.shape[2:]
        pixels = rearrange(fused.features, "b d h w -> b (h w) d")
        channels = pixels.shape[2]
        y = waves(height, channels // 2, pixels)[:, None].expand(-1, width, -1)
        x = waves(width, channels // 2, pixels)[None].expand(height, -1, -1)
        places = torch.cat([x, y], dim=2).flatten(0, 1)
        order = waves(words.shape[1], channels, pixels)
        for layer in self.layers:
            pixels = layer(pixels, places, words, order, valid)
        features = rearrange(self.norm(pixels), "b (h w) d -> b d h w", h=height, w=width)
        return self.head(features, fused.sentence)


def waves(count: int, channels: int, like: Tensor) -> Tensor:
    """Sine and cosine of positions in turn, at wavelengths from 2π to 20000π.

    Args:
        count: positions.
        channels: even.
        like: tensor whose dtype and device the result takes.

    Returns:
        ``(count, channels)``.

    Example:
        >>> waves(1, 4, torch.zeros(1)).tolist()
        [[0.0, 1.0, 0.0, 1.0]]
    """
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=like.device)
    frequency = torch.exp(steps * (-math.log(10000.0) / channels))
    angle = torch.arange(count, dtype=torch.float32, device=like.device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(like.dtype)


def enlarge(x: Tensor) -> Tensor:
    """Double rows and columns of a map ``(B, C, h, w)``, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
