"""Running a study: what it will take, one run after another, resuming where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from masksd.data.refer import ReferDataset
from masksd.engine.checkpoints import Checkpoint, load_checkpoint
from masksd.engine.config import TrainConfig
from masksd.engine.scoring import score
from masksd.engine.sources import open_split
from masksd.engine.trainer import train
from masksd.study.plan import PlannedRun, Study, base_hash, config_hash, plan_runs
from masksd.study.rows import SCORES, Ledger, Row
from masksd.study.towers import towers_name

_TIMED_STEPS = 8
_TIMED_SAMPLES = 64


def expected_seconds(study: Study, runs: Sequence[PlannedRun]) -> float:
    """Estimate how long runs take, from a few steps of the cheapest and of the dearest a step.

    Between the two the time of a step goes straight with its multiply-adds. Drawing a run's sheet
    and generating data are not in it.

    Args:
        study: of the runs.
        runs: that are to be done.

    Returns:
        Seconds, training and scoring.
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
    """Return seconds of a step and of scoring one sample, and how many samples a split has."""
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            config,
            steps=_TIMED_STEPS,
            warmup=0,
            log_every=_TIMED_STEPS // 2,  # the first line has what happens once in it
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
        checkpoint = load_checkpoint(result.checkpoint, _device(config))
        dataset = _open(config, checkpoint, study.splits[0])
        start = time.perf_counter()
        score(checkpoint, dataset, limit=_TIMED_SAMPLES, batch_size=config.eval_batch_size)
        seconds = (time.perf_counter() - start) / min(_TIMED_SAMPLES, len(dataset))
    size = min(study.samples or len(dataset), len(dataset))
    return config.batch_size / last, seconds, size


def run_study(
    study: Study,
    ledger: Ledger,
    environment: Mapping[str, str],
    report: Callable[[str], None] = print,
    jobs: int = 1,
) -> int:
    """Do the runs of a study that are not in the ledger yet.

    A run that is there under another name (a reference of two studies, say) is not done again; its
    row is written under this name too.

    Args:
        study: with its towers, see :func:`masksd.study.towers.with_towers`.
        ledger: where rows and samples go.
        environment: ``device``, ``torch``, ``python``, ``masksd`` and ``commit`` for the rows.
        report: is told a line a run.
        jobs: runs at a time, each in a process with its share of torch's threads; small models
            do more in all that way than one after another with all of them.

    Returns:
        How many runs were done.

    Raises:
        ValueError: jobs below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    planned: dict[str, list[PlannedRun]] = {}
    for run in plan_runs(study):
        planned.setdefault(config_hash(study, run.config), []).append(run)
    known: dict[str, list[Row]] = {}
    for row in ledger.rows():
        known.setdefault(row["config_hash"], []).append(row)
    for digest in (digest for digest in planned if digest in known):
        rows = {row["split"]: row for row in reversed(known[digest])}
        for labels in (_labels(study, run) for run in planned[digest]):
            if not any(_is_labelled(row, labels) for row in known[digest]):
                ledger.add([{**row, **labels} for row in rows.values()])
    left = {digest: runs[0] for digest, runs in planned.items() if digest not in known}
    report(f"{len(planned) - len(left)} of {len(planned)} runs are there already")
    for number, (digest, measured) in enumerate(_results(study, left, ledger, jobs), start=1):
        named = [_labels(study, run) for run in planned[digest]]
        constant = {**environment, "jobs": jobs}
        ledger.add([{**labels, **row, **constant} for labels in named for row in measured])
        run, first = left[digest], measured[0]
        report(
            f"{number}/{len(left)} {run.variant}, {run.budget}, seed {run.config.seed}: "
            f"mIoU {100 * first['mIoU']:.2f}, {first['seconds']:.0f} s"
        )
    return len(left)


def _results(
    study: Study, runs: Mapping[str, PlannedRun], ledger: Ledger, jobs: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the digest and the measured columns of each run as it ends."""
    if jobs == 1:
        for digest, run in runs.items():
            yield digest, run_one(study, run, digest, ledger)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=begin_worker, initargs=(threads,)
    ) as pool:
        waiting = {
            pool.submit(run_one, study, run, digest, ledger): digest for digest, run in runs.items()
        }
        failed: BaseException | None = None
        try:
            for future in as_completed(waiting):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield waiting[future], future.result()
                elif failed is None:  # what is under way is finished and kept; no more is begun
                    failed = error
                    for other in waiting:
                        other.cancel()
        finally:
            pool.shutdown(cancel_futures=True)
        if failed is not None:
            raise failed


def begin_worker(threads: int) -> None:
    """Begin a process of a study: it takes so many threads, and ends when its parent does.

    Args:
        threads: of torch.
    """
    torch.set_num_threads(threads)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # nobody is left to take what is under way

    Thread(target=watch, daemon=True).start()


def missing_runs(study: Study, ledger: Ledger) -> list[PlannedRun]:
    """Return the runs that :func:`run_study` would do; equal ones once.

    Args:
        study: with its towers.
        ledger: with what there is.
    """
    known = {row["config_hash"] for row in ledger.rows()}
    left: dict[str, PlannedRun] = {}
    for run in plan_runs(study):
        left.setdefault(config_hash(study, run.config), run)
    return [run for digest, run in left.items() if digest not in known]


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
        device = _device(config)
        start_peak = _reset_peak(device)
        result = train(config)
        peak = _peak(device) if start_peak else ""
        lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        checkpoint = load_checkpoint(result.checkpoint, device)
        found = {
            split: score(
                checkpoint,
                _open(config, checkpoint, split),
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


def _labels(study: Study, run: PlannedRun) -> dict[str, Any]:
    """Return the columns that say which run of which table this is."""
    return {
        "study": study.name,
        "host": run.config.model,
        "level": study.data_name(),
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


def _open(config: TrainConfig, checkpoint: Checkpoint, split: str) -> ReferDataset:
    size = checkpoint.config.image_size
    tokenizer, show = checkpoint.tokenizer, config.progress
    return open_split(config.data, split, tokenizer, size, fit=config.fit, progress=show)


def _device(config: TrainConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not config.cpu else "cpu")


def _reset_peak(device: torch.device) -> bool:
    """Start measuring the peak of the memory; say whether that can be done here."""
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


def _peak(device: torch.device) -> float:
    """Return the peak since then in MB: of the GPU's allocator, or of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(kilobytes) * 1024 / 1e6, 1)
