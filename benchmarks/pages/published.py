"""Studies whose rows are committed, and what the pages read of them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from benchmarks.measure import FOLDER
from benchmarks.study.bases import PICTURES, TOWERS
from benchmarks.study.paired import NO_DIFFERENCE, SeedDifference
from benchmarks.study.plan import Study
from benchmarks.study.rows import Ledger
from benchmarks.study.studies import shapes_study
from benchmarks.study.summary import Summary, gain_cells, summarise

LEDGER = Ledger(FOLDER / "ablation.csv", FOLDER)


class Published(NamedTuple):
    """A study whose rows are committed."""

    name: str
    model: str = "clip_cris_tiny"
    pictures: int = PICTURES
    towers: int = TOWERS

    def study(self) -> Study:
        return shapes_study(self.name, self.model, pictures=self.pictures, towers=self.towers)

    def found(self, split: str) -> dict[str, Summary]:
        return _found(self, split)


@cache  # the front page and the evidence show the same summaries
def _found(published: Published, split: str) -> dict[str, Summary]:
    return summarise(published.study(), LEDGER, split)


def gain_cell(gain: SeedDifference | None) -> str:
    """Return a gain with its interval, bold if that excludes 0; nothing if there is none."""
    text, verdict = gain_cells(gain)
    return text if verdict in ("", NO_DIFFERENCE) else f"**{text}**"
