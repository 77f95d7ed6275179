"""The learning rate equals torch's own schedulers, update by update."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from masksd.kit.config import TrainConfig
from masksd.kit.schedules import Schedule


def rates(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int
) -> list[float]:
    """Step a scheduler of torch and note what each update has."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def ours(schedule: Schedule) -> list[float]:
    return [schedule.rate(updates) for updates in range(schedule.steps)]


def test_cosine_is_torchs() -> None:
    expected = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40), 40)
    assert ours(Schedule("cosine", lr=0.3, steps=40)) == pytest.approx(expected, rel=1e-9)


def test_multistep_is_torchs() -> None:
    expected = rates(lambda o: lr_scheduler.MultiStepLR(o, milestones=[7, 20], gamma=0.1), 40)
    schedule = Schedule("multistep", lr=0.3, steps=40, milestones=(7, 20), gamma=0.1)
    assert ours(schedule) == pytest.approx(expected, rel=1e-12)


def test_poly_is_torchs() -> None:
    expected = rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=0.9), 40)
    assert ours(Schedule("poly", lr=0.3, steps=40)) == pytest.approx(expected, rel=1e-9)


def test_poly_is_the_lambda_of_lavt() -> None:
    expected = rates(lambda o: lr_scheduler.LambdaLR(o, lambda x: (1 - x / 40) ** 0.9), 40)
    assert ours(Schedule("poly", lr=0.3, steps=40)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "poly"])
def test_warmup_is_a_line_and_the_rest_is_the_schedule(kind: str) -> None:
    schedule = Schedule(kind, lr=0.3, steps=50, warmup=10)
    assert ours(schedule)[:10] == pytest.approx([0.03 * (n + 1) for n in range(10)])
    assert ours(schedule)[10:] == ours(Schedule(kind, lr=0.3, steps=40))


def test_cosine_with_warmup_is_torchs_sequence() -> None:
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        def formula(n: int) -> float:
            return (n + 1) / 10 if n < 10 else 0.5 * (1 + math.cos(math.pi * (n - 10) / 40))

        return lr_scheduler.LambdaLR(optimizer, formula)

    assert ours(Schedule("cosine", 0.3, 50, 10)) == pytest.approx(rates(make, 50), rel=1e-9)


def test_the_rate_stays_at_the_end_after_the_last_update() -> None:
    assert Schedule("cosine", lr=0.3, steps=5).rate(9) == Schedule("poly", 0.3, 5).rate(9) == 0.0


def test_unknown_schedules_are_named() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        Schedule("cosin", lr=0.3, steps=5)


def test_epochs_become_steps() -> None:
    config = TrainConfig(steps=None, epochs=50, warmup=None, warmup_epochs=10)
    schedule = config.schedule_of(batches=662)
    assert (schedule.steps, schedule.warmup) == (33_100, 6_620)
    config = TrainConfig(
        steps=None, epochs=50, warmup=0, schedule="multistep", milestones=(0.7,), gamma=0.1
    )
    drops = config.schedule_of(batches=662)
    assert drops.milestones == (35 * 662,)  # the first update of epoch 36
    assert drops.rate(35 * 662 - 1) == 10 * drops.rate(35 * 662)
    with pytest.raises(ValueError, match="an epoch has no step"):
        config.schedule_of(batches=0)
    assert TrainConfig().schedule_of(batches=0).steps == 1000  # does not need to know
