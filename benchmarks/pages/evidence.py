"""The tables and figures of ``evidence.md``, and the gains of the front page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import few_masks, students
from benchmarks.pages.figures import FIGURES
from benchmarks.pages.published import LEDGER, Published, comparison, gain_cell
from benchmarks.pages.readme import gpu_cost, newest, read, render
from benchmarks.pages.systems import systems
from benchmarks.study.bases import shapes_run, shapes_towers
from benchmarks.study.figures import draw_best
from benchmarks.study.names import towers_file
from benchmarks.study.rows import by_seed, choose
from benchmarks.study.summary import study_rows
from masksd.kit.printing import markdown_table

FRONT = Path(__file__).parents[2] / "README.md"
EVIDENCE = Path(__file__).parents[1] / "evidence.md"
STARTS = {"lavt_tiny": "from scratch", "clip_cris_tiny": "pretrained towers"}
"""The hosts of the committed studies, with how they start."""


def gains() -> str:
    """The confirmed gains at equal steps, for the front page."""
    presets, splits = ("cm-masksd", "masksd"), Published("confirm").study().splits
    head = ["host", *(f'`"{preset}"`, {split}' for preset in presets for split in splits)]
    lines = []
    for model, start in STARTS.items():
        found = {split: Published("confirm", model).found(split) for split in splits}
        cells = [
            gain_cell(found[split][preset].equal_steps["mIoU"])
            for preset in presets
            for split in splits
        ]
        lines.append([f"`{model}`, {start}", *cells])
    return markdown_table(head, lines)


def confirm() -> str:
    """The presets against their hosts at equal steps and at equal compute, on both splits."""
    study = Published("confirm").study()
    return comparison(
        study,
        {
            (f"`{model}`", split): Published("confirm", model).found(split)
            for model in STARTS
            for split in study.splits
        },
        first="host",
    )


def settings() -> str:
    """The best settings that the search found for each host, without a Dice term and with one."""
    lines = []
    for model in STARTS:
        study = Published("baseline", model).study()
        rows = study_rows(study, LEDGER, "val")
        best: dict[bool, tuple[float, str, int]] = {}
        for variant in study.variants:
            own = by_seed(choose(rows, variant=variant.name)).values()
            if own:
                scores = [float(row["mIoU"]) for row in own]
                dice = variant.config(study.base, 0).distill.dice_weight > 0
                one = (statistics.fmean(scores), variant.name, len(scores))
                best[dice] = max(one, best.get(dice, one))
        for dice, name in ((False, "without Dice"), (True, "with Dice")):
            score, variant_name, seeds = best[dice]
            lines.append([f"`{model}`", name, variant_name, str(seeds), f"{100 * score:.2f}"])
    return markdown_table(["host", "loss", "best settings", "seeds", "mIoU on val"], lines)


def towers() -> str:
    """How well the towers agree, with the loss on the nearest patch as well and without it."""
    head = ["trained on", "right expression of 64", "AUC, own expression", "AUC, another object's"]
    lines: list[list[str]] = []
    for name, patches in (("image and nearest patch", 1.0), ("image, as CLIP", 0.0)):
        config = shapes_towers(shapes_run("clip_cris_tiny"), patches=patches)
        assert config is not None
        file = towers_file(config, LEDGER.results).with_suffix(".json")
        report = json.loads(file.read_text(encoding="utf-8"))
        if not lines:
            lines.append(["not trained", *_alignment(report["untrained"])])
        lines.append([name, *_alignment(report)])
    return markdown_table(head, lines)


def _alignment(report: dict[str, Any]) -> list[str]:
    areas = report["relevance"]
    return [
        f"{report['retrieval']['sentence']:.1%}",
        f"{areas['own']:.3f}",
        f"{areas['other']:.3f}",
    ]


def refcoco_hours() -> str:
    rows = newest(read("refcoco_hours"), "recipe", "variant", "tflops")
    head = ["recipe", "variant", "items × epochs", "G per image", "P per run", "hours"]
    lines = [
        [
            f"`{row['recipe']}`",
            row["variant"],
            f"{int(row['items']):,} × {row['epochs']}",
            row["step_gmac"],
            row["run_pmac"],
            row["hours"],
        ]
        for row in rows
    ]
    return (
        f"{markdown_table(head, lines)}\n\nMultiply-adds forward and backward, counted; "
        f"hours at an assumed {float(rows[0]['tflops']):.0f} TFLOP/s."
    )


PAGES: dict[Path, Mapping[str, Callable[[], str]]] = {
    FRONT: {
        "gains": gains,
        "gpu_cost": gpu_cost,
        "few_masks": few_masks.front,
        "systems": systems,
    },
    EVIDENCE: {
        **few_masks.TABLES,
        **students.TABLES,
        "confirm": confirm,
        "settings": settings,
        "towers": towers,
        "refcoco_hours": refcoco_hours,
    },
}


def draw() -> None:
    """Draw the figure of ``evidence.md``."""
    confirmed = Published("confirm", "lavt_tiny")
    found = confirmed.found("testB")
    path = FIGURES / "confirm-lavt_tiny-100-learning.png"
    draw_best(confirmed.study(), LEDGER, found, path)


def write() -> None:
    draw()
    few_masks.draw()
    for page, tables in PAGES.items():
        page.write_text(render(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
