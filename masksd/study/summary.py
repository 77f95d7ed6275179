"""What a study found: mean and spread over seeds, paired differences, verdicts in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from masksd.evaluation.paired import SeedDifference, compare_seeds
from masksd.evaluation.protocols import get_protocol
from masksd.study.plan import COMPUTE, STEPS, Study, base_hash
from masksd.study.rows import SCORES, Ledger, Row, choose


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


def study_rows(study: Study, ledger: Ledger, split: str, towers: str | None = None) -> list[Row]:
    """Return the rows of a study, of all seeds there are.

    Args:
        study: whose name and base count.
        ledger: with the rows.
        split: that was scored.
        towers: how the rows' name of them begins; None takes the only one that there is.

    Raises:
        ValueError: rows of several towers and none chosen.
    """
    rows = choose(
        ledger.rows(),
        study=study.name,
        base=base_hash(study),
        split=split,
    )
    rows = [row for row in rows if towers is None or row["towers"].startswith(towers)]
    kinds = sorted({row["towers"] for row in rows})
    if len(kinds) > 1:
        raise ValueError(
            f"study {study.name!r} has rows of the towers {', '.join(kinds)}; choose one"
        )
    return rows


def summarise(
    study: Study, ledger: Ledger, split: str, *, towers: str | None = None, resamples: int = 2000
) -> dict[str, Found]:
    """Summarise the rows of a study that are there.

    Nothing is run and no weights are needed: rows are found by their names.

    Args:
        study: as in :func:`study_rows`, and its variants.
        ledger: with the rows and samples.
        split: as there.
        towers: as there.
        resamples: of the bootstrap.

    Returns:
        By variant, in the study's order; those without a row are left out.

    Raises:
        ValueError: rows of several towers and none chosen, or samples that are missing or changed.
    """
    rows = study_rows(study, ledger, split, towers)
    found: dict[str, Found] = {}
    for variant in study.variants:
        steps = str(variant.train.get("steps", study.base.steps))
        own = _by_seed(choose(rows, variant=variant.name, budget=STEPS, steps=steps))
        if not own:
            continue
        reference = variant.reference or ""  # no row is called so
        plain = _by_seed(choose(rows, variant=reference, budget=STEPS, steps=steps))
        longer = {
            seed: match
            for seed, row in own.items()
            if (match := _matching(row, choose(rows, variant=reference))) is not None
        }
        values = {name: [float(row[name]) for row in own.values()] for name in SCORES}
        several = len(own) > 1
        cost = 1.0
        if plain:
            one, other = next(iter(own.values())), next(iter(plain.values()))
            cost = int(one["multiply_adds"]) / int(other["multiply_adds"])
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
            longer=max((int(row["steps"]) for row in longer.values()), default=0),
            devices=tuple(sorted({row["device"] for row in involved})),
        )
    return found


def _by_seed(rows: Sequence[Row]) -> dict[int, Row]:
    return {int(row["seed"]): row for row in rows}  # the last one counts


def _matching(row: Row, references: Sequence[Row]) -> Row | None:
    """Return the shortest run of the reference with at least as many multiply-adds."""
    enough = [
        each
        for each in references
        if each["seed"] == row["seed"]
        and each["budget"] == COMPUTE
        and int(each["multiply_adds"]) >= int(row["multiply_adds"])
    ]
    return min(enough, key=lambda each: int(each["multiply_adds"]), default=None)


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
