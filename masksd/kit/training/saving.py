"""What a run keeps on the disk: its checkpoints, and all that resuming it bit for bit needs.

Every draw is keyed, so no random state is stored: only the wrapper's own tensors, the optimiser's
moments, the loss scaler, the counters, and the terms of the steps since the last line of the log.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from masksd.kit.checkpoints import read_config
from masksd.kit.config import TrainConfig
from masksd.kit.randomness import keyed_seed
from masksd.kit.storage.files import MANIFEST, write_folder
from masksd.kit.storage.places import find_folder, remove_folder
from masksd.kit.training.loop import Loop
from masksd.kit.training.resuming import BEST, LATEST, OLDER, SCORE

if TYPE_CHECKING:
    from accelerate import Accelerator

    from masksd.distill import CrossModalMaskedSelfDistill
    from masksd.kit.data.refer import ReferDataset
    from masksd.kit.mixing import MixedDataset


class SavedLoop(Loop):
    """A loop whose state can be saved and restored.

    ``bad_items`` lists those of the latest steps in a row whose gradient was not finite;
    ``evaluated`` is the last step after which the model was scored.
    """

    config: TrainConfig
    accelerator: Accelerator
    sd: CrossModalMaskedSelfDistill
    training: ReferDataset | MixedDataset
    unlabelled: ReferDataset | None
    bad_items: list[str]
    evaluated: int

    def training_state(self) -> dict[str, Tensor]:
        """Collect what only resuming needs; every process must call it."""
        host = "segmenter."  # its weights are the checkpoint's
        state = {
            f"distill.{name}": value
            for name, value in self.sd.state_dict().items()
            if not name.startswith(host)
        }
        for name, parameter in self.sd.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        scaler = self.accelerator.scaler
        if scaler is not None:
            for key, number in scaler.state_dict().items():
                state[f"scaler.{key}"] = torch.tensor(number)
        numbers = {
            "skipped": self.skipped,
            "bad_steps": len(self.bad_items),
            "processes": self.accelerator.num_processes,
            "evaluated": self.evaluated,
            **source_numbers(self.training, self.unlabelled, self.config.teacher),
        }
        state |= {name: torch.tensor(number) for name, number in numbers.items()}
        return state | self._gathered_window()

    def _gathered_window(self) -> dict[str, Tensor]:
        """Return each process's terms of the steps since the last log, ``(processes,)`` each."""
        names = [(step, name) for step, terms in enumerate(self.window) for name in terms]
        if not names:
            return {}
        own = torch.stack([self.window[step][name] for step, name in names])
        # NaN has no place in a checkpoint; the log has neither
        values = self.accelerator.gather(own[None])
        values = values.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return {f"window.{step}.{name}": values[:, n] for n, (step, name) in enumerate(names)}

    def restore(self, step: int, state: dict[str, Tensor]) -> None:
        """Go back to where the state was collected, after ``step`` steps; the host is there."""
        self.sd.load_state_dict(dict(_under("distill.", state)), strict=False)
        for name, parameter in self.sd.named_parameters():
            moments = {
                # Adam counts on the CPU unless it is told otherwise
                key: value.clone() if key == "step" else value.to(parameter.device)
                for key, value in _under(f"optimizer.{name}.", state)
            }
            for key, value in moments.items():
                if value.shape not in (parameter.shape, ()):
                    raise RuntimeError(f"{key} of {name} has the shape {tuple(value.shape)}")
            if moments:
                self.optimizer.state[parameter] = moments
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict({key: value.item() for key, value in _under("scaler.", state)})
        self.done, self.skipped = step, int(state["skipped"])
        self.bad_items = [""] * int(state["bad_steps"])
        self.evaluated = int(state["evaluated"])
        self.batches.start = step * self.accumulate
        if int(state["processes"]) != self.accelerator.num_processes:
            return
        for key, values in _under("window.", state):
            index, _, name = key.partition(".")
            while len(self.window) <= int(index):
                self.window.append({})
            own = values[self.accelerator.process_index]
            self.window[int(index)][name] = own.to(self.accelerator.device)


def source_numbers(
    training: ReferDataset | MixedDataset, unlabelled: ReferDataset | None, teacher: Path | None
) -> dict[str, int]:
    """Return the numbers of items, and hashes of image names and of a teacher's manifest."""
    numbers = {}
    for kind, data in (("", training), ("unlabelled_", unlabelled)):
        if data is not None:
            numbers[f"{kind}items"] = len(data)
            numbers[f"{kind}images"] = keyed_seed(*sorted(data.file_names()))
    if teacher is not None:
        manifest = find_folder(teacher) / MANIFEST
        numbers["teacher"] = keyed_seed(manifest.read_text(encoding="utf-8"))
    return numbers


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
        remove_folder(path)
    for hidden in folder.glob(".step-*"):  # of a killed process
        shutil.rmtree(hidden, ignore_errors=True)


def drop_later(run_folder: Path, step: int) -> None:
    """Remove kept checkpoints of steps that a resumed run has still to take."""
    for path in (run_folder / OLDER).glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            remove_folder(path)


def keep_best(run_folder: Path, score: float) -> None:
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
        (folder / SCORE).write_text(json.dumps({"mIoU": score}) + "\n", encoding="utf-8")

    write_folder(run_folder / BEST, fill)
