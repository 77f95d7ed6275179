"""CRIS (CVPR 2022) for CLIP's ResNets: neck, vision-language decoder and the whole model.

Unlike :mod:`masksd.models.cris`, which is for transformers, everything here computes what the
published weights of CRIS were trained for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd.errors import check_fraction
from masksd.models.base import CrisModel, ModelConfig, load_weights
from masksd.models.clip_resnet import STRIDE, ClipResNetEncoder
from masksd.models.cris import DecoderLayer, Fused, angles, decode, with_coordinates
from masksd.models.official import cris_weights
from masksd.models.text_to_pixel import TextToPixelHead, convolution


@dataclass(frozen=True)
class ResNetCrisConfig(ModelConfig):
    """All sizes and options of :class:`ResNetCris`; the defaults are those of ``clip_cris_rn50``.

    Attributes:
        image_size: side in pixels that the model is meant for, a multiple of 32; others work too.
        stem: width of the ResNet's stem.
        blocks: blocks of its four stages.
        pool_side: rows and columns of the attention pool's stored positions.
        vocab_size: token ids are 0 ... vocab_size - 1.
        end_token: id that ends a sentence; -1 means the largest id, as in CLIP.
        max_length: longest sentence in tokens, including start and end.
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
        ValueError: a field is out of range or does not fit another.

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
        self.check_length("blocks", 4)
        self.check_length("neck_widths", 3)
        self.check_integers()
        check_fraction("dropout", self.dropout)
        check_fraction("prior", self.prior)
        for size, unit in (
            ("image_size", STRIDE),
            ("stem", 2),
            ("text_width", "text_heads"),
            ("text_width", "decoder_heads"),
            ("text_width", 4),
        ):
            self.check_multiple(size, unit)
        if self.neck_widths[1] != self.text_width:
            raise ValueError(
                f"the second of neck_widths {self.neck_widths} must be text_width "
                f"{self.text_width}: pixels and words meet in the decoder"
            )
        self.resolve_end_token(self.vocab_size, self.end_token)


class ResNetCris(CrisModel):
    """CRIS with a ResNet of CLIP, called like :class:`masksd.models.ClipCris`.

    ``encoder`` is a :class:`masksd.models.clip_resnet.ClipResNetEncoder`, ``neck`` a
    :class:`PyramidNeck` and ``decoder`` a :class:`CrisDecoder`.

    Example:
        >>> config = ResNetCrisConfig(
        ...     stem=4, blocks=(1, 1, 1, 1), vocab_size=50, text_width=16, neck_widths=(8, 16, 24))
        >>> model = ResNetCris(config).eval()
        >>> tokens = torch.tensor([[48, 7, 12, 49, 0]])  # start, two words, end, padding
        >>> model(torch.zeros(1, 3, 64, 96), tokens).shape
        torch.Size([1, 1, 16, 24])
    """

    config_class = ResNetCrisConfig

    def __init__(self, config: ResNetCrisConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ClipResNetEncoder(config)
        self.neck = PyramidNeck(
            inputs=(8 * config.stem, 16 * config.stem, config.projection), widths=config.neck_widths
        )
        self.decoder = CrisDecoder(config)

    def load_cris(self, path: str | Path) -> None:
        """Take the weights of CRIS.pytorch's ``best_model.pth`` or ``last_model.pth``.

        Args:
            path: the file; only tensors and plain containers are read.

        Raises:
            ValueError: it is not such a file, or does not fit; nothing has changed then.
        """
        length = self.encoder.text.config.max_position_embeddings
        load_weights(self, cris_weights(path, length), str(path))


class PyramidNeck(nn.Module):
    """Fuse maps of strides 8, 16 and 32 with the sentence, on the middle grid."""

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
        """Fuse three ``maps (B, C, h, w)`` with ``sentence (B, P)``."""
        stride8, stride16, stride32 = maps
        gate = self.sentence(sentence)[:, :, None, None]
        deep = self.modulated(self.lateral5(stride32) * gate)
        middle = self.merge4(torch.cat([self.lateral4(stride16), enlarge(deep)], dim=1))
        shallow = F.avg_pool2d(self.lateral3(stride8), 2)
        shallow = self.merge3(torch.cat([shallow, middle], dim=1))
        stages = [self.smooth3(shallow), self.smooth4(middle), enlarge(self.smooth5(deep))]
        features = self.gather(torch.cat(stages, dim=1))
        return Fused(self.coordinates(with_coordinates(features)), sentence)


class CrisDecoderLayer(DecoderLayer):
    """A layer that normalises the result of each step, too, before it is added."""

    def __init__(self, width: int, heads: int, dropout: float, feed_width: int) -> None:
        super().__init__(width, heads, dropout, feed_width)
        self.norm_pixels_out = nn.LayerNorm(width)
        self.norm_words_out = nn.LayerNorm(width)
        self.feed.insert(3, nn.LayerNorm(feed_width))


class CrisDecoder(nn.Module):
    """Vision-language decoder and text-to-pixel head: ``M = decoder(F, W_local)``."""

    def __init__(self, config: ResNetCrisConfig) -> None:
        super().__init__()
        width, heads = config.text_width, config.decoder_heads
        self.layers = nn.ModuleList(
            CrisDecoderLayer(width, heads, config.dropout, config.feed_width)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = TextToPixelHead(
            inputs=width,
            hidden=config.head_width,
            sentence=config.projection,
            norm="batch",
            prior=config.prior,
        )

    def forward(self, fused: Fused, words: Tensor, valid: Tensor) -> Tensor:
        """Turn ``words (B, L, D)``, the ``valid (B, L)`` ones, into logits ``(B, 1, 4h, 4w)``."""
        channels, height, width = fused.features.shape[1:]
        y = waves(height, channels // 2, fused.features)[:, None].expand(-1, width, -1)
        x = waves(width, channels // 2, fused.features)[None].expand(height, -1, -1)
        places = torch.cat([x, y], dim=2).flatten(0, 1)
        order = waves(words.shape[1], channels, fused.features)
        return decode(self, fused, places, words + order, words, valid)


def waves(count: int, channels: int, like: Tensor) -> Tensor:
    """Positions ``(count, channels)`` as sines and cosines in turn."""
    angle = angles(count, channels, like)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(like.dtype)


def enlarge(x: Tensor) -> Tensor:
    """Double rows and columns of a map ``(B, C, h, w)``, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
