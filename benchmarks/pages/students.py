"""The tables of students and of two necks, for ``evidence.md``."""

from __future__ import annotations

import json
from functools import cache, partial

from benchmarks.measure import FOLDER
from benchmarks.pages.published import comparison, gain_cell
from benchmarks.study.paired import SeedDifference
from benchmarks.study.plan import STEPS, Study
from benchmarks.study.rows import Ledger, by_seed, choose
from benchmarks.study.students import SPLITS, TEACHER, neck_study, student_study
from benchmarks.study.summary import Summary, compare_rows, study_rows, summarise

LEDGER = Ledger(FOLDER / "students.csv", FOLDER)
STUDIES: dict[str, Study] = {each.name: each for each in (student_study(), neck_study())}


@cache
def found(name: str, split: str) -> dict[str, Summary]:
    """Summarise the rows there are of a study."""
    return summarise(STUDIES[name], LEDGER, split)


def table(name: str) -> str:
    """Scores, and gains over the first row, on both splits."""
    study = STUDIES[name]
    splits = {(f"`{study.base.model}`", split): found(name, split) for split in study.splits}
    return comparison(study, splits, first="host")


def student() -> str:
    """The table of students, with their teacher's scores, and ours against the mask itself."""
    scores = json.loads((FOLDER / f"teacher-{TEACHER}.json").read_text(encoding="utf-8"))
    teacher = ", ".join(f"{100 * each['mIoU']:.2f} on {split}" for split, each in scores.items())
    apart = ", ".join(f"{gain_cell(_apart('logits', 'ours', each))} on {each}" for each in SPLITS)
    return (
        f"{table('student')}\n\nThe teacher's mIoU is {teacher}. *ours* against *logits*, at equal "
        f"steps: {apart}."
    )


def _apart(first: str, second: str, split: str) -> SeedDifference:
    rows = choose(study_rows(STUDIES["student"], LEDGER, split), budget=STEPS)
    one, other = (by_seed(choose(rows, variant=name)) for name in (first, second))
    return compare_rows(LEDGER, one, other, {}, 2000)["mIoU"]


TABLES = {"student": student, "neck": partial(table, "neck")}
"""By the name of the block on the page."""
