"""Everything a training run needs to know; its fields are the options of ``masksd train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from masksd.config import DistillConfig
from masksd.errors import check_choice, check_fraction
from masksd.kit.config.checks import (
    check_class_weights,
    check_kinds,
    check_knowledge,
    check_unlabelled,
)
from masksd.kit.config.mixing import check_mix
from masksd.kit.config.stored import StoredConfig
from masksd.kit.data_config import FITS, DataConfig, check_finite, check_whole
from masksd.kit.schedules import SCHEDULES, Schedule
from masksd.knowledge.config import ChannelDistillConfig

MIXED_PRECISIONS = ("no", "fp16", "bf16")
STARTS = ("pretrained", "encoder_weights", "start_from")
OPTIMIZERS = ("adam", "adamw")
TRACKERS = (
    *("tensorboard", "wandb", "mlflow", "comet_ml", "trackio", "swanlab"),
    *("aim", "clearml", "dvclive"),
)


@dataclass(frozen=True)
class TrainConfig(StoredConfig):
    """A training run: model, data, optimiser, method and output.

    The defaults train the small model on generated images, on a CPU, in minutes.

    Attributes:
        model: clip_cris_mini, clip_cris_tiny, clip_cris_vit_s16, clip_cris_vit_b16,
            clip_cris_vit_l14 (CLIP's transformers), clip_lda_tiny, clip_lda_vit_b16 (a neck of
            language-driven attention), clip_cris_rn50, clip_cris_rn101 (CRIS), lavt_tiny or
            lavt_swin_b (LAVT).
        pretrained: start from pretrained towers, where the model has them.
        encoder_weights: start from the two towers in this file, written by masksd pretrain.
        start_from: start from the model in this checkpoint, written by masksd train.
        dropout: of the decoder, in [0, 1]; None takes the model's own.
        data: see DataConfig.
        train_split: split to train on.
        eval_split: split to score on.
        train_items: one item per ref with one of its expressions drawn at random (refs), or one
            item per expression (sentences).
        labels: refs of the training split whose masks are used, a number or a share in (0, 1); None
            uses all. With the same seed, a smaller set is a subset of a larger one.
        unlabelled: where images and expressions without masks come from, for the branches: the
            data's own name (the refs that labels leaves out), another data set in the same root, or
            a folder that holds one of the same name; their train_split.
        mix: folders of data sets (ROOT/NAME, or ROOT/NAME=WEIGHT) whose train_split is trained on,
            too. Pictures in another split of any set are left out of training.
        label_noise: share of the training masks, in [0, 1], that lie on another object of the
            image: for study.
        tokenizer: shapes (its words), clip (byte pairs) or bert (word pieces; both from the Hugging
            Face cache), a repository there, or a folder; None takes shapes for the shapes data,
            and for other data or pretrained towers the tokenizer of the model's text tower.
        max_length: tokens per sentence, start and end included; the paper has 22 for G-Ref.
        image_size: side of the square input, pixels; None takes the model's own.
        fit: how an image becomes a square: squash, or letterbox (centred on padding, as in CRIS).
        batch_size: images per forward pass on each device.
        unlabelled_batch: unlabelled images beside them; None takes batch_size.
        accumulate: batches per optimiser step, whose gradients are averaged; each call of the model
            still normalises (BatchNorm) and draws its masks by itself.
        steps: optimiser steps of the whole run; None if epochs is set.
        epochs: passes over the training items; None if steps is set.
        optimizer: adam or adamw; adam adds the weight decay to the gradient.
        lr: peak learning rate.
        schedule: how the learning rate falls: cosine (to 0), multistep (in drops) or poly (to 0).
        warmup: steps over which the learning rate rises from 0; None if warmup_epochs is set.
        warmup_epochs: the same in epochs.
        milestones: when multistep drops, as shares of the run in (0, 1): 0.7 is epoch 35 of 50.
        gamma: factor of the learning rate at each drop of multistep, in [0, 1].
        power: exponent of poly; LAVT has 0.9.
        backbone_lr: factor of the learning rate of the two towers, in [0, 1]; their tables of
            absolute positions are excepted. CRIS has 0.1.
        weight_decay: of parameters with two or more dimensions, except Swin's tables of relative
            positions.
        class_weights: of background and foreground in a cross-entropy on the model's output, which
            replaces the segmentation loss; LAVT has 0.9 1.1. None keeps the loss as it is.
        frozen: parameters whose names begin with one of these are not trained.
        clip_norm: gradients are scaled down to this norm; inf never clips.
        max_bad_steps: a step whose gradient is not finite is skipped; this many in a row end the
            run.
        seed: of weights, data order, drawn expressions and dropout; masks have distill.seed.
        workers: processes that read data; 0 reads in the main process.
        cache: keep decoded images in memory.
        mixed_precision: no, fp16 or bf16.
        cpu: stay on the CPU even if there is a GPU.
        timeout: seconds after which several processes give up on one that does not answer.
        distill: the method; see DistillConfig.
        teacher: also learn from the larger model in this checkpoint, written by masksd train. (The
            teacher of distill.target is another: the average of the run's own weights.)
        knowledge: what is learned from that teacher; see ChannelDistillConfig.
        ramp: shares of the run, in [0, 1], between which the weights of the branches rise from 0 to
            their full value: 0 0 has full weights throughout, 0.5 0.5 from the middle on. A branch
            of weight 0 is still computed.
        log_every: steps between two lines of metrics.jsonl.
        log_with: also log to a tracker of accelerate's: tensorboard, wandb, mlflow, comet_ml,
            trackio, swanlab, aim, clearml or dvclive; None logs to metrics.jsonl alone.
        evaluate_every: steps between two evaluations with a checkpoint; 0 only at the end. The
            checkpoint with the best mIoU of them is kept in the folder best.
        save_minutes: minutes between two checkpoints; 0 saves at every step, inf only at
            evaluations, at the end and when the run is told to stop.
        keep: latest checkpoints kept; those before the last are in the folder checkpoints.
        eval_samples: expressions scored, evenly spread over the split; 0 scores all.
        eval_batch_size: images per forward pass in evaluation.
        threshold: a pixel belongs to the object if its probability is above this, in [0, 1].
        sheet_rows: examples on sheet.png.
        output: folder of the run; None takes runs/shapes-LEVEL, or runs/NAME.
        overwrite: replace an older run in the same place.
        progress: show progress bars.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.

    Example:
        >>> TrainConfig(batch_size=16).output_folder().as_posix()
        'runs/shapes-easy'
        >>> TrainConfig(steps=0)
        Traceback (most recent call last):
        ValueError: steps must be a whole number of at least 1, got 0
    """

    model: str = "clip_cris_tiny"
    pretrained: bool = False
    encoder_weights: Path | None = None
    start_from: Path | None = None
    dropout: float | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train_split: str = "train"
    eval_split: str = "val"
    train_items: Literal["refs", "sentences"] = "refs"
    labels: int | float | None = None
    label_noise: float = 0.0
    unlabelled: str | None = None
    mix: tuple[str, ...] = ()
    tokenizer: str | None = None
    max_length: int = 17
    image_size: int | None = None
    fit: Literal["squash", "letterbox"] = "squash"
    batch_size: int = 16
    unlabelled_batch: int | None = None
    accumulate: int = 1
    steps: int | None = 1000
    epochs: int | None = None
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1.5e-3
    schedule: Literal["cosine", "multistep", "poly"] = "cosine"
    warmup: int | None = 100
    warmup_epochs: int | None = None
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    backbone_lr: float = 1.0
    weight_decay: float = 0.01
    class_weights: tuple[float, float] | None = None
    frozen: tuple[str, ...] = ()
    clip_norm: float = 1.0
    max_bad_steps: int = 20
    seed: int = 0
    workers: int = 0
    cache: bool = True
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    cpu: bool = False
    timeout: float = 600.0
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: Path | None = None
    knowledge: ChannelDistillConfig = field(default_factory=ChannelDistillConfig)
    ramp: tuple[float, float] = (0.0, 0.0)
    log_every: int = 10
    log_with: str | None = None
    evaluate_every: int = 100
    save_minutes: float = 10.0
    keep: int = 1
    eval_samples: int = 600
    eval_batch_size: int = 64
    threshold: float = 0.35
    sheet_rows: int = 8
    output: Path | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_kinds(self)
        check_whole(self, max_length=3, image_size=1, batch_size=1, unlabelled_batch=1)
        check_whole(self, accumulate=1, keep=1, steps=1, epochs=1, warmup=0, warmup_epochs=0)
        check_whole(self, max_bad_steps=1, seed=0, workers=0, log_every=1, evaluate_every=0)
        check_whole(self, eval_samples=0, eval_batch_size=1, sheet_rows=1)
        for pair in (("steps", "epochs"), ("warmup", "warmup_epochs")):
            first, second = (getattr(self, name) for name in pair)
            if (first is None) == (second is None):
                raise ValueError(
                    f"exactly one of {pair[0]} and {pair[1]} must be set and the other be None, "
                    f"got {pair[0]}={first} and {pair[1]}={second}"
                )
        check_finite(self, "lr", "power", "timeout", zero=False)
        check_finite(self, "weight_decay", zero=True)
        for name in ("gamma", "backbone_lr", "threshold", "label_noise"):
            check_fraction(name, getattr(self, name))
        if self.dropout is not None:
            check_fraction("dropout", self.dropout)
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 (inf never clips), got {self.clip_norm}")
        if not self.save_minutes >= 0:
            raise ValueError(f"save_minutes must be at least 0, got {self.save_minutes}")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                "schedule 'multistep' needs milestones and no other schedule takes them, got "
                f"schedule={self.schedule!r} and milestones={self.milestones}"
            )
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(
                f"milestones must be shares of the run, in (0, 1), got {self.milestones}"
            )
        if len(self.ramp) != 2 or not self.ramp[0] <= self.ramp[1]:
            raise ValueError(f"ramp must be two shares of the run, in order, got {self.ramp}")
        for share in self.ramp:
            check_fraction("ramp", share)
        starts = [name for name in STARTS if getattr(self, name)]
        if len(starts) > 1:
            values = " and ".join(f"{name}={str(getattr(self, name))!r}" for name in starts)
            raise ValueError(f"{values} both say where the weights come from; set one of them")
        check_class_weights(self)
        check_unlabelled(self)
        check_mix(self)
        check_knowledge(self)
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        check_choice("train_items", self.train_items, ("refs", "sentences"))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("fit", self.fit, FITS)
        if self.log_with is not None:
            check_choice("log_with", self.log_with, TRACKERS)

    def output_folder(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / self.data.title() if self.output is None else self.output

    def images_per_pass(self) -> int:
        """Return the images per forward pass on each device, with and without a mask."""
        if self.unlabelled is None:
            return self.batch_size
        return self.batch_size + (self.unlabelled_batch or self.batch_size)

    def schedule_of(self, batches: int) -> Schedule:
        """Return the learning rate over the run, and its length, given the batches of an epoch."""
        if batches < self.accumulate and None in (self.steps, self.warmup):
            raise ValueError("an epoch has no step; lower batch_size, or count in steps")
        steps, warmup = (
            (epochs or 0) * batches // self.accumulate if count is None else count
            for count, epochs in ((self.steps, self.epochs), (self.warmup, self.warmup_epochs))
        )
        return Schedule(
            self.schedule,
            lr=self.lr,
            steps=steps,
            warmup=warmup,
            milestones=tuple(round(share * steps) for share in self.milestones),
            gamma=self.gamma,
            power=self.power,
        )

    def ramp_at(self, done: float) -> float:
        """Return the factor of the branches' weights when a share ``done`` of the run is over."""
        start, end = self.ramp
        if done >= end:
            return 1.0
        return 0.0 if done <= start else (done - start) / (end - start)
