"""The studies of ``benchmarks/ablation.py`` as data: a table of variants each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.study import bases
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant, host
from masksd.config import DistillConfig
from masksd.kit.config import PretrainConfig, TrainConfig


def baselines() -> tuple[Variant, ...]:
    """The host alone: learning rates, each with a Dice term and with encoders at a tenth of it.

    With Dice, at the best rates: dropout and weight decay against overfitting few images.
    """
    variants = []
    for rate in (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3):
        plain = host(f"host lr={rate:g}", lr=rate)
        dice = {**plain.distill, "dice_weight": 1.0}
        slow = {"lr": rate, "backbone_lr": 0.1}
        variants += [
            plain,
            Variant(f"dice lr={rate:g}", dice, {"lr": rate}, plain.name),
            Variant(f"slow encoders lr={rate:g}", plain.distill, slow, plain.name),
        ]
    dice = {**host().distill, "dice_weight": 1.0}
    against = {
        **{f"dropout {share}": {"dropout": share} for share in (0.0, 0.2, 0.3)},
        **{f"weight decay {decay}": {"weight_decay": decay} for decay in (0.1, 0.3)},
        "dropout 0.2, weight decay 0.3": {"dropout": 0.2, "weight_decay": 0.3},
    }
    for rate in (8e-4, 1.6e-3, 3.2e-3):
        for name, fields in against.items():
            train = {"lr": rate, **fields}
            variants.append(Variant(f"dice lr={rate:g}, {name}", dice, train, f"host lr={rate:g}"))
    return tuple(variants)


def preset(name: str, row: str = "", **masking: Any) -> Variant:
    """A preset's branches, with changes to the masking of both; Dice is the host's choice."""
    fields = dataclasses.asdict(DistillConfig.preset(name))
    branches = {each: {**fields.pop(each), **masking} for each in ("image", "text")}
    del fields["dice_weight"], fields["seed"]
    return Variant(row or name, {**branches, **fields})


def confirmed() -> tuple[Variant, ...]:
    """The presets, and ours in every fourth step only."""
    return (
        host(),
        preset("cm-masksd"),
        preset("masksd"),
        preset("masksd", "masksd, every 4", every=4),
    )


VARIANTS: dict[str, Callable[[], tuple[Variant, ...]]] = {
    "baseline": baselines,
    "confirm": confirmed,
}
"""Functions that build each study's table, by its name."""

FRESH, TEST = tuple(range(100, 108)), ("testA", "testB")
SEEDS = {"confirm": FRESH}
SPLITS = {"confirm": TEST}


def get_study(
    name: str,
    base: TrainConfig,
    *,
    seeds: tuple[int, ...] | None = None,
    samples: int = 0,
    towers: PretrainConfig | None = None,
    budgets: tuple[str, ...] = (STEPS, COMPUTE),
) -> Study:
    """Build a study around a run; fewer ``samples`` than its curve takes are the curve's too."""
    if samples:
        base = dataclasses.replace(base, eval_samples=min(samples, base.eval_samples or samples))
    return Study(
        name,
        base,
        VARIANTS[name](),
        seeds or SEEDS.get(name, (0, 1, 2)),
        SPLITS.get(name, ("val",)),
        samples=samples,
        towers=towers,
        budgets=budgets,
    )


def shapes_study(
    name: str,
    model: str = "clip_cris_tiny",
    *,
    level: str = bases.LEVEL,
    pictures: int = bases.PICTURES,
    steps: int = bases.STEPS,
    batch: int = bases.BATCH,
    towers: int = bases.TOWERS,
    tower_pictures: int | None = None,
    patches: float = 1.0,
    **fields: Any,
) -> Study:
    """Build a study on shapes, by default one whose rows are committed.

    The host is the one that the baseline study found best. ``fields`` are those of
    :func:`get_study`.
    """
    base = bases.shapes_run(
        model,
        level=level,
        pictures=pictures,
        steps=steps,
        batch_size=batch,
        tuned=name != "baseline",
    )
    start = bases.shapes_towers(base, steps=towers, pictures=tower_pictures, patches=patches)
    return get_study(name, base, towers=start, **fields)


def only(study: Study, names: Sequence[str]) -> Study:
    """Keep these variants of a study and their references."""
    known = {variant.name: variant for variant in study.variants}
    for name in names:
        if name not in known:
            raise ValueError(f"study {study.name!r} has no variant {name!r}: {', '.join(known)}")
    kept = {*names, *(known[name].reference for name in names)}
    variants = tuple(variant for variant in study.variants if variant.name in kept)
    return dataclasses.replace(study, variants=variants)
