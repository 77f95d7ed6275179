"""Reading what is scored, in this process or in workers of a data loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masksd.kit.data.records import DataError

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


class ScoringBatch(NamedTuple):
    """Samples to score.

    Attributes:
        indices: of the items in the data set.
        images: uint8 ``(B, 3, S, S)``.
        tokens: int64 ``(B, L)``.
        targets: the truths in the model's square, uint8 ``(B, S, S)`` of 0 and 1.
        truths: those at the pictures' own sizes, B of uint8 ``(H, W)``.
    """

    indices: list[int]
    images: Tensor
    tokens: Tensor
    targets: Tensor
    truths: list[NDArray[np.uint8]]


def told_sentence(dataset: ReferDataset, index: int, sentences: str) -> str:
    """Return what a model is told about an item: its own sentence, another object's, or nothing.

    Args:
        dataset: of every sentence.
        index: of the item.
        sentences: ``"own"``, ``"other"`` or ``"none"``.
    """
    if sentences == "own":
        return dataset.sentence(index)
    return (dataset.other_sentence(index) or "") if sentences == "other" else ""


def scoring_batches(
    dataset: ReferDataset,
    indices: Sequence[int],
    *,
    sentences: str = "own",
    batch_size: int = 64,
    workers: int = 0,
) -> Iterator[ScoringBatch]:
    """Read items in order.

    Args:
        dataset: every sentence of a split an item; its tokenizer encodes what is told.
        indices: of the items.
        sentences: as in :func:`told_sentence`.
        batch_size: items a batch; the last one may be smaller.
        workers: processes that read; 0 reads here.

    Yields:
        :class:`ScoringBatch` on the CPU, whatever the number of workers.

    Raises:
        DataError: a picture or an object that is damaged, in one line from a worker too.
    """
    loader: Any = DataLoader(
        _Items(dataset, indices, sentences),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # without one of its own it draws from the global stream
    )
    try:
        yield from loader
    except DataError as error:
        raise without_traceback(error) from None


def without_traceback(error: DataError) -> DataError:
    """Return an error of a data loader in one line.

    A worker's has the traceback of the worker for a text, which ends with its own.

    Args:
        error: of a worker, or of this process, whose text stays as it is.

    Example:
        >>> text = "Caught DataError in a worker.\\n ...\\nmasksd.data.bad.DataError: a.png"
        >>> str(without_traceback(DataError(text)))
        'a.png'
    """
    return DataError(str(error).rpartition(f"\n{DataError.__module__}.DataError: ")[2].strip())


class _Items(Dataset[tuple[dict[str, Any], NDArray[np.uint8]]]):
    def __init__(self, dataset: ReferDataset, indices: Sequence[int], sentences: str) -> None:
        self.dataset, self.indices, self.sentences = dataset, indices, sentences

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        dataset, index = self.dataset, self.indices[position]
        item = dataset[index]
        if self.sentences != "own":
            told = told_sentence(dataset, index, self.sentences)
            item = {**item, "tokens": dataset.tokenizer.encode(told)}
        return item, dataset.truth(index)


def _collate(items: list[tuple[dict[str, Any], NDArray[np.uint8]]]) -> ScoringBatch:
    # truths stay arrays: as tensors each would hold a file descriptor between the processes
    return ScoringBatch(
        indices=[int(item["index"]) for item, _ in items],
        images=torch.stack([item["image"] for item, _ in items]),
        tokens=torch.stack([item["tokens"] for item, _ in items]),
        targets=torch.stack([item["target"] for item, _ in items]),
        truths=[truth for _, truth in items],
    )
