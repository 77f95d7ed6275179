"""Tables of a study in markdown: all variants, and the layout of a paper's table beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.paired import SeedDifference
from benchmarks.study.plan import Study
from benchmarks.study.rows import SCORES
from benchmarks.study.summary import Found

PRINTED = ("Pr@0.5", "Pr@0.7", "Pr@0.9", "mIoU")


@dataclass(frozen=True)
class PaperRow:
    """One row of a published table.

    Attributes:
        cells: what it says of the variant, a cell a column.
        variant: name of ours.
        scores: Pr@0.5, Pr@0.7, Pr@0.9 and mIoU as printed, in per cent.
        section: of the table that it stands in; empty where there is none.
    """

    cells: tuple[str, ...]
    variant: str
    scores: tuple[float, float, float, float]
    section: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A published table.

    Attributes:
        number: as printed.
        title: as printed, in small letters.
        columns: names of the cells before the scores.
        rows: as printed.
        note: what is to be known beside it.
    """

    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    note: str = ""


def study_table(found: Mapping[str, Found], scores: Sequence[str] = tuple(SCORES)) -> str:
    """Lay out every variant: scores, gains at equal steps and at equal compute, verdicts.

    Args:
        found: of :func:`benchmarks.study.summary.summarise`.
        scores: the columns that are printed; gains are of mIoU.

    Returns:
        Markdown; per cent, mean ± standard deviation over seeds.

    Example:
        >>> scores = dict.fromkeys(SCORES, 0.5)
        >>> one = Found("host", None, (0,), scores, dict.fromkeys(SCORES, math.nan), 1.0, {}, {},
        ...             0, ("CPU",))
        >>> print(study_table({"host": one}).splitlines()[2][:34])
        | host | 1 | 1.00 | 50.00 | 50.00
    """
    head = ["variant", "seeds", "cost", *scores]
    head += ["against", "mIoU, equal steps", "verdict", "mIoU, equal compute", "verdict"]
    lines = []
    for each in found.values():
        cells = [each.variant, str(len(each.seeds)), f"{each.cost:.2f}"]
        cells += [_spread(each.mean[name], each.deviation[name]) for name in scores]
        cells.append(each.reference or "")
        cells += _gain(each.equal_steps.get("mIoU"))
        gain, verdict = _gain(each.equal_compute.get("mIoU"))
        cells += [f"{gain}, {each.longer} steps" if gain else "", verdict]
        lines.append(cells)
    return _markdown(head, lines)


def paper_table(table: PaperTable, found: Mapping[str, Found]) -> str:
    """Lay out a published table with ours beside it.

    Args:
        table: as printed.
        found: of :func:`benchmarks.study.summary.summarise`; rows that have not been run stay empty.

    Returns:
        Markdown: title, table, note.
    """
    head = [*table.columns, *(f"{name}, paper" for name in PRINTED)]
    head += [*(f"{name}, ours" for name in PRINTED), "mIoU against host", "verdict"]
    base = next((row.scores[-1] for row in table.rows if row.variant == "host"), None)
    lines = []
    section = ""
    for row in table.rows:
        if row.section != section:
            section = row.section
            lines.append([f"*{section}*", *[""] * (len(head) - 1)])
        printed = [f"{score:.2f}" for score in row.scores]
        if base is not None and row.variant != "host":
            printed[-1] += f" ({row.scores[-1] - base:+.2f})"
        ours = found.get(row.variant)
        if ours is None:
            cells = [""] * (len(PRINTED) + 2)
        else:
            cells = [_spread(ours.mean[name], ours.deviation[name]) for name in PRINTED]
            cells += _gain(ours.equal_steps.get("mIoU"))
        lines.append([*row.cells, *printed, *cells])
    title = f"Table {table.number}: {table.title}"
    note = f"\n\n{table.note}" if table.note else ""
    return f"{title}\n\n{_markdown(head, lines)}{note}"


def caption(study: Study, split: str, found: Mapping[str, Found]) -> str:
    """Say what a table was measured on.

    Args:
        study: of the runs.
        split: that was scored.
        found: what was found there.
    """
    devices = sorted({device for each in found.values() for device in each.devices})
    seeds = sorted({seed for each in found.values() for seed in each.seeds})
    compared = [gain for each in found.values() for gain in (each.equal_steps, each.equal_compute)]
    verdicts = sum(map(bool, compared))
    luck = ""
    if verdicts > 1:
        luck = (
            f" Without any effect about {verdicts / 20:.1f} of these {verdicts} verdicts would say "
            "better or worse by luck."
        )
    shared = " All seeds start from the same pretrained towers." if study.towers else ""
    return (
        f"{study.base.model} on {study.data_name()}, {split}; {study.base.steps} steps of "
        f"{study.base.batch_size}; seeds {', '.join(map(str, seeds)) or 'none'}; "
        f"{', '.join(devices) if found else 'not run yet'}.{shared} Per cent, "
        "mean ± standard deviation over seeds; gains with 95 % intervals over seeds and pictures; "
        f"cost in multiply-adds of a run, the reference's at equal steps being 1.{luck}"
    )


def _spread(mean: float, deviation: float) -> str:
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def _gain(found: SeedDifference | None) -> list[str]:
    """Two cells: the gain with its interval, and the verdict."""
    if found is None:
        return ["", ""]
    interval = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return [f"{100 * found.difference:+.2f} {interval}", found.verdict]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
