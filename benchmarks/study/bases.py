"""The runs that studies vary: on shapes with pretrained towers, or a recipe on RefCOCO."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.study.names import recorded_towers, recorded_train
from masksd.kit.config import PretrainConfig, TrainConfig
from masksd.kit.data.layout import PUBLISHED
from masksd.kit.recipes import get_recipe
from masksd.kit.training.trainer import train

LEVEL, PICTURES, STEPS, BATCH, TOWERS = "medium", 100, 1000, 8, 3000
"""Of the committed studies: few images, each seen several times."""

HOSTS: dict[str, dict[str, Any]] = {
    "clip_cris_tiny": {"lr": 8e-4, "weight_decay": 0.3, "distill": {"dice_weight": 1.0}},
    "lavt_tiny": {
        "lr": 3.2e-3,
        "dropout": 0.2,
        "weight_decay": 0.3,
        "distill": {"dice_weight": 1.0},
    },
}
"""The training settings that the baseline study found best, by model."""


def shapes_run(
    model: str,
    *,
    level: str = LEVEL,
    pictures: int = PICTURES,
    steps: int = STEPS,
    batch_size: int = BATCH,
    tuned: bool = True,
) -> TrainConfig:
    """Return the run on shapes; ``tuned`` applies what the baseline study found best."""
    return recorded_train(
        model=model,
        data={"level": level, "pictures": pictures},
        steps=steps,
        batch_size=batch_size,
        warmup=min(100, steps // 10),
        evaluate_every=max(1, steps // 10),
        eval_samples=200,
        progress=False,
        **(HOSTS.get(model, {}) if tuned else {}),
    )


def short_run(
    model: str, *, steps: int, pictures: int, batch_size: int = BATCH, **changes: Any
) -> TrainConfig:
    """Return a run on shapes whose best of four checkpoints is scored; ``changes`` are recorded."""
    return recorded_train(
        model=model,
        data={"level": LEVEL, "pictures": pictures},
        steps=steps,
        batch_size=batch_size,
        warmup=steps // 10,
        evaluate_every=max(1, steps // 4),
        eval_samples=150,
        sheet_rows=1,
        progress=False,
        **changes,
    )


def train_into(folder: Path, config: TrainConfig) -> None:
    """Train a model and leave its checkpoint in a folder, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        result = train(dataclasses.replace(config, output=Path(parent) / "run"))
        result.checkpoint.rename(folder)


def shapes_towers(
    base: TrainConfig, *, steps: int = TOWERS, pictures: int | None = None, patches: float = 1.0
) -> PretrainConfig | None:
    """Return how a run's towers are pretrained; None without steps or without two towers.

    They see all images of the level, as CLIP saw more than the referring data.
    """
    if not steps or not has_towers(base.model):
        return None
    towers = recorded_towers(
        model=base.model, max_length=base.max_length, steps=steps, patches=patches
    )
    return dataclasses.replace(towers, data=dataclasses.replace(base.data, pictures=pictures))


def has_towers(model: str) -> bool:
    """Return whether a model has two towers that share a space; LAVT has not."""
    return model.startswith("clip_")


def recipe_run(recipe: str, data_root: Path, images: Path | None = None) -> TrainConfig:
    """Return a recipe's run on RefCOCO in a folder, with its epochs counted in steps."""
    config = get_recipe(recipe)
    data = dataclasses.replace(config.data, data_root=data_root, images=images)
    splits = PUBLISHED.get((data.name, data.split_by or ""))
    if config.epochs is None or splits is None:
        raise ValueError(f"recipe {recipe!r} does not train on RefCOCO; choose one that does")
    size = splits["train"]
    count = size.sentences if config.train_items == "sentences" else size.refs
    if count is None:
        raise ValueError(f"the number of training expressions of {data.title()} is not known")
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
