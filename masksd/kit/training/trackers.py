"""A run's log and sheet in tensorboard, wandb and other trackers, beside ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksd.kit.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def tracker_folder(config: TrainConfig) -> Path:
    """Return where trackers that write files do so: one folder for all runs side by side.

    A run's own folder may be renamed under the tracker when it replaces an older run.

    Example:
        >>> tracker_folder(TrainConfig()).as_posix()
        'runs/trackers'
    """
    return config.output_folder().parent / "trackers"


def tracker_options(config: TrainConfig) -> dict[str, Any]:
    """Return what accelerate must be told of the tracker of a run."""
    if config.log_with is None:
        return {}
    return {"log_with": config.log_with, "project_dir": str(tracker_folder(config))}


def check_tracker(accelerator: Accelerator, config: TrainConfig) -> None:
    """Raise a ``ValueError`` if the tracker is not installed; accelerate would go on without."""
    if config.log_with is not None and not accelerator.log_with:
        raise ValueError(
            f"log_with {config.log_with!r} is not installed here: pip install {config.log_with}"
        )


def start_tracker(accelerator: Accelerator, config: TrainConfig) -> None:
    """Begin to track a run, under the name of its folder."""
    if config.log_with is not None:
        accelerator.init_trackers(config.output_folder().name)


def track(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """Log a line of ``metrics.jsonl``."""
    values = dict(_flat({name: each for name, each in record.items() if name != "step"}))
    accelerator.log(values, step=record["step"])


def _flat(record: dict[str, Any], beginning: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{beginning}{name}/")
        elif value is not None:  # a loss that is not finite
            yield beginning + name, value


def track_sheet(accelerator: Accelerator, sheet: Path, step: int) -> None:
    """Log the sheet, where the tracker takes pictures."""
    from PIL import Image

    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            with Image.open(sheet) as picture:
                image = np.asarray(picture.convert("RGB"))
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"sheet": image[None]}, step=step, **options)


def close_tracker(accelerator: Accelerator) -> None:
    """End what was tracked, however the run ended."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
