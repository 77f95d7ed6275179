"""Models of earlier runs: one to start from, one to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masksd.errors import one_line
from masksd.kit.checkpoints import Checkpoint, load_checkpoint


def load_start(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the weights of a checkpoint into a new model of the same kind, all of them or none."""
    earlier = load_checkpoint(folder)
    ours, theirs = checkpoint.config.model, earlier.config.model
    if ours != theirs:
        raise ValueError(
            f"start_from {folder} is a {theirs}, but the run's model is {ours}; use --model "
            f"{theirs}"
        )
    _check_reads_alike(f"start_from {folder}", checkpoint, earlier)
    try:
        checkpoint.model.load_state_dict(earlier.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"start_from {folder} does not fit the run's model: {one_line(error)[:300]}; use its "
            "--image-size and --max-length"
        ) from None


def load_teacher(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Read the model that another is to learn from; it must take what that takes."""
    earlier = load_checkpoint(folder)
    where = f"teacher {folder}"
    _check_reads_alike(where, checkpoint, earlier)
    for name in ("image_size", "max_length"):
        ours, theirs = (getattr(each.config, name) for each in (checkpoint, earlier))
        if ours != theirs:
            option = name.replace("_", "-")
            raise ValueError(
                f"{where} has {name} {theirs}, but the run has {ours}; use --{option} {theirs}"
            )
    if _inputs(checkpoint) != _inputs(earlier):
        raise ValueError(
            f"{where} is a {earlier.config.model}, which takes other inputs than the run's "
            f"{checkpoint.config.model}; use a model and a teacher of one family"
        )
    return earlier


def _check_reads_alike(where: str, checkpoint: Checkpoint, earlier: Checkpoint) -> None:
    """Refuse a model that was trained on images or tokens of another kind."""
    if earlier.config.fit != checkpoint.config.fit:
        raise ValueError(
            f"{where} was trained with fit {earlier.config.fit!r}, but the run has "
            f"{checkpoint.config.fit!r}; use --fit {earlier.config.fit}"
        )
    own, other = (
        (each.tokenizer.kind, each.tokenizer.vocab_size) for each in (checkpoint, earlier)
    )
    if own != other:
        raise ValueError(
            f"{where} has a tokenizer of kind {other[0]!r} with {other[1]} tokens, but "
            f"the run's is {own[0]!r} with {own[1]}; use the same --tokenizer"
        )
    if checkpoint.tokenizer.ids() != earlier.tokenizer.ids():
        raise ValueError(
            f"{where} has a tokenizer of the same kind and size whose tokens have other ids; use "
            "the same --tokenizer"
        )


def _inputs(checkpoint: Checkpoint) -> tuple[Any, ...]:
    config, masked = checkpoint.config, checkpoint.model.takes_attention_mask
    return tuple(config.mean), tuple(config.std), masked
