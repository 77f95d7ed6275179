"""What several commands say or take alike."""

from __future__ import annotations

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


def data_title(data: DataConfig, split: str) -> str:
    """Say what is scored.

    Example:
        >>> data_title(DataConfig(), "val")
        'shapes-easy (generated), val'
    """
    place = "generated" if data.data_root is None else data.data_root
    return f"{data.title()} ({place}), {split}"
