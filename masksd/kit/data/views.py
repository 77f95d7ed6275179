"""What towers are pretrained on: an object with its surroundings, and one of its expressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.transforms import fit_image


class ObjectViews(Dataset[dict[str, Any]]):
    """Cut out the referred object with its surroundings; a view is keyed by (seed, epoch, index).

    In whole images, expressions about the other objects would be negatives of the same pixels. Size
    and place of the cut are drawn, so that objects look as they do in whole images.

    ``context`` is the least and largest side of the cut, as a multiple of the object's longer side.
    Items hold ``image`` uint8 ``(3, S, S)`` and ``tokens`` int64 ``(L,)``.
    """

    def __init__(self, dataset: ReferDataset, context: tuple[float, float], seed: int) -> None:
        self.dataset, self.context, self.seed = dataset, context, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Draw other expressions and cuts from now on."""
        self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        data = self.dataset
        draw = np.random.default_rng([self.seed, data.epoch, index])
        box = draw_cut(data.truth(index), self.context, draw)
        return {
            "image": fit_image(data.image(index).crop(box), data.image_size, data.fit),
            "tokens": data.tokenizer.encode(data.sentence(index)),
        }


def draw_cut(
    truth: NDArray[np.uint8], context: tuple[float, float], draw: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of a square around the object, or of all without one.

    Where the image is too small it is a rectangle. Sides are drawn evenly in their logarithm.
    """
    height, width = truth.shape
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    if not len(rows):
        return 0, 0, width, height
    first, last = (int(columns[0]), int(rows[0])), (int(columns[-1]) + 1, int(rows[-1]) + 1)
    longer = max(last[0] - first[0], last[1] - first[1])
    factor = float(np.exp(draw.uniform(*np.log(context))))
    starts, ends = [], []
    for low, high, length in zip(first, last, (width, height), strict=True):
        side = min(length, max(longer, round(longer * factor)))
        # the cut holds the object and stays in the image
        start = int(draw.integers(max(0, high - side), min(low, length - side) + 1))
        starts.append(start)
        ends.append(start + side)
    return starts[0], starts[1], ends[0], ends[1]


def equal_sentences(tokens: Tensor) -> Tensor:
    """Say which pairs of a batch have the same words, bool ``(B, B)``, except the diagonal."""
    same = (tokens[:, None] == tokens[None]).all(dim=2)
    return same & ~torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
