"""What several commands say or take alike."""

from __future__ import annotations

from pathlib import Path

from masksd.kit.config import DataConfig

CHECKPOINT = Path("runs/shapes-easy/checkpoint")
HEADINGS = {
    "model": "model",
    "data": "data",
    "batch_size": "optimisation",
    "seed": "randomness and machine",
    "distill": "method",
    "log_every": "logs, checkpoints and evaluation",
    "output": "output",
}
"""What stands above a field of ``TrainConfig`` and the next ones, in the help and in a dry run."""


def data_title(data: DataConfig, split: str, scored: str = "at the original size") -> str:
    """Return the line above a table of scores.

    Example:
        >>> data_title(DataConfig(), "val")
        'shapes-easy (generated), val, per cent, at the original size'
    """
    place = "generated" if data.data_root is None else data.data_root
    return f"{data.title()} ({place}), {split}, per cent, {scored}"
