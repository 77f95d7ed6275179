"""Running a study: resuming where it stopped, a few runs at a time, and how long it will take."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import commit
from benchmarks.study.names import base_hash, config_hash, towers_name
from benchmarks.study.plan import PlannedRun, Study, plan_runs
from benchmarks.study.rows import MACHINE, SCORES, Ledger, Row, Samples
from benchmarks.study.workers import in_workers
from masksd.errors import check_choice
from masksd.kit.checkpoints import Checkpoint, load_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.data.refer import ReferDataset
from masksd.kit.devices import default_device, describe_machine
from masksd.kit.evaluation.scoring import score
from masksd.kit.sources import open_split
from masksd.kit.training.resuming import BEST
from masksd.kit.training.trainer import train

_TIMED_STEPS = 8
_TIMED_SAMPLES = 64


class FinishedRun(NamedTuple):
    """What a run leaves: the measured columns per split, and what the archive keeps."""

    rows: list[dict[str, Any]]
    samples: dict[str, Samples]
    curve: list[dict[str, float]]


def run_study(
    study: Study,
    ledger: Ledger,
    environment: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
    jobs: int = 1,
) -> int:
    """Do the runs of a study that are not in the ledger yet; return how many that were.

    A run that another study has already done is not done again, only its row is written.

    Args:
        study: with its towers, see :func:`benchmarks.study.names.with_towers`.
        ledger: where rows and samples go.
        environment: the :data:`MACHINE` columns of the rows; None describes this machine.
        report: called with a line per run.
        jobs: runs at a time, each in a process with its share of torch's threads.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if environment is None:
        environment = {**describe_machine(default_device(cpu=study.base.cpu)), "commit": ""}
    if set(environment) != set(MACHINE):
        raise ValueError(f"environment must have {', '.join(MACHINE)}; got {list(environment)}")
    with ledger.writing():
        return _run_missing(study, ledger, environment, report, jobs)


def run_studies(
    studies: Iterable[Study],
    name: str,
    folder: Path,
    jobs: int,
    prepare: Callable[[Study], object],
) -> None:
    """Run studies on this machine into ``NAME.csv`` and archives in a folder, and report.

    ``prepare`` trains what a study starts from, or learns from.
    """
    ledger = Ledger(folder / f"{name}.csv", folder)
    here = {**describe_machine(default_device()), "commit": commit()}
    for study in studies:
        print(study.name, flush=True)
        prepare(study)
        run_study(study, ledger, here, partial(print, flush=True), jobs)


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
    calls = {digest: (study, run) for digest, run in left.items()}
    for number, (digest, done) in enumerate(in_workers(run_one, calls, jobs), start=1):
        run, first = left[digest], done.rows[0]
        ledger.keep(study.name, digest, run.config.to_json(), done.samples, done.curve)
        constant = {**environment, "jobs": jobs, "config_hash": digest}
        named = [_labels(study, each) for each in planned[digest]]
        ledger.add([{**labels, **row, **constant} for labels in named for row in done.rows])
        report(
            f"{number}/{len(left)} {run.variant}, {run.budget}, seed {run.config.seed}: "
            f"mIoU {100 * first['mIoU']:.2f}, {first['seconds']:.0f} s"
        )
    return len(left)


def missing_runs(study: Study, ledger: Ledger) -> list[PlannedRun]:
    """Return the runs that :func:`run_study` would do; equal ones once."""
    known = _known(study, ledger)
    return [runs[0] for digest, runs in _planned(study).items() if digest not in known]


def _planned(study: Study) -> dict[str, list[PlannedRun]]:
    """Return a study's runs by config hash; those of one hash differ in name only."""
    towers = towers_name(study)
    planned: dict[str, list[PlannedRun]] = {}
    for run in plan_runs(study):
        planned.setdefault(config_hash(study, run.config, towers), []).append(run)
    return planned


def _known(study: Study, ledger: Ledger) -> dict[str, list[Row]]:
    """Return rows by config hash, of runs that have samples and a row for every split."""
    known: dict[str, list[Row]] = {}
    for row in ledger.rows():
        known.setdefault(row["config_hash"], []).append(row)
    kept = ledger.kept()
    return {
        digest: rows
        for digest, rows in known.items()
        if digest in kept and {row["split"] for row in rows}.issuperset(study.splits)
    }


def run_one(study: Study, run: PlannedRun) -> FinishedRun:
    """Train and score one run."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(run.config, output=Path(folder) / "run")
        device = default_device(cpu=config.cpu)
        measured = reset_peak(device)
        result = train(config)
        peak = peak_megabytes(device) if measured else ""
        lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        chosen = result.folder / BEST if study.best else result.checkpoint
        checkpoint = load_checkpoint(chosen, device)
        found = {
            name: score(
                checkpoint,
                scored.open(config, checkpoint),
                limit=study.samples,
                batch_size=config.eval_batch_size,
                progress=config.progress,
                **scored.options,
            )
            for name, scored in ((each, Scored.parse(each)) for each in study.splits)
        }
    records = [json.loads(line) for line in lines]
    rows = [
        {
            "split": split,
            **{column: round(each.scores["all"][name], 6) for column, name in SCORES.items()},
            "samples": int(each.scores["all"]["samples"]),
            "seconds": round(result.seconds, 1),
            "peak_mb": peak,
            "threads": torch.get_num_threads(),
        }
        for split, each in found.items()
    ]
    curve = [{"step": r["step"], **r["scores"]["own"]} for r in records if "scores" in r]
    return FinishedRun(rows, {split: each.rows for split, each in found.items()}, curve)


class Scored(NamedTuple):
    """How a study scores: on which split, of which level of shapes, and what is missing there."""

    split: str
    level: str | None
    options: dict[str, Any]

    @classmethod
    def parse(cls, name: str) -> Scored:
        """Read a name such as ``"testA hide=0.25"``.

        Example:
            >>> Scored.parse("testA level=hard drop=1")
            Scored(split='testA', level='hard', options={'drop_words': 1})
        """
        split, *words = name.split(" ")
        known = {"level": ("level", str), "hide": ("hide", float), "drop": ("drop_words", int)}
        options: dict[str, Any] = {}
        for word in words:
            kind, _, value = word.partition("=")
            check_choice("condition", kind, known)
            option, convert = known[kind]
            options[option] = convert(value)
        return cls(split, options.pop("level", None), options)

    def open(self, config: TrainConfig, checkpoint: Checkpoint) -> ReferDataset:
        """Open the split as the checkpoint of a run is scored on it."""
        data = dataclasses.replace(config.data, level=self.level or config.data.level)
        size, tokenizer = checkpoint.config.image_size, checkpoint.tokenizer
        return open_split(
            data, self.split, tokenizer, size, fit=config.fit, progress=config.progress
        )


def expected_seconds(study: Study, runs: Sequence[PlannedRun]) -> float:
    """Estimate training and scoring of runs from a few steps of the cheapest and the dearest.

    Between the two a step's time is taken as linear in its multiply-adds. Drawing sheets and
    generating data are not counted.
    """
    if not runs:
        return 0.0
    work = {run: run.multiply_adds / (run.config.steps or 1) for run in runs}
    least, most = min(runs, key=work.__getitem__), max(runs, key=work.__getitem__)
    step_low, sample, size = _time(study, least.config)
    step_high = step_low if work[most] == work[least] else _time(study, most.config)[0]
    slope = (step_high - step_low) / max(1.0, work[most] - work[least])
    total = 0.0
    for run in runs:
        config, steps = run.config, run.config.steps or 1
        total += steps * (step_low + slope * (work[run] - work[least]))
        on_the_way = steps // config.evaluate_every if config.evaluate_every else 0
        # the trainer scores with three kinds of sentences at the end
        total += sample * (len(study.splits) * size + (on_the_way + 3) * config.eval_samples)
    return total


def _time(study: Study, config: TrainConfig) -> tuple[float, float, int]:
    """Return the seconds of a step and of scoring a sample, and how many samples a split has."""
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            config,
            steps=_TIMED_STEPS,
            warmup=0,
            warmup_epochs=None,
            log_every=_TIMED_STEPS // 2,  # the first line includes what happens only once
            evaluate_every=0,
            eval_samples=1,
            sheet_rows=1,
            output=Path(folder) / "run",
            progress=False,
        )
        result = train(short)
        lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        speed = [json.loads(line).get("pictures_per_second") for line in lines]
        last = [value for value in speed if value is not None][-1]
        checkpoint = load_checkpoint(result.checkpoint, default_device(cpu=config.cpu))
        dataset = Scored.parse(study.splits[0]).open(config, checkpoint)
        start = time.perf_counter()
        score(checkpoint, dataset, limit=_TIMED_SAMPLES, batch_size=config.eval_batch_size)
        seconds = (time.perf_counter() - start) / min(_TIMED_SAMPLES, len(dataset))
    size = min(study.samples or len(dataset), len(dataset))
    return config.images_per_pass() / last, seconds, size


def reset_peak(device: torch.device) -> bool:
    """Start measuring peak memory; return whether that is possible here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError:
        return False
    return True


def peak_megabytes(device: torch.device) -> float:
    """Return the peak since then: of the GPU's allocator, or of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kilobytes) * 1024 / 1e6, 1)


def _labels(study: Study, run: PlannedRun) -> dict[str, Any]:
    """Return the columns that say which run of which study a row is of."""
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
