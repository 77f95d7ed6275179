"""Write every table and figure of the studies, and the tables in ``evidence.md``, from their rows.

    python -m benchmarks.evidence

Full tables and figures are in ``ablation-*.md`` and the pictures beside them.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from benchmarks.ablation import write_tables
from benchmarks.bases import PICTURES, TOWERS, shapes_run, shapes_towers
from benchmarks.measure import FOLDER
from benchmarks.studies import shapes_study
from benchmarks.study.paired import student_t
from benchmarks.study.plan import STEPS, Study
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.summary import study_rows, summarise
from benchmarks.study.tables import caption, study_table
from benchmarks.study.towers import towers_file
from benchmarks.tables import markdown, newest, read, render

EVIDENCE = FOLDER / "evidence.md"
LEDGER = Ledger(FOLDER / "ablation.csv", FOLDER / "results")


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


STUDIES = (
    Published("baseline"),
    Published("baseline", pictures=600),
    Published("baseline", "lavt_tiny"),
    Published("baseline", towers=0),
    Published("screen"),
    Published("no-masking"),
    Published("dropout"),
    Published("confirm"),
    Published("confirm", "lavt_tiny"),
    Published("confirm", towers=0),
    Published("cheaper", "lavt_tiny"),
)


def _brief(published: Published) -> str:
    study = published.study()
    parts = []
    for split in study.splits:
        found = summarise(study, LEDGER, split)
        parts += [study_table(found, ("mIoU", "oIoU")), caption(study, split, found)]
    return "\n\n".join(parts)


def towers() -> str:
    """How well the towers agree, with the loss on the nearest patch as well and without it."""
    head = ["trained on", "right sentence of 64", "patches, own sentence", "another object's"]
    lines = []
    for name, patches in (("picture and nearest patch", 1.0), ("picture, as CLIP", 0.0)):
        config = shapes_towers(shapes_run("clip_cris_tiny"), patches=patches)
        if config is None:
            raise ValueError("clip_cris_tiny has towers that can be pretrained")
        file = towers_file(config, LEDGER.results).with_suffix(".json")
        report = json.loads(file.read_text(encoding="utf-8"))
        if not lines:
            lines.append(["not trained", *_alignment(report["untrained"])])
        lines.append([name, *_alignment(report)])
    return markdown(head, lines)


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
    asked = (Published("screen"), Published("confirm"), Published("confirm", "lavt_tiny"))
    for published in asked:
        study = published.study()
        for split in study.splits:
            rows = choose(study_rows(study, LEDGER, split), budget=STEPS)
            scores = {
                variant.name: by_seed(choose(rows, variant=variant.name))
                for variant in study.variants
            }
            gains = [
                [float(own[seed]["mIoU"]) - float(plain[seed]["mIoU"]) for seed in own]
                for variant in study.variants
                if variant.reference is not None
                for own, plain in [(scores[variant.name], scores[variant.reference])]
                if len(own) > 2
            ]
            spread = 100 * statistics.fmean(map(statistics.variance, gains)) ** 0.5
            needed = next(n for n in count(2) if student_t(n - 1) * spread / n**0.5 <= 0.5)
            row = (published.name, published.model, split, len(gains), f"{spread:.2f}", needed)
            lines.append([str(cell) for cell in row])
    head = ["study", "host", "split", "variants", "points", "seeds for ±0.5"]
    return markdown(head, lines)


def refcoco_hours() -> str:
    rows = newest(read("refcoco_hours"), "recipe", "variant", "tflops")
    head = ["recipe", "variant", "items × epochs", "G a picture", "P a run", "hours"]
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
        f"{markdown(head, lines)}\n\nMultiply-adds forward and backward, counted; hours at an "
        f"assumed {float(rows[0]['tflops']):.0f} TFLOP/s."
    )


TABLES = {
    "towers": towers,
    "seeds": seeds_needed,
    **{str(published): partial(_brief, published) for published in STUDIES},
    "refcoco_hours": refcoco_hours,
}


def main() -> None:
    for published in STUDIES:
        print(write_tables(published.study(), LEDGER, FOLDER))
    EVIDENCE.write_text(render(EVIDENCE.read_text(encoding="utf-8"), TABLES), encoding="utf-8")


if __name__ == "__main__":
    main()
