"""What a run costs in multiply-adds, and how long its reference may train for the same."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

from masksd.config import DistillConfig
from masksd.kit.config import TrainConfig
from masksd.kit.training.budget import measure_budget


def matched_host(reference: TrainConfig, variant: TrainConfig) -> TrainConfig:
    """Return the reference trained on, to at least the variant's multiply-adds.

    Its learning rate goes down over the longer run; the warm-up stays.

    Args:
        reference: the run at its own steps.
        variant: the run whose compute is to be had.

    Example:
        >>> no = DistillConfig(image=None, text=None)
        >>> matched_host(TrainConfig(distill=no), TrainConfig(distill=no)).steps
        1000
    """
    if reference.steps is None:
        raise ValueError("a run's compute is counted over its steps; set steps, not epochs")
    times = multiply_adds(variant) / multiply_adds(reference)
    return dataclasses.replace(reference, steps=matched_steps(reference.steps, times))


def matched_steps(steps: int, times: float) -> int:
    """Return for how many steps a reference trains where it may cost so many times its own.

    Args:
        steps: of the reference.
        times: at least 1.

    Returns:
        Steps, rounded up to whole fiftieths of the reference's: runs of nearly one cost are one.

    Example:
        >>> matched_steps(1000, 1.39), matched_steps(1000, 1.0)
        (1400, 1000)
    """
    unit = max(1, steps // 50)
    return math.ceil(round(times * steps / unit, 9)) * unit


def multiply_adds(config: TrainConfig) -> int:
    """Count the multiply-adds of a run, forward and backward.

    A branch that runs every n-th step is counted in the steps that it runs in.

    Args:
        config: of the run, with its steps.

    Example:
        >>> from masksd.config import MaskingConfig
        >>> half = TrainConfig(distill=DistillConfig(image=MaskingConfig(every=2)))
        >>> multiply_adds(half) < multiply_adds(TrainConfig())
        True
    """
    if config.steps is None:
        raise ValueError("a run's compute is counted over its steps; set steps, not epochs")
    distill = config.distill
    plain = _step_cost(config, dataclasses.replace(distill, image=None, text=None, joint=False))
    total = plain * config.steps
    alone = [(distill.image, dataclasses.replace(distill, text=None, joint=False))]
    alone.append((distill.text, dataclasses.replace(distill, image=None, joint=False)))
    for masking, counted in [(distill.image, distill)] if distill.joint else alone:
        if masking is not None:
            runs = math.ceil(config.steps / masking.every)
            total += (_step_cost(config, counted) - plain) * runs
    return total * config.batch_size


def _step_cost(config: TrainConfig, distill: DistillConfig) -> int:
    """Count the multiply-adds of a picture in a step in which every branch that is on runs."""
    image, text = (
        masking and dataclasses.replace(masking, every=1)
        for masking in (distill.image, distill.text)
    )
    counted = dataclasses.replace(distill, image=image, text=text, seed=0)
    # what the count does not depend on is set alike, so that equal ones are counted once
    alike = TrainConfig(
        model=config.model,
        dropout=config.dropout,
        tokenizer=config.tokenizer,
        data=config.data,
        max_length=config.max_length,
        image_size=config.image_size,
        batch_size=config.batch_size,
        class_weights=config.class_weights,
        frozen=config.frozen,
        distill=counted,
    )
    return _counted(alike)


@cache
def _counted(config: TrainConfig) -> int:
    return measure_budget(config).step
