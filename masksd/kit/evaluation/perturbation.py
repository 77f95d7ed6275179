"""Samples made harder: cells of the image hidden, words of the sentence left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from masksd.kit.data.shapes.missing_words import droppable_words, read_config
from masksd.kit.data.transforms import CLIP_MEAN
from masksd.kit.randomness import keyed_generator

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset

GRID = 8
"""Cells a side, whatever the size of the image."""


@dataclass(frozen=True)
class Perturbation:
    """What is hidden and left out; an item's index in its data set alone decides where.

    What a small share hides, a larger one hides too, and likewise for words.

    Attributes:
        hide: share of the cells that are hidden.
        drop_words: words that are left out.
        mean: the colour of hidden cells, in [0, 1]; it is rounded to 8 bits.
    """

    hide: float = 0.0
    drop_words: int = 0
    mean: Sequence[float] = CLIP_MEAN

    def hide_cells(self, image: Tensor, index: int) -> Tensor:
        """Paint cells of an item's image ``(3, S, S)`` uint8, as :func:`paint_cells` does."""
        if not self.hide:
            return image
        return paint_cells(image, hidden_cells(index, self.hide), self.mean)

    def shorten(self, dataset: ReferDataset, given: Mapping[int, str]) -> dict[int, str]:
        """Leave words out of the sentences given with the items of a data set.

        A sentence that cannot lose so many is left out. One word stays; of generated shapes, the
        sentence also still names exactly one object. Where no sentence is given, none is shortened.
        """
        if not self.drop_words:
            return dict(given)
        config = read_config(dataset.layout.refs.parent)
        shortened = {}
        for index, sentence in given.items():
            words = sentence.split()
            order = torch.randperm(len(words), generator=keyed_generator("words", index)).tolist()
            if config is None:
                order = order[:-1]
            elif words:
                order = droppable_words(config, dataset.image_path(index).name, sentence, order)
            dropped = order[: self.drop_words]
            if len(dropped) == self.drop_words or not words:
                kept = (word for at, word in enumerate(words) if at not in dropped)
                shortened[index] = " ".join(kept)
        return shortened


UNCHANGED = Perturbation()


def paint_cells(image: Tensor, hidden: Tensor, mean: Sequence[float] = CLIP_MEAN) -> Tensor:
    """Paint the hidden cells, bool ``(8, 8)``, of an image ``(3, H, W)`` uint8 in the mean colour.

    Pixel (y, x) belongs to cell (8 y // H, 8 x // W).

    Example:
        >>> left = torch.arange(8).expand(8, 8) < 4
        >>> paint_cells(torch.zeros(3, 1, 4, dtype=torch.uint8), left)[0]
        tensor([[123, 123,   0,   0]], dtype=torch.uint8)
    """
    rows, columns = (torch.arange(side) * GRID // side for side in image.shape[1:])
    color = torch.tensor([255 * value for value in mean]).round().clamp(0, 255)
    return torch.where(hidden[rows][:, columns], color.to(torch.uint8).view(3, 1, 1), image)


def hidden_cells(index: int, share: float) -> Tensor:
    """Draw the hidden cells of an item's image, bool ``(8, 8)``; halves are rounded up.

    Example:
        >>> int(hidden_cells(0, 0.25).sum()), int(hidden_cells(0, 0.0079).sum())
        (16, 1)
        >>> bool((hidden_cells(0, 0.25) <= hidden_cells(0, 0.5)).all())
        True
    """
    exact = share * GRID**2
    count = math.floor(exact) + (exact % 1 >= 0.5)
    hidden = torch.zeros(GRID**2, dtype=torch.bool)
    hidden[torch.randperm(GRID**2, generator=keyed_generator("cells", index))[:count]] = True
    return hidden.view(GRID, GRID)
