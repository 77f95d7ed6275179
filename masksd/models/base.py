"""What our models have in common: a config that is JSON, three parts, and how they are loaded."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from masksd.errors import unknown_name
from masksd.segmenter import ImageFeatures


class ModelConfig:
    """What configs of models have in common; each is a frozen dataclass."""

    vocab_size: int
    end_token: int

    def check_integers(self) -> None:
        """Raise a ``ValueError`` unless fields of whole numbers are positive ones."""
        for name in (field.name for field in fields(self) if field.type == "int"):  # type: ignore[arg-type]
            value, least = getattr(self, name), -1 if name == "end_token" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")

    def settle_end_token(self) -> None:
        """Put the largest id for an ``end_token`` of -1; a ``ValueError`` if it is no id."""
        if self.end_token >= self.vocab_size:
            raise ValueError(
                f"end_token {self.end_token} must be below vocab_size {self.vocab_size}; -1 stands "
                "for the largest id"
            )
        if self.end_token == -1:
            object.__setattr__(self, "end_token", self.vocab_size - 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from a dictionary such as ``config.json`` holds.

        Raises:
            ValueError: a name that is no field ("did you mean ..."), or a wrong value.

        Example:
            >>> from masksd.models import ClipCrisConfig
            >>> ClipCrisConfig.from_dict({"dropout": 0.2}).dropout
            0.2
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                raise unknown_name("model option", name, known)
        return cls(**values)


class CrisModel(nn.Module, PyTorchModelHubMixin, library_name="masksd"):  # type: ignore[call-arg]
    """An encoder, a neck and a decoder, built from one config.

    Attributes:
        config_class: the class of its config.
        takes_attention_mask: whether ``forward`` takes an attention mask behind the tokens.
        config: what it was built from.
        encoder: see :class:`masksd.segmenter.Encoder`.
        neck: ``neck(image.maps, text.pooled) -> fused``.
        decoder: ``decoder(fused, text.local, text.attention_mask) -> logits``.
    """

    config_class: ClassVar[type[ModelConfig]]
    takes_attention_mask: ClassVar[bool] = False
    config: Any
    encoder: Any
    neck: nn.Module
    decoder: nn.Module

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Predict.

        Args:
            images: ``(B, 3, H, W)``, floating, normalised by CLIP's mean and standard deviation;
                H and W multiples of the patch size, or of 32 for a ResNet.
            tokens: ``(B, L)`` int64; start token, words, ``config.end_token``, any padding.

        Returns:
            Logits ``(B, 1, h, w)``, h and w a quarter of the picture for patches of 16 and for a
            ResNet; positive is foreground.

        Raises:
            ValueError: wrong dtype, shape or size.
        """
        return self.segment(self.encoder.encode_image(images), tokens)

    def segment(self, image: ImageFeatures, tokens: Tensor) -> Tensor:
        """Predict on pictures that are encoded already, as :meth:`forward` does after encoding.

        Args:
            image: what ``encoder.encode_image(images)`` returned.
            tokens: as in :meth:`forward`.

        Returns:
            As :meth:`forward`, bit for bit.
        """
        text = self.encoder.encode_text(tokens)
        logits: Tensor = self.decoder(
            self.neck(image.maps, text.pooled), text.local, text.attention_mask
        )
        return logits

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the towers' layers in backward; see the encoder's method of this name."""
        self.encoder.gradient_checkpointing_enable(**kwargs)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
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
            >>> from masksd.models import ClipCris, create_model
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
        model = cls(cls.config_class.from_dict(values))
        try:
            load_model(model, weights)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"model.safetensors of {str(source)!r} does not hold the weights that its "
                f"config.json describes: {error}"
            ) from error
        return model.eval()
