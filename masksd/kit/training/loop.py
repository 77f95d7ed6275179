"""The training loop: steps, what is logged, what is saved."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from masksd.branches import MaskedBranch
from masksd.distill import DistillOutput
from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.config import TrainConfig, TrainingError
from masksd.kit.data.records import DataError
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.reading import without_traceback
from masksd.kit.evaluation.scoring import evaluate, evaluate_all
from masksd.kit.feeding import model_inputs
from masksd.kit.figures import draw_curves, draw_sheet
from masksd.kit.files import StagedFolder
from masksd.kit.randomness import EpochSampler, keyed_seed
from masksd.kit.training.batch_norm import checking_batch_norm
from masksd.kit.training.examples import example_rows
from masksd.kit.training.optimizers import build_optimizer, freeze
from masksd.kit.training.wrapping import wrap_model
from masksd.losses import class_weighted_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from masksd.kit.data.refer import ReferDataset


class Run:
    """A run under way: :meth:`fit` trains, :meth:`finish` saves, scores and draws.

    Args:
        config: of the run.
        accelerator: device, processes and precision.
        checkpoint: the fresh model with its tokenizer; trained in place.
        training: the split to train on.
        scoring: the split to score on.
        staged: folder of the run; it takes its place with the first checkpoint.

    Attributes:
        sd: the wrapper around the model.
        schedule: the learning rate over the steps.
        done: steps taken.
        skipped: of these, with a gradient that was not finite.
        records: the training lines of ``metrics.jsonl``.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        checkpoint: Checkpoint,
        training: ReferDataset,
        scoring: ReferDataset,
        staged: StagedFolder,
    ) -> None:
        self.config, self.accelerator, self.staged = config, accelerator, staged
        self.checkpoint, self.training, self.scoring = checkpoint, training, scoring
        model: Any = checkpoint.model
        model.to(accelerator.device).train()
        freeze(model, config.frozen)
        self.sd = wrap_model(model, config.distill, checkpoint.tokenizer).to(accelerator.device)
        self.sampler = EpochSampler(len(training), config.seed)
        loader = DataLoader(
            training,
            batch_size=config.batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,  # an epoch of shapes lasts a few seconds
            pin_memory=accelerator.device.type == "cuda",
            # without one of its own the loader draws from the global stream
            generator=torch.Generator().manual_seed(keyed_seed(config.seed, "workers")),
        )
        optimizer = build_optimizer(self.sd, model, config)
        self.wrapped, self.optimizer, self.loader = accelerator.prepare(self.sd, optimizer, loader)
        self.schedule = config.schedule_of(len(self.loader))
        self._full = {name: branch.weight.clone() for name, branch in self._branches()}
        self.done = self.skipped = 0
        self.records: list[dict[str, Any]] = []

    def rehearse(self) -> None:
        """Compute the losses of one batch, so that what cannot run fails before it is started.

        Nothing of the run changes.

        Raises:
            ValueError: data or a config that do not fit the model.
        """
        indices = range(self.config.batch_size)
        batch = default_collate([self.training[index] for index in indices])
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        target = batch["target"].float()
        watched = checking_batch_norm(self.checkpoint.model, self.config.batch_size)
        with self.accelerator.autocast(), watched:
            self._losses(self.sd.preview(*self._inputs(batch), target=target), target)

    def fit(self) -> None:
        """Take all steps."""
        from tqdm import tqdm

        config, accelerator = self.config, self.accelerator
        main = accelerator.is_main_process
        total = self.schedule.steps
        steps = range(1, total + 1)
        every = config.evaluate_every
        shown = main and config.progress
        bar = tqdm(total=total, desc="train", unit="step", disable=not shown)
        window: list[dict[str, Tensor]] = []
        bad: list[list[int]] = []
        since = time.perf_counter()
        with bar:
            for step, batch in zip(steps, self._batches(), strict=False):
                values, finite = self._step(step, batch)
                window.append(values)
                self.done = step
                bad = [] if finite else [*bad, batch["index"].tolist()]
                self.skipped += not finite
                if len(bad) >= config.max_bad_steps:
                    raise TrainingError(
                        f"the gradient was not finite in {len(bad)} steps in a row, up to step "
                        f"{step}; the last one had the training items {bad[-1]}; lower --lr, or "
                        "look at these items"
                    )
                bar.update()
                if step % config.log_every == 0 or step == total:
                    self._log(step, window, time.perf_counter() - since)
                    bar.set_postfix(loss=self.records[-1]["loss"])
                    window, since = [], time.perf_counter()
                if every and step % every == 0 and step < total:
                    paused = time.perf_counter()
                    scores = evaluate(self.checkpoint, self.scoring, **self._scoring_options())
                    self._write({"step": step, "scores": {"own": scores}})
                    self._save()
                    since += time.perf_counter() - paused  # the speed is that of training

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        epoch = 0
        while True:
            self.sampler.epoch = epoch
            self.training.set_epoch(epoch)
            try:
                yield from self.loader
            except DataError as error:
                raise without_traceback(error) from None
            epoch += 1

    def _branches(self) -> list[tuple[str, MaskedBranch]]:
        return [(name, cast(MaskedBranch, each)) for name, each in self.sd.branches.items()]

    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return model_inputs(self.checkpoint, batch["image"], batch["tokens"])

    def _losses(self, out: DistillOutput, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, with the host's own loss where it is weighted by class."""
        weights = self.config.class_weights
        if weights is None:
            return cast(Tensor, out.loss), out.losses
        losses = {**out.losses, "seg": class_weighted_loss(out.host_output, target, weights)}
        return losses["seg"] + out.distill_loss, losses

    def _step(self, step: int, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
        """Take one step; return losses and gradient norm, and whether the norm was finite."""
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(keyed_seed(config.seed, "dropout", step, accelerator.process_index))
        self.rate = self.schedule.rate(step - 1 - self.skipped)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["scale"]
        if config.ramp != (0.0, 0.0):
            share = config.ramp_at((step - 1) / self.schedule.steps)
            for name, branch in self._branches():
                branch.weight.copy_(share * self._full[name])
        if accelerator.scaler is not None:
            self.sd.loss_scale = accelerator.scaler.get_scale()
        target = batch["target"].float()
        out = self.wrapped(*self._inputs(batch), target=target)
        loss, losses = self._losses(out, target)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip_norm)
        finite = bool(torch.isfinite(norm))  # the same on every process: gradients are averaged
        if finite or accelerator.scaler is not None:  # a loss scaler skips and learns by itself
            self.optimizer.step()
        self.optimizer.zero_grad()
        values = {"loss": loss, **losses, "grad_norm": norm}
        return {name: value.detach().float() for name, value in values.items()}, finite

    def _log(self, step: int, window: list[dict[str, Tensor]], seconds: float) -> None:
        names = dict.fromkeys(name for values in window for name in values)
        # a branch that runs every n-th step is averaged over the steps that it ran in
        means = [torch.stack([v[name] for v in window if name in v]).mean() for name in names]
        reduced = self.accelerator.reduce(torch.stack(means), reduction="mean").tolist()
        losses = {  # JSON has no NaN
            name: value if math.isfinite(value) else None
            for name, value in zip(names, reduced, strict=True)
        }
        loss, norm = losses.pop("loss"), losses.pop("grad_norm")
        pictures = len(window) * self.config.batch_size * self.accelerator.num_processes
        self._write(
            {
                "step": step,
                "loss": loss,
                "losses": losses,
                "grad_norm": norm,
                "lr": self.rate,
                "skipped": self.skipped,
                "pictures_per_second": round(pictures / seconds, 2),
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.records.append(record)
        if self.accelerator.is_main_process:
            with (self.staged.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _scoring_options(self) -> dict[str, Any]:
        return {
            "limit": self.config.eval_samples,
            "batch_size": self.config.eval_batch_size,
            "progress": self.config.progress and self.accelerator.is_main_process,
        }

    def _save(self) -> None:
        """Write the checkpoint: the host for use, and what only going on with the run needs."""
        if self.accelerator.is_main_process:
            config = dataclasses.replace(self.checkpoint.config, step=self.done)
            own = {k: v for k, v in self.sd.state_dict().items() if not k.startswith("segmenter.")}
            state = {f"distill.{name}": value for name, value in own.items()}
            state["skipped"] = torch.tensor(self.skipped)
            for name, parameter in self.sd.named_parameters():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    state[f"optimizer.{name}.{key}"] = value
            save_checkpoint(
                self.staged.path / "checkpoint", self.checkpoint._replace(config=config), state
            )
            self.staged.publish()
        self.accelerator.wait_for_everyone()

    def finish(self) -> dict[str, dict[str, float]]:
        """Save, score with every kind of sentence, and draw."""
        self._save()
        scores = evaluate_all(self.checkpoint, self.scoring, **self._scoring_options())
        self._write({"step": self.done, "scores": scores})
        if self.accelerator.is_main_process:
            chosen = spread_indices(len(self.scoring), self.config.sheet_rows)
            rows = example_rows(self.sd, self.checkpoint, self.scoring, chosen)
            draw_curves(self.records, self.staged.path / "curves.png")
            draw_sheet(rows, self.staged.path / "sheet.png")
        return scores
