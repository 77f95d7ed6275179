"""The learning rate over a run: a pure function of the number of updates taken so far.

The values are those of torch's ``CosineAnnealingLR`` (to 0), ``MultiStepLR`` and ``PolynomialLR``
after a linear warm-up, up to 1e-13. Torch's own keep state, which a skipped step must not advance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from masksd.errors import check_choice

SCHEDULES = ("cosine", "multistep", "poly")


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to ``lr``, then one of three ways down.

    ``steps`` counts the updates of the whole run, ``warmup`` those over which the rate rises from
    0; cosine and poly fall over the rest. ``milestones`` are updates from the start of the run.
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
        if self.kind == "cosine":
            return self.lr * (0.5 * (1 + math.cos(math.pi * done)))
        return self.lr * (1.0 - done) ** self.power
