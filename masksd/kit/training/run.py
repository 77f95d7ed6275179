"""A training run under way: its steps and what it logs of them."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import TrainConfig, TrainingError
from masksd.kit.feeding import foreground_logits, model_inputs
from masksd.kit.randomness import keyed_seed
from masksd.kit.sources import learn_from, wrap_model
from masksd.kit.start import load_teacher
from masksd.kit.storage.places import HeldFolder
from masksd.kit.training.checks import batch_norm_watched
from masksd.kit.training.lifecycle import Lifecycle
from masksd.kit.training.loop import Batch, Batches, JointBatches, Terms, means
from masksd.kit.training.optimizers import build_optimizer, freeze, losses
from masksd.kit.training.signals import StopRequest
from masksd.passes.branches import MaskedBranch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from masksd.kit.data.refer import ReferDataset
    from masksd.kit.mixing import MixedDataset


class Run(Lifecycle):
    """Trains a checkpoint's model in place, as wrapped by us (``sd``) and by Accelerate."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        checkpoint: Checkpoint,
        training: ReferDataset | MixedDataset,
        unlabelled: ReferDataset | None,
        scoring: ReferDataset,
        place: HeldFolder,
    ) -> None:
        self.config, self.accelerator, self.place = config, accelerator, place
        self.checkpoint, self.scoring = checkpoint, scoring
        self.training, self.unlabelled = training, unlabelled
        model: Any = checkpoint.model
        model.to(accelerator.device).train()
        freeze(model, config.frozen)
        self.sd = wrap_model(model, config.distill, checkpoint.tokenizer).to(accelerator.device)
        self.branches = {name: cast(MaskedBranch, b) for name, b in self.sd.branches.items()}
        self._full_weights = {name: each.weight.clone() for name, each in self.branches.items()}
        pin_memory = accelerator.device.type == "cuda"
        batches_of = partial(Batches, workers=config.workers, pin_memory=pin_memory)
        batches: Any = batches_of(training, batch_size=config.batch_size, seed=config.seed)
        if unlabelled is not None:
            size = config.images_per_pass() - config.batch_size
            others = batches_of(unlabelled, batch_size=size, seed=unlabelled.seed)
            batches = JointBatches(batches, others)
        if config.teacher is not None:
            teacher = load_teacher(checkpoint, config.teacher).model
            example = {n: each.to(accelerator.device) for n, each in batches.first().items()}
            teacher.to(accelerator.device)
            learn_from(self.sd, teacher, config, self.inputs(example), checkpoint.tokenizer)
        optimizer = build_optimizer(self.sd, model, config)
        self.wrapped, optimizer = accelerator.prepare(self.sd, optimizer)
        batches.prepare(accelerator)
        super().__init__(
            batches,
            optimizer,
            config.schedule_of(len(batches)),
            log_every=config.log_every,
            title="train",
            accumulate=config.accumulate,
        )
        self.bad_items: list[str] = []
        self.stop = StopRequest()
        self.saved = self.evaluated = -1
        self.saved_at = time.monotonic()

    def check_first_batch(self) -> None:
        """Compute the losses of one batch, so that a run that cannot work fails at once."""
        batch = self.batches.first()
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        truth = truth_of(batch)
        watched = batch_norm_watched(self.checkpoint.model, self.config.images_per_pass())
        with self.accelerator.autocast(), watched:
            out = self.sd.preview(*self.inputs(batch), **truth)
            losses(out, truth["target"], self.config)
        foreground_logits(out.host_output)  # as scoring and predicting will

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
        self.count_bad_steps(step, finite, items_of(batches))
        return {**means(found), "grad_norm": norm.detach().float()}

    def backward(self, batch: Batch, step: int, part: int) -> Terms:
        """Add the gradients of one of a step's batches; return its losses."""
        key = [step, self.accelerator.process_index, part][: None if part else 2]
        self.sd.teacher_rests = part > 0
        torch.manual_seed(keyed_seed(self.config.seed, "dropout", *key))
        truth = truth_of(batch)
        out = self.wrapped(*self.inputs(batch), **truth)
        loss, terms = losses(out, truth["target"], self.config)
        self.accelerator.backward(loss / self.accumulate)
        return {n: value.detach().float() for n, value in {"loss": loss, **terms}.items()}

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model takes."""
        return model_inputs(self.checkpoint, batch["image"], batch["tokens"])

    def set_branch_weights(self, done: float) -> None:
        """Set the branches' weights by the ramp, given the share of the run that is over."""
        if self.config.ramp != (0.0, 0.0):
            share = self.config.ramp_at(done)
            for name, branch in self.branches.items():
                branch.weight.copy_(share * self._full_weights[name])

    def count_bad_steps(self, step: int, finite: bool, items: str) -> None:
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
        images = steps * self.accumulate * self.config.images_per_pass()
        images *= self.accelerator.num_processes
        record = {
            "step": self.done,
            "loss": loss,
            "losses": losses,
            "grad_norm": norm,
            "lr": self.rate,
            "skipped": self.skipped,
            "pictures_per_second": round(images / seconds, 2),
        }
        self.write(record)
        return loss


def truth_of(batch: Batch) -> dict[str, Tensor]:
    """Return what the wrapper is told of the truth."""
    known = {"labelled": batch["labelled"]} if "labelled" in batch else {}
    return {"target": batch["target"].float(), **known}


def items_of(batches: list[Batch]) -> str:
    """Name the items of a step, those without a mask apart."""
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for batch in batches:
        index = batch["index"]
        flags = batch.get("labelled", torch.ones_like(index, dtype=torch.bool))
        for item, labelled in zip(index.tolist(), flags.tolist(), strict=True):
            kinds[labelled].append(item)
    return f"{kinds[True]}" + (f" and the unlabelled {kinds[False]}" if kinds[False] else "")
