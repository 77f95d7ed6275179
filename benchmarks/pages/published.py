"""Studies whose rows are committed, and what the pages read of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from benchmarks.measure import FOLDER
from benchmarks.study.bases import PICTURES, TOWERS
from benchmarks.study.paired import NO_DIFFERENCE, SeedDifference
from benchmarks.study.plan import Study
from benchmarks.study.rows import Ledger
from benchmarks.study.studies import shapes_study
from benchmarks.study.summary import Summary, gain_cells, spread_cell, summarise
from masksd.kit.printing import markdown_table

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
    return bold(text, verdict)


def bold(text: str, verdict: str) -> str:
    """Return the text of a gain, bold if its interval excludes 0."""
    return text if verdict in ("", NO_DIFFERENCE) else f"**{text}**"


def comparison(
    study: Study, found: Mapping[tuple[str, str], Mapping[str, Summary]], first: str
) -> str:
    """Lay out each variant's score and gains, by what ``first`` names and split."""
    head = [first, "split", "variant", "cost", "mIoU", "gain, equal steps", "gain, equal compute"]
    lines = []
    for (name, split), variants in found.items():
        for each in variants.values():
            score = spread_cell(each.mean["mIoU"], each.deviation["mIoU"])
            longer = gain_cell(each.equal_compute.get("mIoU"))
            lines.append(
                [
                    *(name, split, each.variant, f"{each.cost:.2f}", score),
                    gain_cell(each.equal_steps.get("mIoU")),
                    f"{longer}, {each.longer} steps" if longer else "",
                ]
            )
    every = [each for variants in found.values() for each in variants.values()]
    intervals = sum(bool(gain) for each in every for gain in (each.equal_steps, each.equal_compute))
    seeds = sorted({seed for each in every for seed in each.seeds})
    devices = sorted({device for each in every for device in each.devices})
    run = f"{study.base.steps} steps of {study.base.batch_size}"
    return (
        f"{markdown_table(head, lines)}\n\n{study.data_name()}; {run}; seeds "
        f"{', '.join(map(str, seeds))}; {', '.join(devices)}. By luck alone about "
        f"{intervals / 20:.1f} of the {intervals} intervals would exclude 0."
    )
