"""The samples to score, read in this process or in workers of a data loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masksd.kit.data.records import DataError
from masksd.kit.data.survey import spread_indices
from masksd.kit.evaluation.perturbation import UNCHANGED, Perturbation
from masksd.kit.processes import rank_and_world

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


class ScoringBatch(NamedTuple):
    """B samples to score, on the CPU, with S the side of the model's square."""

    indices: list[int]  # of the items in the data set
    images: Tensor  # uint8 (B, 3, S, S)
    tokens: Tensor  # int64 (B, L)
    targets: Tensor  # uint8 (B, S, S), the truths in the square, 0 or 1
    truths: list[NDArray[np.uint8]]  # those at the images' own sizes (H, W)


def choose_sentences(dataset: ReferDataset, sentences: str, limit: int) -> dict[int, str]:
    """Choose the items to score, evenly spread, with the sentence that a model is given with each.

    For ``"other"`` these are the items that have one.
    """
    chosen = spread_indices(len(dataset), limit)
    if sentences == "none":
        return dict.fromkeys(chosen, "")
    if sentences == "own":
        return {index: dataset.sentence(index) for index in chosen}
    others = ((index, dataset.other_sentence(index)) for index in chosen)
    return {index: sentence for index, sentence in others if sentence is not None}


def own_share(indices: Sequence[int], batch_size: int) -> list[int]:
    """Return the items of this process: whole batches, so that its logits are those of one process.

    Example:
        >>> own_share([0, 2, 4, 6, 8], 2)
        [0, 2, 4, 6, 8]
    """
    rank, world = rank_and_world()
    starts = range(rank * batch_size, len(indices), world * batch_size)
    return [index for start in starts for index in indices[start : start + batch_size]]


def gather_rows(found: list[list[int]]) -> list[list[int]]:
    """Bring the rows of all processes together, one an item by its index, which comes first."""
    _, world = rank_and_world()
    if world > 1:
        shares: list[Any] = [None] * world
        torch.distributed.all_gather_object(shares, found)
        found = [row for share in shares for row in share]
    by_index = {row[0]: row for row in found}
    return [by_index[index] for index in sorted(by_index)]


def scoring_batches(
    dataset: ReferDataset,
    given: Mapping[int, str],
    *,
    perturbation: Perturbation = UNCHANGED,
    batch_size: int = 64,
    workers: int = 0,
) -> Iterator[ScoringBatch]:
    """Read items in order, each with its given sentence; 0 workers read in this process."""
    loader: Any = DataLoader(
        _Items(dataset, given, perturbation),
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
    """Reduce a worker's error, whose text is a traceback, to its last line.

    Example:
        >>> name = f"{DataError.__module__}.DataError"
        >>> str(without_traceback(DataError(f"Caught DataError in a worker.\\n{name}: a.png")))
        'a.png'
    """
    return DataError(str(error).rpartition(f"\n{DataError.__module__}.DataError: ")[2].strip())


class _Items(Dataset[tuple[dict[str, Any], NDArray[np.uint8]]]):
    def __init__(
        self, dataset: ReferDataset, given: Mapping[int, str], perturbation: Perturbation
    ) -> None:
        self.dataset, self.given, self.perturbation = dataset, list(given.items()), perturbation

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, position: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        dataset, (index, sentence) = self.dataset, self.given[position]
        item = dataset[index]
        item["image"] = self.perturbation.hide_cells(item["image"], index)
        if sentence != dataset.sentence(index):
            item["tokens"] = dataset.tokenizer.encode(sentence)
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
