"""Running a study: one run after another or a few at a time, resuming where it stopped."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.names import base_hash, config_hash
from benchmarks.study.peak import peak_megabytes, reset_peak
from benchmarks.study.plan import PlannedRun, Study, plan_runs
from benchmarks.study.rows import MACHINE, SCORES, Ledger, Row
from benchmarks.study.towers import towers_name
from benchmarks.study.workers import in_workers
from masksd.kit.checkpoints import Checkpoint, load_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.data.refer import ReferDataset
from masksd.kit.devices import default_device, describe_machine
from masksd.kit.evaluation.scoring import score
from masksd.kit.sources import open_split
from masksd.kit.training.trainer import train


def run_study(
    study: Study,
    ledger: Ledger,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
    jobs: int = 1,
) -> int:
    """Do the runs of a study that are not in the ledger yet.

    A run that is there under another name (a reference of two studies, say) is not done again; its
    row is written under this name too.

    Args:
        study: with its towers, see :func:`benchmarks.study.towers.with_towers`.
        ledger: where rows and samples go.
        environment: ``device``, ``torch``, ``python``, ``masksd`` and ``commit`` for the rows; None
            takes this machine's, without a commit.
        report: is told a line a run.
        jobs: runs at a time, each in a process with its share of torch's threads; small models
            do more in all that way than one after another with all of them.

    Returns:
        How many runs were done.

    Raises:
        ValueError: jobs below 1, other fields of an environment, or another process that writes to
            this ledger.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if environment is None:
        environment = {**describe_machine(default_device(cpu=study.base.cpu)), "commit": ""}
    if set(environment) != set(MACHINE):
        raise ValueError(f"environment must have {', '.join(MACHINE)}; got {list(environment)}")
    with ledger.writing():
        return _run_missing(study, ledger, environment, report, jobs)


def _run_missing(
    study: Study,
    ledger: Ledger,
    environment: Mapping[str, str],
    report: Callable[[str], None],
    jobs: int,
) -> int:
    planned, known = _planned(study), _known(study, ledger)
    for digest in (digest for digest in planned if digest in known):
        rows = {row["split"]: row for row in reversed(known[digest])}
        for labels in (_labels(study, run) for run in planned[digest]):
            if not any(_is_labelled(row, labels) for row in known[digest]):
                ledger.add([{**row, **labels} for row in rows.values()])
    left = {digest: runs[0] for digest, runs in planned.items() if digest not in known}
    report(f"{len(planned) - len(left)} of {len(planned)} runs are there already")
    calls = {digest: (study, run, digest, ledger) for digest, run in left.items()}
    for number, (digest, measured) in enumerate(in_workers(run_one, calls, jobs), start=1):
        named = [_labels(study, run) for run in planned[digest]]
        constant = {**environment, "jobs": jobs}
        ledger.add([{**labels, **row, **constant} for labels in named for row in measured])
        run, first = left[digest], measured[0]
        report(
            f"{number}/{len(left)} {run.variant}, {run.budget}, seed {run.config.seed}: "
            f"mIoU {100 * first['mIoU']:.2f}, {first['seconds']:.0f} s"
        )
    return len(left)


def missing_runs(study: Study, ledger: Ledger) -> list[PlannedRun]:
    """Return the runs that :func:`run_study` would do; equal ones once.

    Args:
        study: with its towers.
        ledger: with what there is.
    """
    known = _known(study, ledger)
    return [runs[0] for digest, runs in _planned(study).items() if digest not in known]


def _planned(study: Study) -> dict[str, list[PlannedRun]]:
    """Return the runs of a study by config hash: those of one are equal but for their names."""
    towers = towers_name(study)
    planned: dict[str, list[PlannedRun]] = {}
    for run in plan_runs(study):
        planned.setdefault(config_hash(study, run.config, towers), []).append(run)
    return planned


def _known(study: Study, ledger: Ledger) -> dict[str, list[Row]]:
    """Return the rows by config hash, of runs with a row for every split and with samples."""
    known: dict[str, list[Row]] = {}
    for row in ledger.rows():
        known.setdefault(row["config_hash"], []).append(row)
    return {
        digest: rows
        for digest, rows in known.items()
        if {row["split"] for row in rows}.issuperset(study.splits) and ledger.has(rows[0])
    }


def run_one(study: Study, run: PlannedRun, digest: str, ledger: Ledger) -> list[dict[str, Any]]:
    """Train and score one run, and keep its samples and its curve.

    Args:
        study: that says what it is scored on.
        run: to be done.
        digest: its config hash.
        ledger: that keeps the samples.

    Returns:
        The measured columns, a row a split; memory is empty where the system cannot tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(run.config, output=Path(folder) / "run")
        device = default_device(cpu=config.cpu)
        start_peak = reset_peak(device)
        result = train(config)
        peak = peak_megabytes(device) if start_peak else ""
        lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        checkpoint = load_checkpoint(result.checkpoint, device)
        found = {
            split: score(
                checkpoint,
                open_scored(config, checkpoint, split),
                limit=study.samples,
                batch_size=config.eval_batch_size,
                progress=config.progress,
            )
            for split in study.splits
        }
    records = [json.loads(line) for line in lines]
    curve = [{"step": r["step"], **r["scores"]["own"]} for r in records if "scores" in r]
    samples = {split: each.rows for split, each in found.items()}
    ledger.keep(digest, run.config.to_json(), samples, curve)
    return [
        {
            "split": split,
            **{column: round(each.scores["all"][name], 6) for column, name in SCORES.items()},
            "samples": int(each.scores["all"]["samples"]),
            "seconds": round(result.seconds, 1),
            "peak_mb": peak,
            "config_hash": digest,
            "threads": torch.get_num_threads(),
        }
        for split, each in found.items()
    ]


def open_scored(config: TrainConfig, checkpoint: Checkpoint, split: str) -> ReferDataset:
    """Open a split as a run's checkpoint is scored on it.

    Args:
        config: of the run.
        checkpoint: it left.
        split: to be scored.
    """
    size = checkpoint.config.image_size
    tokenizer, show = checkpoint.tokenizer, config.progress
    return open_split(config.data, split, tokenizer, size, fit=config.fit, progress=show)


def _labels(study: Study, run: PlannedRun) -> dict[str, Any]:
    """Return the columns that say which run of which table this is."""
    return {
        "study": study.name,
        "host": run.config.model,
        "data": study.data_name(),
        "base": base_hash(study),
        "towers": towers_name(study),
        "variant": run.variant,
        "seed": run.config.seed,
        "budget": run.budget,
        "steps": run.config.steps,
        "multiply_adds": run.multiply_adds,
    }


def _is_labelled(row: Row, labels: Mapping[str, Any]) -> bool:
    return all(row[name] == str(value) for name, value in labels.items())
