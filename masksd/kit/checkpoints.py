"""Checkpoints: folders of safetensors and JSON that are complete and correct, or refused.

==========================  =======================================================================
``model.safetensors``       the host's weights under the host's own keys
``checkpoint.json``         :class:`CheckpointConfig`: how to build and feed the host
``tokenizer/``              the tokenizer's own files
``training.safetensors``    what only resuming needs: mask tokens, optimiser moments (optional)
``manifest.json``           size and SHA-256 of every file above
==========================  =======================================================================

A checkpoint is written beside its place, flushed to the disk and renamed; only then is an older
one deleted. No pickle is ever read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masksd.errors import check_choice, check_fraction, one_line
from masksd.kit.data_config import FITS
from masksd.kit.storage.files import MANIFEST, find_checkpoint, verify_folder, write_folder
from masksd.kit.storage.places import read_unchanged

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from masksd.kit.data.text.tokenizers import Tokenizer

MODEL, CONFIG, TRAINING = "model.safetensors", "checkpoint.json", "training.safetensors"
FORMAT = 2
_TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_settings.json")
_LARGEST_SIDE = 8_192


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How to build and feed the model of a checkpoint."""

    model: str  # name in the registry of models
    model_config: dict[str, Any]  # every field of that model's config
    image_size: int  # side of the squared input, pixels
    max_length: int  # tokens per sentence, start and end included
    mean: tuple[float, float, float]  # of the three channels, where white is 1.0
    std: tuple[float, float, float]  # in the same units
    threshold: float  # probability above which a pixel belongs to the object
    distill: dict[str, Any] | None  # a DistillConfig; None for a host trained without
    step: int  # training steps taken
    data: dict[str, Any]  # a DataConfig, its folders as strings
    version: str  # of masksd that wrote it
    fit: str = "squash"  # how an image becomes a square
    train_split: str = "train"  # of the data that it was trained on
    eval_split: str = "val"  # of the data on which the training was scored

    def __post_init__(self) -> None:
        for name in ("model", "version", "train_split", "eval_split"):
            self._check(name, isinstance(getattr(self, name), str), "a string")
        for name in ("model_config", "data"):
            self._check(name, isinstance(getattr(self, name), dict), "an object")
        for name, least in (("image_size", 1), ("max_length", 3), ("step", 0)):
            value = getattr(self, name)
            self._check(name, type(value) is int and value >= least, f"an integer from {least}")
        self._check("image_size", self.image_size <= _LARGEST_SIDE, f"at most {_LARGEST_SIDE}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, tuple) and all(type(each) in (int, float) for each in value)
            self._check(name, numbers and len(value) == 3, "three numbers")
        self._check("mean", all(abs(each) <= 1e6 for each in self.mean), "finite, within 1e6")
        positive = all(1e-6 <= each <= 1e6 for each in self.std)
        self._check("std", positive, "three finite numbers above 0, from 1e-6 to 1e6")
        check_fraction("threshold", self.threshold)
        check_choice("fit", self.fit, FITS)
        self._check("distill", isinstance(self.distill, dict | None), "an object or null")

    def _check(self, name: str, correct: bool, expected: str) -> None:
        if not correct:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")


class Checkpoint(NamedTuple):
    """A model, on any device, with its tokenizer and all that is needed to feed it."""

    config: CheckpointConfig
    model: nn.Module
    tokenizer: Tokenizer


def save_checkpoint(
    folder: str | Path,
    checkpoint: Checkpoint,
    training: dict[str, Tensor] | None = None,
    retire: Callable[[Path], object] | None = None,
) -> Path:
    """Write a checkpoint of the host itself; an older one is deleted, or handed to ``retire``.

    ``training`` is what only resuming needs; infinity may stand there for "none so far". NaN, and
    an infinite weight, are a ValueError, and nothing is written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = checkpoint.model.state_dict()
    check_finite(state, f"checkpoint {folder} is not written")
    check_finite(training or {}, f"checkpoint {folder} is not written", "state", infinity=True)

    def write(temporary: Path) -> None:
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(checkpoint.config)}, indent=2)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        checkpoint.tokenizer.save(temporary / "tokenizer")
        save_file(cpu_copies(state), temporary / MODEL)
        if training is not None:
            save_file(cpu_copies(training), temporary / TRAINING)

    try:
        return write_folder(folder, write, retire)
    except (OSError, SafetensorError) as error:
        kept = "; the one before it is whole" if Path(folder).exists() else ""
        raise OSError(f"cannot write checkpoint {folder}{kept}: {one_line(error)}") from error


def check_finite(
    tensors: Mapping[str, Tensor], where: str, what: str = "weight", infinity: bool = False
) -> None:
    """Raise a ``ValueError`` that names the first tensor with NaN or, unless allowed, infinity."""
    for name, value in tensors.items():
        wrong = value.isnan() if infinity else ~value.isfinite()
        if wrong.any():
            count = int(wrong.sum())
            kind = f"{'is' if count == 1 else 'are'} NaN{'' if infinity else ' or infinite'}"
            raise ValueError(
                f"{where}: {what} {name!r} is not finite: {count} of {value.numel()} numbers "
                f"{kind}; go back to what was saved before the training diverged"
            )


def cpu_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy to the CPU: safetensors refuses tensors that share memory or are not contiguous."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint and verify every file in it.

    Args:
        folder: that training wrote, as in ``runs/NAME/checkpoint``.
        device: where the model goes.

    Returns:
        A named tuple of ``config`` (a :class:`CheckpointConfig`), ``model`` (the host, in eval
        mode on the device) and ``tokenizer``.

    Raises:
        ValueError: it is missing, incomplete, changed, not finite, or has another format; or it
            contradicts itself. A model of other sizes than its weights is refused before it takes
            memory, unless you registered it.

    Example:
        >>> import tempfile
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> folder = save_checkpoint(f"{tempfile.mkdtemp()}/one", build_model(TrainConfig()))
        >>> load_checkpoint(folder).config.model
        'clip_cris_tiny'
    """
    return read_unchanged(Path(folder), lambda: _load_checkpoint(folder, device))


def _load_checkpoint(folder: str | Path, device: str | torch.device) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from masksd.kit.data.text.tokenizers import load_tokenizer
    from masksd.models import create_model, list_models
    from masksd.models.base import check_describes
    from masksd.models.registry import SHIPPED

    root = verify_folder(folder, (MODEL, CONFIG))
    config = read_config(root)
    listed = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name in _TOKENIZER:
        if name not in listed:  # and so was not verified
            raise ValueError(f"checkpoint {root} has no {name}")

    if config.model not in list_models():
        raise ValueError(
            f"{root / CONFIG} holds a {one_line(config.model)!r}, which is not registered; use "
            "the program that registers it, as in examples/own_model.py"
        )

    def build() -> Any:
        try:
            return create_model(config.model, **config.model_config)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{root / CONFIG} describes no model: {one_line(error)}") from None

    try:
        if config.model in SHIPPED:
            check_describes(build, root / MODEL)
        model = build()
        state = load_file(root / MODEL)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{root / MODEL} does not fit its model: {one_line(error)[:200]}"
        ) from None
    check_finite(state, str(root / MODEL))
    tokenizer = load_tokenizer(root / "tokenizer", config.max_length)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"checkpoint {root} contradicts itself: its tokenizer has {tokenizer.vocab_size} "
            f"tokens, its model {model.config.vocab_size}"
        )
    return Checkpoint(config, model.to(device).eval(), tokenizer)


def read_config(folder: str | Path) -> CheckpointConfig:
    """Read how a checkpoint's model is built and fed; nothing else is read or verified."""
    root = find_checkpoint(folder)
    try:
        fields = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{root / CONFIG} is damaged: it must hold an object")
    found = fields.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"checkpoint {root} has format {found!r}, this masksd reads {FORMAT}")
    known = {field.name: field.default for field in dataclasses.fields(CheckpointConfig)}
    optional = {k: v for k, v in known.items() if v is not dataclasses.MISSING}
    fields = {**optional, **fields}  # which older checkpoints lack
    if set(fields) != set(known):
        wrong = one_line(", ".join(sorted(set(known) ^ set(fields))))
        raise ValueError(f"{root / CONFIG} lacks or adds fields: {wrong}")
    values: dict[str, Any]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return CheckpointConfig(**values)
    except ValueError as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None


def load_training_state(folder: str | Path) -> dict[str, Tensor]:
    """Read and verify what only resuming needs."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    root = verify_folder(folder, (TRAINING,))
    try:
        state: dict[str, Tensor] = load_file(root / TRAINING)
    except SafetensorError as error:
        raise ValueError(f"{root / TRAINING} is damaged: {one_line(error)}") from None
    check_finite(state, str(root / TRAINING), "state", infinity=True)
    return state
