"""What a training run is made of; the command line is made from these fields."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from masksd.config import DistillConfig
from masksd.errors import check_choice, check_fraction
from masksd.kit.data.transforms import FITS
from masksd.kit.data_config import DataConfig as DataConfig
from masksd.kit.data_config import cache_folder as cache_folder
from masksd.kit.data_config import check_whole
from masksd.kit.schedules import SCHEDULES, Schedule

MIXED_PRECISIONS = ("no", "fp16", "bf16")
OPTIMIZERS = ("adam", "adamw")


class TrainingError(RuntimeError):
    """A run that cannot go on.

    Example:
        >>> raise TrainingError("the gradient was not finite in 20 steps in a row")
        Traceback (most recent call last):
        masksd.kit.config.TrainingError: the gradient was not finite in 20 steps in a row
    """


@dataclass(frozen=True)
class TrainConfig:
    """A training run: model, data, optimiser, method and what is written.

    The defaults train the small model on generated pictures, on a CPU, in minutes.

    Attributes:
        model: clip_cris_tiny, clip_cris_vit_s16, clip_cris_vit_b16, clip_cris_vit_l14 (CLIP's
            transformers), clip_cris_rn50, clip_cris_rn101 (CRIS), lavt_tiny or lavt_swin_b (LAVT).
        pretrained: start from pretrained towers, where the model has them.
        encoder_weights: file of two towers that masksd pretrain wrote, to start from.
        dropout: of the decoder, in [0, 1]; None takes the model's own.
        data: see DataConfig.
        train_split: split to train on.
        eval_split: split to score on.
        train_items: one item a ref with a random sentence of it (refs), or one a sentence
            (sentences).
        tokenizer: shapes (its words), clip (byte pairs), bert (word pieces; both from the Hugging
            Face cache), a repository there or a folder; None takes shapes for shapes, and what the
            model's text tower knows for other data and where it is pretrained.
        max_length: tokens of a sentence, start and end included; the paper has 22 for G-Ref.
        image_size: side of the squared input, pixels; None takes the model's own.
        fit: how a picture becomes a square: squash, or letterbox (centred on padding, as CRIS).
        batch_size: pictures a step on each device.
        steps: optimiser steps of the whole run; None where epochs say how long it is.
        epochs: passes over the training items, where steps do not say how long the run is.
        optimizer: adam or adamw; adam adds the weight decay to the gradient.
        lr: peak learning rate.
        schedule: how the learning rate goes down: cosine (to 0), multistep (drops) or poly (to 0).
        warmup: steps over which the learning rate rises from 0; None where warmup_epochs say it.
        warmup_epochs: the same in epochs.
        milestones: of multistep, shares of the run, in (0, 1): 0.7 is epoch 35 of 50.
        gamma: of multistep, what the learning rate is multiplied by at each of them, in [0, 1].
        power: of poly, the exponent; LAVT has 0.9.
        backbone_lr: factor of the learning rate of the two towers, in [0, 1]; not of tables of
            absolute positions. CRIS has 0.1.
        weight_decay: on parameters of two and more dimensions only, and not on Swin's tables of
            relative positions.
        class_weights: of background and foreground in a cross-entropy on what the model returns, in
            place of the segmentation loss; LAVT has 0.9 1.1. None takes the loss as it is.
        frozen: beginnings of names of the model's parameters that are not trained.
        clip_norm: the gradient is scaled down to this norm; inf never does.
        max_bad_steps: a step with a gradient that is not finite is skipped; this many in a row end
            the run.
        seed: of weights, order of the data, sentences drawn and dropout; masks have distill.seed.
        workers: processes that read data; 0 reads in the main one.
        cache: keep decoded pictures in memory.
        mixed_precision: no, fp16 or bf16.
        cpu: stay on the CPU where there is a GPU.
        distill: the method; see DistillConfig.
        ramp: shares of the run, in [0, 1], between which the weights of the branches rise from 0 to
            those of the method: 0 0 has them full all along, 0.5 0.5 from the middle on. A branch
            of weight 0 runs all the same.
        log_every: steps between two lines of metrics.jsonl.
        evaluate_every: steps between two evaluations and checkpoints; 0 only at the end.
        eval_samples: expressions scored, evenly spread over the split; 0 scores all.
        eval_batch_size: pictures a forward pass in evaluation.
        threshold: probability above which a pixel belongs to the object, in [0, 1].
        sheet_rows: examples on sheet.png.
        output: folder of the run; None takes runs/shapes-LEVEL, or runs/NAME.
        overwrite: replace an older run at the same place.
        progress: show progress bars.

    Raises:
        ValueError: a field out of range, named.

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
    dropout: float | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train_split: str = "train"
    eval_split: str = "val"
    train_items: Literal["refs", "sentences"] = "refs"
    tokenizer: str | None = None
    max_length: int = 17
    image_size: int | None = None
    fit: Literal["squash", "letterbox"] = "squash"
    batch_size: int = 16
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
    distill: DistillConfig = field(default_factory=DistillConfig)
    ramp: tuple[float, float] = (0.0, 0.0)
    log_every: int = 10
    evaluate_every: int = 0
    eval_samples: int = 600
    eval_batch_size: int = 64
    threshold: float = 0.35
    sheet_rows: int = 8
    output: Path | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole(
            self,
            max_length=3,
            image_size=1,
            batch_size=1,
            steps=1,
            epochs=1,
            warmup=0,
            warmup_epochs=0,
            max_bad_steps=1,
            seed=0,
            workers=0,
            log_every=1,
            evaluate_every=0,
            eval_samples=0,
            eval_batch_size=1,
            sheet_rows=1,
        )
        for one, other in (("steps", "epochs"), ("warmup", "warmup_epochs")):
            values = getattr(self, one), getattr(self, other)
            if values.count(None) != 1:
                raise ValueError(
                    f"exactly one of {one} and {other} must be given and the other be None, got "
                    f"{one}={values[0]} and {other}={values[1]}"
                )
        for name in ("lr", "power"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a finite number above 0, got {getattr(self, name)}"
                )
        for name in ("gamma", "backbone_lr", "threshold"):
            check_fraction(name, getattr(self, name))
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite, 0 or more, got {self.weight_decay}")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                "milestones are where schedule 'multistep' drops, and of no other, got "
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
        if self.pretrained and self.encoder_weights is not None:
            raise ValueError(
                f"pretrained and encoder_weights={str(self.encoder_weights)!r} are two sources of "
                "the same weights; give one of the two"
            )
        weights = self.class_weights
        if weights is not None and not (
            len(weights) == 2 and all(0 < weight < math.inf for weight in weights)
        ):
            raise ValueError(f"class_weights must be two finite numbers above 0, got {weights}")
        if weights is not None and self.distill.low_memory:
            raise ValueError(
                "class_weights make the loss outside the wrapper, which distill.low_memory runs "
                "backward inside; set one of the two"
            )
        if weights is not None and self.distill.dice_weight:
            raise ValueError(
                "class_weights take the place of the segmentation loss, which dice_weight belongs "
                "to; set one of the two"
            )
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 (inf never clips), got {self.clip_norm}")
        if self.dropout is not None:
            check_fraction("dropout", self.dropout)
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        check_choice("train_items", self.train_items, ("refs", "sentences"))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("fit", self.fit, FITS)

    def output_folder(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / self.data.title() if self.output is None else self.output

    def schedule_of(self, epoch: int) -> Schedule:
        """Return the learning rate over the run, and with it the number of steps.

        Args:
            epoch: steps in a pass over the training items.

        Raises:
            ValueError: epochs are counted, and there is not one step in an epoch.

        Example:
            >>> schedule = TrainConfig(epochs=50, steps=None).schedule_of(epoch=662)
            >>> schedule.steps, schedule.warmup
            (33100, 100)
        """
        if epoch < 1 and None in (self.steps, self.warmup):
            raise ValueError("an epoch has no step; lower the batch size, or count in steps")
        steps = (self.epochs or 0) * epoch if self.steps is None else self.steps
        warmup = (self.warmup_epochs or 0) * epoch if self.warmup is None else self.warmup
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
        """Return the share of their weights that the branches have.

        Args:
            done: share of the run that is behind, in [0, 1].

        Example:
            >>> config = TrainConfig(ramp=(0.2, 0.6))
            >>> [round(config.ramp_at(done), 2) for done in (0.0, 0.2, 0.3, 0.6, 1.0)]
            [0.0, 0.0, 0.25, 1.0, 1.0]
        """
        start, end = self.ramp
        if done >= end:
            return 1.0
        return 0.0 if done <= start else (done - start) / (end - start)

    def to_json(self) -> str:
        """Return the config as JSON text; paths become strings, and an infinite number null.

        Example:
            >>> TrainConfig(lr=0.5).to_json().count('"lr": 0.5')
            1
        """
        fields = _without_infinity(dataclasses.asdict(self))
        return json.dumps(fields, indent=2, default=str, allow_nan=False) + "\n"


def _without_infinity(value: Any) -> Any:
    """Put None where JSON has no number."""
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
