"""The options of pretraining two towers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from masksd.kit.config.train import TrainConfig
from masksd.kit.data_config import DataConfig, check_finite, check_whole


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        model: one with two towers: clip_cris_tiny, clip_cris_vit_s16, ...
        data: see DataConfig.
        split: to train on.
        eval_split: to score on.
        max_length: tokens per sentence, as in the training that follows.
        image_size: side of the square input, pixels; None takes the model's own.
        context: least and largest side of a view, as a multiple of the object's longer side.
        patches: weight of the same loss on the patch nearest to the expression; 0 trains as CLIP
            did.
        batch_size: pairs per step; each has all others as negatives.
        steps: optimiser steps.
        lr: peak learning rate; it falls to 0 by a cosine.
        warmup: steps over which it rises from 0.
        weight_decay: of matrices.
        seed: of weights, order, expressions and views.
        workers: processes that read data; 0 reads in the main process.
        log_every: steps between two points of the report's curve.
        eval_samples: expressions scored; 0 scores all.
        cpu: stay on the CPU even if there is a GPU.
        output: file of the weights; the report lies beside it, as .json.
        overwrite: replace an older file in the same place.
        progress: show a progress bar.

    Raises:
        ValueError: a field is out of range.

    Example:
        >>> PretrainConfig(context=(0.5, 2.0))
        Traceback (most recent call last):
        ValueError: context must be two finite numbers of at least 1, in order, got (0.5, 2.0)
    """

    model: str = "clip_cris_tiny"
    data: DataConfig = field(default_factory=DataConfig)
    split: str = "train"
    eval_split: str = "val"
    max_length: int = 17
    image_size: int | None = None
    context: tuple[float, float] = (1.2, 4.0)
    patches: float = 1.0
    batch_size: int = 64
    steps: int = 3000
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    eval_samples: int = 640
    cpu: bool = False
    output: Path = Path("runs/towers.safetensors")
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole(self, max_length=3, image_size=1, batch_size=2, steps=1, warmup=0)
        check_whole(self, seed=0, workers=0, log_every=1, eval_samples=0)
        if len(self.context) != 2 or not 1 <= self.context[0] <= self.context[1] < math.inf:
            raise ValueError(
                f"context must be two finite numbers of at least 1, in order, got {self.context}"
            )
        check_finite(self, "lr", "weight_decay", "patches", zero=True)
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output must end in .safetensors, got {self.output}")

    def run_config(self) -> TrainConfig:
        """Return a training run with the same model and data."""
        return TrainConfig(
            model=self.model,
            data=self.data,
            max_length=self.max_length,
            image_size=self.image_size,
            seed=self.seed,
        )
