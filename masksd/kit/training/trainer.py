"""Training: data, model and method from one config into one folder.

Every draw is keyed: the order of the data by (seed, epoch), a drawn expression by (seed, epoch,
item), dropout by (seed, step, process), masks by the wrapper's own (seed, step, position in the
batch). So a run on a CPU repeats bit for bit, and resuming needs no stored random state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from pathlib import Path

import torch

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.data.layout import warn_of_shared_images
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.survey import check_words
from masksd.kit.files import StagedFolder
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.sources import build_model, open_split, tokenizer_name
from masksd.kit.training.checks import check_output, warn_of_long_warmup
from masksd.kit.training.run import Run


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a training run leaves.

    Attributes:
        folder: of the run.
        checkpoint: its folder, inside ``folder``.
        scores: mIoU, oIoU, Pr@0.5 to Pr@0.9 in [0, 1] and ``samples``, given the right expression
            (``"own"``), another object's (``"other"``, where there is one) and none (``"none"``).
        steps: of the whole run.
        skipped: steps whose gradient was not finite.
        seconds: wall time of the whole run.

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


def train(config: TrainConfig) -> RunResult:
    """Train a model with masked self-distillation and score it.

    The run's folder receives ``config.json``, ``metrics.jsonl`` (one JSON object per line),
    ``curves.png``, ``sheet.png`` and ``checkpoint/``. It is written out of sight and takes its
    place, replacing an older run, with the first checkpoint; a run that fails or is stopped before
    that leaves nothing. Under ``torchrun`` every process trains and the first one writes.

    Args:
        config: everything.

    Returns:
        The scores, and where everything lies.

    Raises:
        ValueError: a config that cannot be run, an existing folder, damaged data, or a tokenizer
            that knows no word of them.
        TrainingError: too many steps in a row had a gradient that is not finite.

    Warns:
        UserWarning: the tokenizer lacks words of the training split or cuts its expressions; images
            of it are in the split that is scored; no image to score has two referred objects; the
            warm-up takes the whole run.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     run = train(TrainConfig(output=Path(file.name)))
        Traceback (most recent call last):
        ValueError: output ... is a file; choose another --output
    """
    start = time.perf_counter()
    folder = config.output_folder()
    config.data.generated()  # raises unless the data have a folder or are generated
    check_output(folder, config.overwrite)
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
    main = accelerator.is_main_process
    with keyed_randomness(accelerator.device):
        torch.manual_seed(keyed_seed(config.seed, "weights"))
        checkpoint = build_model(config)
        with accelerator.main_process_first():  # it generates the data, if need be
            training = _open(config, checkpoint, config.train_split, config.train_items)
            scoring = _open(config, checkpoint, config.eval_split, None)
        needed = config.batch_size * accelerator.num_processes
        if len(training) < needed:
            raise ValueError(
                f"split {config.train_split!r} has {len(training)} items, one step takes {needed}; "
                "lower --batch-size or name a larger split"
            )
        lost = check_words(training, checkpoint.tokenizer, tokenizer_name(config))
        if lost and main:
            warnings.warn(lost, UserWarning, stacklevel=2)
        if main:
            names = {config.eval_split: scoring.file_names()}
            names[config.train_split] = training.file_names()
            warn_of_shared_images(names, config.train_split)
        staged = StagedFolder(folder, lambda: check_output(folder, config.overwrite))
        run = Run(config, accelerator, checkpoint, training, scoring, staged)
        run.check_first_batch()
        if main:
            warn_of_long_warmup(run.schedule)
        with staged if main else contextlib.nullcontext():
            if main:
                (staged.path / "config.json").write_text(config.to_json(), encoding="utf-8")
            run.fit(progress=main and config.progress)
            scores = run.finish()
    seconds = time.perf_counter() - start
    return RunResult(folder, folder / "checkpoint", scores, run.done, run.skipped, seconds)


def _open(
    config: TrainConfig, checkpoint: Checkpoint, split: str, train_items: str | None
) -> ReferDataset:
    return open_split(
        config.data,
        split,
        checkpoint.tokenizer,
        checkpoint.config.image_size,
        train_items=train_items,
        fit=config.fit,
        seed=config.seed,
        cache=config.cache,
        progress=config.progress,
    )
