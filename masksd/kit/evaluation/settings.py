"""The options of scoring a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from masksd.errors import check_choice, check_fraction
from masksd.kit.checkpoints import CheckpointConfig
from masksd.kit.data_config import DataConfig
from masksd.kit.scores.protocols import PROTOCOLS, Protocol

SENTENCES = {
    "own": "the right sentence",
    "other": "another object's sentence",
    "none": "no sentence",
}
"""The kinds of sentence that a model may be given, in the words of the tables."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How a checkpoint is scored.

    Attributes:
        checkpoint: folder that training wrote.
        split: to score on: val, testA, testB, ...
        protocol: original, cris, lavt or caris: how to score, with all details; None is original,
            in short. The model runs at its own size.
        sentences: what the model is given: own (the right sentence), other (another object's),
            none, or all three, one after the other.
        eval_samples: expressions scored, evenly spread over the split; 0 scores all.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            protocol's or the checkpoint's.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads in this one.
        hide: share in [0, 1] of the cells of each image that are hidden for scores of their own,
            beside those of whole images; the cells make a grid of 8 x 8.
        drop_words: words left out of each sentence for the same scores.
        relevance: also measure how much of the object lies in the patches that the method ranks
            highest.
        output: folder for a report: report.json, report.md, one line per sample, and a sheet of
            the worst and best; None writes nothing.
        overwrite: replace an older report there.
        progress: show progress bars.
    """

    checkpoint: Path
    split: str = "val"
    protocol: str | None = None
    sentences: str = "all"
    eval_samples: int = 0
    threshold: float | None = None
    batch_size: int = 64
    workers: int = 0
    hide: float = 0.0
    drop_words: int = 0
    relevance: bool = False
    output: Path | None = None
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("sentences", self.sentences, [*SENTENCES, "all"])
        check_choice("protocol", self.protocol or "original", PROTOCOLS)
        _check_whole("eval_samples", self.eval_samples, 0)
        check_scoring(self.threshold, self.eval_samples, self.batch_size, self.workers)
        check_perturbation(self.hide, self.drop_words)

    @property
    def rules(self) -> Protocol:
        """The protocol."""
        return PROTOCOLS[self.protocol or "original"]

    @property
    def kinds(self) -> list[str]:
        """The kinds of sentence."""
        return list(SENTENCES) if self.sentences == "all" else [self.sentences]


def trained_on(config: CheckpointConfig, data: DataConfig, split: str) -> str:
    """Say that a model was trained on a split; "" if it was not."""
    name = data.title()
    if split != config.train_split or name != DataConfig.from_dict(config.data).title():
        return ""
    return (
        f"the model was trained on split {split!r} of {name}: scores there are not those of unseen "
        "images"
    )


def check_scoring(threshold: float | None, limit: int, batch_size: int, workers: int = 0) -> None:
    """Raise a ``ValueError`` unless these options of :func:`score` are in range."""
    if threshold is not None:
        check_fraction("threshold", threshold)
    for name, value, least in (
        ("limit", limit, 0),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
    ):
        _check_whole(name, value, least)


def check_perturbation(hide: float, drop_words: int) -> None:
    """Raise a ``ValueError`` unless these options of :func:`score` are in range."""
    check_fraction("hide", hide)
    _check_whole("drop_words", drop_words, 0)


def _check_whole(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
