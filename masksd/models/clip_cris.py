"""CLIP towers, CRIS neck and decoder: the referring image segmentation model that we ship."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig

from masksd.errors import check_choice, check_fraction, unknown_name
from masksd.models.clip import ClipEncoder
from masksd.models.cris import Decoder, Neck
from masksd.models.text_to_pixel import NORMS

ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class ClipCrisConfig:
    """All sizes and options of :class:`ClipCris`; the defaults are those of ``clip_cris_vit_b16``.

    Attributes:
        image_size: side in pixels that patch positions are stored at and that the model is meant
            for; other sizes are interpolated. A multiple of ``patch_size``.
        patch_size: side of a patch in pixels; logits are at ``4 / patch_size`` of the input.
        vision_width: width of the image tower, a multiple of ``vision_heads``.
        vision_layers: its layers.
        vision_heads: its attention heads.
        levels: how many maps of it go to the neck, from evenly spaced layers; the last is its
            output in the shared space.
        vocab_size: token ids are 0 ... vocab_size - 1.
        end_token: id that ends a sentence; -1 stands for the largest id, as in CLIP.
        max_length: longest sentence in tokens, start and end included.
        text_width: width of the text tower, a multiple of ``text_heads``.
        text_layers: its layers.
        text_heads: its attention heads.
        projection: width P of the space that pictures and sentences share.
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
        ValueError: a field that is out of range or does not fit another.

    Example:
        >>> ClipCrisConfig(vocab_size=100).end_token
        99
        >>> ClipCrisConfig(norm="bach")
        Traceback (most recent call last):
        ValueError: unknown norm 'bach'; did you mean 'batch'? Known: 'batch', 'group'
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
        for name in (field.name for field in fields(self) if field.type == "int"):
            value, least = getattr(self, name), -1 if name == "end_token" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")
        check_choice("activation", self.activation, ("quick_gelu", "gelu"))
        check_choice("attention", self.attention, ATTENTION)
        check_choice("norm", self.norm, NORMS)
        check_fraction("dropout", self.dropout)
        check_fraction("prior", self.prior)
        for size, unit in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("width", "decoder_heads"),
        ):
            if getattr(self, size) % getattr(self, unit):
                raise ValueError(
                    f"{size} {getattr(self, size)} must be a multiple of {unit} "
                    f"{getattr(self, unit)}"
                )
        if self.end_token >= self.vocab_size:
            raise ValueError(
                f"end_token {self.end_token} must be below vocab_size {self.vocab_size}; -1 stands "
                "for the largest id"
            )
        if self.end_token == -1:
            object.__setattr__(self, "end_token", self.vocab_size - 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipCrisConfig:
        """Build a config from a dictionary such as ``config.json`` holds.

        Raises:
            ValueError: a name that is no field ("did you mean ..."), or a wrong value.

        Example:
            >>> ClipCrisConfig.from_dict({"dropout": 0.2}).dropout
            0.2
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("model option", name, known)
        return cls(**values)


class ClipCris(nn.Module, PyTorchModelHubMixin, library_name="masksd"):  # type: ignore[call-arg]
    """Segment the object that a sentence names.

    ``logits = decoder(neck(image.maps, text.pooled), text.local, text.attention_mask)`` with
    ``image = encoder.encode_image(images)`` and ``text = encoder.encode_text(tokens)``: Eq. 1 of
    CM-MaskSD, so the three parts can be handed to :class:`masksd.CrossModalMaskedSelfDistill`.

    Attributes:
        config: the :class:`ClipCrisConfig` that it was built from.
        encoder: :class:`masksd.models.clip.ClipEncoder`.
        neck: :class:`masksd.models.cris.Neck`.
        decoder: :class:`masksd.models.cris.Decoder`.

    Example:
        >>> import torch
        >>> from masksd.models import create_model
        >>> model = create_model("clip_cris_tiny", vocab_size=50).eval()
        >>> tokens = torch.tensor([[48, 7, 12, 49, 0]])  # start, two words, end, padding
        >>> model(torch.zeros(1, 3, 64, 64), tokens).shape
        torch.Size([1, 1, 32, 32])
    """

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
        text = CLIPTextConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_length,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            hidden_act=config.activation,
            attn_implementation=config.attention,
            bos_token_id=None,
            eos_token_id=config.end_token,
            pad_token_id=None,
        )
        self.encoder = ClipEncoder(
            vision,
            text,
            projection=config.projection,
            end_token=config.end_token,
            levels=config.levels,
        )
        self.neck = Neck(
            inputs=[config.vision_width] * (config.levels - 1) + [config.projection],
            sentence=config.projection,
            hidden=config.neck_width,
            outputs=config.width,
            norm=config.norm,
        )
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

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Predict.

        Args:
            images: ``(B, 3, H, W)``, floating, normalised by CLIP's mean and standard deviation;
                H and W multiples of ``config.patch_size``.
            tokens: ``(B, L)`` int64; start token, words, ``config.end_token``, any padding.

        Returns:
            Logits ``(B, 1, h, w)`` with ``h = 4 * H / patch_size``; positive is foreground.

        Raises:
            ValueError: wrong dtype, shape or size.
        """
        image = self.encoder.encode_image(images)
        text = self.encoder.encode_text(tokens)
        return self.decoder(self.neck(image.maps, text.pooled), text.local, text.attention_mask)

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the towers' layers in backward; see :class:`masksd.models.clip.ClipEncoder`."""
        self.encoder.gradient_checkpointing_enable(**kwargs)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> ClipCris:
        """Load what ``save_pretrained(folder)`` or ``push_to_hub(name)`` wrote.

        Every tensor must fit; pickled weights are never read.

        Args:
            source: a folder, or a name on the Hugging Face Hub.
            **options: for a download, those of ``huggingface_hub.hf_hub_download``: ``revision``,
                ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

        Returns:
            The model in eval mode, on the CPU.

        Raises:
            ValueError: there is no such model, it cannot be downloaded, or its files are of
                something else.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from masksd.models import create_model
            >>> with TemporaryDirectory() as folder:
            ...     _ = create_model("clip_cris_tiny", dropout=0.2).save_pretrained(folder)
            ...     ClipCris.from_pretrained(folder).config.dropout
            0.2
        """

        def get(name: str) -> Path:
            if Path(source).is_dir():
                return Path(source) / name
            return Path(hf_hub_download(str(source), name, **options))

        try:
            values = json.loads(get("config.json").read_text())
            weights = get("model.safetensors")
            weights.stat()
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise ValueError(
                f"no model at {str(source)!r}: neither a folder with config.json and "
                "model.safetensors (as save_pretrained writes them), nor a name in the Hugging "
                f"Face cache, nor to be downloaded; get it with `hf download {source}` where there "
                "is a network"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"config.json of {str(source)!r} is no JSON: {error}") from error
        model = cls(ClipCrisConfig.from_dict(values))
        try:
            load_model(model, weights)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"model.safetensors of {str(source)!r} does not hold the weights that its "
                f"config.json describes: {error}"
            ) from error
        return model.eval()
