"""Training: data, model and method from one config into one folder.

Every draw is keyed: the order of the data by (seed, epoch), a drawn sentence by (seed, epoch,
item), dropout by (seed, step, process), masks by the wrapper's own (seed, step, position in the
batch). So a run on a CPU repeats bit for bit, and no random state has to be stored to go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from pathlib import Path

import torch

from masksd.kit.config import TrainConfig
from masksd.kit.data.survey import check_words
from masksd.kit.files import StagedFolder, check_place
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.schedules import Schedule
from masksd.kit.sources import build_model, open_split, tokenizer_name
from masksd.kit.training.loop import Run

FILES = ("config.json", "metrics.jsonl", "curves.png", "sheet.png", "checkpoint")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a training run leaves.

    Attributes:
        folder: of the run.
        checkpoint: folder of the checkpoint in it.
        scores: by kind of sentence, ``"own"``, ``"other"``, ``"none"``; see ``evaluate_all``.
        steps: of the whole run.
        skipped: steps whose gradient was not finite.
        seconds: wall time of the whole run.
    """

    folder: Path
    checkpoint: Path
    scores: dict[str, dict[str, float]]
    steps: int
    skipped: int
    seconds: float


def train(config: TrainConfig) -> RunResult:
    """Train a model with masked self-distillation and score it.

    The folder of the run receives ``config.json``, ``metrics.jsonl`` (one JSON object a line),
    ``curves.png``, ``sheet.png`` and ``checkpoint/``. It is written out of sight, beside its place,
    and takes it (and an older run is removed) with the first checkpoint; a run that fails or is
    stopped before leaves nothing. Run under ``torchrun`` it trains on every process; the first one
    writes.

    Args:
        config: everything.

    Returns:
        The scores and where everything lies.

    Raises:
        ValueError: a config that cannot be run, an existing folder, damaged data, or a
            tokenizer that knows no word of them.
        TrainingError: too many steps in a row had a gradient that is not finite.

    Warns:
        UserWarning: the tokenizer lacks words of the training split, or cuts its sentences; the
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
    config.data.generated()  # or it names the folder of the data
    check_output(folder, config.overwrite)
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
    with keyed_randomness(accelerator.device):
        torch.manual_seed(keyed_seed(config.seed, "weights"))
        checkpoint = build_model(config)
        with accelerator.main_process_first():  # which generates the data, where needed
            training, scoring = (
                open_split(
                    config.data,
                    split,
                    checkpoint.tokenizer,
                    checkpoint.config.image_size,
                    train_items=items,
                    fit=config.fit,
                    seed=config.seed,
                    cache=config.cache,
                    progress=config.progress,
                )
                for split, items in (
                    (config.train_split, config.train_items),
                    (config.eval_split, None),
                )
            )
        wanted = config.batch_size * accelerator.num_processes
        if len(training) < wanted:
            raise ValueError(
                f"split {config.train_split!r} has {len(training)} items, one step takes {wanted}; "
                "lower --batch-size or name a larger split"
            )
        lost = check_words(training, checkpoint.tokenizer, tokenizer_name(config))
        if lost and accelerator.is_main_process:
            warnings.warn(lost, UserWarning, stacklevel=2)
        staged = StagedFolder(folder, lambda: check_output(folder, config.overwrite))
        run = Run(config, accelerator, checkpoint, training, scoring, staged)
        run.rehearse()
        if accelerator.is_main_process:
            warn_of_warmup(run.schedule)
        with staged if accelerator.is_main_process else contextlib.nullcontext():
            if accelerator.is_main_process:
                (staged.path / "config.json").write_text(config.to_json(), encoding="utf-8")
            run.fit()
            scores = run.finish()
    seconds = time.perf_counter() - start
    return RunResult(folder, folder / "checkpoint", scores, run.done, run.skipped, seconds)


def warn_of_warmup(schedule: Schedule) -> None:
    """Give a ``UserWarning`` where the warm-up takes the whole run, so that the rate never falls.

    Args:
        schedule: of the run.

    Example:
        >>> warn_of_warmup(Schedule("cosine", lr=1.0, steps=20, warmup=19))
    """
    steps, warmup = schedule.steps, schedule.warmup
    if warmup >= steps:
        warnings.warn(
            f"warmup {warmup} is not below steps {steps}: the learning rate only rises, to "
            f"{schedule.rate(steps - 1):g} of lr {schedule.lr:g}; lower --warmup",
            UserWarning,
            stacklevel=3,
        )


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless a run may be written here.

    Args:
        folder: of the new run.
        overwrite: whether an older run may be replaced; anything else never is.

    Example:
        >>> check_output(Path("nothing/here"), overwrite=False)
    """
    left = {f".{name}.{word}" for name in FILES for word in ("tmp", "previous")}  # by killed ones
    check_place(folder, {*FILES, *left}, kind="run", strange="no run writes", over=overwrite)
