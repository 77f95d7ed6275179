"""Whether a run fits the memory of this machine, and what would make it smaller."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from masksd.kit.config import TrainConfig
from masksd.kit.costs.budget import Budget, measure_activations, measure_budget
from masksd.models.registry import SHIPPED

LARGE = 2**21
"""Pixels of a batch below which the memory of a step is not counted, since that takes seconds."""


class Way(NamedTuple):
    """Options that make a run smaller, and the bytes that it then needs."""

    options: str
    needed: int


def needed(budget: Budget, activations: float) -> int:
    """Return the bytes of a step with these activations."""
    return round(budget.weights + budget.gradients + budget.optimizer + activations)


def kept(budget: Budget, config: TrainConfig) -> float:
    """Return the activations of a run: 16 bits keep about half."""
    return budget.activations * (1.0 if config.mixed_precision == "no" else 0.5)


def smaller(config: TrainConfig, budget: Budget) -> list[Way]:
    """Return what makes a step smaller at the same batch per optimiser step; the last is all of it.

    Only low memory gives the same gradients: with accumulation each batch has its own BatchNorm.
    """
    parts: list[tuple[str, float]] = []
    if config.mixed_precision == "no":
        parts.append(("--mixed-precision bf16", 0.5))
    try:
        low = dataclasses.replace(config.distill, low_memory=True)
        lower = measure_activations(dataclasses.replace(config, distill=low))
        less = lower + budget.gradients  # it sums gradients of its own
    except ValueError:  # with some options of the method it does not work
        less = budget.activations
    if less < budget.activations:
        parts.append(("--distill.low-memory", less / budget.activations))
    if config.batch_size > 1 and config.unlabelled is None:
        half, twice = config.batch_size // 2, 2 * config.accumulate
        share = half / config.batch_size
        parts.append((f"--batch-size {half} --accumulate {twice}", share))
    now, together = kept(budget, config), 1.0
    found = []
    for options, share in parts:
        together *= share
        found.append(Way(options, needed(budget, now * share)))
    if len(parts) > 1:
        every = " ".join(options for options, _ in parts)
        found.append(Way(every, needed(budget, now * together)))
    return found


def memory_here(cpu: bool) -> tuple[int, str]:
    """Return the bytes of the memory that a process trains in, and whose it is."""
    import torch

    if torch.cuda.is_available() and not cpu:
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else "max"
    total = total if text == "max" else min(total, int(text))
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "this machine"


def check_fits(config: TrainConfig) -> None:
    """Raise a ``ValueError`` if a step of a large batch needs more memory than there is."""
    shipped = SHIPPED.get(config.model)
    side = config.image_size or (shipped.sizes.get("image_size", 224) if shipped else 224)
    if config.images_per_pass() * side**2 < LARGE:
        return
    try:
        budget = measure_budget(config)
    except ValueError as error:
        if shipped:
            raise
        warnings.warn(f"going on without an estimate of the memory: {error}", stacklevel=3)
        return
    wanted, (there, whose) = needed(budget, kept(budget, config)), memory_here(config.cpu)
    if wanted > there:
        ways = "; ".join(f"{way.options}: {_gb(way.needed)}" for way in smaller(config, budget))
        raise ValueError(
            f"a step of batch_size {config.batch_size} needs about {_gb(wanted)}, {whose} has "
            f"{_gb(there)}; less takes {ways or 'a smaller --image-size'}"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
