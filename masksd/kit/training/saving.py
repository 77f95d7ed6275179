"""What a run keeps on the disk: its checkpoints, and all that resuming it bit for bit needs.

Every draw is keyed, so no random state is stored. Beside the weights there are the wrapper's own
tensors, the optimiser's moments, the loss scaler, the counters, and the terms of the steps since
the last line of the log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from masksd.kit.checkpoints import read_config
from masksd.kit.files import MANIFEST, write_folder

if TYPE_CHECKING:
    from masksd.kit.training.run import Run

LATEST, OLDER, BEST = "checkpoint", "checkpoints", "best"


def training_state(run: Run) -> dict[str, Tensor]:
    """Collect what only resuming needs; every process must call it."""
    host = "segmenter."  # its weights are the checkpoint's
    state = {
        f"distill.{name}": value
        for name, value in run.sd.state_dict().items()
        if not name.startswith(host)
    }
    for name, parameter in run.sd.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{name}.{key}"] = value
    scaler = run.accelerator.scaler
    if scaler is not None:
        for key, number in scaler.state_dict().items():
            state[f"scaler.{key}"] = torch.tensor(number)
    numbers = {
        "skipped": run.skipped,
        "bad_steps": len(run.bad_items),
        "processes": run.accelerator.num_processes,
        "items": len(run.training),
    }
    state |= {name: torch.tensor(number) for name, number in numbers.items()}
    state["best"] = torch.tensor(run.best, dtype=torch.float64)
    return state | _gathered_window(run)


def _gathered_window(run: Run) -> dict[str, Tensor]:
    """Return each process's terms of the steps since the last log, ``(processes,)`` each."""
    names = [(step, name) for step, terms in enumerate(run.window) for name in terms]
    if not names:
        return {}
    own = torch.stack([run.window[step][name] for step, name in names])
    # NaN has no place in a checkpoint; the log has neither
    values = run.accelerator.gather(own[None]).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return {f"window.{s}.{name}": values[:, n] for n, (s, name) in enumerate(names)}


def restore(run: Run, step: int, state: dict[str, Tensor]) -> None:
    """Set a run back to where its state was collected, after ``step`` steps; the host is there."""
    device = run.accelerator.device
    run.sd.load_state_dict(dict(_under("distill.", state)), strict=False)
    for name, parameter in run.sd.named_parameters():
        moments = {
            # Adam counts on the CPU unless it is told otherwise
            key: value.clone() if key == "step" else value.to(parameter.device)
            for key, value in _under(f"optimizer.{name}.", state)
        }
        if moments:
            run.optimizer.state[parameter] = moments
    scaler = run.accelerator.scaler
    if scaler is not None:
        scaler.load_state_dict({key: value.item() for key, value in _under("scaler.", state)})
    run.done, run.skipped = step, int(state["skipped"])
    run.bad_items = [[] for _ in range(int(state["bad_steps"]))]
    run.best = float(state["best"])
    if int(state["processes"]) == run.accelerator.num_processes:
        for key, values in _under("window.", state):
            index, _, name = key.partition(".")
            while len(run.window) <= int(index):
                run.window.append({})
            run.window[int(index)][name] = values[run.accelerator.process_index].to(device)


def _under(beginning: str, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if name.startswith(beginning):
            yield name.removeprefix(beginning), value


def keep_older(run_folder: Path, older: Path, keep: int) -> None:
    """Move the checkpoint that was replaced to those that are kept, ``keep`` with the latest."""
    folder = run_folder / OLDER
    if keep > 1:
        place = folder / f"step-{read_config(older).step}"
        folder.mkdir(exist_ok=True)
        if not place.exists():
            older.rename(place)
    shutil.rmtree(older, ignore_errors=True)
    kept = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    for path in kept[: max(0, len(kept) - (keep - 1))]:
        shutil.rmtree(path, ignore_errors=True)


def keep_best(run_folder: Path) -> None:
    """Keep the latest checkpoint as the best one, without using its space twice where possible."""

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:  # a file system without hard links
            shutil.copy2(source, copy)

    def fill(folder: Path) -> None:
        # its manifest is written anew, into a file of its own
        ignore: Any = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(
            run_folder / LATEST, folder, copy_function=link, ignore=ignore, dirs_exist_ok=True
        )

    write_folder(run_folder / BEST, fill)
