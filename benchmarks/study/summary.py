"""What a study found: mean and spread over seeds, paired differences, verdicts in words."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from benchmarks.study.compute import matched_steps
from benchmarks.study.names import config_hash
from benchmarks.study.paired import SeedDifference, compare_seeds
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant
from benchmarks.study.rows import SCORES, Ledger, Row, by_seed, choose
from benchmarks.study.towers import towers_name
from masksd.kit.scores.protocols import get_protocol


@dataclass(frozen=True)
class Found:
    """What is known of one variant on one split.

    Attributes:
        variant: name of the row.
        reference: what it is compared with; None where it is a reference.
        seeds: that have been run.
        mean: score by column, in [0, 1].
        deviation: standard deviation over the seeds (n - 1); NaN for one seed.
        cost: multiply-adds, as a multiple of the reference's at equal steps; 1 for a reference.
        equal_steps: against the reference at equal steps, by column; empty where it is a reference
            or fewer than two seeds have both.
        equal_compute: against the longer reference.
        longer: steps of that; 0 where there is none.
        devices: that ran it, and what it is compared with.
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
    """Return the rows of a study: of its variants as they are, of its seeds, on its base.

    Rows of the same names that were run otherwise are left out.

    Args:
        study: with its towers pretrained or not yet.
        ledger: with the rows.
        split: that was scored.

    Raises:
        ValueError: rows of towers of several contents, and none of them at hand.
    """
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
            "one where with_towers looks for them, or take the others' rows away"
        )
    return rows


def _is_run(study: Study, variant: Variant, row: Row) -> bool:
    config = variant.config(study.base, int(row["seed"]))
    config = dataclasses.replace(config, steps=int(row["steps"]))
    return config_hash(study, config, row["towers"]) == row["config_hash"]


def summarise(
    study: Study, ledger: Ledger, split: str, *, resamples: int = 2000
) -> dict[str, Found]:
    """Summarise the rows of a study that are there.

    Nothing is run and no weights are needed.

    Args:
        study: as in :func:`study_rows`, and its variants.
        ledger: with the rows and samples.
        split: as there.
        resamples: of the bootstrap.

    Returns:
        By variant, in the study's order; those without a row are left out.

    Raises:
        ValueError: as there, or samples that are missing or changed.
    """
    rows = study_rows(study, ledger, split)
    found: dict[str, Found] = {}
    for variant in study.variants:
        steps = variant.train.get("steps", study.base.steps)
        own = by_seed(choose(rows, variant=variant.name, budget=STEPS, steps=str(steps)))
        if not own:
            continue
        reference = variant.reference or ""  # no row is called so
        plain = by_seed(choose(rows, variant=reference, budget=STEPS, steps=str(steps)))
        cost, longer, longer_steps = 1.0, {}, 0
        if plain:
            one, other = next(iter(own.values())), next(iter(plain.values()))
            cost = int(one["multiply_adds"]) / int(other["multiply_adds"])
            wanted = choose(rows, variant=reference, budget=COMPUTE)
            longer_steps = matched_steps(steps, cost)
            longer = by_seed(choose(wanted, steps=str(longer_steps)))
        values = {name: [float(row[name]) for row in own.values()] for name in SCORES}
        several = len(own) > 1
        involved = [*own.values(), *plain.values(), *longer.values()]
        found[variant.name] = Found(
            variant=variant.name,
            reference=variant.reference,
            seeds=tuple(sorted(own)),
            mean={name: statistics.fmean(each) for name, each in values.items()},
            deviation={
                name: statistics.stdev(each) if several else float("nan")
                for name, each in values.items()
            },
            cost=cost,
            equal_steps=_compare(ledger, plain, own, resamples),
            equal_compute=_compare(ledger, longer, own, resamples),
            longer=longer_steps if longer else 0,
            devices=tuple(sorted({row["device"] for row in involved})),
        )
    return found


def _compare(
    ledger: Ledger, a: dict[int, Row], b: dict[int, Row], resamples: int
) -> dict[str, SeedDifference]:
    """Compare over the seeds that both have; nothing where these are fewer than two."""
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return {}
    differences = compare_seeds(
        {seed: ledger.samples(a[seed]) for seed in seeds},
        {seed: ledger.samples(b[seed]) for seed in seeds},
        get_protocol("original"),
        names=(_name(a[seeds[0]]), _name(b[seeds[0]])),
        resamples=resamples,
    )
    return {column: differences[name] for column, name in SCORES.items()}


def _name(row: Row) -> str:
    return f"{row['variant']}, {row['steps']} steps"
