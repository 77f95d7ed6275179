"""What a study is: a host, its data, a table of variants and seeds; and the runs it asks for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.study.compute import matched_host, multiply_adds
from masksd.config import DistillConfig
from masksd.errors import check_choice, unknown_name
from masksd.kit.config import TrainConfig
from masksd.kit.training.pretrain import PretrainConfig

STEPS, COMPUTE = "steps", "compute"
HOST = "host"
_NO_BRANCHES: dict[str, Any] = {"image": None, "text": None}


@dataclass(frozen=True)
class Variant:
    """One row of a table of variants.

    Attributes:
        name: of the row.
        distill: what differs from the base's DistillConfig, as in its JSON: ``{"text": None}``,
            ``{"image": {"ratio": 0.5}}``.
        train: what differs from the base's TrainConfig, ``{"dropout": 0.0}``.
        reference: name of the variant that it is compared with; None where it is one itself.

    Example:
        >>> Variant("lmvsd", {"text": None}).reference
        'host'
    """

    name: str
    distill: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = HOST

    def __post_init__(self) -> None:
        """Refuse what the study sets itself, which would be overridden without a word."""
        for name, fields, own in (
            ("train", self.train, ("seed", "distill", "encoder_weights")),
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
        """Return the run of a seed; it keys weights, data order, sentences, dropout and masks.

        Args:
            base: of the study.
            seed: of the run.

        Raises:
            ValueError: a field that there is not, or a value out of range.

        Example:
            >>> Variant("half", {"image": {"ratio": 0.5}}).config(TrainConfig(), 3).distill.seed
            3
        """
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
    """Return the variant without branches, which others are compared with.

    Args:
        name: of the row.
        **train: what differs from the base's TrainConfig.

    Example:
        >>> host().config(TrainConfig(), 0).distill.image is None
        True
    """
    return Variant(name, _NO_BRANCHES, train, reference=None)


@dataclass(frozen=True)
class Study:
    """A table of variants on one host and one data set.

    Attributes:
        name: of the study.
        base: the run that all are variants of: model, data, steps and the rest. ``evaluate_every``
            and ``eval_samples`` make the learning curves.
        variants: the table; a reference comes before those compared with it.
        seeds: of the runs, the same for all variants.
        splits: that a finished run is scored on.
        samples: expressions scored on each, evenly spread; 0 takes all.
        towers: pretrained once, for all runs; None starts from scratch.
        budgets: ``"steps"``: all at the base's steps; ``"compute"``: references also longer, to
            what each variant takes in multiply-adds.

    Raises:
        ValueError: names that come twice or that there are not, an empty table, training on what is
            scored, or a warm-up as long as a run.

    Example:
        >>> study = Study("two", TrainConfig(), (host(), Variant("both")), seeds=(0, 1))
        >>> [variant.name for variant in study.variants]
        ['host', 'both']
    """

    name: str
    base: TrainConfig
    variants: Sequence[Variant]
    seeds: Sequence[int] = (0, 1, 2)
    splits: Sequence[str] = ("val",)
    samples: int = 0
    towers: PretrainConfig | None = None
    budgets: Sequence[str] = (STEPS, COMPUTE)

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds or not self.splits:
            raise ValueError(f"study {self.name!r} needs variants, seeds and splits")
        if isinstance(self.splits, str):
            raise ValueError(f"splits must be several names, as ({self.splits!r},), got one string")
        for what, values in (
            ("variant", [variant.name for variant in self.variants]),
            ("seed", list(self.seeds)),
            ("split", list(self.splits)),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"study {self.name!r} has a {what} twice: {values}")
        seen: list[str] = []
        for variant in self.variants:
            if variant.reference is not None and variant.reference not in seen:
                raise unknown_name(
                    f"reference of variant {variant.name!r}", variant.reference, seen
                )
            if variant.reference is None:
                seen.append(variant.name)
            if variant.reference is not None and "steps" in variant.train:
                raise ValueError(
                    f"variant {variant.name!r} has steps of its own, and its reference has not"
                )
        if self.samples < 0:
            raise ValueError(f"samples must be at least 0, got {self.samples}")
        trained = {
            f"variant {each.name!r}": each.train.get("train_split") for each in self.variants
        }
        trained["its base"] = self.base.train_split
        trained["its towers"] = None if self.towers is None else self.towers.split
        for what, split in trained.items():
            if split in self.splits:
                raise ValueError(
                    f"study {self.name!r} has {what} trained on {split!r}, which is scored; choose "
                    "another split"
                )
        for budget in self.budgets:
            check_choice("budget", budget, (STEPS, COMPUTE))
        if STEPS not in self.budgets:
            raise ValueError(f"study {self.name!r} needs the budget 'steps'")
        if self.base.steps is None:
            raise ValueError(f"study {self.name!r} counts in steps; set base.steps, not epochs")
        if (self.base.warmup or 0) >= self.base.steps:
            raise ValueError(
                f"study {self.name!r} has a warm-up of {self.base.warmup} steps in runs of "
                f"{self.base.steps}, and longer runs would have another rate; lower base.warmup"
            )

    def data_name(self) -> str:
        """Return what rows and tables call the data: with the number of pictures where it is set.

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
    """One training run of a study.

    Attributes:
        variant: name of the row.
        budget: ``"steps"``, or ``"compute"`` for a reference that trains longer.
        config: of the run.
        multiply_adds: of the whole run, forward and backward.
    """

    variant: str
    budget: str
    config: TrainConfig
    multiply_adds: int


def plan_runs(study: Study) -> list[PlannedRun]:
    """List the runs of a study, those of one seed together.

    An interruption then leaves whole seeds, which can be compared.

    Steps of longer references are rounded up to whole fiftieths of the base's steps: the host has
    no less than the variant, and variants of nearly the same cost share the host's run. A variant
    that costs what its reference costs asks for no longer one.

    Args:
        study: whose variants are to be run.

    Example:
        >>> study = Study("two", TrainConfig(), (host(), Variant("both")), seeds=(0,))
        >>> [(run.variant, run.budget, run.config.steps) for run in plan_runs(study)]
        [('host', 'steps', 1000), ('both', 'steps', 1000), ('host', 'compute', 2560)]
    """
    runs: dict[tuple[str, str, int, int], PlannedRun] = {}
    named = {variant.name: variant for variant in study.variants}
    for seed in study.seeds:
        configs = {name: each.config(study.base, seed) for name, each in named.items()}
        plain = [(name, STEPS, config) for name, config in configs.items()]
        longer = [
            (each.reference, COMPUTE, matched_host(configs[each.reference], configs[name]))
            for name, each in named.items()
            if COMPUTE in study.budgets and each.reference is not None
        ]
        for name, budget, config in (*plain, *longer):
            if budget == STEPS or config.steps != configs[name].steps:
                key = (name, budget, config.steps or 0, seed)
                runs.setdefault(key, PlannedRun(name, budget, config, multiply_adds(config)))
    return list(runs.values())
