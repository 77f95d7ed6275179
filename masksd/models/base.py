"""What our models share: a config that is JSON, the three parts of CRIS, and strict loading."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from masksd.errors import one_line, unknown_name
from masksd.models.registry import hub_source
from masksd.segmenter import ImageFeatures

_LARGEST = 2**20  # of a config's whole numbers: lists of such a length are still made at once
_MOST_TABLES = 2**30  # bytes of what a model computes from its sizes and no file holds


class ModelConfig:
    """Base of the models' configs, which are frozen dataclasses."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from a dictionary such as ``config.json`` holds.

        Raises:
            ValueError: an unknown name ("did you mean ..."), or an invalid value.

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

    def check_integers(self) -> None:
        """Raise a ``ValueError`` unless every integer field is in 1 (``end_token``: -1) ... 2²⁰."""
        for field in fields(self):  # type: ignore[arg-type]
            if field.type not in ("int", "tuple[int, ...]"):
                continue
            value, least = getattr(self, field.name), -1 if field.name == "end_token" else 1
            numbers = value if field.type != "int" else (value,)
            kind = "a whole number" if field.type == "int" else "whole numbers"
            if not all(_is_integer(number) and number >= least for number in numbers):
                raise ValueError(f"{field.name} must be {kind} of at least {least}, got {value!r}")
            if max(numbers) > _LARGEST:
                raise ValueError(f"{field.name} must be {kind} of at most {_LARGEST}, got {value}")

    def check_length(self, name: str, length: int) -> None:
        """Raise a ``ValueError`` unless the named field has this length; store it as a tuple."""
        value = getattr(self, name)
        if not isinstance(value, (tuple, list)) or len(value) != length:
            raise ValueError(f"{name} must be {length} whole numbers, got {value!r}")
        object.__setattr__(self, name, tuple(value))  # JSON turns tuples into lists

    def check_multiple(self, name: str, unit: str | int) -> None:
        """Raise a ``ValueError`` unless a field is a multiple of a number or of another field."""
        value, divisor = getattr(self, name), unit if isinstance(unit, int) else getattr(self, unit)
        if value % divisor:
            shown = divisor if isinstance(unit, int) else f"{unit} {divisor}"
            raise ValueError(f"{name} {value} must be a multiple of {shown}")

    def resolve_end_token(self, vocab_size: int, end_token: int) -> None:
        """Store the end token, the largest id for -1; raise a ``ValueError`` if it is not an id."""
        if end_token >= vocab_size:
            raise ValueError(
                f"end_token {end_token} must be below vocab_size {vocab_size}; -1 means the "
                "largest id"
            )
        object.__setattr__(self, "end_token", vocab_size - 1 if end_token == -1 else end_token)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class CrisModel(nn.Module, PyTorchModelHubMixin, library_name="masksd"):  # type: ignore[call-arg]
    """An encoder, a neck and a decoder, built from one config.

    Attributes:
        config_class: the class of ``config``.
        takes_attention_mask: whether ``forward`` takes an attention mask after the tokens.
        config: what the model was built from.
        encoder: the two towers, see :class:`masksd.Triple`.
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
                H and W are multiples of the patch size, or of 32 for a ResNet.
            tokens: ``(B, L)`` int64: start token, words, ``config.end_token``, any padding.

        Returns:
            Logits ``(B, 1, h, w)``; positive is foreground. For patches of 16 pixels and for a
            ResNet, h and w are a quarter of the image's sides.

        Raises:
            ValueError: wrong dtype, shape or size.
        """
        return self.segment(self.encoder.encode_image(images), tokens)

    def segment(self, image: ImageFeatures, tokens: Tensor) -> Tensor:
        """Predict from ``encoder.encode_image(images)``, bit for bit as :meth:`forward` does."""
        text = self.encoder.encode_text(tokens)
        return self.decoder(self.neck(image.maps, text.pooled), text.local, text.attention_mask)

    def load_towers(self, source: str) -> None:
        """Take CLIP's weights for the two towers; neck and decoder stay as they are."""
        self.encoder.load_clip(source)

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the towers' layers in backward instead of keeping their activations.

        Args:
            **kwargs: passed to ``torch.utils.checkpoint``; ``use_reentrant=False`` by default.
        """
        self.encoder.gradient_checkpointing_enable(**kwargs)

    # The mixin's own loader reads pickles, and accepts missing tensors and a missing config.
    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Load what ``save_pretrained(folder)`` or ``push_to_hub(name)`` wrote.

        Every tensor must fit; pickled weights are never read.

        Args:
            source: a folder, or a name on the Hugging Face Hub, also as ``"name@revision"``.
            **options: for a download, those of ``huggingface_hub.hf_hub_download``: ``revision``,
                ``cache_dir``, ``token``, ``local_files_only``, ``force_download``.

        Returns:
            The model in eval mode, on the CPU.

        Raises:
            ValueError: there is no such model, it cannot be downloaded, or its files do not fit.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from masksd.models import ClipCris, create_model
            >>> with TemporaryDirectory() as folder:
            ...     _ = create_model("clip_cris_tiny", dropout=0.2).save_pretrained(folder)
            ...     ClipCris.from_pretrained(folder).config.dropout
            0.2
        """

        repository, revision = hub_source(source)

        def get(name: str) -> Path:
            if Path(source).is_dir():
                return Path(source) / name
            return Path(hf_hub_download(repository, name, **{"revision": revision, **options}))

        try:
            values = json.loads(get("config.json").read_text(encoding="utf-8"))
            weights = get("model.safetensors").resolve(strict=True)
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise ValueError(
                f"no model at {str(source)!r}: it is neither a folder with config.json and "
                "model.safetensors (as save_pretrained writes them) nor a model that could be "
                f"downloaded; run `hf download {repository}` on a machine with a network"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config.json of {str(source)!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config.json of {str(source)!r} must hold an object")
        config = cls.config_class.from_dict(values)
        try:
            check_describes(lambda: cls(config), weights)
            model = cls(config)
            load_model(model, weights)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"model.safetensors of {str(source)!r} does not hold the weights that its "
                f"config.json describes: {error}"
            ) from error
        return model.eval()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; raise a ``ValueError``, and change nothing, where it does not fit."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"{source!r} does not hold the weights of this model: {len(missing)} are missing "
            f"({', '.join(missing[:2]) or 'none'}), {len(extra)} have no place "
            f"({', '.join(extra[:2]) or 'none'}); is it for a model of another size?"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise ValueError(
                f"{source!r} is for a model of another size: {key} is {tuple(state[key].shape)} "
                f"there and {tuple(value.shape)} here; build it with the sizes of the weights"
            )
    module.load_state_dict(state)


class _TooLarge(Exception):
    """Ends the building of a model; nothing that catches errors in configs catches it."""


def check_describes(build: Callable[[], nn.Module], weights: Path) -> None:
    """Raise a ``RuntimeError``, as loading does, unless a model has the tensors of its weights.

    It is built on the meta device, which takes no memory, and no further than to twice as many
    parameters as the file has: a config can ask for a billion layers. (Twice, because parts come
    with layers that a model drops.)
    """
    with safe_open(weights, "pt") as file:
        held = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    thread, count = threading.get_ident(), 0

    def counted(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread  # the hook sees other threads' models as well
        if count > 2 * len(held):
            raise _TooLarge

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            model = build()
    except _TooLarge:
        raise RuntimeError(
            f"its config asks for more than twice the {len(held)} tensors of the file"
        ) from None
    finally:
        hook.remove()
    described = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    differing = sorted(key for key in held | described if held.get(key) != described.get(key))
    if differing:
        key = differing[0]
        raise RuntimeError(
            f"{len(differing)} tensors differ, the first is {one_line(key)}: "
            f"{described.get(key, 'not there')} in its config, {held.get(key, 'not there')} in the "
            "file"
        )
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if tables > _MOST_TABLES:
        raise RuntimeError(
            f"its config asks for tables of {tables} bytes, at most {_MOST_TABLES} are made; its "
            "window, image_size or max_length is too large"
        )
