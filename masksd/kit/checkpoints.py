"""Checkpoints: a folder of safetensors and JSON that is either complete and right, or refused.

==========================  =======================================================================
``model.safetensors``       the host's weights under the host's own keys
``checkpoint.json``         :class:`CheckpointConfig`: what is needed to build and feed the host
``tokenizer/``              the tokenizer's own files
``training.safetensors``    what only training needs: mask tokens, optimiser moments (optional)
``manifest.json``           size and SHA-256 of every file above
==========================  =======================================================================

A checkpoint is written into a folder beside its place, flushed to the disk, and renamed; an older
one is deleted only then. Nothing in it is a program: no pickle is ever read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from masksd.errors import check_choice, check_fraction
from masksd.kit.data.transforms import FITS
from masksd.kit.files import verify_folder, write_folder

if TYPE_CHECKING:
    from masksd.kit.data.tokenizers import Tokenizer

MODEL, CONFIG, TRAINING = "model.safetensors", "checkpoint.json", "training.safetensors"
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint says beside its weights.

    Attributes:
        model: name in the registry of models.
        model_config: every field of that model's config.
        image_size: side of the squared input, pixels.
        max_length: tokens of a sentence, start and end token included.
        mean: of the three channels, in units of 1 (white is 1.0).
        std: of the three channels, in the same units.
        threshold: probability above which a pixel belongs to the object.
        distill: ``DistillConfig`` as a dict, or None for a host trained without.
        step: training steps done.
        data: ``DataConfig`` of the training as a dict, its folders as strings.
        version: of masksd that wrote it.
        fit: how a picture becomes a square, ``"squash"`` or ``"letterbox"``.

    Raises:
        ValueError: a field of another type or out of range, named.
    """

    model: str
    model_config: dict[str, Any]
    image_size: int
    max_length: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threshold: float
    distill: dict[str, Any] | None
    step: int
    data: dict[str, Any]
    version: str
    fit: str = "squash"

    def __post_init__(self) -> None:
        for name in ("model", "version"):
            _check(self, name, isinstance(getattr(self, name), str), "a string")
        for name in ("model_config", "data"):
            _check(self, name, isinstance(getattr(self, name), dict), "an object")
        for name, least in (("image_size", 1), ("max_length", 3), ("step", 0)):
            value = getattr(self, name)
            _check(self, name, type(value) is int and value >= least, f"an integer from {least}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, tuple) and all(type(each) in (int, float) for each in value)
            _check(self, name, numbers and len(value) == 3, "three numbers")
        check_fraction("threshold", self.threshold)
        check_choice("fit", self.fit, FITS)
        wanted = self.distill is None or isinstance(self.distill, dict)
        _check(self, "distill", wanted, "an object or null")


def _check(config: CheckpointConfig, name: str, right: bool, wanted: str) -> None:
    if not right:
        raise ValueError(f"{name} must be {wanted}, got {getattr(config, name)!r}")


class Checkpoint(NamedTuple):
    """A model with all that is needed to feed it.

    Attributes:
        config: see :class:`CheckpointConfig`.
        model: the host, on any device.
        tokenizer: the tokenizer it is trained with.
    """

    config: CheckpointConfig
    model: nn.Module
    tokenizer: Tokenizer


def save_checkpoint(
    folder: str | Path, checkpoint: Checkpoint, training: dict[str, Tensor] | None = None
) -> Path:
    """Write a checkpoint, whole or not at all; an older one at the same place is replaced.

    Args:
        folder: where it goes.
        checkpoint: the host itself, not the wrapper, with all that is needed to build and feed it.
        training: tensors that only resuming needs, of any shape and dtype.

    Returns:
        ``folder`` as a path.

    Raises:
        OSError: if the disk refuses; then the older checkpoint is still there.
    """
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(checkpoint.config)}, indent=2)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        checkpoint.tokenizer.save(temporary / "tokenizer")
        save_file(_copies(checkpoint.model.state_dict()), temporary / MODEL)
        if training is not None:
            save_file(_copies(training), temporary / TRAINING)

    return write_folder(folder, write)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy to the CPU: safetensors refuses tensors that share memory or are not contiguous."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint and verify every file of it.

    Args:
        folder: as given to :func:`save_checkpoint`.
        device: where the model goes.

    Raises:
        ValueError: if it is missing, incomplete, changed, or of another format.

    Returns:
        The host in eval mode on the device, with its tokenizer and config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from masksd.kit.data.tokenizers import load_tokenizer
    from masksd.models import create_model

    root = verify_folder(folder, (MODEL, CONFIG))
    config = _read_config(root)
    try:
        model = create_model(config.model, **config.model_config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{root / CONFIG} describes no model: {error}") from None
    try:
        model.load_state_dict(load_file(root / MODEL))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{root / MODEL} does not fit its model: {reason}") from None
    tokenizer = load_tokenizer(root / "tokenizer", config.max_length)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"checkpoint {root} contradicts itself: its tokenizer has {tokenizer.vocab_size} "
            f"tokens, its model {model.config.vocab_size}"
        )
    return Checkpoint(config, model.to(device).eval(), tokenizer)


def read_config(folder: str | Path) -> CheckpointConfig:
    """Read what a checkpoint says beside its weights, which are neither read nor verified.

    Args:
        folder: as given to :func:`save_checkpoint`.

    Raises:
        ValueError: if it is damaged or of another format.
        OSError: if there is none.
    """
    return _read_config(Path(folder))


def _read_config(root: Path) -> CheckpointConfig:
    try:
        fields = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{root / CONFIG} is damaged: it holds no object")
    found = fields.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"checkpoint {root} has format {found!r}, this masksd reads {FORMAT}")
    fields.setdefault("fit", "squash")  # before there was a choice
    known = {field.name for field in dataclasses.fields(CheckpointConfig)}
    if set(fields) != known:
        wrong = ", ".join(sorted(known ^ set(fields)))
        raise ValueError(f"{root / CONFIG} lacks or adds fields: {wrong}")
    lists: dict[str, Any]
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return CheckpointConfig(**lists)
    except ValueError as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None


def load_training_state(folder: str | Path) -> dict[str, Tensor]:
    """Read the tensors that only resuming needs, verified.

    Raises:
        ValueError: if the checkpoint is damaged or has none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    root = verify_folder(folder, (TRAINING,))
    try:
        return load_file(root / TRAINING)
    except SafetensorError as error:
        raise ValueError(f"{root / TRAINING} is damaged: {error}") from None
