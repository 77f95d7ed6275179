"""``masksd train --dry-run``: every value of a run and what it costs."""

from __future__ import annotations

from typing import Any

from masksd.kit.cli.shared import HEADINGS
from masksd.kit.config import TrainConfig
from masksd.kit.costs.budget import Budget, check_splits, count_items, measure_budget
from masksd.kit.costs.fits import kept, memory_here, needed, smaller
from masksd.kit.sources import tokenizer_name


def dry_run(preset: str, config: TrainConfig) -> str:
    """Lay out what a run would be; nothing is written, downloaded or generated."""
    check_splits(config)
    budget = measure_budget(config)
    chosen = {  # what the config leaves to the model, the data or the folder
        "tokenizer": tokenizer_name(config),
        "image_size": budget.model_config["image_size"],
        "dropout": budget.model_config.get("dropout"),
        "output": config.output_folder(),
    }
    lines = [f"preset {preset}"]
    for name, value in config.flat().items():
        heading = HEADINGS.get(name.partition(".")[0], "")
        lines += [heading] if heading and heading not in lines else []
        lines.append(_line(name, _shown(chosen.get(name, value))))
    return "\n".join([*lines, *_costs(budget, config), *_steps(config)])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return str(value) if value != "" else "(none)"


def _line(name: str, text: str) -> str:
    return f"  {name:28}{text}".rstrip()


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
        "cost per device",
        _line(
            "parameters",
            f"{budget.parameters / 1e6:.1f} M of the model, "
            f"{budget.trainable / 1e6:.1f} M trainable, {budget.added:,} added by masksd in "
            "training",
        ),
        _line(
            "multiply-adds per image",
            f"{budget.plain / 1e9:.2f} G one plain pass; {budget.forward / 1e9:.2f} G the passes "
            f"of a training step ({budget.forward / plain:.2f} times as much), "
            f"{budget.step / 1e9:.2f} G with backward",
        ),
        _line("memory, GB", f"about {total / 1e9:.1f} for a batch: {parts}"),
        _line(
            "",
            "(float32 tensors that backward needs, fused attention; kernels' workspace "
            "comes on top)",
        ),
    ]
    if config.mixed_precision != "no":
        lines.append(_line("", f"about half of the activations in {config.mixed_precision}"))
    return [*lines, *_smaller(budget, config)]


def _smaller(budget: Budget, config: TrainConfig) -> list[str]:
    """Say what is there, and what would need less, where it does not fit."""
    there, whose = memory_here(config.cpu)
    lines = [_line("", f"{whose} has {there / 1e9:.1f}")]
    if needed(budget, kept(budget, config)) <= there:
        return lines
    for way in smaller(config, budget):
        lines.append(_line("", f"{way.needed / 1e9:6.1f} with {way.options}"))
    more = "gradient checkpointing and torch.compile: in a loop of your own, examples/README.md"
    return [*lines, _line("", f"  less with {more}")]


def _steps(config: TrainConfig) -> list[str]:
    counts, source = count_items(config)
    lines = [f"steps on one device ({source})"]
    for kind in ("refs", "sentences"):
        mark = " <- train_items" if kind == config.train_items else ""
        text = "not known"
        if kind in counts:
            batches = counts[kind] // config.batch_size
            epoch = batches // config.accumulate
            steps = f"{config.schedule_of(batches).steps:,} in all" if epoch else "no whole step"
            text = f"{counts[kind]:,} items, {epoch:,} steps per epoch, {steps}"
        lines.append(_line(kind, text + mark))
    if config.unlabelled is not None:
        known = counts.get(f"unlabelled {config.train_items}")
        count = "not known" if known is None else f"{known:,} items"
        beside = config.images_per_pass() - config.batch_size
        text = f"{count}, {beside} in each pass beside {config.batch_size} with masks"
        lines.append(_line(f"unlabelled {config.train_items}", text))
    if config.steps is not None:
        lines.append(_line("the run", f"{config.steps:,} steps"))
    return lines
