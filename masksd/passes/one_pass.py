"""A step of one pass: patches and words are masked at random in the only pass there is.

Data augmentation in the space of tokens, at the host's own cost. It is what two-pass methods have
to beat: in MaskRIS (arXiv 2411.19067, CARIS on RefCOCO val) masking the only pass gave 1.04 of the
1.82 points of oIoU that the whole method gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from masksd.features import first_of_picture
from masksd.hosts.pictures import rows_of_pictures
from masksd.losses import consistency_loss
from masksd.passes.branches import NAMES, BranchResult
from masksd.passes.masker import TokenMasker, first_position
from masksd.passes.step import DistillOutput, Passes
from masksd.passes.truth import Truth
from masksd.segmenter import Given
from masksd.tapping.embeddings import TokenMask, samples_of
from masksd.tapping.grids import cells, embedding_grid, known_size, square_cells


def one_pass_step(
    passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any], truth: Truth, step: Tensor
) -> DistillOutput:
    """Run the masked pass and compute its losses against the truth and the teacher, if any."""
    given = passes.segmenter.given(*args, **kwargs)
    image = text = None
    if "image" in passes.maskers:
        image = _Patches(passes.maskers["image"], given, passes.segmenter.cell, step)
    if "text" in passes.maskers:
        masker, valid = passes.maskers["text"], given.valid()
        first = first_position(len(valid))
        size = (len(valid), valid.shape[1])
        mask, ranks = masker.draw_by(_at_random, size, valid, valid.device, step, first)
        text = (masker.token_mask(mask, None, step, first), ranks)
    with passes.segmenter.masking(image, None if text is None else text[0]):
        main = passes.main(args, kwargs, truth, step)
    masks, relevance, loss = {}, {}, None
    if image is not None:
        masks[NAMES["image"]], relevance[NAMES["image"]] = image.mask, image.relevance
    if text is not None:
        masks[NAMES["text"]], relevance[NAMES["text"]] = text[0].mask, text[1]
    if main.teacher is not None:
        kind = passes.config.confidence
        loss = consistency_loss(main.plain.logits, main.teacher, confidence=kind)
    (name,) = passes.branches
    return passes.total(main, {name: BranchResult(loss, masks, relevance, logits=None)})


def _at_random(noise: Callable[[], Tensor]) -> Tensor:
    return noise()


class _Patches:
    """Draws the mask of patches when they are embedded, which is when their number is known."""

    def __init__(self, masker: TokenMasker, given: Given, cell: int | None, step: Tensor) -> None:
        self.masker, self.size, self.cell, self.step = masker, given.size, cell, step
        self.pictures = given.pictures
        self.drawn: TokenMask | None = None
        self.mask: Tensor
        self.relevance: Tensor

    def __call__(
        self, output: Tensor, positions: tuple[int, ...], given: tuple[int, int] | None
    ) -> tuple[TokenMask, tuple[int, int]]:
        another = self.drawn is not None  # tower, which may see images of a size of its own
        found = given or self.size if another else self.size or given
        size = known_size(found, "image_embedding")
        own = self.masker.masking.cell
        embedded = embedding_grid(positions, size)
        grid = cells(embedded, size, self.cell) if own is None else square_cells(size, own)
        if self.drawn is None:
            batch = len(output) if self.pictures is None else len(self.pictures)
            size, first = (batch, math.prod(grid)), first_position(batch)
            mask, relevance = self.masker.draw_by(
                _at_random, size, None, output.device, self.step, first
            )
            if self.pictures is not None:
                shared = first_of_picture(self.pictures)
                mask, relevance = mask[shared], relevance[shared]
            self.mask, self.relevance = mask, relevance
            self.drawn = self.masker.token_mask(mask, grid)
        rows = None if self.pictures is None else rows_of_pictures(self.pictures, len(output))
        return self.drawn if rows is None else samples_of(self.drawn, rows), embedded
