"""The tables and the figure of few masks, for ``evidence.md`` and the front page."""

from __future__ import annotations

import math
import statistics
from functools import cache, partial
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.measure import FOLDER
from benchmarks.pages.figures import FIGURES
from benchmarks.pages.published import gain_cell
from benchmarks.study.few_masks import (
    CLEAN,
    MASKS,
    NOISE,
    NOISY,
    ROWS,
    few_masks_study,
    noise_study,
)
from benchmarks.study.paired import student_t
from benchmarks.study.plan import COMPUTE, STEPS
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.summary import Summary, spread_cell, study_rows, summarise
from masksd.kit.printing import markdown_table

LEDGER = Ledger(FOLDER / "few_masks.csv", FOLDER)
HOST = "clip_cris_tiny"
FEWEST = 3
"""Seeds of the host before a number of masks is shown."""
CONDITIONS = {
    "testA": "all there",
    "testA hide=0.25": "25 % of the cells hidden",
    "testA hide=0.5": "50 % hidden",
    "testA drop=1": "a word dropped",
    "testA drop=2": "two words dropped",
}
BUDGETS = {"": "equal_steps", ", equal compute": "equal_compute"}
DRAWN = {
    "host": ("host", STEPS, "#9aa5b1"),
    "host, trained longer": ("host", COMPUTE, "#5b6770"),
    "augment": ("augment", STEPS, "#c4622d"),
    "teacher, no mask": ("teacher, no mask", STEPS, "#6aaa64"),
    "teacher, both": ("teacher, both", STEPS, "#2f6fb5"),
}
"""By label: variant, budget and colour."""


@cache
def found(masks: int, split: str, model: str = HOST) -> dict[str, Summary]:
    """Summarise the rows there are of a number of masks; few draws are enough for a table."""
    return summarise(few_masks_study(masks, model), LEDGER, split, resamples=1000)


def _there(split: str, model: str = HOST) -> list[int]:
    tables = {masks: found(masks, split, model) for masks in MASKS}
    return [n for n, table in tables.items() if table and len(table["host"].seeds) >= FEWEST]


def gains(split: str, model: str = HOST) -> str:
    """Scores of the host, and gains of every row at equal steps and at equal compute."""
    numbers = _there(split, model)
    if not numbers:
        return f"No rows of `{model}` yet."
    tables = {masks: found(masks, split, model) for masks in numbers}
    head = ["row", "cost", *(f"{masks} masks" for masks in numbers)]
    lines = [["host, mIoU", "1.00"]]
    lines[0] += [
        spread_cell(t["host"].mean["mIoU"], t["host"].deviation["mIoU"]) for t in tables.values()
    ]
    for title, of in BUDGETS.items():
        for row in ROWS:
            each = [table.get(row) for table in tables.values()]
            costs = [one.cost for one in each if one]
            cells = [gain_cell(getattr(one, of).get("mIoU")) if one else "" for one in each]
            if any(cells):
                lines.append([f"{row}{title}", f"{costs[0]:.2f}", *cells])
    seeds = sorted(
        {seed for table in tables.values() for one in table.values() for seed in one.seeds}
    )
    devices = sorted(
        {d for table in tables.values() for one in table.values() for d in one.devices}
    )
    study = few_masks_study(numbers[0], model)
    return (
        f"{markdown_table(head, lines)}\n\n`{model}`, {study.data_name()}, {split}, "
        f"{study.samples} expressions; {study.base.steps} steps of {study.base.batch_size}, and of "
        f"{study.base.batch_size} more without masks in the rows named; best of the checkpoints "
        f"on val; seeds {', '.join(map(str, seeds))}; {', '.join(devices)}."
    )


def missing(masks: int = MASKS[0], model: str = HOST) -> str:
    """Gains at equal steps with part of the image hidden, or words left out."""
    tables = {split: found(masks, split, model) for split in CONDITIONS}
    if not all(tables.values()):
        return f"No rows of `{model}` with {masks} masks yet."
    lines = [
        [
            "host, mIoU",
            *(
                spread_cell(t["host"].mean["mIoU"], t["host"].deviation["mIoU"])
                for t in tables.values()
            ),
        ]
    ]
    for title, of in BUDGETS.items():
        for row in ROWS:
            each = [table.get(row) for table in tables.values()]
            cells = [gain_cell(getattr(one, of).get("mIoU")) if one else "" for one in each]
            if any(cells):
                lines.append([f"{row}{title}", *cells])
    table = markdown_table(["row", *CONDITIONS.values()], lines)
    return f"{table}\n\n`{model}`, {masks} masks, testA."


def draw_curve(path: Path, split: str = "testA", model: str = HOST) -> None:
    """Draw mIoU against the number of masks, with 95 % intervals over the seeds."""
    numbers = _there(split, model)
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for place, (label, (variant, budget, colour)) in enumerate(DRAWN.items()):
        points = []
        for masks in numbers:
            study = few_masks_study(masks, model)
            rows = choose(study_rows(study, LEDGER, split), variant=variant, budget=budget)
            longest = max((int(row["steps"]) for row in rows), default=0)
            scores = [
                100 * float(row["mIoU"])
                for row in by_seed(choose(rows, steps=str(longest))).values()
            ]
            if scores:
                points.append((masks * 1.02 ** (place - 2), statistics.fmean(scores), half(scores)))
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(
                x,
                y,
                error,
                label=label,
                color=colour,
                marker="o",
                markersize=4,
                linewidth=1.6,
                capsize=2,
            )
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{masks:,}" for masks in numbers])
    axes.minorticks_off()
    axes.set_xlabel("masks for training; all other expressions have none")
    axes.set_ylabel("mIoU, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def half(scores: list[float]) -> float:
    """Return half the width of the 95 % interval of a mean; 0 for one score."""
    if len(scores) < 2:
        return 0.0
    return student_t(len(scores) - 1) * statistics.stdev(scores) / math.sqrt(len(scores))


def noise(model: str = HOST) -> str:
    """What the masked pass learns from, with shares of wrong masks; compared with the truth."""
    tables = {share: summarise_noise(share, model) for share in NOISE}
    there = {share: table for share, table in tables.items() if table}
    if not there:
        return f"No rows of `{model}` yet."
    names = dict.fromkeys(name for table in there.values() for name in table)
    head = ["row", *(f"{share:.0%} wrong" for share in there)]
    lines = []
    for name in names:
        cells = []
        for table in there.values():
            one = table.get(name)
            score = spread_cell(one.mean["mIoU"], one.deviation["mIoU"]) if one else ""
            gain = gain_cell(one.equal_steps.get("mIoU")) if one else ""
            cells.append(f"{score}; {gain}" if gain else score)
        lines.append([name, *cells])
    return (
        f"{markdown_table(head, lines)}\n\n`{model}`, {NOISY} masks, testA; mIoU, and the gain "
        "over the truth as target."
    )


@cache
def summarise_noise(share: float, model: str) -> dict[str, Summary]:
    return summarise(noise_study(share, model), LEDGER, CLEAN[0], resamples=1000)


TABLES = {
    "noise": noise,
    "few_masks_testA": partial(gains, CLEAN[0]),
    "few_masks_testB": partial(gains, CLEAN[1]),
    "missing": missing,
}
"""By the name of the block on the page."""


def draw() -> None:
    """Draw the figure of the front page, once there is a curve to draw."""
    if len(_there(CLEAN[0])) > 1:
        draw_curve(FIGURES / "few_masks.png")
