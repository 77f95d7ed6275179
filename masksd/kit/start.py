"""Starting a run from the model of an earlier one."""

from __future__ import annotations

from pathlib import Path

from masksd.errors import one_line
from masksd.kit.checkpoints import Checkpoint, load_checkpoint


def load_start(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the weights of a checkpoint into a new model of the same kind, all of them or none.

    Example:
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> load_start(build_model(TrainConfig()), Path("runs/nowhere"))
        Traceback (most recent call last):
        ValueError: ... runs/nowhere ...
    """
    earlier = load_checkpoint(folder)
    ours, theirs = checkpoint.config.model, earlier.config.model
    if ours != theirs:
        raise ValueError(
            f"start_from {folder} is a {theirs}, but the run's model is {ours}; use --model "
            f"{theirs}"
        )
    if earlier.config.fit != checkpoint.config.fit:
        raise ValueError(
            f"start_from {folder} was trained with fit {earlier.config.fit!r}, but the run has "
            f"{checkpoint.config.fit!r}; use --fit {earlier.config.fit}"
        )
    own, other = (
        (each.tokenizer.kind, each.tokenizer.vocab_size) for each in (checkpoint, earlier)
    )
    if own != other:
        raise ValueError(
            f"start_from {folder} has a tokenizer of kind {other[0]!r} with {other[1]} tokens, but "
            f"the run's is {own[0]!r} with {own[1]}; use the same --tokenizer"
        )
    try:
        checkpoint.model.load_state_dict(earlier.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"start_from {folder} does not fit the run's model: {one_line(error)[:300]}; use its "
            "--image-size and --max-length"
        ) from None
