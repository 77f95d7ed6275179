"""What several commands say or take alike."""

from __future__ import annotations

import re
from pathlib import Path

from masksd.kit.config import DataConfig

CHECKPOINT = Path("runs/shapes-easy/checkpoint")


def data_title(data: DataConfig, split: str, scored: str = "at the original size") -> str:
    """Return the line above a table of scores.

    Example:
        >>> data_title(DataConfig(), "val")
        'shapes-easy (generated), val, per cent, at the original size'
    """
    place = "generated" if data.data_root is None else data.data_root
    return f"{data.title()} ({place}), {split}, per cent, {scored}"


def check_device(name: str | None) -> None:
    """Raise a ``ValueError`` unless this may name a device of torch's."""
    if name is not None and not re.fullmatch(r"cpu|cuda(?::\d{1,3})?", name):
        raise ValueError(f"unknown device {name!r}; use cpu, cuda, cuda:1, ...")


def device_name(name: str | None) -> str:
    """Check the name of a device that torch has; None takes a GPU where there is one."""
    check_device(name)
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if gpus else "cpu"
    if name != "cpu" and int(name.partition(":")[2] or 0) >= gpus:
        raise ValueError(f"device {name!r} does not exist: torch finds {gpus} CUDA GPUs; use cpu")
    return name
