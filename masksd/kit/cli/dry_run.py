"""``masksd train --dry-run``: every value of a run and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from masksd.kit.config import TrainConfig
from masksd.kit.sources import tokenizer_name
from masksd.kit.training.budget import Budget, check_splits, count_items, measure_budget

GROUPS = {
    "model": (
        "model",
        "pretrained",
        "encoder_weights",
        "dropout",
        "image_size",
        "fit",
        "tokenizer",
        "max_length",
    ),
    "data": ("data", "train_split", "eval_split", "train_items", "batch_size", "workers", "cache"),
    "optimisation": (
        "steps",
        "epochs",
        "optimizer",
        "lr",
        "schedule",
        "warmup",
        "warmup_epochs",
        "milestones",
        "gamma",
        "power",
        "backbone_lr",
        "weight_decay",
        "class_weights",
        "frozen",
        "clip_norm",
        "max_bad_steps",
        "mixed_precision",
        "cpu",
        "seed",
    ),
    "method": ("distill", "ramp"),
    "evaluation": (
        "evaluate_every",
        "eval_samples",
        "eval_batch_size",
        "threshold",
        "log_every",
        "sheet_rows",
    ),
    "output": ("output", "overwrite", "progress"),
}
"""Fields of ``TrainConfig`` by what they are about."""


def dry_run(preset: str, config: TrainConfig) -> str:
    """Lay out what a run would be; nothing is written, downloaded or generated.

    Args:
        preset: name of the recipe that the config comes from.
        config: of the run.

    Returns:
        Text of many lines.

    Raises:
        ValueError: sizes that do not fit the model, an unknown split, or a folder that lacks the
            data.
    """
    check_splits(config)
    budget = measure_budget(config)
    left_open = {  # to the model, the data or the place
        "tokenizer": tokenizer_name(config),
        "image_size": budget.model_config["image_size"],
        "dropout": budget.model_config["dropout"],
        "output": config.output_folder(),
    }
    lines = [f"preset {preset}"]
    for group, names in GROUPS.items():
        lines.append(group)
        for name, value in _values(config, names):
            value = left_open.get(name, value)
            lines.append(f"  {name:28}{_shown(value)}")
    lines += _costs(budget, config)
    lines += _steps(config)
    return "\n".join(lines)


def _values(config: Any, names: Iterable[str], prefix: str = "") -> list[tuple[str, Any]]:
    """List fields by the names of their options; configs inside are opened."""
    values: list[tuple[str, Any]] = []
    for name in names:
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            inner = prefix if name == "data" else f"{prefix}{name}."
            values += _values(value, fields, inner)
        else:
            values.append((prefix + name, value))
    return values


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return str(value) if value != "" else "(none)"


def _costs(budget: Budget, config: TrainConfig) -> list[str]:
    memory = {
        "weights": budget.weights,
        "gradients": budget.gradients,
        "optimiser": budget.optimizer,
        "activations": budget.activations,
    }
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    total, plain = sum(memory.values()), max(1, budget.plain)
    lines = [
        "cost, a device",
        f"  parameters                  {budget.parameters / 1e6:.1f} M of the model, "
        f"{budget.trainable / 1e6:.1f} M trainable, {budget.added:,} added by masksd in training",
        f"  multiply-adds a picture     {budget.plain / 1e9:.2f} G one plain pass; "
        f"{budget.forward / 1e9:.2f} G the passes of a training step "
        f"({budget.forward / plain:.2f} of them), {budget.step / 1e9:.2f} G with backward",
        f"  memory, GB                  about {total / 1e9:.1f} for a batch: {parts}",
        "                              (float32 tensors that backward needs, fused attention; "
        "kernels' own workspace comes on top)",
    ]
    if config.mixed_precision != "no":
        lines.append(
            f"                              about half of the activations in "
            f"{config.mixed_precision}"
        )
    return lines


def _steps(config: TrainConfig) -> list[str]:
    counts, source = count_items(config)
    lines = [f"steps, one device ({source})"]
    for kind in ("refs", "sentences"):
        mark = "<- train_items" if kind == config.train_items else ""
        if kind not in counts:
            lines.append(f"  {kind:28}not known {mark}".rstrip())
            continue
        epoch = counts[kind] // config.batch_size
        steps = f"{config.schedule_of(epoch).steps:,} in all" if epoch else "no whole batch"
        lines.append(
            f"  {kind:28}{counts[kind]:,} items, {epoch:,} steps an epoch, {steps} {mark}".rstrip()
        )
    if config.steps is not None:
        lines.append(f"  the run                     {config.steps:,} steps")
    return lines
