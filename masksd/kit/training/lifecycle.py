"""From its first line of the log to its last picture: how a run is saved, scored and ended."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masksd.errors import one_line
from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.config import TrainingStopped
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.examples import example_rows
from masksd.kit.evaluation.scoring import evaluate, evaluate_all
from masksd.kit.figures import draw_curves, draw_sheet
from masksd.kit.printing import command_line
from masksd.kit.storage.files import write_files
from masksd.kit.storage.places import HeldFolder, flush
from masksd.kit.training.resuming import (
    CONFIG,
    LATEST,
    LOG,
    SHEET,
    best_score,
    check_sources,
    cut_log,
    has_checkpoint,
    read_log,
)
from masksd.kit.training.saving import SavedLoop, drop_later, keep_best, keep_older, source_numbers
from masksd.kit.training.signals import StopRequest
from masksd.kit.training.trackers import close_tracker, start_tracker, track, track_sheet


class Lifecycle(SavedLoop):
    """:meth:`open_folder`, then :meth:`train`; a subclass says what a step is.

    ``place`` is the folder of the run; it takes its place with the first checkpoint at the latest.
    ``saved`` is the step of the last one.
    """

    checkpoint: Checkpoint
    scoring: ReferDataset
    place: HeldFolder
    stop: StopRequest
    saved: int
    saved_at: float

    def resume(self, step: int, state: dict[str, Tensor]) -> None:
        """Go on after ``step`` steps of an earlier process, whose host is this one's already."""
        now = source_numbers(self.training, self.unlabelled, self.config.teacher)
        check_sources(state, now, self.config.train_split)
        try:
            self.restore(step, state)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"the state of the training does not fit the run: {one_line(error)[:200]}"
            ) from None
        self.saved = step

    def open_folder(self) -> None:
        """Write the config into the run's folder, and go on with its log."""
        start_tracker(self.accelerator, self.config)
        if self.accelerator.is_main_process:
            folder = self.place.path
            write_files({folder / CONFIG: self.config.to_json().encode()})
            records = cut_log(folder / LOG, self.done)
            drop_later(folder, self.done)
            if not has_checkpoint(self.place.target):
                self.place.publish()  # there is no older run to lose
            for record in records:  # the process may have been killed before it kept this
                if record["step"] == self.done == self.evaluated and "scores" in record:
                    self.keep_if_best(record["scores"]["own"]["mIoU"])

    def train(self) -> dict[str, dict[str, float]]:
        """Take all steps, save and score; what stops that says where the last checkpoint is."""
        main = self.accelerator.is_main_process
        try:
            with self.stop:
                self.evaluate()  # where a signal came first
                self.fit(progress=main and self.config.progress)
            return self.finish()
        except (OSError, RuntimeError, ValueError) as error:
            if main and self.saved >= 0 and not isinstance(error, TrainingStopped):
                warnings.warn(
                    f"the run ended early; it is saved as it was after step {self.saved}: "
                    f"{self.how_to_go_on()}",
                    UserWarning,
                    stacklevel=4,
                )
            raise
        finally:
            close_tracker(self.accelerator)

    def how_to_go_on(self) -> str:
        """Return the command that resumes this run."""
        return command_line("train", resume=self.config.output_folder())

    def buffers(self) -> list[Tensor]:
        """Return what a step moves beside the weights: statistics of norms, and counters.

        The wrapper's own counter stays out: it counts calls, skipped steps included. So does the
        teacher, which follows the weights before a step.
        """
        teacher = set() if self.sd.teaching is None else set(self.sd.teaching.modules())
        parts = [part for part in self.sd.modules() if part is not self.sd and part not in teacher]
        return [buffer for module in parts for buffer in module.buffers(recurse=False)]

    def write(self, record: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        if self.accelerator.is_main_process:
            with (self.place.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        track(self.accelerator, record)

    def after_step(self) -> None:
        """Stop where a signal asked for it; evaluate and save where it is time."""
        due = time.monotonic() - self.saved_at >= 60 * self.config.save_minutes
        stop, due = self.agree(self.stop.number, due)
        if stop:
            self.end(stop)
        self.evaluate()
        if due and self.saved < self.done < self.schedule.steps:  # finish saves the last one
            self.save()

    def end(self, number: int) -> None:
        """Save and raise, on a signal; an older run in the same place is not given up for that."""
        when = f"stopped by {signal.Signals(number).name} after step {self.done} of"
        hidden = self.accelerator.is_main_process and self.place.path != self.place.target
        if self.agree(0, hidden)[1]:
            raise TrainingStopped(
                f"{when} {self.schedule.steps}, before its first checkpoint; the older run in "
                f"{self.config.output_folder()} is as it was",
                number,
            )
        self.save()
        raise TrainingStopped(
            f"{when} {self.schedule.steps}; go on with: {self.how_to_go_on()}", number
        )

    def evaluate(self) -> None:
        """Score and save the model, and keep it if it is the best one, every so many steps."""
        every = self.config.evaluate_every
        due = every and not self.done % every and 0 < self.done < self.schedule.steps
        if not due or self.evaluated == self.done:
            return
        self.share_buffers()
        scores = evaluate(self.checkpoint, self.scoring, **self.scoring_options())
        self.write({"step": self.done, "scores": {"own": scores}})
        if self.scoring_options()["progress"]:
            split, score = self.config.eval_split, 100 * scores["mIoU"]
            print(f"step {self.done}: mIoU {score:.1f} on {split}", flush=True)
        self.evaluated = self.done
        self.save()
        if self.accelerator.is_main_process:
            self.keep_if_best(scores["mIoU"])

    def keep_if_best(self, score: float) -> None:
        """Keep the latest checkpoint as the best one if its score is."""
        if score > best_score(self.place.path):
            keep_best(self.place.path, score)

    def share_buffers(self) -> None:
        """Give every process the first one's statistics, which are those that are saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def agree(self, stop: int, due: bool) -> tuple[int, bool]:
        """Return what any process says: each has its own signals and its own clock."""
        if self.accelerator.num_processes > 1:
            own = torch.tensor([[stop, int(due)]], device=self.accelerator.device)
            stop, due = self.accelerator.gather(own).amax(0).tolist()
        return int(stop), bool(due)

    def scoring_options(self) -> dict[str, Any]:
        """Return how the run is scored, for ``evaluate`` and ``evaluate_all``."""
        return {
            "limit": self.config.eval_samples,
            "batch_size": self.config.eval_batch_size,
            "progress": self.config.progress and self.accelerator.is_main_process,
        }

    def save(self) -> None:
        """Write the checkpoint: the host for use, and what only resuming needs."""
        state = self.training_state()
        if self.accelerator.is_main_process:
            config = dataclasses.replace(self.checkpoint.config, step=self.done)
            checkpoint = self.checkpoint._replace(config=config)
            folder = self.place.path
            retire = partial(keep_older, folder, keep=self.config.keep)
            save_checkpoint(folder / LATEST, checkpoint, state, retire)
            flush(folder / LOG)
            self.place.publish()
        self.accelerator.wait_for_everyone()
        self.saved, self.saved_at = self.done, time.monotonic()

    def finish(self) -> dict[str, dict[str, float]]:
        """Save, score with the right, another and no expression, and draw; the log says so last."""
        if self.saved < self.done:
            self.save()
        self.share_buffers()
        scores = evaluate_all(self.checkpoint, self.scoring, **self.scoring_options())
        if self.accelerator.is_main_process:
            folder = self.place.path
            if self.config.evaluate_every:
                self.keep_if_best(scores["own"]["mIoU"])
            chosen = spread_indices(len(self.scoring), self.config.sheet_rows)
            rows = example_rows(self.sd, self.checkpoint, self.scoring, chosen)
            lines = [*read_log(folder / LOG), {"step": self.done, "scores": scores}]
            draw_curves(lines, folder / "curves.png")
            draw_sheet(rows, folder / SHEET)
        self.write({"step": self.done, "scores": scores})
        track_sheet(self.accelerator, self.place.path / SHEET, self.done)
        return scores
