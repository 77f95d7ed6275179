"""The loop that training and pretraining share: batches, learning rates, steps and logs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from masksd.errors import one_line
from masksd.kit.config import TrainingError
from masksd.kit.data.records import DataError
from masksd.kit.evaluation.reading import without_traceback
from masksd.kit.randomness import EpochSampler, keyed_generator
from masksd.kit.schedules import Schedule
from masksd.kit.training.signals import SIGNALS

Batch = dict[str, Tensor]  # of one forward pass
Terms = dict[str, Tensor]
"""Losses and norms of a step by name, 0-d; ``loss`` is the one that was minimised."""


class Batches:
    """Batches without end, by (seed, epoch) alone; ``start`` were taken before by this process."""

    def __init__(
        self, items: Any, *, batch_size: int, seed: int, workers: int, pin_memory: bool = False
    ) -> None:
        self.items, self.sampler = items, EpochSampler(len(items), seed)
        self.batch_size, self.processes, self.start = batch_size, 1, 0
        self.loader: Any = DataLoader(
            items,
            batch_size=batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,  # an epoch of shapes lasts a few seconds
            pin_memory=pin_memory,
            # without its own generator the loader draws from the global stream
            generator=keyed_generator(seed, "workers"),
            worker_init_fn=_leave_signals_to_the_main_process,
        )

    def __len__(self) -> int:
        """Return how many of this process an epoch has."""
        return len(self.loader)

    def prepare(self, accelerator: Any) -> None:
        """Share the items out to the processes of a job."""
        self.loader = accelerator.prepare(self.loader)
        self.processes = accelerator.num_processes

    def first(self) -> Batch:
        """Return a batch of the first items, apart from the order."""
        batch: Batch = default_collate([self.items[index] for index in range(self.batch_size)])
        return batch

    def __iter__(self) -> Iterator[Batch]:
        epoch, skipped = divmod(self.start, len(self.loader))
        while True:
            self.sampler.epoch = epoch
            self.sampler.skip = skipped * self.batch_size * self.processes
            self.items.set_epoch(epoch)
            if hasattr(self.loader, "set_epoch"):  # accelerate's, which would count from 0
                self.loader.set_epoch(epoch)
            try:
                yield from self.loader
            except DataError as error:
                raise without_traceback(error) from None
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise TrainingError(
                    "a process that reads data died (killed, or out of memory); lower --workers or "
                    f"--batch-size: {one_line(error)}"
                ) from None
            epoch, skipped = epoch + 1, 0


class JointBatches:
    """Batches of labelled items and unlabelled ones; ``labelled`` tells them apart."""

    def __init__(self, labelled: Batches, unlabelled: Batches) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        """Return how many of this process an epoch of the labelled items has."""
        return len(self.labelled)

    @property
    def start(self) -> int:
        """How many were taken before."""
        return self.labelled.start

    @start.setter
    def start(self, taken: int) -> None:
        self.labelled.start = self.unlabelled.start = taken

    def prepare(self, accelerator: Any) -> None:
        """Share the items of both kinds out to the processes of a job."""
        self.labelled.prepare(accelerator)
        self.unlabelled.prepare(accelerator)

    def first(self) -> Batch:
        """Return a batch of the first items of both kinds, apart from the order."""
        return _joined(self.labelled.first(), self.unlabelled.first())

    def __iter__(self) -> Iterator[Batch]:
        yield from map(_joined, self.labelled, self.unlabelled)


def _joined(labelled: Batch, unlabelled: Batch) -> Batch:
    batch = {name: torch.cat([labelled[name], unlabelled[name]]) for name in labelled}
    index = batch["index"]
    batch["labelled"] = torch.arange(len(index), device=index.device) < len(labelled["index"])
    return batch


def _leave_signals_to_the_main_process(_: int) -> None:
    """Read on when every process gets a signal; SIGTERM, which torch sends if stuck, acts late."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


class Loop:
    """Takes all steps of a schedule; a subclass says what a step and a line of the log are.

    A step takes ``accumulate`` batches. Groups of the optimiser have a ``scale``, the factor of
    their learning rate. ``done`` counts steps, ``skipped`` those that changed nothing, in which the
    schedule stands still. ``window`` has the terms of the steps since the last log.
    """

    batches: Batches | JointBatches

    def __init__(
        self,
        batches: Batches | JointBatches,
        optimizer: Any,
        schedule: Schedule,
        *,
        log_every: int,
        title: str,
        accumulate: int = 1,
    ) -> None:
        self.batches, self.optimizer, self.schedule = batches, optimizer, schedule
        self.log_every, self.title, self.accumulate = log_every, title, accumulate
        self.done = self.skipped = 0
        self.window: list[Terms] = []

    def take_step(self, batches: list[Batch]) -> Terms:
        """Take step ``done + 1``."""
        raise NotImplementedError

    def log(self, means: Terms, steps: int, seconds: float) -> float | None:
        """Log the means over the last ``steps`` and return the loss, which the bar shows."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Do what is due now and then, such as an evaluation; its time does not count."""

    def fit(self, progress: bool) -> None:
        """Take all steps, with a progress bar if wanted."""
        from tqdm import tqdm

        total = self.schedule.steps
        batches = iter(self.batches)
        since = time.perf_counter()
        with tqdm(
            total=total, initial=self.done, desc=self.title, unit="step", disable=not progress
        ) as bar:
            for step in range(self.done + 1, total + 1):
                self.rate = self.schedule.rate(step - 1 - self.skipped)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * group["scale"]
                self.window.append(self.take_step(list(islice(batches, self.accumulate))))
                self.done = step
                bar.update()
                if step % self.log_every == 0 or step == total:
                    seconds = time.perf_counter() - since
                    bar.set_postfix(loss=self.log(means(self.window), len(self.window), seconds))
                    self.window, since = [], time.perf_counter()
                paused = time.perf_counter()
                self.after_step()
                since += time.perf_counter() - paused


def means(window: list[Terms]) -> Terms:
    """Average each term over the steps that have it: a branch may rest in some."""
    names = dict.fromkeys(name for terms in window for name in terms)
    return {name: torch.stack([t[name] for t in window if name in t]).mean() for name in names}
