"""What is refused, or warned of, before a run takes its first step."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.errors import check_choice
from masksd.kit.checkpoints import read_config
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.schedules import Schedule
from masksd.kit.storage.places import check_place
from masksd.kit.training.resuming import FILES, check_changes, has_checkpoint, load_run_config
from masksd.models.registry import check_pretrained, list_models

if TYPE_CHECKING:
    from torch import nn


def check_start(config: TrainConfig, *, resume: bool = False, allow: Collection[str] = ()) -> None:
    """Raise a ``ValueError`` for what can be seen to be wrong before torch is loaded."""
    check_choice("model", config.model, list_models())
    check_data(config.data)
    if config.pretrained:
        check_pretrained(config.model)
    folder = config.output_folder()
    if resume:
        check_changes(load_run_config(folder), config, allow)
        return
    if config.teacher is not None and folder.resolve() in config.teacher.resolve().parents:
        raise ValueError(
            f"teacher {config.teacher} lies in {folder}, which this run would replace; choose "
            "another --output"
        )
    check_output(folder, config.overwrite)
    for checkpoint in (config.start_from, config.teacher):
        if checkpoint is not None:
            read_config(checkpoint)


def check_data(data: DataConfig) -> None:
    """Raise an error unless data are generated, or their files are there."""
    from masksd.kit.data.layout import find_files, find_split_by
    from masksd.kit.data.shapes import shapes_config

    if data.generated() or data.data_root is None:
        shapes_config(data)
        return
    split_by = data.split_by or find_split_by(data.data_root, data.name)
    find_files(data.data_root, data.name, split_by, data.images, data.index)


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless a run may be written here."""
    if (folder / "export").exists():
        raise ValueError(
            f"output {folder} holds an export, which would be lost with the run; move it, or "
            "choose another --output"
        )
    over = overwrite or not has_checkpoint(folder)  # it would have nothing to lose
    check_place(folder, FILES, kind="run", strange="no run writes", over=over)


def check_sizes(
    config: TrainConfig, training: Sized, unlabelled: Sized | None, processes: int
) -> None:
    """Raise a ``ValueError`` unless there are items for one step."""
    needed = config.batch_size * processes
    if len(training) < needed:
        what = f"split {config.train_split!r} has {len(training)} items"
        fix = "name a larger split"
        if config.labels is not None:
            what, fix = f"{what} with labels={config.labels}", "raise --labels"
        raise ValueError(f"{what}, one step takes {needed}; lower --batch-size or {fix}")
    needed = (config.images_per_pass() - config.batch_size) * processes
    if unlabelled is not None and len(unlabelled) < needed:
        raise ValueError(
            f"unlabelled {config.unlabelled!r} has {len(unlabelled)} items, one step takes "
            f"{needed}; lower --unlabelled-batch or name more data"
        )


def warn_of_long_warmup(schedule: Schedule) -> None:
    """Give a ``UserWarning`` if the warm-up takes the whole run, so that the rate never falls."""
    steps, warmup = schedule.steps, schedule.warmup
    if warmup >= steps:
        warnings.warn(
            f"warmup {warmup} is not below steps {steps}: the learning rate only rises, to "
            f"{schedule.rate(steps - 1):g} of lr {schedule.lr:g}; lower --warmup",
            UserWarning,
            stacklevel=3,
        )


@contextlib.contextmanager
def batch_norm_watched(model: nn.Module, batch_size: int) -> Iterator[None]:
    """Refuse passes in which a BatchNorm gets one value per channel, even in eval mode."""
    from torch import nn

    handles = [
        layer.register_forward_pre_hook(partial(_check_values, name=name, batch_size=batch_size))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_values(layer: nn.Module, inputs: tuple[Any, ...], *, name: str, batch_size: int) -> None:
    values = inputs[0]  # (B, C, ...)
    if values.numel() == values.shape[1]:
        option = "batch_size" if batch_size == 1 else "batch_size, or larger samples of a branch"
        raise ValueError(
            f"batch_size {batch_size} leaves BatchNorm layer {name!r} one value per channel, which "
            f"it cannot normalise; take a larger {option}"
        )
