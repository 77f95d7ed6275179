"""Training: data, model and method from one config into one folder.

Every draw is keyed: the order of the data by (seed, epoch), expressions by (seed, epoch, item),
dropout by (seed, step, process), masks by the wrapper's own (seed, step, position in the batch).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masksd.kit.config import TrainConfig
from masksd.kit.data.layout import warn_of_shared_images
from masksd.kit.data.text.coverage import check_words
from masksd.kit.evaluation.settings import trained_on
from masksd.kit.processes import (
    check_same_everywhere,
    first_process_first,
    start_processes,
    watch_others,
)
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.sources import build_model, open_split, open_training, tokenizer_name
from masksd.kit.storage.places import HeldFolder, StagedFolder
from masksd.kit.training.checks import check_output, check_sizes, check_start, warn_of_long_warmup
from masksd.kit.training.resuming import check_unfinished, checkpoint_digest, load_run
from masksd.kit.training.run import Run
from masksd.kit.training.trackers import check_tracker, tracker_options


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a training run leaves.

    Attributes:
        folder: of the run.
        checkpoint: its folder, inside ``folder``.
        scores: mIoU, oIoU, gIoU, cIoU, Pr@0.5 to Pr@0.9 in [0, 1] and ``samples``, given the right
            expression (``"own"``), another object's (``"other"``, where there is one) and none
            (``"none"``).
        steps: of the whole run.
        skipped: steps whose gradient was not finite.
        seconds: wall time, of the part since it was resumed where it was.

    Example:
        >>> RunResult(Path("runs/one"), Path("runs/one/checkpoint"), {}, 10, 0, 1.5).steps
        10
    """

    folder: Path
    checkpoint: Path
    scores: dict[str, dict[str, float]]
    steps: int
    skipped: int
    seconds: float


def train(config: TrainConfig, *, resume: bool = False, allow: Sequence[str] = ()) -> RunResult:
    """Train a model with masked self-distillation and score it.

    The run's folder receives ``config.json``, ``metrics.jsonl`` (one JSON object per line),
    ``curves.png``, ``sheet.png`` and ``checkpoint/``. With ``overwrite`` an older run is replaced
    with the first checkpoint of the new one. No other run may write there meanwhile. Under
    ``torchrun`` every process trains and the first one writes.

    SIGTERM, SIGINT and SIGHUP let the step finish, save and raise; a second one acts at once.

    Args:
        config: everything.
        resume: go on where the run in ``config.output_folder()`` was saved last. On a CPU, weights
            and losses are then those of a run that was never interrupted, bit for bit.
        allow: options of the run that ``config`` may change, such as ``"steps"``.

    Returns:
        The scores, and where everything lies.

    Raises:
        ValueError: a config, folder or data that cannot be used, a tokenizer that knows no word of
            them, or a run that is resumed with other options or data.
        TrainingError: too many steps in a row had a gradient that is not finite, or a process that
            reads data died.
        TrainingStopped: a signal came; the run is saved.
        LostProcess: another process of the job died, or did not answer in ``config.timeout``.

    Warns:
        UserWarning: the tokenizer lacks words of the training split or cuts its expressions; images
            of it are in the split that is scored, or it is that split; no image to score has two
            referred objects; the warm-up takes the whole run.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     run = train(TrainConfig(output=Path(file.name)))
        Traceback (most recent call last):
        ValueError: output ... is a file; choose another --output
    """
    start = time.perf_counter()
    folder = config.output_folder()
    check_start(config, resume=resume, allow=allow)
    accelerator = start_processes(
        config.cpu, config.mixed_precision, config.timeout, **tracker_options(config)
    )
    check_tracker(accelerator, config)
    check_same_everywhere(accelerator, {"masksd": version("masksd"), **config.flat()})
    main = accelerator.is_main_process
    place: HeldFolder = StagedFolder(folder, lambda: check_output(folder, config.overwrite))
    if resume:
        place = HeldFolder(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            watch_others(accelerator, "a checkpoint that was saved is whole", config.timeout)
        )
        stack.enter_context(keyed_randomness(accelerator.device))
        state: dict[str, Tensor] = {}
        if resume:
            if main:  # before anything is read that another run may replace
                stack.enter_context(place)
            with first_process_first():
                checkpoint, state = load_run(config, accelerator.num_processes, allow)
            check_same_everywhere(accelerator, {"checkpoint": checkpoint_digest(config)})
        else:
            torch.manual_seed(keyed_seed(config.seed, "weights"))
            checkpoint = build_model(config)
        weights = checkpoint.model.named_parameters()
        check_same_everywhere(accelerator, {name: tuple(each.shape) for name, each in weights})
        with first_process_first():  # it generates the data, if need be
            size, tokenizer = checkpoint.config.image_size, checkpoint.tokenizer
            options: dict[str, Any] = {
                name: getattr(config, name) for name in ("fit", "cache", "progress")
            }
            training, unlabelled = open_training(config, tokenizer, size, **options)
            scoring = open_split(
                config.data, config.eval_split, tokenizer, size, seed=config.seed, **options
            )
        check_sizes(config, training, unlabelled, accelerator.num_processes)
        parts = [training, *filter(None, [unlabelled])]
        for part in parts:
            lost = check_words(part, tokenizer, tokenizer_name(config))
            if lost and main:
                warnings.warn(lost, UserWarning, stacklevel=2)
        if main:
            names = {config.eval_split: scoring.file_names()}
            names[config.train_split] = set().union(*(part.file_names() for part in parts))
            warn_of_shared_images(names, config.train_split)
            seen = trained_on(checkpoint.config, config.data, config.eval_split)
            if seen:
                warnings.warn(seen, UserWarning, stacklevel=2)
        run = Run(config, accelerator, checkpoint, training, unlabelled, scoring, place)
        if resume:
            run.resume(checkpoint.config.step, state)
            check_unfinished(config, run.done, run.schedule.steps)
        else:
            run.check_first_batch()
        if main:
            warn_of_long_warmup(run.schedule)
            if not resume:
                stack.enter_context(place)
        run.open_folder()
        scores = run.train()
    seconds = time.perf_counter() - start
    return RunResult(folder, folder / "checkpoint", scores, run.done, run.skipped, seconds)
