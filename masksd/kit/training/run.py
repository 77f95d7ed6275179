"""A training run under way: its steps, and what it logs, saves and scores."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from masksd.branches import MaskedBranch
from masksd.distill import DistillOutput
from masksd.kit.checkpoints import Checkpoint, save_checkpoint
from masksd.kit.config import TrainConfig, TrainingError
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.scoring import evaluate, evaluate_all
from masksd.kit.feeding import model_inputs
from masksd.kit.figures import draw_curves, draw_sheet
from masksd.kit.files import StagedFolder
from masksd.kit.randomness import keyed_seed
from masksd.kit.sources import wrap_model
from masksd.kit.training.checks import batch_norm_watched
from masksd.kit.training.examples import example_rows
from masksd.kit.training.loop import Batch, Batches, Loop, Terms
from masksd.kit.training.optimizers import build_optimizer, freeze
from masksd.losses import class_weighted_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from masksd.kit.data.refer import ReferDataset


class Run(Loop):
    """:meth:`check_first_batch`, then :meth:`fit`, then :meth:`finish`; trains in place.

    ``sd`` is the wrapper, ``wrapped`` what Accelerate made of it, ``records`` the training lines of
    ``metrics.jsonl``. ``staged`` takes its place with the first checkpoint.
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
        schedule = config.schedule_of(len(batches.loader))
        super().__init__(batches, optimizer, schedule, log_every=config.log_every, title="train")
        self.bad_items: list[list[int]] = []
        self.records: list[dict[str, Any]] = []

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

    def take_step(self, batch: Batch) -> Terms:
        """Forward, loss, backward, clip, step."""
        config, accelerator, step = self.config, self.accelerator, self.done + 1
        torch.manual_seed(keyed_seed(config.seed, "dropout", step, accelerator.process_index))
        self.set_branch_weights((step - 1) / self.schedule.steps)
        if accelerator.scaler is not None:
            self.sd.loss_scale = accelerator.scaler.get_scale()
        target = batch["target"].float()
        out = self.wrapped(*self.inputs(batch), target=target)
        loss, losses = self.losses(out, target)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.clip_norm)
        finite = bool(torch.isfinite(norm))  # the same on every process: gradients are averaged
        if finite or accelerator.scaler is not None:  # a loss scaler skips and adapts by itself
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.count_bad_steps(step, finite, batch["index"])
        terms = {"loss": loss, **losses, "grad_norm": norm}
        return {name: value.detach().float() for name, value in terms.items()}

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

    def count_bad_steps(self, step: int, finite: bool, items: Tensor) -> None:
        """Count skipped steps; raise a ``TrainingError`` after too many in a row."""
        self.bad_items = [] if finite else [*self.bad_items, items.tolist()]
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
        images = steps * self.config.batch_size * self.accelerator.num_processes
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
            with (self.staged.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def after_step(self) -> None:
        """Evaluate and save every ``evaluate_every`` steps; :meth:`finish` does so at the end."""
        every = self.config.evaluate_every
        if every and self.done % every == 0 and self.done < self.schedule.steps:
            scores = evaluate(self.checkpoint, self.scoring, **self.scoring_options())
            self.write({"step": self.done, "scores": {"own": scores}})
            self.save()

    def scoring_options(self) -> dict[str, Any]:
        """Return how the run is scored, for ``evaluate`` and ``evaluate_all``."""
        return {
            "limit": self.config.eval_samples,
            "batch_size": self.config.eval_batch_size,
            "progress": self.config.progress and self.accelerator.is_main_process,
        }

    def save(self) -> None:
        """Write the checkpoint: the host for use, and what only resuming needs."""
        if self.accelerator.is_main_process:
            config = dataclasses.replace(self.checkpoint.config, step=self.done)
            own = {k: v for k, v in self.sd.state_dict().items() if not k.startswith("segmenter.")}
            state = {f"distill.{name}": value for name, value in own.items()}
            state["skipped"] = torch.tensor(self.skipped)
            for name, parameter in self.sd.named_parameters():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    state[f"optimizer.{name}.{key}"] = value
            checkpoint = self.checkpoint._replace(config=config)
            save_checkpoint(self.staged.path / "checkpoint", checkpoint, state)
            self.staged.publish()
        self.accelerator.wait_for_everyone()

    def finish(self) -> dict[str, dict[str, float]]:
        """Save, score with the right, another and no expression, and draw."""
        self.save()
        scores = evaluate_all(self.checkpoint, self.scoring, **self.scoring_options())
        self.write({"step": self.done, "scores": scores})
        if self.accelerator.is_main_process:
            chosen = spread_indices(len(self.scoring), self.config.sheet_rows)
            rows = example_rows(self.sd, self.checkpoint, self.scoring, chosen)
            draw_curves(self.records, self.staged.path / "curves.png")
            draw_sheet(rows, self.staged.path / "sheet.png")
        return scores
