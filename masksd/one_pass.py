"""A step of one pass: patches and words are masked at random in the only pass there is.

Data augmentation in the space of tokens, at the host's own cost. It is what two-pass methods have
to beat: in MaskRIS (arXiv 2411.19067, CARIS on RefCOCO val) masking the only pass gave 1.04 of the
1.82 points of oIoU that the whole method gave.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from masksd.branches import NAMES
from masksd.grids import cells, embedding_grid, square_cells
from masksd.losses import consistency_loss
from masksd.masker import TokenMasker, first_position
from masksd.segmenter import Given
from masksd.step import DistillOutput, Passes
from masksd.tap import TokenMask
from masksd.truth import Truth


def one_pass_step(
    passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any], truth: Truth, step: Tensor
) -> DistillOutput:
    """Run the masked pass and compute its losses against the truth and the teacher, if any.

    The output's ``logits`` and ``host_output`` are those of the masked pass.
    """
    given = passes.segmenter.given(*args, **kwargs)
    first = first_position(len(given.images))
    image = text = None
    if "image" in passes.maskers:
        image = _Patches(passes.maskers["image"], given, passes.segmenter.cell, step, first)
    if "text" in passes.maskers:
        masker, valid = passes.maskers["text"], given.valid()
        mask, ranks = masker.draw_blindly(
            (len(valid), valid.shape[1]), valid, valid.device, step, first
        )
        text = (masker.token_mask(mask, None, step, first), ranks)
    with passes.segmenter.masking(image, None if text is None else text[0]):
        main = passes.main(args, kwargs, truth, step)
    drawn = {} if image is None else {NAMES["image"]: (image.mask, image.relevance)}
    if text is not None:
        drawn[NAMES["text"]] = (text[0].mask, text[1])
    config, (name,) = passes.config, passes.branches
    losses = {}
    if main.teacher is not None:
        kind = config.confidence
        losses[name] = consistency_loss(main.plain.logits, main.teacher, confidence=kind)
    return passes.total(
        main,
        losses,
        {branch: mask for branch, (mask, _) in drawn.items()},
        {branch: relevance for branch, (_, relevance) in drawn.items()},
    )


class _Patches:
    """Draws the mask of patches when they are embedded, which is when their number is known."""

    def __init__(
        self, masker: TokenMasker, given: Given, cell: int | None, step: Tensor, first: int
    ) -> None:
        self.masker, self.images, self.cell = masker, given.images, cell
        self.step, self.first = step, first
        self.mask: Tensor
        self.relevance: Tensor

    def __call__(self, batch: int, positions: tuple[int, ...]) -> tuple[TokenMask, tuple[int, int]]:
        embedded = embedding_grid(positions, self.images)
        (height, width), own = self.images.shape[-2:], self.masker.masking.cell
        grid = cells(embedded, self.images, self.cell)
        if own is not None:
            grid = square_cells((height, width), own)
        self.mask, self.relevance = self.masker.draw_blindly(
            (batch, math.prod(grid)), None, self.images.device, self.step, self.first
        )
        return self.masker.token_mask(self.mask, grid), embedded
