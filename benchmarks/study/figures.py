"""Pictures of a study: gain against cost, learning curves, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.paired import SeedDifference
from benchmarks.study.plan import COMPUTE, STEPS, Study
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.summary import Found, study_rows
from masksd.kit.figures import save_figure

_STEPS, _COMPUTE = "#2f6fb5", "#c4622d"
_FEW = 8


def draw_gain(found: Mapping[str, Found], path: str | Path) -> Path:
    """Draw the gain in mIoU of every variant with its interval, ordered by cost.

    Intervals that are far wider than the others go on beyond the picture.

    Args:
        found: of :func:`benchmarks.study.summary.summarise`.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: no variant has been compared.
    """
    from matplotlib.figure import Figure

    compared = sorted(
        (each for each in found.values() if each.equal_steps), key=lambda each: each.cost
    )
    if not compared:
        raise ValueError("no variant has been compared with its reference yet")
    figure = Figure(figsize=(9, 1.3 + 0.33 * len(compared)), layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(compared):
        for one, shift, colour in zip(
            _gains(each), (-0.13, 0.13), (_STEPS, _COMPUTE), strict=False
        ):
            _interval(axes, one, place + shift, colour)
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


def draw_scatter(found: Mapping[str, Found], path: str | Path) -> Path:
    """Draw the gain in mIoU at equal steps against what a run costs.

    Named are those that gain more than all that cost less, those whose interval excludes 0, and all
    where they are few. Intervals that are far wider than the others go on beyond the picture.

    Args:
        found: of :func:`benchmarks.study.summary.summarise`.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: no variant has been compared.
    """
    from matplotlib.figure import Figure

    compared = [each for each in found.values() if each.equal_steps]
    if not compared:
        raise ValueError("no variant has been compared with its reference yet")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    width = 0.025 * (max(each.cost for each in compared) - 1 or 1)
    middle = (min(each.cost for each in compared) + max(each.cost for each in compared)) / 2
    best = -np.inf
    beside: dict[float, int] = {}  # how many of nearly this cost have been drawn
    for each in sorted(
        compared, key=lambda each: (each.cost, -each.equal_steps["mIoU"].difference)
    ):
        one, place = each.equal_steps["mIoU"], round(each.cost, 2)
        beside[place] = beside.get(place, -1) + 1
        at = each.cost + width * (beside[place] % 8) / 4
        shown = one.low > 0 or one.high < 0
        axes.plot([at, at], [100 * one.low, 100 * one.high], color=_STEPS, alpha=0.35)
        axes.plot(at, 100 * one.difference, "o", color=_COMPUTE if shown else _STEPS, markersize=4)
        if shown or one.difference > best or len(compared) <= _FEW:
            best = max(best, one.difference)
            right = at > middle  # what is named there is named towards the middle
            text = axes.annotate(
                each.variant,
                (at, 100 * one.difference),
                (-5 if right else 5, 4),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=8,
                zorder=5,
            )
            text.set_in_layout(False)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(*_span([each.equal_steps["mIoU"] for each in compared]))
    axes.plot([], [], "o", color=_COMPUTE, label="the interval excludes 0")
    axes.plot([], [], "o", color=_STEPS, label="no difference could be shown")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    axes.set_xlabel("multiply-adds of a run / the reference's; those of one cost side by side")
    axes.set_ylabel("gain in mIoU at equal steps, points")
    _plain(axes)
    return save_figure(figure, path)


def draw_learning(study: Study, ledger: Ledger, variants: Sequence[str], path: str | Path) -> Path:
    """Draw mIoU on the way over multiply-adds: a line a variant, a band from seed to seed.

    The longest run of a reference is dashed.

    Args:
        study: of the runs.
        ledger: with rows and curves.
        variants: names; those that have not been run are left out.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: none of them has been run.
    """
    from matplotlib.figure import Figure

    rows = study_rows(study, ledger, study.splits[0])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, variant in enumerate(variants):
        for budget in (STEPS, COMPUTE):
            own = choose(rows, variant=variant, budget=budget)
            for steps in sorted({int(row["steps"]) for row in own})[-1:]:
                of_steps = by_seed(choose(own, steps=str(steps)))
                curves = [ledger.curve(row) for row in of_steps.values()]
                work = int(next(iter(of_steps.values()))["multiply_adds"]) / steps
                at = work * np.array([point["step"] for point in curves[0]]) / 1e12
                scores = 100 * np.array([[point["mIoU"] for point in curve] for curve in curves])
                style = "-" if budget == STEPS else "--"
                label, colour = f"{variant}, {steps} steps", f"C{number}"
                axes.plot(at, scores.mean(0), style, color=colour, label=label, marker=".")
                if len(scores) > 1 and budget == STEPS:
                    axes.fill_between(
                        at, scores.min(0), scores.max(0), color=colour, alpha=0.15, linewidth=0
                    )
    if not axes.lines:
        raise ValueError(f"none of the variants {', '.join(variants)} has been run yet")
    axes.set_xlabel("multiply-adds so far, T")
    axes.set_ylabel("mIoU on the way, %")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return save_figure(figure, path)


def draw_sweeps(
    found: Mapping[str, Found], sweeps: Mapping[str, Mapping[float, str]], path: str | Path
) -> Path:
    """Draw the gain in mIoU over the values of hyper-parameters, a panel each.

    Args:
        found: of :func:`benchmarks.study.summary.summarise`.
        sweeps: by title of the panel: the variant of each value; values that have not been compared
            are left out, and so are panels with fewer than two.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: no two values of any have been compared.
    """
    from matplotlib.figure import Figure

    panels = {
        title: {
            value: found[name].equal_steps["mIoU"]
            for value, name in sorted(names.items())
            if name in found and found[name].equal_steps
        }
        for title, names in sweeps.items()
    }
    panels = {title: points for title, points in panels.items() if len(points) > 1}
    if not panels:
        raise ValueError("no two values of a sweep have been compared with their reference yet")
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=False):
        gains = np.array([[p.difference, p.low, p.high] for p in points.values()])
        middle, low, high = 100 * gains.T
        axes.errorbar(list(points), middle, [middle - low, high - middle], fmt="o-", color=_STEPS)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        _plain(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for line in grid:
        line[0].set_ylabel("gain in mIoU, points", fontsize=8)
    return save_figure(figure, path)


def _gains(found: Found) -> list[SeedDifference]:
    """Return the gain in mIoU at equal steps, and that at equal compute where there is one."""
    each = (found.equal_steps, found.equal_compute)
    return [differences["mIoU"] for differences in each if differences]


def _span(gains: Sequence[SeedDifference]) -> tuple[float, float]:
    """Return the part of the axis, in points, that all gains and all but odd intervals are in."""
    reach = 1.5 * float(np.median([one.high - one.low for one in gains]))
    low = min(0.0, *(max(one.low, one.difference - reach) for one in gains))
    high = max(0.0, *(min(one.high, one.difference + reach) for one in gains))
    margin = 0.03 * (high - low) or 0.001
    return 100 * (low - margin), 100 * (high + margin)


def _interval(axes: Any, one: SeedDifference, place: float, colour: str) -> None:
    axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=1.5)
    axes.plot(100 * one.difference, place, "o", color=colour, markersize=4)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
