"""The tables and figures of ``evidence.md`` and ``pages/screen.md``, from the studies' rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import FOLDER
from benchmarks.pages.figures import FIGURES
from benchmarks.pages.paper_tables import TABLES as PAPER_TABLES
from benchmarks.pages.paper_tables import paper_table
from benchmarks.pages.readme import newest, read, render
from benchmarks.study.bases import PICTURES, TOWERS, shapes_run, shapes_towers
from benchmarks.study.figures import draw_best, draw_gain
from benchmarks.study.names import towers_file
from benchmarks.study.paired import NO_DIFFERENCE, student_t
from benchmarks.study.plan import STEPS, Study
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.studies import shapes_study
from benchmarks.study.summary import (
    Summary,
    caption,
    study_rows,
    study_table,
    summarise,
)
from masksd.kit.text_tables import markdown_table

FRONT = Path(__file__).parents[2] / "README.md"
EVIDENCE = Path(__file__).parents[1] / "evidence.md"
SCREEN_PAGE = Path(__file__).parent / "screen.md"
LEDGER = Ledger(FOLDER / "ablation.csv", FOLDER)


class Published(NamedTuple):
    """A study whose rows are committed."""

    name: str
    model: str = "clip_cris_tiny"
    pictures: int = PICTURES
    towers: int = TOWERS

    def __str__(self) -> str:
        start = "" if self.towers else " scratch"
        return f"{self.name} {self.model} {self.pictures}{start}"

    def study(self) -> Study:
        return shapes_study(self.name, self.model, pictures=self.pictures, towers=self.towers)


SCREEN = Published("screen")
CONFIRM, CONFIRM_LAVT = Published("confirm"), Published("confirm", "lavt_tiny")
BASELINE_600 = Published("baseline", pictures=600)


def _brief(published: Published) -> str:
    study = published.study()
    parts = []
    for split in study.splits:
        found = summarise(study, LEDGER, split)
        parts += [study_table(found, ("mIoU", "oIoU")), caption(study, split, found)]
    return "\n\n".join(parts)


def paper() -> str:
    """The paper's tables with the screen's rows beside them."""
    found = summarise(SCREEN.study(), LEDGER, "val")
    return "\n\n".join(paper_table(table, found) for table in PAPER_TABLES)


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


def seeds_needed() -> str:
    """How far gains of one seed lie apart, and how many seeds would settle half a point."""
    lines = []
    for published in (SCREEN, CONFIRM, CONFIRM_LAVT):
        study = published.study()
        for split in study.splits:
            gains = [each for each in _seed_gains(study, split) if len(each) > 2]
            spread = 100 * statistics.fmean(map(statistics.variance, gains)) ** 0.5
            needed = next(n for n in count(2) if student_t(n - 1) * spread / n**0.5 <= 0.5)
            row = (published.name, published.model, split, len(gains), f"{spread:.2f}", needed)
            lines.append([str(cell) for cell in row])
    head = ["study", "host", "split", "variants", "points", "seeds for ±0.5"]
    return markdown_table(head, lines)


def _seed_gains(study: Study, split: str) -> list[list[float]]:
    """The gains in mIoU at equal steps of each variant, a seed each."""
    rows = choose(study_rows(study, LEDGER, split), budget=STEPS)
    scores = {each.name: by_seed(choose(rows, variant=each.name)) for each in study.variants}
    return [
        [
            float(row["mIoU"]) - float(scores[each.reference][seed]["mIoU"])
            for seed, row in scores[each.name].items()
        ]
        for each in study.variants
        if each.reference is not None
    ]


def gains() -> str:
    """The confirmed gains at equal steps, for the front page."""
    head = ["host", "`DistillConfig.preset`", "testA", "testB"]
    lines = []
    for published, start in ((CONFIRM_LAVT, "from scratch"), (CONFIRM, "pretrained towers")):
        study = published.study()
        found = [summarise(study, LEDGER, split) for split in study.splits]
        for preset in ("cm-masksd", "masksd"):
            cells = [_gain(each, preset) for each in found]
            lines.append([f"`{published.model}`, {start}", f'`"{preset}"`', *cells])
    return markdown_table(head, lines)


def _gain(found: dict[str, Summary], variant: str) -> str:
    gain = found[variant].equal_steps["mIoU"]
    text = f"{100 * gain.difference:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    return text if gain.verdict == NO_DIFFERENCE else f"**{text}**"


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


def _briefs(*studies: Published) -> dict[str, Callable[[], str]]:
    return {str(published): partial(_brief, published) for published in studies}


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    FRONT: {"gains": gains},
    EVIDENCE: {
        "towers": towers,
        "seeds": seeds_needed,
        "refcoco_hours": refcoco_hours,
        **_briefs(CONFIRM, CONFIRM_LAVT),
        **_briefs(Published("confirm", towers=0), Published("cheaper", "lavt_tiny")),
    },
    SCREEN_PAGE: {
        "paper": paper,
        **_briefs(SCREEN, Published("no-masking"), Published("dropout")),
        **_briefs(Published("baseline"), Published("baseline", "lavt_tiny")),
        **_briefs(Published("baseline", towers=0), BASELINE_600),
    },
}


def draw() -> None:
    """Draw the figures that the pages show."""
    for published, split in ((CONFIRM, "testA"), (CONFIRM_LAVT, "testA"), (SCREEN, "val")):
        found = summarise(published.study(), LEDGER, split)
        draw_gain(found, FIGURES / f"{published.name}-{published.model}-{split}-gain.png")
    for published in (CONFIRM_LAVT, BASELINE_600):
        study = published.study()
        found = summarise(study, LEDGER, study.splits[-1])
        name = f"{published.name}-{published.model}-{published.pictures}-learning.png"
        draw_best(study, LEDGER, found, FIGURES / name)


def write() -> None:
    draw()
    for page, tables in PAGES.items():
        page.write_text(render(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
