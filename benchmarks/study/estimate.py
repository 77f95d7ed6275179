"""What runs of a study will take, from a few steps of two of them."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.plan import PlannedRun, Study
from benchmarks.study.run import open_scored
from masksd.kit.checkpoints import load_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.devices import default_device
from masksd.kit.evaluation.scoring import score
from masksd.kit.training.trainer import train

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
            warmup_epochs=None,
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
        checkpoint = load_checkpoint(result.checkpoint, default_device(cpu=config.cpu))
        dataset = open_scored(config, checkpoint, study.splits[0])
        start = time.perf_counter()
        score(checkpoint, dataset, limit=_TIMED_SAMPLES, batch_size=config.eval_batch_size)
        seconds = (time.perf_counter() - start) / min(_TIMED_SAMPLES, len(dataset))
    size = min(study.samples or len(dataset), len(dataset))
    return config.batch_size / last, seconds, size
