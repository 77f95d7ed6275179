"""The studies of few masks: how best to use them, and many expressions without a mask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.measure import FOLDER
from benchmarks.study import bases
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant, host
from benchmarks.study.studies import only
from masksd.kit.config import TrainConfig
from masksd.kit.recipes import TOWERS

MASKS = (100, 400, 1600)
"""Of 11,510 in 3,000 training images; with one seed 400 lie in 384 of them, 1,600 in 1,312."""
CLEAN = ("testA", "testB")
MISSING = ("testA hide=0.25", "testA hide=0.5", "testA drop=1", "testA drop=2")
SEEDS = tuple(range(310, 316))
SAMPLES = 300
"""Expressions scored on each split."""
LONGER = 5
"""Times the steps: the dearest row's cost, rounded up. The free row is trained as long, too."""
LONG_HOST, LONG_AUGMENT = "host, long", "augment, long"
HARDER = ("host", "augment", "teacher, both")
LEVELS = ("testA", "testB", "testA level=easy", "testB level=easy")
START_STEPS = 600
NOISE, NOISY = (0.0, 0.4), 400
"""Shares of wrong masks, and of how many."""

_SHARES: dict[str, Any] = {"image": {"relevance": "random"}, "text": {"relevance": "random"}}
"""The paper's shares, at random: an eighth of the patches and a twentieth of the words."""
_NO_MASK: dict[str, Any] = {"image": {"relevance": "random", "ratio": 0.0}, "text": None}
_TEACHER = {"target": "teacher"}
_BOTH = {"joint": True, "lambda_image": 0.5, "lambda_text": 0.5}

ROWS: dict[str, tuple[dict[str, Any], bool]] = {
    "augment": ({**_SHARES, "one_pass": True, "target": "ground_truth"}, False),
    "cm-masksd": ({}, False),
    "teacher, no mask": ({**_NO_MASK, "one_pass": True, "lambda_image": 1.0, **_TEACHER}, True),
    "teacher, both": ({**_BOTH, **_TEACHER}, True),
}
"""By row: how it differs from the paper's method, and whether it sees what has no mask."""


def few_masks_run(model: str, *, steps: int = 800, pictures: int = 3000) -> TrainConfig:
    """Return the run that the variants differ from; it uses all masks.

    Its settings are those that the study ``baseline`` found best for the host on 100 images. Towers
    have seen crops around the objects of the easy level.
    """
    run = bases.short_run(model, steps=steps, pictures=pictures, **bases.HOSTS[model])
    towers = TOWERS if bases.has_towers(model) else None
    return dataclasses.replace(run, encoder_weights=towers)


def few_masks(masks: int, base: TrainConfig) -> tuple[Variant, ...]:
    """The table of one number of masks; two rows train for longer than the base."""
    rows = [host(labels=masks)]
    for name, (distill, unlabelled) in ROWS.items():
        train = {"labels": masks, **({"unlabelled": "shapes"} if unlabelled else {})}
        rows.append(Variant(name, distill, train))
    long = {"labels": masks, "steps": LONGER * (base.steps or 0)}
    rows.append(host(LONG_HOST, **long))
    rows.append(Variant(LONG_AUGMENT, ROWS["augment"][0], long, LONG_HOST))
    return tuple(rows)


def few_masks_study(masks: int, model: str = "clip_cris_tiny", **run: Any) -> Study:
    """Build the study of one number of masks.

    Every run is scored at its best checkpoint by val. Hosts that train for longer get whole
    multiples of the steps, which is never less compute than what they are compared with.
    """
    splits, base = (*CLEAN, *MISSING), few_masks_run(model, **run)
    return _study(f"masks-{masks}", base, few_masks(masks, base), splits, (STEPS, COMPUTE))


def noise_study(share: float, model: str = "clip_cris_tiny", **run: Any) -> Study:
    """Build the study of targets where a share of the masks lie on another object of the image.

    The masked pass learns from the truth, as it is given, or from what a model makes of it. Val has
    clean masks, which nobody would have: the last checkpoint is scored, and not the best.
    """
    train = {"labels": NOISY, "label_noise": share}
    rows = (
        Variant("target: truth", {**_BOTH, "target": "ground_truth"}, train, None),
        Variant("augment", ROWS["augment"][0], train, "target: truth"),
        Variant("target: teacher", {**_BOTH, **_TEACHER}, train, "target: truth"),
    )
    base = few_masks_run(model, **run)
    study = _study(f"noise-{round(100 * share)}", base, rows, CLEAN, (STEPS,))
    return dataclasses.replace(study, best=False)


def level_study(
    model: str = "clip_cris_tiny", results: Path = FOLDER, masks: int = 200, **run: Any
) -> Study:
    """Build the study of a harder level with few masks, from a host trained on the easy one.

    It is scored on both levels. :func:`trained_start` trains that host.
    """
    easy, start = few_masks_run(model, **run), results / f"start-easy-{model}"
    data = dataclasses.replace(easy.data, level="hard")
    base = dataclasses.replace(easy, data=data, encoder_weights=None, start_from=start)
    return only(_study("level", base, few_masks(masks, base), LEVELS, (STEPS,)), HARDER)


def trained_start(study: Study) -> None:
    """Train the host that a study of levels starts from, unless it is there."""
    folder = study.base.start_from
    if folder is None or folder.is_dir():
        return
    run = few_masks_run(study.base.model, steps=START_STEPS)
    data = dataclasses.replace(study.base.data, level="easy")
    bases.train_into(folder, dataclasses.replace(run, data=data))


def _study(
    name: str,
    base: TrainConfig,
    rows: tuple[Variant, ...],
    splits: tuple[str, ...],
    budgets: tuple[str, ...],
) -> Study:
    return Study(
        name, base, rows, SEEDS, splits, SAMPLES, best=True, budgets=budgets, multiples=True
    )
