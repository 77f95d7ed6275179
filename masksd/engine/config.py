"""What a training run is made of; the command line is made from these fields."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from masksd.config import DistillConfig
from masksd.errors import check_choice, check_fraction, unknown_name

MIXED_PRECISIONS = ("no", "fp16", "bf16")


class TrainingError(RuntimeError):
    """A run that cannot go on.

    Example:
        >>> raise TrainingError("the gradient was not finite in 20 steps in a row")
        Traceback (most recent call last):
        masksd.engine.config.TrainingError: the gradient was not finite in 20 steps in a row
    """


def cache_folder() -> Path:
    """Where generated data go: ``$MASKSD_CACHE``, else ``masksd`` in the user's cache folder.

    Raises:
        ValueError: if there is neither.

    Example:
        >>> cache_folder().name != ""
        True
    """
    own = os.environ.get("MASKSD_CACHE")
    if own:
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache or Path.home() / ".cache") / "masksd"
    except RuntimeError:
        raise ValueError(
            "the user has no home folder to keep generated data in; set MASKSD_CACHE to a folder"
        ) from None


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and expressions come from: a folder in refer format, or generated shapes.

    Attributes:
        data_root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p; None generates the
            shapes data set in the cache folder ($MASKSD_CACHE, else the user's cache).
        images: folder of the pictures; None takes DATA_ROOT/images.
        name: of the data set inside the root: shapes, refcoco, refcoco+, refcocog.
        split_by: who made the splits, as the refs file says: masksd, unc, google, umd.
        text: which form of a sentence: sent (cleaned, as CRIS) or raw (as LAVT).
        level: of generated shapes: easy, medium, hard.
        variant: of generated shapes: empty, + (no location words), g (long sentences).
        pictures: generated for training, the other splits aside; None takes the default.

    Raises:
        ValueError: a field out of range, named.

    Example:
        >>> DataConfig(level="hard").title()
        'shapes-hard'
        >>> DataConfig(pictures=0)
        Traceback (most recent call last):
        ValueError: pictures must be a whole number of at least 1, got 0
    """

    data_root: Path | None = None
    images: Path | None = None
    name: str = "shapes"
    split_by: str = "masksd"
    text: Literal["sent", "raw"] = "sent"
    level: str = "easy"
    variant: str = ""
    pictures: int | None = None

    def __post_init__(self) -> None:
        check_choice("text", self.text, ("sent", "raw"))
        _check_whole(self, pictures=1)
        if self.data_root is None and self.name != "shapes":
            raise ValueError(
                f"data set {self.name!r} is not generated; name the folder that holds "
                f"{self.name}/instances.json with data_root"
            )

    def title(self) -> str:
        """Return a short name of the data, for folders."""
        return self.name if self.data_root else f"shapes-{self.level}{self.variant}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; folders as they are found from everywhere.

        Example:
            >>> DataConfig.from_dict(DataConfig(level="hard").to_dict()).level
            'hard'
        """
        fields = dataclasses.asdict(self)
        return {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DataConfig:
        """Build one from what :meth:`to_dict` returned; what is lacking takes its default.

        Raises:
            ValueError: an unknown field, or one of another type or out of range.
        """
        default = dataclasses.asdict(cls())
        values = dict(fields)
        for name, value in fields.items():
            if name not in default:
                raise unknown_name("field of the data", name, default)
            if value is None and default[name] is None:
                continue
            if name != "pictures" and not isinstance(value, str):
                raise ValueError(f"field {name!r} of the data must be a string, got {value!r}")
            if name in ("data_root", "images"):
                values[name] = Path(value)
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig:
    """A training run: model, data, optimiser, method and what is written.

    The defaults train the small model on generated pictures, on a CPU, in minutes.

    Attributes:
        model: name in the registry of models.
        pretrained: start from CLIP's weights, where the model has them.
        dropout: of the decoder, in [0, 1]; None takes the model's own.
        data: see DataConfig.
        train_split: split to train on.
        eval_split: split to score on.
        train_items: one item a ref with a random sentence of it (refs), or one a sentence
            (sentences).
        tokenizer: shapes (its words), clip (byte pairs, from the Hugging Face cache), a repository
            there or a folder; None takes shapes for shapes and clip for other data and where the
            model is pretrained.
        max_length: tokens of a sentence, start and end included; the paper has 22 for G-Ref.
        image_size: side of the squared input, pixels; None takes the model's own.
        batch_size: pictures a step on each device.
        steps: optimiser steps of the whole run.
        lr: peak learning rate of AdamW.
        warmup: steps over which the learning rate rises from 0; it then falls to 0 as a cosine.
        weight_decay: of AdamW, on parameters of two and more dimensions only.
        clip_norm: the gradient is scaled down to this norm; inf never does.
        max_bad_steps: a step with a gradient that is not finite is skipped; this many in a row end
            the run.
        seed: of weights, order of the data, sentences drawn and dropout; masks have distill.seed.
        workers: processes that read data; 0 reads in the main one.
        cache: keep decoded pictures in memory.
        mixed_precision: no, fp16 or bf16.
        cpu: stay on the CPU where there is a GPU.
        distill: the method; see DistillConfig.
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
    dropout: float | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train_split: str = "train"
    eval_split: str = "val"
    train_items: Literal["refs", "sentences"] = "refs"
    tokenizer: str | None = None
    max_length: int = 17
    image_size: int | None = None
    batch_size: int = 16
    steps: int = 1000
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    max_bad_steps: int = 20
    seed: int = 0
    workers: int = 0
    cache: bool = True
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    cpu: bool = False
    distill: DistillConfig = field(default_factory=DistillConfig)
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
        _check_whole(
            self,
            max_length=3,
            image_size=1,
            batch_size=1,
            steps=1,
            warmup=0,
            max_bad_steps=1,
            seed=0,
            workers=0,
            log_every=1,
            evaluate_every=0,
            eval_samples=0,
            eval_batch_size=1,
            sheet_rows=1,
        )
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite, 0 or more, got {self.weight_decay}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 (inf never clips), got {self.clip_norm}")
        check_fraction("threshold", self.threshold)
        if self.dropout is not None:
            check_fraction("dropout", self.dropout)
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        check_choice("train_items", self.train_items, ("refs", "sentences"))

    def output_folder(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / self.data.title() if self.output is None else self.output

    def learning_rate(self, updates: int) -> float:
        """Return the learning rate after a number of updates: linear warm-up, then a cosine to 0.

        Example:
            >>> config = TrainConfig(steps=100, warmup=10, lr=1.0)
            >>> [round(config.learning_rate(updates), 3) for updates in (0, 9, 10, 55, 100)]
            [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        if updates < self.warmup:
            return self.lr * (updates + 1) / self.warmup
        done = (updates - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

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


def _check_whole(config: object, **least: int) -> None:
    """Raise a ``ValueError`` unless the named fields are whole numbers, or None, from ``least``."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")
