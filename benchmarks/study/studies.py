"""The studies of ``benchmarks/ablation.py`` as data: a table of variants each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.study import bases
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant, host
from masksd.config import DistillConfig
from masksd.kit.config import TrainConfig
from masksd.kit.training.pretrain import PretrainConfig

NO_IMAGE, NO_TEXT = {"image": None}, {"text": None}


def image(name: str, train: dict[str, Any] | None = None, **fields: Any) -> Variant:
    """LMVSD alone, with changes to its masking."""
    return Variant(name, {**NO_TEXT, "image": fields}, train or {})


def text(name: str, **fields: Any) -> Variant:
    """VMLSD alone, with changes to its masking."""
    return Variant(name, {**NO_IMAGE, "text": fields})


def both(name: str, train: dict[str, Any] | None = None, **fields: Any) -> Variant:
    return Variant(name, fields, train or {})


SWEEPS = {
    "λ1 of LMVSD": {0.1: "lmvsd λ=0.1", 0.25: "lmvsd λ=0.25", 0.5: "lmvsd λ=0.5", 0.75: "lmvsd"}
    | {1.0: "lmvsd λ=1.0"},
    "α of LMVSD": {0.1: "lmvsd α=0.1", 0.25: "lmvsd", 0.5: "lmvsd α=0.5", 0.75: "lmvsd α=0.75"},
    "K of LMVSD": {0.25: "lmvsd K=0.25", 0.5: "lmvsd", 0.75: "lmvsd K=0.75", 1.0: "lmvsd K=1.0"},
    "λ2 of VMLSD": {0.05: "vmlsd λ=0.05", 0.1: "vmlsd", 0.25: "vmlsd λ=0.25", 0.5: "vmlsd λ=0.5"}
    | {0.75: "vmlsd λ=0.75", 1.0: "vmlsd λ=1.0"},
    "α of VMLSD": {0.05: "vmlsd α=0.05", 0.1: "vmlsd", 0.25: "vmlsd α=0.25", 0.5: "vmlsd α=0.5"}
    | {0.75: "vmlsd α=0.75"},
    "K of VMLSD": {0.25: "vmlsd K=0.25", 0.5: "vmlsd", 0.75: "vmlsd K=0.75", 1.0: "vmlsd K=1.0"},
}
"""Screen variants by title and value; the paper's best value has none in its name."""

BRANCHES = (
    host(),
    Variant("lmvsd", NO_TEXT),
    Variant("vmlsd", NO_IMAGE),
    both("both"),
    Variant("lmvsd unshared", {**NO_TEXT, "share_weights": False}),
    Variant("vmlsd unshared", {**NO_IMAGE, "share_weights": False}),
    both("both unshared", share_weights=False),
    Variant("lmvsd ground truth", {**NO_TEXT, "target": "ground_truth"}),
    Variant("vmlsd ground truth", {**NO_IMAGE, "target": "ground_truth"}),
    both("both ground truth", target="ground_truth"),
    image("lmvsd unmasked", ratio=0.0),
    text("vmlsd unmasked", ratio=0.0),
    both("both unmasked", image={"ratio": 0.0}, text={"ratio": 0.0}),
)

SWEPT = (
    *(Variant(f"lmvsd λ={x}", {**NO_TEXT, "lambda_image": x}) for x in (0.1, 0.25, 0.5, 1.0)),
    *(image(f"lmvsd α={x}", ratio=x) for x in (0.1, 0.5, 0.75)),
    *(image(f"lmvsd K={x}", top_k=x) for x in (0.25, 0.75, 1.0)),
    *(
        Variant(f"vmlsd λ={x}", {**NO_IMAGE, "lambda_text": x})
        for x in (0.05, 0.25, 0.5, 0.75, 1.0)
    ),
    *(text(f"vmlsd α={x}", ratio=x) for x in (0.05, 0.25, 0.5, 0.75)),
    *(text(f"vmlsd K={x}", top_k=x) for x in (0.25, 0.75, 1.0)),
)

CHOICES = (
    image("lmvsd by prediction", relevance="prediction"),
    image("lmvsd at random", relevance="random"),
    image("lmvsd by ground truth", relevance="ground_truth"),
    text("vmlsd at random", relevance="random"),
    image("lmvsd bottom", selection="bottom"),
    text("vmlsd bottom", selection="bottom"),
    both("both, ramp over a half", {"ramp": (0.0, 0.5)}),
    both("both, late start", {"ramp": (0.5, 0.5)}),
    both("joint", joint=True),
    *(both(f"both, every {n}", image={"every": n}, text={"every": n}) for n in (2, 4)),
    *(
        both(f"both, {x:.0%} of a batch", image={"samples": x}, text={"samples": x})
        for x in (0.5, 0.25)
    ),
    *(image(f"lmvsd from layer {n}", layer=n) for n in (1, 2)),
)

MORE_MASKED = {"image": {"top_k": 1.0, "ratio": 0.5}, "text": {"top_k": 1.0, "ratio": 0.25}}

COMBINED = (
    both("both, more masked", **MORE_MASKED),
    both("both, more masked, ground truth", **MORE_MASKED, target="ground_truth"),
    both(
        "both, more masked, ground truth, λ=1.0",
        **MORE_MASKED,
        target="ground_truth",
        lambda_image=1.0,
        lambda_text=1.0,
    ),
    both(
        "both, most masked, ground truth, λ=1.0",
        image={"top_k": 1.0, "ratio": 0.75},
        text={"top_k": 1.0, "ratio": 0.5},
        target="ground_truth",
        lambda_image=1.0,
        lambda_text=1.0,
    ),
    both("joint, more masked, ground truth", **MORE_MASKED, target="ground_truth", joint=True),
    both("both, λ=0.5 and 0.75", lambda_image=0.5, lambda_text=0.75),
)
"""Combinations of what did well in the first seed and in shorter trials."""


def no_masking_study() -> tuple[Variant, ...]:
    """Masking × detached target × dropout: where can a branch without masks help at all?"""
    variants = []
    for dropout in (0.0, 0.1):
        reference = f"host, dropout {dropout}"
        variants.append(host(reference, dropout=dropout))
        for ratio in (None, 0.0):
            for detach in (True, False):
                masked = "masked" if ratio is None else "unmasked"
                target = "detached" if detach else "not detached"
                off = {} if ratio is None else {"ratio": ratio}
                variants.append(
                    Variant(
                        f"both, {masked}, {target}, dropout {dropout}",
                        {"image": off, "text": off, "detach_target": detach},
                        {"dropout": dropout},
                        reference,
                    )
                )
    return tuple(variants)


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
    return both(row or name, **branches, **fields)


def confirmed() -> tuple[Variant, ...]:
    """The presets, and ours in every fourth step only."""
    return (
        host(),
        preset("cm-masksd"),
        preset("masksd"),
        preset("masksd", "masksd, every 4", every=4),
    )


def cheaper() -> tuple[Variant, ...]:
    """Parts of the paper's preset, and fewer steps with it: how little is enough?"""
    return (
        host(),
        preset("cm-masksd"),
        Variant("lmvsd", NO_TEXT),
        Variant("vmlsd", NO_IMAGE),
        *(preset("cm-masksd", f"cm-masksd, every {n}", every=n) for n in (2, 4)),
    )


def without_dropout() -> tuple[Variant, ...]:
    """A free alternative that the branches should beat: the host without dropout."""
    return (host(), Variant("no dropout", host().distill, {"dropout": 0.0}))


VARIANTS: dict[str, Callable[[], tuple[Variant, ...]]] = {
    "baseline": baselines,
    "screen": lambda: (*BRANCHES, *CHOICES, *SWEPT, *COMBINED),
    "no-masking": no_masking_study,
    "confirm": confirmed,
    "cheaper": cheaper,
    "dropout": without_dropout,
}
"""Functions that build each study's table, by its name."""

FRESH, TEST = tuple(range(100, 108)), ("testA", "testB")
SEEDS = dict.fromkeys(("confirm", "cheaper", "dropout"), FRESH)
SPLITS = dict.fromkeys(SEEDS, TEST)


def get_study(
    name: str,
    base: TrainConfig,
    *,
    seeds: tuple[int, ...] | None = None,
    samples: int = 0,
    towers: PretrainConfig | None = None,
    budgets: tuple[str, ...] = (STEPS, COMPUTE),
) -> Study:
    """Build a study around a run, without the variants that its model does not support."""
    return Study(
        name,
        base,
        [variant for variant in VARIANTS[name]() if _fits(variant, base.model)],
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


def _fits(variant: Variant, model: str) -> bool:
    """Only triples can copy parts or run on part of a batch; only ViTs can start at a layer."""
    image = variant.distill.get("image") or {}
    split = image.get("samples", 1.0) < 1 or not variant.distill.get("share_weights", True)
    deeper = image.get("layer", 0) > 0
    triple = bases.has_towers(model)
    resumes = triple and "_rn" not in model
    return (triple or not split) and (resumes or not deeper)


def only(study: Study, names: list[str]) -> Study:
    """Keep these variants of a study and their references."""
    known = {variant.name: variant for variant in study.variants}
    for name in names:
        if name not in known:
            raise ValueError(f"study {study.name!r} has no variant {name!r}: {', '.join(known)}")
    kept = {*names, *(known[name].reference for name in names)}
    variants = tuple(variant for variant in study.variants if variant.name in kept)
    return dataclasses.replace(study, variants=variants)
