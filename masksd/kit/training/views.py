"""What the towers are pretrained on: a referred object with its surroundings, and a sentence."""

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
    """Cut out the referred object with its surroundings.

    CLIP saw pictures with their captions. A picture of several objects is no match for a sentence
    about one of them: the sentences of its other objects would be negatives of the same pixels. So
    the picture is cut to a square around the object that is meant. How much of the surroundings
    stays is drawn anew each time, from hardly any to most of the picture, and the object may lie
    anywhere in the cut, so that objects come at the sizes and places that whole pictures have them
    at, and the neighbours that a sentence may name ("next to the blue star") are often in view.

    Items are dictionaries of ``image`` uint8 ``(3, S, S)`` and ``tokens`` int64 ``(L,)``. A view is
    keyed by (seed, epoch, index) alone.

    Args:
        dataset: of the pictures; in training a ref an item, with one of its sentences.
        context: least and largest side of the cut, as a multiple of the longer side of the object;
            it never leaves the picture.
        seed: of the draws, at least 0.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.shapes import ShapesConfig, build_shapes
        >>> from masksd.kit.data.tokenizers import load_tokenizer
        >>> small = ShapesConfig(train=2, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> data = ReferDataset(root, "shapes", "val", split_by="masksd", image_size=64,
        ...                     tokenizer=load_tokenizer("shapes", 17))
        >>> ObjectViews(data, (1.2, 4.0), seed=0)[0]["image"].shape
        torch.Size([3, 64, 64])
    """

    def __init__(self, dataset: ReferDataset, context: tuple[float, float], seed: int) -> None:
        self.dataset, self.context, self.seed = dataset, context, seed

    def __len__(self) -> int:
        return len(self.dataset)

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
    """Draw a square that holds the object; where the picture is too small for one, a rectangle.

    Args:
        truth: of the object, ``(H, W)``; one without a pixel takes the whole picture.
        context: as in :class:`ObjectViews`; sides are drawn evenly in their logarithm.
        draw: where the numbers come from.

    Returns:
        Left, top, right and bottom, in pixels, inside the picture.

    Example:
        >>> truth = np.zeros((9, 9), dtype=np.uint8)
        >>> truth[4, 4:6] = 1
        >>> draw_cut(truth, (1.0, 1.0), np.random.default_rng(0))
        (4, 4, 6, 6)
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
        # the cut holds the object and stays in the picture
        start = int(draw.integers(max(0, high - side), min(low, length - side) + 1))
        starts.append(start)
        ends.append(start + side)
    return starts[0], starts[1], ends[0], ends[1]


def equal_sentences(tokens: Tensor) -> Tensor:
    """Say which pairs of a batch have the same words, bool ``(B, B)``, the diagonal left out.

    Example:
        >>> equal_sentences(torch.tensor([[1, 5], [1, 6], [1, 5]])).nonzero().tolist()
        [[0, 2], [2, 0]]
    """
    same = (tokens[:, None] == tokens[None]).all(dim=2)
    return same & ~torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
