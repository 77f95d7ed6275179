"""CLIP towers, CRIS neck and decoder: the referring image segmentation model that we ship."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import CLIPVisionConfig

from masksd.errors import check_choice, check_fraction
from masksd.models.base import CrisModel, ModelConfig
from masksd.models.clip import ClipEncoder
from masksd.models.clip_text import text_config
from masksd.models.cris import Decoder, Neck
from masksd.models.text_to_pixel import NORMS


@dataclass(frozen=True)
class ClipCrisConfig(ModelConfig):
    """All sizes and options of :class:`ClipCris`; the defaults are those of ``clip_cris_vit_b16``.

    Attributes:
        image_size: side in pixels that the model is meant for and stores patch positions at, a
            multiple of ``patch_size``; for other sizes positions are interpolated.
        patch_size: side of a patch in pixels; logits are at ``4 / patch_size`` of the input.
        vision_width: width of the image tower, a multiple of ``vision_heads``.
        vision_layers: its layers.
        vision_heads: its attention heads.
        levels: how many of its maps go to the neck, from evenly spaced layers; the last is its
            output in the shared space.
        vocab_size: token ids are 0 ... vocab_size - 1.
        end_token: id that ends a sentence; -1 means the largest id, as in CLIP.
        max_length: longest sentence in tokens, including start and end.
        text_width: width of the text tower, a multiple of ``text_heads``.
        text_layers: its layers.
        text_heads: its attention heads.
        projection: width P of the space that images and sentences share.
        activation: of both towers, ``"quick_gelu"`` in CLIP or ``"gelu"``.
        attention: of both towers, ``"sdpa"`` or ``"eager"``.
        neck_width: channels of the neck's deepest stage.
        width: channels D of fused features and decoder, a multiple of 4 and of ``decoder_heads``.
        decoder_layers: layers of the vision-language decoder.
        decoder_heads: its attention heads.
        head_width: channels of the text-to-pixel head.
        dropout: of the decoder, in [0, 1].
        norm: of neck and head, ``"batch"`` or ``"group"`` (no batch statistics).
        prior: share of foreground that an untrained model predicts, in (0, 1).

    Raises:
        ValueError: a field is out of range or does not fit another.

    Example:
        >>> ClipCrisConfig(vocab_size=100).end_token
        99
    """

    image_size: int = 480
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    levels: int = 3
    vocab_size: int = 49408
    end_token: int = -1
    max_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    projection: int = 512
    activation: str = "quick_gelu"
    attention: str = "sdpa"
    neck_width: int = 1024
    width: int = 512
    decoder_layers: int = 3
    decoder_heads: int = 8
    head_width: int = 256
    dropout: float = 0.1
    norm: str = "batch"
    prior: float = 0.1

    def __post_init__(self) -> None:
        self.check_integers()
        check_choice("activation", self.activation, ("quick_gelu", "gelu"))
        check_choice("attention", self.attention, ("sdpa", "eager"))
        check_choice("norm", self.norm, NORMS)
        check_fraction("dropout", self.dropout)
        check_fraction("prior", self.prior)
        for size, unit in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("width", "decoder_heads"),
        ):
            self.check_multiple(size, unit)
        self.resolve_end_token(self.vocab_size, self.end_token)

    @property
    def level_widths(self) -> list[int]:
        """Channels of the maps that go to the neck, shallow to deep."""
        return [self.vision_width] * (self.levels - 1) + [self.projection]


class ClipCris(CrisModel):
    """Segment the object that a sentence describes.

    ``logits = decoder(neck(image.maps, text.pooled), text.local, text.attention_mask)`` with
    ``image = encoder.encode_image(images)`` and ``text = encoder.encode_text(tokens)``: Eq. 1 of
    CM-MaskSD, so :class:`masksd.CrossModalMaskedSelfDistill` takes the three parts.

    ``encoder`` is a :class:`masksd.models.clip.ClipEncoder`, ``neck`` and ``decoder`` are those of
    :mod:`masksd.models.cris`.

    Example:
        >>> import torch
        >>> from masksd.models import create_model
        >>> model = create_model("clip_cris_tiny", vocab_size=50).eval()
        >>> tokens = torch.tensor([[48, 7, 12, 49, 0]])  # start, two words, end, padding
        >>> model(torch.zeros(1, 3, 64, 64), tokens).shape
        torch.Size([1, 1, 32, 32])
    """

    config_class = ClipCrisConfig

    def __init__(self, config: ClipCrisConfig) -> None:
        super().__init__()
        self.config = config
        vision = CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.vision_width,
            intermediate_size=4 * config.vision_width,
            num_hidden_layers=config.vision_layers,
            num_attention_heads=config.vision_heads,
            hidden_act=config.activation,
            attn_implementation=config.attention,
        )
        text = text_config(config, config.activation, config.attention)
        self.encoder = ClipEncoder(
            vision,
            text,
            projection=config.projection,
            end_token=config.end_token,
            levels=config.levels,
        )
        self.neck = self.build_neck(config)
        self.decoder = Decoder(
            width=config.width,
            words=config.projection,
            layers=config.decoder_layers,
            heads=config.decoder_heads,
            head_width=config.head_width,
            dropout=config.dropout,
            norm=config.norm,
            prior=config.prior,
        )

    @staticmethod
    def build_neck(config: ClipCrisConfig) -> nn.Module:
        """Build the neck for a config's sizes; a model with another neck overrides this."""
        return Neck(
            inputs=config.level_widths,
            sentence=config.projection,
            hidden=config.neck_width,
            outputs=config.width,
            norm=config.norm,
        )
