"""What a study is: a host, its data, variants and seeds; which runs it needs and what they cost."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from masksd.config import DistillConfig
from masksd.errors import check_choice, unknown_name
from masksd.kit.config import PretrainConfig, TrainConfig
from masksd.kit.costs.budget import count_step

STEPS, COMPUTE = "steps", "compute"
HOST = "host"
_NO_BRANCHES: dict[str, Any] = {"image": None, "text": None}


@dataclass(frozen=True)
class Variant:
    """One row of a study's table.

    Attributes:
        name: of the row.
        distill: what differs from the base's DistillConfig, as in its JSON: ``{"text": None}``,
            ``{"image": {"ratio": 0.5}}``.
        train: what differs from the base's TrainConfig: ``{"dropout": 0.0}``.
        reference: the variant it is compared with; None if it is a reference itself.
    """

    name: str
    distill: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = HOST

    def __post_init__(self) -> None:
        """Refuse what the study sets itself."""
        for name, fields, own in (
            ("train", self.train, ("seed", "distill", "encoder_weights", "start_from")),
            ("distill", self.distill, ("seed",)),
        ):
            for each in own:
                if each in fields:
                    raise ValueError(
                        f"{name} of variant {self.name!r} has {each!r}, which a study sets itself; "
                        "leave it out"
                    )
        for each in _NO_BRANCHES:
            if not isinstance(self.distill.get(each) or {}, Mapping):
                raise ValueError(
                    f"{each} of variant {self.name!r} must be None or what differs in its masking, "
                    f"as {{'ratio': 0.5}}, got {self.distill[each]!r}"
                )

    def config(self, base: TrainConfig, seed: int) -> TrainConfig:
        """Return the run of a seed, which keys weights, data order, dropout and masks."""
        fields = dataclasses.asdict(base.distill)
        for name, value in self.distill.items():
            inside = name in _NO_BRANCHES and value is not None
            fields[name] = {**(fields[name] or {}), **value} if inside else value
        fields["seed"] = seed
        known = [each.name for each in dataclasses.fields(TrainConfig)]
        for name in self.train:
            if name not in known:
                raise unknown_name(f"field of the training in variant {self.name!r}", name, known)
        distill = DistillConfig.from_json(json.dumps(fields))
        return dataclasses.replace(base, **{**self.train, "seed": seed, "distill": distill})


def host(name: str = HOST, **train: Any) -> Variant:
    """Return a variant without branches: a reference for others."""
    return Variant(name, _NO_BRANCHES, train, reference=None)


@dataclass(frozen=True)
class Study:
    """A table of variants of one training run.

    Attributes:
        name: of the study.
        base: the run that all are variants of. Its ``evaluate_every`` and ``eval_samples`` make
            the learning curves.
        variants: the table; a reference comes before those compared with it.
        seeds: of the runs, the same for all variants.
        splits: that a finished run is scored on.
            ``"testA hide=0.25"`` and ``"testA drop=1"`` hide cells and leave words out.
        samples: expressions scored on each, evenly spread; 0 takes all.
        best: score the checkpoint that was best on the way instead of the last one.
        towers: pretrained once, for all runs; None starts from scratch.
        budgets: ``"steps"`` compares at the base's steps; ``"compute"`` also trains references for
            longer, up to the multiply-adds of each variant.
        multiples: train them for whole multiples of the base's steps, which takes fewer runs.
    """

    name: str
    base: TrainConfig
    variants: Sequence[Variant]
    seeds: Sequence[int] = (0, 1, 2)
    splits: Sequence[str] = ("val",)
    samples: int = 0
    best: bool = False
    towers: PretrainConfig | None = None
    budgets: Sequence[str] = (STEPS, COMPUTE)
    multiples: bool = False

    @property
    def teacher(self) -> Path | None:
        """The checkpoint that variants learn from, of which a study has one at most."""
        return next((v.train["teacher"] for v in self.variants if "teacher" in v.train), None)

    @property
    def parts(self) -> int:
        """Into how many parts the steps of the base are divided; longer runs have whole ones."""
        return 1 if self.multiples else 50

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds or not self.splits:
            raise ValueError(f"study {self.name!r} needs variants, seeds and splits")
        if isinstance(self.splits, str):
            raise ValueError(f"splits must be several names, as ({self.splits!r},), got one string")
        if self.samples < 0:
            raise ValueError(f"samples must be at least 0, got {self.samples}")
        for what, values in (
            ("variant", [variant.name for variant in self.variants]),
            ("seed", list(self.seeds)),
            ("split", list(self.splits)),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"study {self.name!r} has a {what} twice: {values}")
        self._check_references()
        self._check_splits()
        for budget in self.budgets:
            check_choice("budget", budget, (STEPS, COMPUTE))
        if STEPS not in self.budgets:
            raise ValueError(f"study {self.name!r} needs the budget 'steps'")
        if self.base.steps is None:
            raise ValueError(f"study {self.name!r} counts in steps; set base.steps, not epochs")
        if self.best and not self.base.evaluate_every:
            raise ValueError(
                f"study {self.name!r} scores the best checkpoint; set base.evaluate_every"
            )
        if (self.base.warmup or 0) >= self.base.steps:
            raise ValueError(
                f"study {self.name!r} has a warm-up of {self.base.warmup} steps in runs of "
                f"{self.base.steps}, so longer runs would reach another rate; lower base.warmup"
            )

    def _check_references(self) -> None:
        seen: dict[str, Any] = {}
        for variant in self.variants:
            steps = variant.train.get("steps")
            if variant.reference is None:
                seen[variant.name] = steps
            elif variant.reference not in seen:
                raise unknown_name(
                    f"reference of variant {variant.name!r}", variant.reference, seen
                )
            elif steps != seen[variant.reference]:
                raise ValueError(
                    f"variant {variant.name!r} and its reference {variant.reference!r} must take "
                    "the same steps; set steps in the training of both, or of neither"
                )

    def _check_splits(self) -> None:
        trained = {
            f"variant {each.name!r}": each.train.get("train_split") for each in self.variants
        }
        trained["its base"] = self.base.train_split
        trained["its towers"] = None if self.towers is None else self.towers.split
        for what, split in trained.items():
            if split in {each.partition(" ")[0] for each in self.splits}:
                raise ValueError(
                    f"study {self.name!r} has {what} trained on {split!r}, which is scored; choose "
                    "another split"
                )

    def data_name(self) -> str:
        """Return what rows and tables call the data.

        Example:
            >>> from masksd.kit.config import DataConfig
            >>> base = TrainConfig(data=DataConfig(level="medium", pictures=600))
            >>> Study("one", base, (host(),)).data_name()
            'shapes-medium-600'
        """
        data = self.base.data
        return data.title() if data.pictures is None else f"{data.title()}-{data.pictures}"


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a study, with its cost in multiply-adds, forward and backward."""

    variant: str
    budget: str
    config: TrainConfig
    multiply_adds: int


def plan_runs(study: Study) -> list[PlannedRun]:
    """List the runs of a study, seed by seed, so that an interruption leaves whole seeds."""
    runs: dict[tuple[str, str, int, int], PlannedRun] = {}
    named = {variant.name: variant for variant in study.variants}
    for seed in study.seeds:
        configs = {name: each.config(study.base, seed) for name, each in named.items()}
        plain = [(name, STEPS, config) for name, config in configs.items()]
        longer = [
            (
                each.reference,
                COMPUTE,
                matched_host(configs[each.reference], configs[name], study.parts),
            )
            for name, each in named.items()
            if COMPUTE in study.budgets and each.reference is not None
        ]
        for name, budget, config in (*plain, *longer):
            if budget == STEPS or config.steps != configs[name].steps:
                key = (name, budget, config.steps or 0, seed)
                runs.setdefault(key, PlannedRun(name, budget, config, multiply_adds(config)))
    return list(runs.values())


def matched_host(reference: TrainConfig, variant: TrainConfig, parts: int = 50) -> TrainConfig:
    """Return the reference, trained for at least the variant's multiply-adds."""
    times = multiply_adds(variant) / multiply_adds(reference)
    return dataclasses.replace(reference, steps=matched_steps(reference.steps or 0, times, parts))


def matched_steps(steps: int, times: float, parts: int = 50) -> int:
    """Return how many steps cost ``times`` as much, rounded up to fiftieths, or other parts.

    So the reference gets no less than the variant, and variants of nearly one cost share its run.

    Example:
        >>> matched_steps(1000, 1.39), matched_steps(1000, 1.0)
        (1400, 1000)
    """
    unit = max(1, steps // parts)
    return math.ceil(round(times * steps / unit, 9)) * unit


def multiply_adds(config: TrainConfig) -> int:
    """Count a run's multiply-adds, forward and backward, each branch in the steps it runs in."""
    if config.steps is None:
        raise ValueError("a run's compute is counted over its steps; set steps, not epochs")
    distill = config.distill
    if all(each is None or each.every == 1 for each in (distill.image, distill.text)):
        return _step_cost(config, distill) * config.steps * config.images_per_pass()
    plain = _step_cost(config, dataclasses.replace(distill, image=None, text=None, joint=False))
    total = plain * config.steps
    alone = [(distill.image, dataclasses.replace(distill, text=None, joint=False))]
    alone.append((distill.text, dataclasses.replace(distill, image=None, joint=False)))
    for masking, counted in [(distill.image, distill)] if distill.joint else alone:
        if masking is not None:
            runs = math.ceil(config.steps / masking.every)
            total += (_step_cost(config, counted) - plain) * runs
    return total * config.images_per_pass()


_FREE: dict[str, Any] = {"seed": 0, "lambda_image": 1.0, "lambda_text": 1.0, "dice_weight": 0.0}
"""Choices that cost nothing."""


def _step_cost(config: TrainConfig, distill: DistillConfig) -> int:
    """Count the multiply-adds per image of a step in which all enabled branches run."""
    image, text = (
        masking and dataclasses.replace(masking, every=1)
        for masking in (distill.image, distill.text)
    )
    # only what the count depends on, so that equal ones are counted once
    alike = TrainConfig(
        model=config.model,
        dropout=config.dropout,
        tokenizer=config.tokenizer,
        data=config.data,
        max_length=config.max_length,
        image_size=config.image_size,
        batch_size=config.images_per_pass(),
        class_weights=config.class_weights,
        frozen=config.frozen,
        teacher=config.teacher,
        knowledge=config.knowledge,
        distill=dataclasses.replace(distill, image=image, text=text, **_FREE),
    )
    return _counted(alike)


@cache
def _counted(config: TrainConfig) -> int:
    return count_step(config)
