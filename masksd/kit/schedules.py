"""How the learning rate goes over a run: pure functions of the number of updates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from masksd.errors import check_choice

SCHEDULES = ("cosine", "multistep", "poly")


def cosine(done: float) -> float:
    """Return the share of the peak that half a cosine leaves, from 1 to 0.

    As ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``eta_min=0``.

    Args:
        done: share of the run, in [0, 1].

    Example:
        >>> [round(cosine(done), 3) for done in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def poly(done: float, power: float) -> float:
    """Return the share of the peak that ``(1 - done) ** power`` leaves, from 1 to 0.

    As ``torch.optim.lr_scheduler.PolynomialLR``.

    Args:
        done: share of the run, in [0, 1].
        power: above 0; 0.9 in LAVT.

    Example:
        >>> round(poly(0.5, 0.9), 3)
        0.536
    """
    return (1.0 - done) ** power


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: linear warm-up, then one of three ways down.

    Attributes:
        kind: ``"cosine"``, ``"multistep"`` or ``"poly"``.
        lr: the peak.
        steps: updates of the whole run, warm-up included.
        warmup: updates over which the rate rises from 0; cosine and poly fall over the rest.
        milestones: of multistep: updates, from the start of the run, after which the rate drops.
        gamma: of multistep: the factor of each drop; ``MultiStepLR`` without warm-up.
        power: of poly.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> schedule = Schedule("cosine", lr=1.0, steps=100, warmup=10)
        >>> [round(schedule.rate(updates), 3) for updates in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    kind: str
    lr: float
    steps: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 0.9

    def __post_init__(self) -> None:
        check_choice("schedule", self.kind, SCHEDULES)

    def rate(self, updates: int) -> float:
        """Return the learning rate of the update that comes after ``updates`` others."""
        if updates < self.warmup:
            return self.lr * (updates + 1) / self.warmup
        if self.kind == "multistep":
            return self.lr * self.gamma ** sum(updates >= drop for drop in self.milestones)
        done = min(1.0, (updates - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (cosine(done) if self.kind == "cosine" else poly(done, self.power))
