"""Several data sets in one training, without the pictures that any of them keeps for scoring."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from masksd.kit.data.layout import digest
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.processes import rank_and_world
from masksd.kit.randomness import keyed_seed


class MixedDataset(Dataset[dict[str, Any]]):
    """Training splits of several data sets, one after the other.

    A set of weight 2 comes twice in an epoch, with other expressions drawn; of one of weight 0.5
    another half comes in each. Pictures that are in another split of any of the sets are left out,
    with a warning that counts them.
    """

    def __init__(
        self, sets: Sequence[ReferDataset], weights: Sequence[float], seed: int = 0
    ) -> None:
        self.copies: list[ReferDataset] = []
        self._counts: list[int] = []  # of the items of each copy in an epoch
        for number, data in enumerate(leave_out_held(sets)):
            rest = float(weights[number])
            if not round(rest * len(data)):
                raise ValueError(
                    f"mix: weight {rest:g} of {data.layout.refs.parent}, which has {len(data)} "
                    f"items, leaves none for an epoch; give at least {1 / len(data):.2g}"
                )
            while round(rest * len(data)):
                own = keyed_seed(seed, "copy", number, len(self.copies))
                first = rest == float(weights[number])
                whole = np.arange(data.refs)
                self.copies.append(data if first else data.part(whole, seed=own))
                self._counts.append(round(min(rest, 1.0) * len(data)))
                rest = max(rest - 1.0, 0.0)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._seed = seed

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        data, own = self._find(index)
        return {**data[own], "index": index}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose items and expressions are drawn; call it before iterating."""
        for data in self.copies:
            data.set_epoch(epoch)

    def sentence(self, index: int) -> str:
        """Return the expression of an item in this epoch."""
        data, own = self._find(index)
        return data.sentence(own)

    def file_names(self) -> set[str]:
        """Return the image files, each after its folder."""
        return {str(path) for data in self.copies for path in data.paths()}

    def _find(self, index: int) -> tuple[ReferDataset, int]:
        """Return the copy that an item is of, and its position there."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)}")
        copy = int(np.searchsorted(self._starts, index, side="right")) - 1
        data, count, own = self.copies[copy], self._counts[copy], index - int(self._starts[copy])
        if count == len(data):
            return data, own
        # goes through the set part by part, epoch by epoch
        order = _order(len(data), keyed_seed(self._seed, "order", copy))
        return data, int(order[(data.epoch * count + own) % len(data)])


@functools.lru_cache(maxsize=16)
def _order(items: int, seed: int) -> Any:
    return np.random.default_rng(seed).permutation(items)


def leave_out_held(sets: Sequence[ReferDataset]) -> list[ReferDataset]:
    """Leave out refs whose picture, by file or bytes, is in another split of any of the sets."""
    held = set().union(*(data.held_out() for data in sets))
    by_size: dict[int, list[Path]] = {}
    for path in sorted(held):
        by_size.setdefault(_size(path), []).append(path)
    hashed = functools.cache(lambda path: digest([path]))

    def leaks(path: Path) -> bool:
        alike = by_size.get(_size(path), []) if _size(path) else []
        return path in held or any(hashed(path) == hashed(other) for other in alike)

    kept, counts = [], []
    for data in sets:
        paths = data.paths()
        bad = {path for path in set(paths) if leaks(path)}
        stay = np.flatnonzero([path not in bad for path in paths])
        if not len(stay):
            raise DataError(
                f"{data.layout.refs}: all its {len(bad)} training images are in other splits of "
                "the mixed data; leave this set out (--mix)"
            )
        if bad:
            refs = len(paths) - len(stay)
            counts.append(f"{len(bad)} images with {refs} refs of {data.layout.refs.parent}")
        kept.append(data.part(stay, seed=data.seed) if bad else data)
    if counts and rank_and_world()[0] == 0:
        warnings.warn(
            f"left out of training, since they are in other splits of the mixed data: "
            f"{'; '.join(counts)}",
            UserWarning,
            stacklevel=3,
        )
    return kept


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 where it cannot be read, which reading it will say."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
