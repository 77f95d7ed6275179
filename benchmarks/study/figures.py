"""Figures of a study: gains and learning curves; each returns its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.paired import SeedDifference
from benchmarks.study.plan import COMPUTE, STEPS, Study
from benchmarks.study.rows import Ledger, Row, by_seed, choose
from benchmarks.study.summary import Summary, study_rows
from masksd.kit.figures import save_figure

_STEPS, _COMPUTE = "#2f6fb5", "#c4622d"


def draw_gain(found: Mapping[str, Summary], path: str | Path) -> Path:
    """Draw the gain in mIoU of every variant with its interval, ordered by cost.

    Intervals far wider than the others run out of the figure.
    """
    compared = sorted(_compared(found), key=lambda each: each.cost)
    figure = _figure(9, 1.3 + 0.33 * len(compared))
    axes = figure.subplots()
    for place, each in enumerate(compared):
        for one, shift, colour in zip(
            _gains(each), (-0.13, 0.13), (_STEPS, _COMPUTE), strict=False
        ):
            at = [place + shift] * 2
            axes.plot([100 * one.low, 100 * one.high], at, color=colour, linewidth=1.5)
            axes.plot(100 * one.difference, place + shift, "o", color=colour, markersize=4)
    labels = [f"{each.variant}  ×{each.cost:.2f}" for each in compared]
    axes.set_yticks(range(len(compared)), labels, fontsize=8)
    axes.set_ylim(len(compared) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(*_span([one for each in compared for one in _gains(each)]))
    axes.set_xlabel("gain in mIoU, points, with 95 % interval; × is the cost of a run")
    axes.plot([], [], "o", color=_STEPS, label="against the reference at equal steps")
    if any(each.equal_compute for each in compared):
        axes.plot([], [], "o", color=_COMPUTE, label="at equal compute")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    _plain(axes)
    return save_figure(figure, path)


def draw_best(study: Study, ledger: Ledger, found: Mapping[str, Summary], path: str | Path) -> Path:
    """Draw the learning curves of the five best variants and their references."""
    best = sorted(found.values(), key=lambda each: each.mean["mIoU"])[-5:]
    drawn = {name for each in best for name in (each.variant, each.reference)}
    return draw_learning(study, ledger, [name for name in found if name in drawn], path)


def draw_learning(study: Study, ledger: Ledger, variants: Sequence[str], path: str | Path) -> Path:
    """Draw mIoU during training over multiply-adds: a line per variant, a band over its seeds.

    The longest run of a reference is dashed. Variants that have not been run are left out.
    """
    rows = study_rows(study, ledger, study.splits[0])
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for number, variant in enumerate(variants):
        for budget in (STEPS, COMPUTE):
            own = choose(rows, variant=variant, budget=budget)
            if own:
                steps = max(int(row["steps"]) for row in own)
                longest = by_seed(choose(own, steps=str(steps)))
                _learning(axes, ledger, list(longest.values()), f"C{number}")
    if not axes.lines:
        raise ValueError(f"none of the variants {', '.join(variants)} has been run yet")
    axes.set_xlabel("multiply-adds so far, T")
    axes.set_ylabel("mIoU on the way, %")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return save_figure(figure, path)


def _learning(axes: Any, ledger: Ledger, rows: Sequence[Row], colour: str) -> None:
    """Draw the curves of a variant's seeds."""
    first = rows[0]
    at_steps = first["budget"] == STEPS
    curves = [ledger.curve(row) for row in rows]
    work = int(first["multiply_adds"]) / int(first["steps"])
    at = work * np.array([point["step"] for point in curves[0]]) / 1e12
    scores = 100 * np.array([[point["mIoU"] for point in curve] for curve in curves])
    label = f"{first['variant']}, {first['steps']} steps"
    axes.plot(at, scores.mean(0), "-" if at_steps else "--", color=colour, label=label, marker=".")
    if len(scores) > 1 and at_steps:
        axes.fill_between(at, scores.min(0), scores.max(0), color=colour, alpha=0.15, linewidth=0)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _compared(found: Mapping[str, Summary]) -> list[Summary]:
    compared = [each for each in found.values() if each.equal_steps]
    if not compared:
        raise ValueError("no variant has been compared with its reference yet")
    return compared


def _gains(found: Summary) -> list[SeedDifference]:
    """Return the gain in mIoU at equal steps, and at equal compute if there is one."""
    each = (found.equal_steps, found.equal_compute)
    return [differences["mIoU"] for differences in each if differences]


def _span(gains: Sequence[SeedDifference]) -> tuple[float, float]:
    """Return the range, in points, of all gains and of all but unusually wide intervals."""
    reach = 1.5 * float(np.median([one.high - one.low for one in gains]))
    low = min(0.0, *(max(one.low, one.difference - reach) for one in gains))
    high = max(0.0, *(min(one.high, one.difference + reach) for one in gains))
    margin = 0.03 * (high - low) or 0.001
    return 100 * (low - margin), 100 * (high + margin)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
