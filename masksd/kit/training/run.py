"""A training run under way: its steps, and what it logs, saves and scores."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from masksd.branches import MaskedBranch
from masksd.distill import DistillOutput
from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.config import TrainConfig, TrainingError, TrainingStopped
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.scoring import evaluate, evaluate_all
from masksd.kit.feeding import model_inputs
from masksd.kit.figures import draw_curves, draw_sheet
from masksd.kit.randomness import keyed_seed
from masksd.kit.sources import wrap_model
from masksd.kit.storage.files import write_files
from masksd.kit.storage.places import HeldFolder
from masksd.kit.training.checks import batch_norm_watched, has_checkpoint
from masksd.kit.training.examples import example_rows
from masksd.kit.training.loop import Batch, Batches, Terms, means
from masksd.kit.training.optimizers import build_optimizer, freeze
from masksd.kit.training.resuming import CONFIG, LOG, SHEET, check_items, cut_log
from masksd.kit.training.saving import LATEST, SavedLoop, keep_best, keep_older
from masksd.kit.training.signals import StopRequest
from masksd.kit.training.trackers import end_tracker, start_tracker, track
from masksd.losses import class_weighted_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from masksd.kit.data.refer import ReferDataset


class Run(SavedLoop):
    """:meth:`check_first_batch`, then :meth:`fit`, then :meth:`finish`; trains in place.

    ``sd`` is the wrapper, ``wrapped`` what Accelerate made of it, ``records`` the training lines of
    ``metrics.jsonl``, ``place`` the folder of the run, which takes its place with the first
    checkpoint at the latest, ``saved`` the step of the last one, ``best`` the highest mIoU.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        checkpoint: Checkpoint,
        training: ReferDataset,
        scoring: ReferDataset,
        place: HeldFolder,
    ) -> None:
        self.config, self.accelerator, self.place = config, accelerator, place
        self.checkpoint, self.training, self.scoring = checkpoint, training, scoring
        model: Any = checkpoint.model
        model.to(accelerator.device).train()
        freeze(model, config.frozen)
        self.sd = wrap_model(model, config.distill, checkpoint.tokenizer).to(accelerator.device)
        self.branches = {name: cast(MaskedBranch, b) for name, b in self.sd.branches.items()}
        self._full_weights = {name: each.weight.clone() for name, each in self.branches.items()}
        batches = Batches(
            training,
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        optimizer = build_optimizer(self.sd, model, config)
        self.wrapped, optimizer, batches.loader = accelerator.prepare(
            self.sd, optimizer, batches.loader
        )
        batches.processes = accelerator.num_processes
        super().__init__(
            batches,
            optimizer,
            config.schedule_of(len(batches.loader)),
            log_every=config.log_every,
            title="train",
            accumulate=config.accumulate,
        )
        self.bad_items: list[list[int]] = []
        self.records: list[dict[str, Any]] = []
        self.stop = StopRequest()
        self.saved, self.saved_at, self.best = -1, time.monotonic(), -1.0

    def resume(self, step: int, state: dict[str, Tensor]) -> None:
        """Go on after ``step`` steps of an earlier process, whose host is this one's already."""
        check_items(state, len(self.training), self.config.train_split)
        self.restore(step, state)
        self.saved = step

    def check_first_batch(self) -> None:
        """Compute the losses of one batch, so that a run that cannot work fails before it starts.

        Nothing of the run changes.
        """
        batch = default_collate([self.training[index] for index in range(self.config.batch_size)])
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        target = batch["target"].float()
        watched = batch_norm_watched(self.checkpoint.model, self.config.batch_size)
        with self.accelerator.autocast(), watched:
            self.losses(self.sd.preview(*self.inputs(batch), target=target), target)

    def open_folder(self) -> None:
        """Write the config into the run's folder, and go on with its log."""
        folder = self.place.path
        start_tracker(self.accelerator, self.config)
        if self.accelerator.is_main_process:
            write_files({folder / CONFIG: self.config.to_json().encode()})
            self.records = cut_log(folder / LOG, self.done)
            if not has_checkpoint(self.place.target):
                self.place.publish()  # there is no older run to lose

    def train(self) -> dict[str, dict[str, float]]:
        """Take all steps, save and score; what stops that says where the last checkpoint is."""
        main = self.accelerator.is_main_process
        try:
            with self.stop:
                self.fit(progress=main and self.config.progress)
        except (OSError, RuntimeError, ValueError) as error:
            if main and self.saved >= 0 and not isinstance(error, TrainingStopped):
                warnings.warn(
                    f"the run ended early; it is saved as it was after step {self.saved}: masksd "
                    f"train --resume {self.config.output_folder()}",
                    UserWarning,
                    stacklevel=4,
                )
            raise
        return self.finish()

    def take_step(self, batches: list[Batch]) -> Terms:
        """Forward, loss, backward for each batch, clip, step; or change nothing."""
        config, accelerator, step = self.config, self.accelerator, self.done + 1
        self.set_branch_weights((step - 1) / self.schedule.steps)
        if accelerator.scaler is not None:
            self.sd.loss_scale = accelerator.scaler.get_scale()
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        found = []
        for part, batch in enumerate(batches):
            last = part == len(batches) - 1  # it alone averages gradients over the processes
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                found.append(self.backward(batch, step, part))
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip_norm)
        finite = bool(torch.isfinite(norm))  # the same on every process: gradients are averaged
        if finite or accelerator.scaler is not None:  # a loss scaler skips and adapts by itself
            self.optimizer.step()
        self.optimizer.zero_grad()
        if not finite:
            for buffer, value in before:
                buffer.copy_(value)
        self.count_bad_steps(step, finite, [i for each in batches for i in each["index"].tolist()])
        return {**means(found), "grad_norm": norm.detach().float()}

    def backward(self, batch: Batch, step: int, part: int) -> Terms:
        """Add the gradients of one of a step's batches; return its losses."""
        key = [step, self.accelerator.process_index, part][: None if part else 2]
        torch.manual_seed(keyed_seed(self.config.seed, "dropout", *key))
        target = batch["target"].float()
        out = self.wrapped(*self.inputs(batch), target=target)
        loss, losses = self.losses(out, target)
        self.accelerator.backward(loss / self.accumulate)
        return {n: value.detach().float() for n, value in {"loss": loss, **losses}.items()}

    def buffers(self) -> list[Tensor]:
        """Return what a step moves beside the weights: statistics of norms, and counters.

        The wrapper's own counter stays out: it counts calls, skipped steps included. So does the
        teacher, which follows the weights before a step.
        """
        teacher = set() if self.sd.teaching is None else set(self.sd.teaching.modules())
        parts = [part for part in self.sd.modules() if part is not self.sd and part not in teacher]
        return [buffer for module in parts for buffer in module.buffers(recurse=False)]

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model takes."""
        return model_inputs(self.checkpoint, batch["image"], batch["tokens"])

    def losses(self, out: DistillOutput, target: Tensor) -> tuple[Tensor, Terms]:
        """Return the loss and its terms; class weights replace the segmentation loss."""
        weights = self.config.class_weights
        if weights is None:
            return cast(Tensor, out.loss), out.losses
        losses = {**out.losses, "seg": class_weighted_loss(out.host_output, target, weights)}
        return losses["seg"] + out.distill_loss, losses

    def set_branch_weights(self, done: float) -> None:
        """Set the branches' weights by the ramp, given the share of the run that is over."""
        if self.config.ramp != (0.0, 0.0):
            share = self.config.ramp_at(done)
            for name, branch in self.branches.items():
                branch.weight.copy_(share * self._full_weights[name])

    def count_bad_steps(self, step: int, finite: bool, items: list[int]) -> None:
        """Count skipped steps; raise a ``TrainingError`` after too many in a row."""
        self.bad_items = [] if finite else [*self.bad_items, items]
        self.skipped += not finite
        if len(self.bad_items) >= self.config.max_bad_steps:
            raise TrainingError(
                f"the gradient was not finite in {len(self.bad_items)} steps in a row, up to step "
                f"{step}; the last one had the training items {self.bad_items[-1]}; lower --lr, or "
                "look at these items"
            )

    def log(self, means: Terms, steps: int, seconds: float) -> float | None:
        """Write a line of ``metrics.jsonl``, averaged over all processes."""
        reduced = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        losses = {  # JSON has no NaN
            name: value if math.isfinite(value) else None
            for name, value in zip(means, reduced.tolist(), strict=True)
        }
        loss, norm = losses.pop("loss"), losses.pop("grad_norm")
        images = steps * self.accumulate * self.config.batch_size * self.accelerator.num_processes
        record = {
            "step": self.done,
            "loss": loss,
            "losses": losses,
            "grad_norm": norm,
            "lr": self.rate,
            "skipped": self.skipped,
            "pictures_per_second": round(images / seconds, 2),
        }
        self.records.append(record)
        self.write(record)
        return loss

    def write(self, record: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        if self.accelerator.is_main_process:
            with (self.place.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        track(self.accelerator, record)

    def after_step(self) -> None:
        """Evaluate and save where it is time, and stop where a signal asked for it."""
        every, total = self.config.evaluate_every, self.schedule.steps
        due = time.monotonic() - self.saved_at >= 60 * self.config.save_minutes
        stop, due = self.agree(self.stop.number, due)
        if every and self.done % every == 0 and self.done < total:
            scores = evaluate(self.checkpoint, self.scoring, **self.scoring_options())
            self.write({"step": self.done, "scores": {"own": scores}})
            self.save(scores["mIoU"])
        elif stop or (due and self.done < total):  # finish saves the last one
            self.save()
        if stop:
            raise TrainingStopped(
                f"stopped by {signal.Signals(stop).name} after step {self.done} of {total}; go on "
                f"with: masksd train --resume {self.config.output_folder()}",
                stop,
            )

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

    def save(self, score: float | None = None) -> None:
        """Write the checkpoint: the host for use, and what only resuming needs.

        A ``score`` above those before makes it the best one, too.
        """
        best = score is not None and score > self.best
        self.best = score if best and score is not None else self.best
        state = self.training_state()
        if self.accelerator.is_main_process:
            config = dataclasses.replace(self.checkpoint.config, step=self.done)
            checkpoint = self.checkpoint._replace(config=config)
            folder = self.place.path
            retire = partial(keep_older, folder, keep=self.config.keep)
            save_checkpoint(folder / LATEST, checkpoint, state, retire)
            if best:
                keep_best(folder)
            self.place.publish()
        self.accelerator.wait_for_everyone()
        self.saved, self.saved_at = self.done, time.monotonic()

    def finish(self) -> dict[str, dict[str, float]]:
        """Save, score with the right, another and no expression, and draw."""
        self.save()
        scores = evaluate_all(self.checkpoint, self.scoring, **self.scoring_options())
        self.write({"step": self.done, "scores": scores})
        if self.accelerator.is_main_process:
            folder = self.place.path
            if -1 < self.best < scores["own"]["mIoU"]:
                keep_best(folder)
            chosen = spread_indices(len(self.scoring), self.config.sheet_rows)
            rows = example_rows(self.sd, self.checkpoint, self.scoring, chosen)
            draw_curves(self.records, folder / "curves.png")
            draw_sheet(rows, folder / SHEET)
        end_tracker(self.accelerator, self.place.path / SHEET, self.done)
        return scores
