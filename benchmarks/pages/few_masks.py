"""The tables and the figure of few masks, for ``evidence.md`` and the front page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.measure import FOLDER
from benchmarks.pages.figures import FIGURES
from benchmarks.pages.published import bold, gain_cell
from benchmarks.study.few_masks import (
    CLEAN,
    HARDER,
    LEVELS,
    LONG_AUGMENT,
    LONG_HOST,
    LONGER,
    MASKS,
    NOISE,
    NOISY,
    ROWS,
    few_masks_study,
    level_study,
    noise_study,
)
from benchmarks.study.paired import SeedDifference, student_t
from benchmarks.study.plan import STEPS
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.run import Scored
from benchmarks.study.summary import Summary, compare_rows, spread_cell, study_rows, summarise
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
PANELS = {"testA": "whole images", "testA hide=0.5": "half of each image hidden"}
BUDGETS = {"": "equal_steps", ", equal compute": "equal_compute"}
LONG = {
    LONG_HOST: f"host, {LONGER} times as long",
    LONG_AUGMENT: f"augment, both {LONGER} times as long",
}
"""What the tables call the rows that train for longer."""
DRAWN = {
    "host": ("host", "#9aa5b1", "-"),
    "augment": ("augment", "#e39a72", "-"),
    "teacher, both": ("teacher, both", "#2f6fb5", "-"),
    LONG[LONG_HOST]: (LONG_HOST, "#5b6770", "--"),
}
"""By label: variant, colour and line."""


@cache
def found(masks: int, split: str, model: str = HOST) -> dict[str, Summary]:
    """Summarise the rows there are of a number of masks; few draws are enough for a table.

    The host that trains for longer is compared with the host.
    """
    study = few_masks_study(masks, model)
    table = summarise(study, LEDGER, split, resamples=1000)
    if LONG_HOST in table:
        rows = choose(study_rows(study, LEDGER, split), budget=STEPS)
        plain, long = (by_seed(choose(rows, variant=name)) for name in ("host", LONG_HOST))
        gain = compare_rows(LEDGER, plain, long, {}, 1000)
        table[LONG_HOST] = dataclasses.replace(table[LONG_HOST], equal_steps=gain)
    return table


def _there(split: str, model: str = HOST) -> list[int]:
    tables = {masks: found(masks, split, model) for masks in MASKS}
    return [n for n, table in tables.items() if table and len(table["host"].seeds) >= FEWEST]


def gains(split: str, model: str = HOST) -> str:
    """Scores of the host, and gains of every row at equal steps and at equal compute."""
    numbers = _there(split, model)
    if not numbers:
        return f"No rows of `{model}` yet."
    tables = [found(masks, split, model) for masks in numbers]
    lines = [[name, f"{cost:.2f}", *cells] for name, cost, cells in _lines(tables)]
    head = ["row", "cost", *(f"{masks} masks" for masks in numbers)]
    devices = sorted({d for table in tables for one in table.values() for d in one.devices})
    study = few_masks_study(numbers[0], model)
    return (
        f"{markdown_table(head, lines)}\n\n`{model}`, {study.data_name()}, {split}, "
        f"{study.samples} expressions; {study.base.steps} steps of {study.base.batch_size}, and of "
        f"{study.base.batch_size} more without masks in the rows named; best of the checkpoints "
        f"on val; seeds from {study.seeds[0]} on, as many as in brackets; {', '.join(devices)}."
    )


def missing(masks: int, model: str = HOST) -> str:
    """Gains with part of the image hidden, or words left out."""
    tables = [found(masks, split, model) for split in CONDITIONS]
    if not all(tables):
        return f"No rows of `{model}` with {masks} masks yet."
    lines = [[name, *cells] for name, _, cells in _lines(tables)]
    table = markdown_table(["row", *CONDITIONS.values()], lines)
    return f"{table}\n\n`{model}`, {masks} masks, testA; seeds in brackets."


def level(model: str = HOST) -> str:
    """Gains on the harder level and on the one that the host comes from."""
    study = level_study(model)
    tables = [summarise(study, LEDGER, split, resamples=1000) for split in LEVELS]
    if not all(tables):
        return f"No rows of `{model}` yet."
    lines = [[name, *cells] for name, _, cells in _lines(tables, HARDER)]
    scored = map(Scored.parse, LEVELS)
    head = [f"{each.split}, {each.level or study.base.data.level}" for each in scored]
    table = markdown_table(["row", *head], lines)
    masks = study.variants[0].train["labels"]
    return f"{table}\n\n`{model}`, {masks} masks of the hard level; seeds in brackets."


def _lines(
    tables: list[dict[str, Summary]], rows: Iterable[str] = ROWS
) -> list[tuple[str, float, list[str]]]:
    """Return a line for the host and for every row that has a gain: its name, cost and cells."""
    lines = [("host, mIoU", 1.0, [f"{_score(t['host'])} ({len(t['host'].seeds)})" for t in tables])]
    chosen = [(row, row + end, of) for end, of in BUDGETS.items() for row in rows if row != "host"]
    chosen += [(row, title, "equal_steps") for row, title in LONG.items()]
    for row, title, budget in chosen:
        each = [table.get(row) for table in tables]
        cells = [_gain(one, budget) for one in each]
        if any(cells):
            cost = float(LONGER) if row in LONG else next(one.cost for one in each if one)
            lines.append((title, cost, cells))
    return lines


def _score(one: Summary) -> str:
    return spread_cell(one.mean["mIoU"], one.deviation["mIoU"])


def _gain(one: Summary | None, budget: str) -> str:
    gain = getattr(one, budget).get("mIoU") if one else None
    return f"{gain_cell(gain)} ({gain.seeds})" if gain else ""


def draw_curve(path: Path, model: str = HOST) -> None:
    """Draw mIoU against the number of masks, with 95 % intervals over the seeds."""
    numbers = _there(CLEAN[0], model)
    figure, panels = plt.subplots(
        1, len(PANELS), figsize=(9.6, 3.6), sharey=True, layout="constrained"
    )
    seeds: set[int] = set()
    for axes, (split, title) in zip(panels, PANELS.items(), strict=True):
        for place, (label, (variant, colour, line)) in enumerate(DRAWN.items()):
            points = []
            for masks in numbers:
                one = found(masks, split, model).get(variant)
                if one and len(one.seeds) >= FEWEST:
                    seeds.add(len(one.seeds))
                    x = masks * 1.03 ** (place - 1.5)
                    points.append((x, 100 * one.mean["mIoU"], 100 * half(one)))
            if points:
                axes.errorbar(
                    *zip(*points, strict=True),
                    label=label,
                    color=colour,
                    linestyle=line,
                    **{"marker": "o", "markersize": 4, "linewidth": 1.6, "capsize": 2},
                )
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{masks:,}" for masks in numbers])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"masks to train on; bars: 95 % over {min(seeds)} to {max(seeds)} seeds", fontsize=10
    )
    panels[0].set_ylabel("mIoU on testA, %")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def half(one: Summary) -> float:
    """Return half the width of the 95 % interval of a mean over the seeds."""
    seeds = len(one.seeds)
    return student_t(seeds - 1) * one.deviation["mIoU"] / math.sqrt(seeds)


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
            score, gain = _score(one) if one else "", _gain(one, "equal_steps")
            cells.append(f"{score}; {gain}" if gain else score)
        lines.append([name, *cells])
    return (
        f"{markdown_table(head, lines)}\n\n`{model}`, {NOISY} masks, testA; mIoU, and the gain "
        "over the truth as target."
    )


@cache
def summarise_noise(share: float, model: str) -> dict[str, Summary]:
    return summarise(noise_study(share, model), LEDGER, CLEAN[0], resamples=1000)


def front(model: str = HOST) -> str:
    """Say on the front page what masking at no cost changes; bold where an interval excludes 0."""
    numbers = _there(CLEAN[0], model)
    gains = {
        split: [found(n, split, model)["augment"].equal_steps["mIoU"] for n in numbers]
        for split in PANELS
    }
    whole, hidden = (_listed(map(_brief, each)) for each in gains.values())
    seeds = min(gain.seeds for each in gains.values() for gain in each)
    return (
        f"With {_listed(f'{masks:,}' for masks in numbers)} masks, it changes mIoU by {whole} "
        f"points, and by {hidden}\nwhere half of each image is hidden (`{model}`, testA, {seeds} "
        f"seeds; bold: [intervals](benchmarks/evidence.md#with-few-masks) exclude 0)."
    )


def _brief(gain: SeedDifference) -> str:
    return bold(f"{100 * gain.difference:+.1f}", gain.verdict)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"


TABLES = {
    "noise": noise,
    "few_masks_testA": partial(gains, CLEAN[0]),
    "few_masks_testB": partial(gains, CLEAN[1]),
    **{f"missing_{masks}": partial(missing, masks) for masks in MASKS},
    "level": level,
}
"""By the name of the block on the page."""


def draw() -> None:
    """Draw the figure of the front page, once there is a curve to draw."""
    if len(_there(CLEAN[0])) > 1:
        draw_curve(FIGURES / "few_masks.png")
