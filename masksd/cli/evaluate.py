"""``masksd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masksd.cli.options import checked, command, early_option, unchecked
from masksd.cli.shared import CHECKPOINT, data_title, device_name
from masksd.engine.config import DataConfig


def evaluate_command(arguments: list[str]) -> type:
    """Make the command; the checkpoint decides the defaults of the data that it is scored on.

    Args:
        arguments: of the command line, which may name a checkpoint.
    """
    stored = _stored_data(early_option(arguments, "--checkpoint", str(CHECKPOINT)))
    return command(
        _evaluate,
        data=unchecked(stored),
        checkpoint=(Path, CHECKPOINT),
        split=(str, "val"),
        limit=(int, 0),
        threshold=(float | None, None),
        batch_size=(int, 64),
        device=(str | None, None),
        progress=(bool, True),
    )


def _evaluate(options: Any) -> None:
    """Score a checkpoint with the right sentence, another object's, and none.

    The options of the data are those of its training, if none are given.

    Attributes:
        checkpoint: folder that training wrote.
        split: to score on: val, testA, testB.
        limit: expressions scored, evenly spread over the split; 0 scores all.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        batch_size: pictures a forward pass.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
        progress: show progress bars.
    """
    from masksd.engine.checkpoints import load_checkpoint
    from masksd.engine.evaluator import check_scoring, evaluate_all, format_table
    from masksd.engine.sources import open_split

    check_scoring(options.threshold, options.limit, options.batch_size)
    data = checked(DataConfig(), options.data)
    checkpoint = load_checkpoint(options.checkpoint, device_name(options.device))
    dataset = open_split(
        data,
        options.split,
        checkpoint.tokenizer,
        checkpoint.config.image_size,
        progress=options.progress,
    )
    scores = evaluate_all(
        checkpoint,
        dataset,
        threshold=options.threshold,
        limit=options.limit,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    print(data_title(data, options.split))
    print(format_table(scores))


def _stored_data(folder: str) -> DataConfig:
    """Return the data of a checkpoint's training; the default where it cannot be read."""
    from masksd.engine.checkpoints import read_config

    try:
        fields = read_config(folder).data
    except (ValueError, OSError):
        return DataConfig()  # the command itself will say what is wrong with the checkpoint
    return DataConfig.from_dict(fields)
