"""Which run is resumed, and whether it is the same run still."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.errors import check_choice
from masksd.kit.checkpoints import Checkpoint, load_checkpoint, load_training_state
from masksd.kit.config import TrainConfig
from masksd.kit.printing import command_line
from masksd.kit.storage.files import MANIFEST, write_files
from masksd.kit.storage.places import find_folder

if TYPE_CHECKING:
    from torch import Tensor

LATEST, OLDER, BEST, SCORE = "checkpoint", "checkpoints", "best", "score.json"
CONFIG, LOG, SHEET = "config.json", "metrics.jsonl", "sheet.png"
FILES = (CONFIG, LOG, "curves.png", SHEET, LATEST, OLDER, BEST)  # what a run's folder holds
NUMBERS = ("skipped", "bad_steps", "processes", "items", "images", "evaluated")
"""What the state of every run holds beside tensors."""
UNLABELLED = ("unlabelled_items", "unlabelled_images")  # the same where there are unlabelled data
FREE = (
    *("output", "overwrite", "progress", "workers", "cache", "timeout", "log_with"),
    *("save_minutes", "keep", "sheet_rows", "eval_batch_size"),
)  # options that change no weight and no score
FIXED = (
    *("model", "pretrained", "encoder_weights", "start_from", "dropout", "image_size"),
    *("tokenizer", "max_length", "fit"),
)  # options that are built into a checkpoint


def load_run_config(folder: str | Path) -> TrainConfig:
    """Read the config of a run that can be resumed, its output being the folder given."""
    given = Path(folder)
    root = find_folder(given)
    if not (root / CONFIG).is_file():
        near = root.parent if (root.parent / CONFIG).is_file() else None
        hint = f"did you mean {near}?" if near else "`masksd runs` lists those in runs/"
        raise ValueError(f"no run at {root}; {hint}")
    if not find_folder(root / LATEST).is_dir():
        kept = [name for name in (BEST, OLDER) if (root / name).exists()]
        hint = f"start it again: {command_line('train', config=root / CONFIG, output=given)}"
        if kept:
            hint = f"move one of {' and '.join(kept)} there"
        raise ValueError(f"run {root} has no {LATEST} to go on from; {hint}")
    try:
        config = TrainConfig.from_json((root / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{root / CONFIG} is damaged: {error}") from None
    return dataclasses.replace(config, output=given, overwrite=False)


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run in this folder, if there is one, got to a checkpoint."""
    names = (LATEST, f".{LATEST}.previous", BEST, OLDER)
    return any((folder / name).exists() for name in names)


def check_changes(before: TrainConfig, now: TrainConfig, allowed: Collection[str] = ()) -> None:
    """Raise a ``ValueError`` that names the options a resumed run has been given anew."""
    old, new = before.flat(), now.flat()
    for name in allowed:
        check_choice("option to allow", name, {*old, *new})
    for name in sorted(old.keys() | new.keys()):
        was, becomes = old.get(name), new.get(name)
        if was == becomes or name in FREE:
            continue
        if name in FIXED:
            raise ValueError(
                f"{name} of the run is {was}, now {becomes}; it is built into the "
                "checkpoint: leave it as it was, or start another run"
            )
        if name not in allowed:
            raise ValueError(
                f"{name} of the run is {was}, now {becomes}; leave it as it was, or pass --allow "
                f"{name}"
            )


def load_run(
    config: TrainConfig, processes: int, allowed: Collection[str] = ()
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Read and check a run's latest checkpoint, with the options that may change, and its state."""
    check_changes(load_run_config(config.output_folder()), config, allowed)
    place = find_folder(config.output_folder()) / LATEST
    checkpoint, state = load_checkpoint(place), load_training_state(place)
    numbers = NUMBERS if config.unlabelled is None else (*NUMBERS, *UNLABELLED)
    numbers = numbers if config.teacher is None else (*numbers, "teacher")
    if any(name not in state or state[name].numel() != 1 for name in numbers):
        raise ValueError(
            f"checkpoint {place} was not written by a run that can be resumed, or by an older "
            "masksd"
        )
    before = int(state["processes"])
    if before != processes and "processes" not in allowed:
        raise ValueError(
            f"the run had {before} processes, now there are {processes}: each batch would hold "
            f"other items; start it with {before}, or pass --allow processes"
        )
    changed = dataclasses.replace(
        checkpoint.config,
        threshold=config.threshold,
        distill=dataclasses.asdict(config.distill),
        data=config.data.to_dict(),
        train_split=config.train_split,
        eval_split=config.eval_split,
    )
    return checkpoint._replace(config=changed), state


def checkpoint_digest(config: TrainConfig) -> str:
    """Return what tells the latest checkpoint of a run from every other."""
    place = find_folder(config.output_folder()) / LATEST
    return hashlib.sha256((place / MANIFEST).read_bytes()).hexdigest()


def check_unfinished(config: TrainConfig, step: int, steps: int) -> None:
    """Raise a ``ValueError`` if nothing is left to do in a run."""
    folder = config.output_folder()
    ended = [record["step"] for record in read_log(folder / LOG) if is_last(record)]
    if step >= steps and steps in ended:
        unit = "steps" if config.epochs is None else "epochs"
        longer = {unit: 2 * getattr(config, unit), "allow": unit}
        raise ValueError(
            f"run {folder} is complete: it took all its {steps} steps; to train longer: "
            f"{command_line('train', resume=folder, **longer)}"
        )


def check_sources(state: dict[str, Tensor], numbers: dict[str, int], split: str) -> None:
    """Raise a ``ValueError`` unless these numbers of data and teacher are those of the run."""
    for name, now in numbers.items():
        before = int(state[name])
        if now == before:
            continue
        if name == "teacher":
            raise ValueError(
                "teacher is another checkpoint than when the run was saved; resume it with the one "
                "it had (--allow teacher is for one that was moved)"
            )
        kind = "unlabelled " if name in UNLABELLED else ""
        what = f"{now} items, it had {before}" if name.endswith("items") else "other images than"
        raise ValueError(
            f"{kind}split {split!r} has {what} when the run was saved; resume it with the data it "
            "had"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` up to a line that was cut off."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # the process was killed while it wrote this
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(f"{path} is damaged: line {number} is not a record of a step")
        records.append(record)
    return records


def is_last(record: dict[str, Any]) -> bool:
    """Return whether a line of the log ends a run: it has the scores without a sentence, too."""
    return "none" in record.get("scores", ())


def cut_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of ``metrics.jsonl`` that came after a step; return the others."""
    records = [record for record in read_log(path) if record["step"] <= step]
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_files({path: text.encode()})
    return records


def best_score(run_folder: Path) -> float:
    """Return the score of the checkpoint that is kept as the best one; -1 without one."""
    try:
        text = (find_folder(run_folder / BEST) / SCORE).read_text(encoding="utf-8")
        return float(json.loads(text)["mIoU"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1.0
