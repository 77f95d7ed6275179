"""The runs that studies vary: on shapes with pretrained towers, or a recipe on RefCOCO."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from masksd.config import DistillConfig
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.layout import PUBLISHED
from masksd.kit.recipes import get_recipe
from masksd.kit.training.pretrain import PretrainConfig

LEVEL, PICTURES, STEPS, BATCH, TOWERS = "medium", 100, 1000, 8, 3000
"""Of the studies whose rows are committed: few pictures, each seen several times."""

HOSTS: dict[str, dict[str, Any]] = {
    "clip_cris_tiny": {
        "lr": 8e-4,
        "weight_decay": 0.3,
        "distill": DistillConfig(dice_weight=1.0),
    },
    "lavt_tiny": {
        "lr": 3.2e-3,
        "dropout": 0.2,
        "weight_decay": 0.3,
        "distill": DistillConfig(dice_weight=1.0),
    },
}
"""By model: what of its TrainConfig the baseline study found best."""


def shapes_run(
    model: str,
    *,
    level: str = LEVEL,
    pictures: int = PICTURES,
    steps: int = STEPS,
    batch_size: int = BATCH,
    tuned: bool = True,
) -> TrainConfig:
    """Return the run on shapes; ``tuned`` with what the baseline study found best."""
    return TrainConfig(
        model=model,
        data=DataConfig(level=level, pictures=pictures),
        steps=steps,
        batch_size=batch_size,
        warmup=min(100, steps // 10),
        evaluate_every=max(1, steps // 10),
        eval_samples=200,
        progress=False,
        **(HOSTS.get(model, {}) if tuned else {}),
    )


def shapes_towers(
    base: TrainConfig, *, steps: int = TOWERS, pictures: int | None = None, patches: float = 1.0
) -> PretrainConfig | None:
    """Return how the towers of a run are pretrained; 0 steps leave it from scratch.

    They see all pictures of the level (or so many), as CLIP saw more than the referring data. LAVT
    has no two towers that share a space: its start from scratch is the only one.
    """
    if not steps or not has_towers(base.model):
        return None
    return PretrainConfig(
        model=base.model,
        data=dataclasses.replace(base.data, pictures=pictures),
        max_length=base.max_length,
        steps=steps,
        patches=patches,
    )


def has_towers(model: str) -> bool:
    """Say whether a model has two towers that share a space."""
    return model.startswith("clip_cris")


def recipe_run(recipe: str, data_root: Path, images: Path | None = None) -> TrainConfig:
    """Return a recipe's run on RefCOCO in a folder, its epochs counted in steps."""
    config = get_recipe(recipe)
    data = dataclasses.replace(config.data, data_root=data_root, images=images)
    splits = PUBLISHED.get((data.name, data.split_by or ""))
    if config.epochs is None or splits is None:
        raise ValueError(f"recipe {recipe!r} is none of RefCOCO; choose one that is")
    size = splits["train"]
    count = size.sentences if config.train_items == "sentences" else size.refs
    if count is None:
        raise ValueError(f"how many sentences {data.title()} has for training is not known")
    steps = config.epochs * (count // config.batch_size)
    return dataclasses.replace(
        config,
        data=data,
        steps=steps,
        epochs=None,
        evaluate_every=steps // 10,
        eval_samples=1000,
        progress=False,
    )
