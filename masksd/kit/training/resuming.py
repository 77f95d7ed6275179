"""Which run is resumed, and whether it is the same run still."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from masksd.errors import check_choice
from masksd.kit.checkpoints import Checkpoint, load_checkpoint, load_training_state
from masksd.kit.config import TrainConfig
from masksd.kit.storage.files import write_files
from masksd.kit.storage.places import find_folder
from masksd.kit.training.saving import LATEST

CONFIG, LOG, SHEET = "config.json", "metrics.jsonl", "sheet.png"
FREE = (
    *("output", "overwrite", "progress", "workers", "cache", "timeout", "log_with"),
    *("save_minutes", "keep", "sheet_rows", "eval_batch_size"),
)
"""Options that change no weight and no score."""


def load_run_config(folder: str | Path) -> TrainConfig:
    """Read the config of a run that can be resumed, its output being the folder given.

    Raises:
        ValueError: no run, one without a checkpoint, or a damaged config.

    Example:
        >>> load_run_config("runs/nowhere")
        Traceback (most recent call last):
        ValueError: no run at runs/nowhere: give the folder that `masksd train` wrote, as in ...
    """
    given = Path(folder)
    root = find_folder(given)
    if not (root / CONFIG).is_file():
        near = root.parent if (root.parent / CONFIG).is_file() else None
        hint = f"did you mean {near}?" if near else "give the folder that `masksd train` wrote, as "
        raise ValueError(f"no run at {root}: {hint}" + ("" if near else "in runs/NAME"))
    if not find_folder(root / LATEST).is_dir():
        raise ValueError(
            f"run {root} has no checkpoint to go on from; start it again, with --overwrite"
        )
    try:
        config = TrainConfig.from_json((root / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None
    return dataclasses.replace(config, output=given, overwrite=False)


def check_changes(before: TrainConfig, now: TrainConfig, allowed: Collection[str] = ()) -> None:
    """Raise a ``ValueError`` that names the options a resumed run has been given anew.

    Args:
        before: config of the run.
        now: what it would go on with.
        allowed: options that may change, such as ``steps`` or ``distill.lambda_image``.

    Example:
        >>> check_changes(TrainConfig(lr=0.1), TrainConfig(lr=0.2), allowed=["lr"])
        >>> check_changes(TrainConfig(lr=0.1), TrainConfig(lr=0.2))
        Traceback (most recent call last):
        ValueError: lr of the run is 0.1, now 0.2; leave it as it was, or pass --allow lr
    """
    old, new = before.flat(), now.flat()
    for name in allowed:
        check_choice("option to allow", name, {*old, *new})
    for name in sorted(old.keys() | new.keys()):
        was, becomes = old.get(name), new.get(name)
        if was != becomes and name not in FREE and name not in allowed:
            raise ValueError(
                f"{name} of the run is {was}, now {becomes}; leave it as it was, or pass --allow "
                f"{name}"
            )


def load_run(
    config: TrainConfig, processes: int, allowed: Collection[str] = ()
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Read the latest checkpoint of a run and the state of its training, and check both."""
    folder = find_folder(config.output_folder())
    place = folder / LATEST
    checkpoint, state = load_checkpoint(place), load_training_state(place)
    if "processes" not in state:
        raise ValueError(f"checkpoint {place} is of an older masksd, which could not be resumed")
    before = int(state["processes"])
    if before != processes and "processes" not in allowed:
        raise ValueError(
            f"run {folder} had {before} processes, now there are {processes}: batches would be "
            f"others; start {before}, or pass --allow processes"
        )
    return checkpoint, state


def check_unfinished(folder: Path, step: int, steps: int) -> None:
    """Raise a ``ValueError`` if nothing is left to do in a run."""
    if step >= steps and (folder / SHEET).exists():
        raise ValueError(
            f"run {folder} is complete: it took all its {steps} steps; to train longer, pass "
            "--steps N --allow steps"
        )


def check_items(state: dict[str, Tensor], items: int, split: str) -> None:
    """Raise a ``ValueError`` if the training split is not the one that was trained on."""
    before = int(state["items"])
    if before != items:
        raise ValueError(
            f"split {split!r} has {items} items, it had {before} when the run was saved; resume it "
            "with the data it had"
        )


def cut_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of ``metrics.jsonl`` that came after a step; return those of training."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the process was killed while it wrote this
            break
        if record["step"] > step:
            break
        kept.append(record)
    text = "".join(json.dumps(record) + "\n" for record in kept)
    write_files({path: text.encode()})
    return [record for record in kept if "loss" in record]
