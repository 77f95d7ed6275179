"""The tables of students and of two necks, for ``evidence.md``."""

from __future__ import annotations

from functools import cache, partial

from benchmarks.measure import FOLDER
from benchmarks.pages.published import comparison
from benchmarks.study.plan import Study
from benchmarks.study.rows import Ledger
from benchmarks.study.students import neck_study, student_study
from benchmarks.study.summary import Summary, summarise

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
    if not all(splits.values()):
        return "No rows yet."
    return comparison(study, splits, first="host")


TABLES = {name: partial(table, name) for name in STUDIES}
"""By the name of the block on the page."""
