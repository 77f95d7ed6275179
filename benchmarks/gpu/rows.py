"""A row of ``gpu.csv``: one measure of one thing, its bound, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]

FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    model: str
    image_size: int
    batch: int
    embeddings: tuple[int, int, int]
    rounds: int


FULL = Size("clip_cris_vit_b16", 480, 32, (32, 1296, 1024), rounds=10)
TINY = Size("clip_cris_tiny", 64, 2, (2, 20, 8), rounds=2)


def row(
    part: str,
    name: str,
    setting: str,
    measure: str,
    value: float | None = None,
    *,
    bound: str = "",
    goal: str = "",
    two_plus_d: float | None = None,
    rounds: int | None = None,
    note: str = "",
) -> Row:
    """Judge a value; ``bound`` and ``goal`` are as ``">= 0.7"``."""
    verdict = ""
    if value is not None and bound:
        verdict = "within" if holds(value, bound) else "outside"
        verdict = "goal" if verdict == "within" and goal and holds(value, goal) else verdict
    return {
        "part": part,
        "name": name,
        "setting": setting,
        "measure": measure,
        "value": "" if value is None else f"{value:.4g}",
        "bound": bound,
        "goal": goal,
        "verdict": verdict,
        "two_plus_d": "" if two_plus_d is None else round(two_plus_d, 4),
        "rounds": "" if rounds is None else rounds,
        "note": note,
    }


def holds(value: float, bound: str) -> bool:
    """Whether a value keeps a bound; NaN keeps none."""
    sign, limit = bound.split()
    return value >= float(limit) if sign == ">=" else value <= float(limit)


def failed(part: str, name: str, error: Exception) -> Row:
    """A row that says what was raised instead of a value."""
    note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return row(part, name, "", "", note=note) | {"verdict": "failed"}
