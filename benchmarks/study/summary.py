"""What a study found: means and spreads over seeds, paired differences, tables in markdown."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.study.names import config_hash, towers_name
from benchmarks.study.paired import SeedDifference, compare_seeds
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant, matched_steps
from benchmarks.study.rows import SCORES, Ledger, Row, Samples, by_seed, choose
from masksd.kit.printing import markdown_table
from masksd.kit.scores.protocols import get_protocol

LEGEND = (
    "Scores are per cent, mean ± standard deviation over seeds; gains have 95 % intervals over "
    "seeds and images; cost is a run's multiply-adds, relative to the reference at equal steps."
)


@dataclass(frozen=True)
class Summary:
    """What is known of one variant on one split.

    Attributes:
        variant: its name.
        reference: what it is compared with; None if it is a reference.
        seeds: that have been run.
        mean: score by column, in [0, 1].
        deviation: standard deviation over the seeds (n - 1); NaN for one seed.
        cost: multiply-adds, relative to the reference at equal steps.
        equal_steps: differences to the reference at equal steps, by column; empty if there is none
            or fewer than two seeds have both.
        equal_compute: the same for the longer reference.
        longer: the steps of that one; 0 if there is none.
        devices: that ran it and what it is compared with.
    """

    variant: str
    reference: str | None
    seeds: tuple[int, ...]
    mean: dict[str, float]
    deviation: dict[str, float]
    cost: float
    equal_steps: dict[str, SeedDifference]
    equal_compute: dict[str, SeedDifference]
    longer: int
    devices: tuple[str, ...]


def study_rows(study: Study, ledger: Ledger, split: str) -> list[Row]:
    """Return the rows of a study: of its variants as they are now, its seeds and its base."""
    variants = {variant.name: variant for variant in study.variants}
    towers = towers_name(study)
    rows = [
        row
        for row in choose(ledger.rows(), study=study.name, split=split)
        if row["variant"] in variants
        and int(row["seed"]) in study.seeds
        and row["towers"].startswith(towers)
        and _is_run(study, variants[row["variant"]], row)
    ]
    kinds = sorted({row["towers"] for row in rows})
    if len(kinds) > 1:
        raise ValueError(
            f"study {study.name!r} has rows of the towers {', '.join(kinds)}: put the weights of "
            "one where with_towers looks for them, or remove the rows of the others"
        )
    return rows


def _is_run(study: Study, variant: Variant, row: Row) -> bool:
    config = variant.config(study.base, int(row["seed"]))
    config = dataclasses.replace(config, steps=int(row["steps"]))
    return config_hash(study, config, row["towers"]) == row["config_hash"]


def summarise(
    study: Study, ledger: Ledger, split: str, *, resamples: int = 2000
) -> dict[str, Summary]:
    """Summarise the rows that are there, by variant; nothing is run and no weights are needed."""
    rows = study_rows(study, ledger, split)
    references: dict[str, Samples] = {}  # read once, by config hash
    found: dict[str, Summary] = {}
    for variant in study.variants:
        steps = variant.train.get("steps", study.base.steps)
        own = by_seed(choose(rows, variant=variant.name, budget=STEPS, steps=str(steps)))
        if not own:
            continue
        reference = variant.reference or ""  # no row has that name
        plain = by_seed(choose(rows, variant=reference, budget=STEPS, steps=str(steps)))
        cost, longer, longer_steps = 1.0, {}, 0
        if plain:
            one, other = next(iter(own.values())), next(iter(plain.values()))
            cost = int(one["multiply_adds"]) / int(other["multiply_adds"])
            wanted = choose(rows, variant=reference, budget=COMPUTE)
            longer_steps = matched_steps(steps, cost, study.parts)
            longer = by_seed(choose(wanted, steps=str(longer_steps)))
        values = {name: [float(row[name]) for row in own.values()] for name in SCORES}
        involved = [*own.values(), *plain.values(), *longer.values()]
        found[variant.name] = Summary(
            variant=variant.name,
            reference=variant.reference,
            seeds=tuple(sorted(own)),
            mean={name: statistics.fmean(each) for name, each in values.items()},
            deviation={
                name: statistics.stdev(each) if len(own) > 1 else math.nan
                for name, each in values.items()
            },
            cost=cost,
            equal_steps=compare_rows(ledger, plain, own, references, resamples),
            equal_compute=compare_rows(ledger, longer, own, references, resamples),
            longer=longer_steps if longer else 0,
            devices=tuple(sorted({row["device"] for row in involved})),
        )
    return found


def compare_rows(
    ledger: Ledger,
    a: dict[int, Row],
    b: dict[int, Row],
    references: dict[str, Samples],
    resamples: int,
) -> dict[str, SeedDifference]:
    """Compare with the reference ``a`` over the seeds of both; empty for fewer than two."""
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return {}
    for row in (a[seed] for seed in seeds):
        if row["config_hash"] not in references:
            references[row["config_hash"]] = ledger.samples(row)
    first, second = (
        f"{row['variant']}, {row['steps']} steps" for row in (a[seeds[0]], b[seeds[0]])
    )
    differences = compare_seeds(
        {seed: references[a[seed]["config_hash"]] for seed in seeds},
        {seed: ledger.samples(b[seed]) for seed in seeds},
        get_protocol("original"),
        names=(first, second),
        resamples=resamples,
    )
    return {column: differences[name] for column, name in SCORES.items()}


def study_table(found: Mapping[str, Summary], scores: Sequence[str] = tuple(SCORES)) -> str:
    """Lay out every variant: scores in per cent, mIoU gains at equal steps and compute."""
    longer = any(each.longer for each in found.values())
    head = ["variant", "seeds", "cost", *scores, "against", "mIoU, equal steps", "verdict"]
    head += ["mIoU, equal compute", "verdict"] if longer else []
    lines = []
    for each in found.values():
        cells = [each.variant, str(len(each.seeds)), f"{each.cost:.2f}"]
        cells += [spread_cell(each.mean[name], each.deviation[name]) for name in scores]
        cells += [each.reference or "", *gain_cells(each.equal_steps.get("mIoU"))]
        if longer:
            gain, verdict = gain_cells(each.equal_compute.get("mIoU"))
            cells += [f"{gain}, {each.longer} steps" if gain else "", verdict]
        lines.append(cells)
    return markdown_table(head, lines)


def caption(study: Study, split: str, found: Mapping[str, Summary]) -> str:
    """Say what a table was measured on."""
    devices = sorted({device for each in found.values() for device in each.devices})
    seeds = sorted({seed for each in found.values() for seed in each.seeds})
    run = f"{study.base.steps} steps of {study.base.batch_size}"
    parts = [f"{study.base.model} on {study.data_name()}, {split}", run]
    parts += [f"seeds {', '.join(map(str, seeds))}", *devices] if found else ["not run yet"]
    parts += ["the same pretrained towers for all"] if study.towers else []
    compared = [gain for each in found.values() for gain in (each.equal_steps, each.equal_compute)]
    verdicts = sum(map(bool, compared))
    luck = (
        f" By luck alone about {verdicts / 20:.1f} of the {verdicts} verdicts would be better or "
        "worse."
    )
    return f"{'; '.join(parts)}.{luck if verdicts > 1 else ''}"


def spread_cell(mean: float, deviation: float) -> str:
    """Return a mean in per cent, with its deviation if there is one."""
    return f"{100 * mean:.2f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.2f}")


def gain_cells(found: SeedDifference | None) -> list[str]:
    """Return two cells: the gain with its interval, and the verdict."""
    if found is None:
        return ["", ""]
    interval = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return [f"{100 * found.difference:+.2f} {interval}", found.verdict]
