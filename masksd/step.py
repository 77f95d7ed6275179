"""A step: one plain pass, the masked branches, the losses, in that order."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from masksd.branches import MaskedBranch, first_samples
from masksd.config import DistillConfig
from masksd.losses import segmentation_loss
from masksd.masker import NAMES, TokenMasker
from masksd.relevance import Projection
from masksd.segmenter import Pass, Segmenter


class DistillOutput(NamedTuple):
    """What a training step returns, the loss first.

    Attributes:
        loss: the whole of Eq. 9, 0-d; None where there is no target and the host has no loss of its
            own: add ``distill_loss`` to yours.
        losses: the terms of Eq. 9, unweighted and 0-d: ``"seg"``, ``"lmvsd"``, ``"vmlsd"``, those
            that there are in this step; ``"joint"`` instead of the two with ``joint=True``; and
            ``"align"`` with relevance ``"projection"``.
        distill_loss: ``λ1 · lmvsd + λ2 · vmlsd``, and ``align`` where there is one, 0-d.
        logits: the main branch, ``(B, 1 or 2, H, W)``.
        masks: bool, the tokens that were replaced: patches ``"lmvsd"`` ``(B, N)``, words
            ``"vmlsd"`` ``(B, L)``; with ``samples`` below 1, of the first samples.
        relevance: the scores that the filter saw, as ``masks``.
        host_output: what the host returned in its plain pass.

    With ``low_memory=True`` only ``loss`` can be differentiated; the rest is detached.
    """

    loss: Tensor | None
    losses: dict[str, Tensor]
    distill_loss: Tensor
    logits: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]
    host_output: Any


class MainPass(NamedTuple):
    """The plain pass of a step: what ranks, the truth, its losses, and a 0 of idle parameters."""

    plain: Pass
    ranking: Pass
    target: Tensor | None
    losses: dict[str, Tensor]
    nothing: Tensor


class BranchResult(NamedTuple):
    """A branch of a step: its loss, not weighted, and masks and scores by the paper's names."""

    loss: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]


class Step(NamedTuple):
    """All that takes part in a step.

    Attributes:
        segmenter: the model.
        config: the method's choices.
        maskers: by modality.
        branches: by name.
        projection: what ranks with relevance ``"projection"``.
        number: 0-d int64, the steps so far.
    """

    segmenter: Segmenter
    config: DistillConfig
    maskers: dict[str, TokenMasker]
    branches: dict[str, MaskedBranch]
    projection: Projection | None
    number: Tensor

    def run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Tensor | None
    ) -> DistillOutput:
        """Run the passes, all in one graph.

        Args:
            args: of the host.
            kwargs: of the host.
            target: the truth.
        """
        main = self.main(args, kwargs, target)
        results = {name: self.branch(name, main) for name in self.order()}
        return self.gather(main, results)

    def main(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Tensor | None
    ) -> MainPass:
        """Run the plain pass and its losses."""
        plain = ranking = self.segmenter.plain(*args, **kwargs)
        target = plain.target if target is None else target
        losses: dict[str, Tensor] = {}
        if plain.loss is not None:
            losses["seg"] = plain.loss
        elif target is not None:
            losses["seg"] = segmentation_loss(plain.logits, target, self.config.dice_weight)
        if self.projection is not None:
            if target is None:
                raise ValueError(
                    "relevance 'projection' needs a target: call sd(..., target=masks)"
                )
            ranking = self.projection(plain)
            losses["align"] = self.projection.loss(ranking, target)
        # Where nothing lets a token or a sleeping branch learn, it still takes part, as
        # DistributedDataParallel expects of every parameter.
        idle = [masker.token for masker in self.maskers.values()]
        for branch in self.branches.values():
            idle += [] if branch.active else list(branch.parameters())
        nothing = sum((0.0 * p.sum() for p in idle), plain.logits.new_zeros(()))
        return MainPass(plain, ranking, target, losses, nothing)

    def branch(self, name: str, main: MainPass) -> BranchResult:
        """Draw the masks of a branch and run it."""
        branch = self.branches[name]
        batch = main.plain.logits.shape[0]
        rows, first = branch.rows(batch), _first_position(batch)
        plain = first_samples(main.plain, rows)
        target = None if main.target is None else main.target[:rows]
        masks: dict[str, Tensor] = {}
        relevance: dict[str, Tensor] = {}
        hidden = {}
        for modality in branch.modalities:
            masker = self.maskers[modality]
            projected = masker.relevance == "projection"
            ranking = first_samples(main.ranking, rows) if projected else plain
            mask, scores = masker.draw(ranking, target, self.number, first)
            masks[NAMES[modality]], relevance[NAMES[modality]] = mask, scores
            grid = plain.image.grid if modality == "image" else None
            hidden[modality] = masker.token_mask(mask, grid)
        return BranchResult(branch(self.segmenter, plain, hidden, target), masks, relevance)

    def order(self) -> list[str]:
        """Name the branches of this step in the order that they run in: pictures are masked last.

        With low memory the picture's activations can go before that.
        """
        active = {n: b for n, b in self.branches.items() if b.active}
        return sorted(active, key=lambda name: "image" in active[name].modalities)

    def gather(self, main: MainPass, results: dict[str, BranchResult]) -> DistillOutput:
        """Add everything up (Eq. 9)."""
        losses = dict(main.losses)
        masks: dict[str, Tensor] = {}
        relevance: dict[str, Tensor] = {}
        distill_loss = main.nothing
        if "align" in losses:
            distill_loss = distill_loss + losses["align"]
        for name, branch in self.branches.items():
            if name in results:
                losses[name] = results[name].loss
                distill_loss = distill_loss + branch.weight * losses[name]
                masks |= results[name].masks
                relevance |= results[name].relevance
        loss = losses["seg"] + distill_loss if "seg" in losses else None
        plain = main.plain
        return DistillOutput(
            loss, losses, distill_loss, plain.logits, masks, relevance, plain.host_output
        )


def _first_position(batch: int) -> int:
    """The global position of this process's first sample, as batches are split over processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * batch
    return 0
