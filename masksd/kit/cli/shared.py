"""What several commands say or take alike."""

from __future__ import annotations

import shlex
from pathlib import Path

from masksd.kit.config import DataConfig

CHECKPOINT = Path("runs/shapes-easy/checkpoint")
HEADINGS = {
    "model": "model",
    "data_root": "data",
    "batch_size": "optimisation",
    "seed": "randomness and machine",
    "distill": "method",
    "log_every": "logs, checkpoints and evaluation",
    "output": "output",
}
"""What stands above an option of training and the next ones, in the help and in a dry run."""


def command_line(*words: object, **options: object) -> str:
    """Write a call of the program to paste; options that are None are left out.

    Example:
        >>> command_line("predict", "a b.png", "red", checkpoint=Path("one"), output=None)
        "masksd predict 'a b.png' red --checkpoint one"
    """
    named: list[object] = []
    for name, value in options.items():
        if value is not None:
            named += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return shlex.join(map(str, ["masksd", *words, *named]))


def data_title(data: DataConfig, split: str) -> str:
    """Say what is scored.

    Example:
        >>> data_title(DataConfig(), "val")
        'shapes-easy (generated), val'
    """
    place = "generated" if data.data_root is None else data.data_root
    return f"{data.title()} ({place}), {split}"
