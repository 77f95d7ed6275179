"""``masksd runs``: what has been trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from masksd.config import PRESETS
from masksd.errors import one_line
from masksd.kit.config import TrainConfig
from masksd.kit.printing import align_columns, command_line
from masksd.kit.storage.places import find_folder
from masksd.kit.training.resuming import (
    BEST,
    CONFIG,
    LATEST,
    LOG,
    best_score,
    has_checkpoint,
    is_last,
    read_log,
)

HEAD = ("run", "date", "model", "method", "steps", "mIoU", "oIoU", "state", BEST)
FINISHED, UNFINISHED = "finished", "unfinished"


@dataclass(frozen=True)
class Runs:
    """List the runs of a folder, the newest first, with what was trained and their scores.

    Scores are per cent of the right sentence when the run was scored last; best is the mIoU of the
    best checkpoint, where --evaluate-every kept one. The last column is the command to go on with.

    Attributes:
        folder: of runs, or of one run.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")

    def run(self) -> None:
        """Print the table with a command for each, and others for the newest that is finished."""
        rows = {}
        for run in find_runs(self.folder):
            try:
                rows[run] = _row(run)
            except (ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{run} is left out: {one_line(error)}", UserWarning, stacklevel=1)
        if not rows:
            raise ValueError(f"no run in {self.folder}; start one with `masksd train`")
        head, *lines = align_columns([HEAD, *rows.values()]).splitlines()
        print(f"{head}  next")
        for line, (run, row) in zip(lines, rows.items(), strict=True):
            print(f"{line}  {_next(run, row)}")
        done = [run / LATEST for run, row in rows.items() if FINISHED in row]
        for does, name in (("try it", "demo"), ("pass it on", "export")):
            for checkpoint in done[:1]:
                print(f"{does}: {command_line(name, checkpoint)}")


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of runs in a folder, the newest first, or the folder if it is one."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; `masksd train` writes runs/NAME")
    places = [folder, *(find_folder(path) for path in folder.iterdir() if path.name[0] != ".")]
    runs = [path for path in places if (path / CONFIG).is_file() and (path / LOG).is_file()]
    return sorted(runs, key=_date, reverse=True)


def _date(run: Path) -> float:
    return (run / LOG).stat().st_mtime


def _row(run: Path) -> tuple[str, ...]:
    config = TrainConfig.from_json((run / CONFIG).read_text(encoding="utf-8"))
    log = read_log(run / LOG)
    done = log[-1]["step"] if log else 0
    scored = (each["scores"]["own"] for each in reversed(log) if "scores" in each)
    scores: dict[str, float] = next(scored, {})
    best = best_score(run)
    state = FINISHED if log and is_last(log[-1]) else UNFINISHED
    return (
        str(run),
        f"{datetime.fromtimestamp(_date(run)):%Y-%m-%d %H:%M}",
        config.model,
        method_name(config),
        f"{done}/{config.steps}" if config.steps is not None else str(done),
        *(f"{100 * scores[name]:.2f}" if name in scores else "-" for name in ("mIoU", "oIoU")),
        state if find_folder(run / LATEST).is_dir() else "no checkpoint",
        f"{100 * best:.2f}" if best >= 0 else "-",
    )


def _next(run: Path, row: tuple[str, ...]) -> str:
    """Return the command that scores a run, resumes it, or starts it again."""
    if FINISHED in row:
        return command_line("evaluate", checkpoint=run / LATEST)
    if UNFINISHED in row or has_checkpoint(run):
        return command_line("train", resume=run)
    return command_line("train", config=run / CONFIG, output=run)


def method_name(config: TrainConfig) -> str:
    """Name the method of a run: a preset, the branches that are on, or ``own`` for another.

    Example:
        >>> method_name(TrainConfig())
        'cm-masksd'
    """
    distill = config.distill
    on = [name for name, each in (("lmvsd", distill.image), ("vmlsd", distill.text)) if each]
    known = [name for name, preset in PRESETS.items() if preset == distill]
    alone = on[0] if on else "none"
    name = known[0] if known else "own" if len(on) == 2 else alone
    return name if config.teacher is None else f"{name} + teacher"
