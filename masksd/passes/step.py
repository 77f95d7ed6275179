"""A training step: the plain pass, the masked branches, the losses, in that order."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from masksd.config import DistillConfig
from masksd.knowledge.teaching import Knowledge
from masksd.losses import check_not_probabilities
from masksd.passes.branches import BranchResult, MainPass, MaskedBranch
from masksd.passes.masker import TokenMasker
from masksd.passes.teacher import Teacher
from masksd.passes.truth import Truth
from masksd.relevance import Projection
from masksd.segmenter import Pass, Segmenter

_NO_LOSS = (
    "this step has no segmentation loss, since the host computes none and no target came: call "
    "sd(..., target=masks), or add out.distill_loss to a loss of your own"
)


class MissingLoss:
    """Stands where a loss would be; false, and any use of it says what is missing."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"MissingLoss({_NO_LOSS})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise RuntimeError(_NO_LOSS)

    __add__ = __radd__ = __mul__ = __rmul__ = __truediv__ = __float__ = _refuse


class DistillOutput(NamedTuple):
    """What a training step returns, the loss first.

    Attributes:
        loss: the whole of Eq. 9, 0-d; a false :class:`MissingLoss` where there is no target and the
            host has no loss of its own: add ``distill_loss`` to yours.
        losses: the terms of Eq. 9, unweighted and 0-d: ``"seg"``, ``"lmvsd"``, ``"vmlsd"``, those
            that this step has; ``"joint"`` instead of the two with ``joint=True``; and ``"align"``
            with relevance ``"projection"``; ``"union"`` where a SAM 3's queries are taught too. A
            :class:`masksd.CrossModalDistill` adds ``"relation"``, ``"channel"`` or ``"logits"``.
        distill_loss: all but ``seg``, each with its weight, 0-d: ``λ1 · lmvsd + λ2 · vmlsd``, and
            what else there is.
        logits: the main branch, ``(B, 1 or 2, H, W)``; with ``one_pass`` the masked pass.
        masks: bool, True where a token was replaced: patches ``"lmvsd"`` ``(B, N)``, words
            ``"vmlsd"`` ``(B, L)``; with ``samples`` below 1, of the first samples.
        relevance: the scores that the filter saw, shaped as ``masks``.
        host_output: what the host returned in that pass.
        masked_logits: those of the masked passes, by branch, detached; with ``samples`` below 1, of
            the first samples.

    With ``low_memory=True`` only ``loss`` can be differentiated; the rest is detached. Printed, it
    shows the losses' values and the shapes of the rest.
    """

    loss: Any
    losses: dict[str, Tensor]
    distill_loss: Tensor
    logits: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]
    host_output: Any
    masked_logits: dict[str, Tensor]

    def __repr__(self) -> str:
        parts = (f"{name}={_short(value)}" for name, value in self._asdict().items())
        return f"DistillOutput({', '.join(parts)})"


def _short(value: Any) -> str:
    """Write a number by its value, another tensor by its shape, anything else by its type."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_short(part)}' for name, part in value.items())}}}"
    if not isinstance(value, Tensor):
        return type(value).__name__
    single = value.ndim == 0 and not value.is_meta
    return f"{value.detach().item():.4g}" if single else str(tuple(value.shape))


class Passes(NamedTuple):
    """The passes of a step; built once, by the wrapper."""

    segmenter: Segmenter
    config: DistillConfig
    maskers: dict[str, TokenMasker]  # by modality
    branches: dict[str, MaskedBranch]  # by name
    projection: Projection | None
    teacher: Teacher | None
    knowledge: Knowledge | None = None

    def run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], truth: Truth, step: Tensor
    ) -> DistillOutput:
        """Run all passes, in one graph; ``args`` and ``kwargs`` are the host's."""
        main = self.main(args, kwargs, truth, step)
        return self.total(main, {name: self.branch(name, main) for name in self.order()})

    def main(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], truth: Truth, step: Tensor
    ) -> MainPass:
        """Run the plain pass, and the teacher's, and compute the losses of the plain one."""
        with self.segmenter.watching_buffers():
            plain = ranking = self.segmenter.plain(*args, **kwargs)
        check_not_probabilities(plain.logits)
        truth = truth if truth.target is not None else truth._replace(target=plain.target)
        ranked_by_truth = any(m.relevance == "ground_truth" for m in self.maskers.values())
        truth.check(len(plain.logits), ranked_by_truth)
        losses: dict[str, Tensor] = {}
        seg = plain.loss
        if seg is None:
            seg = truth.loss(plain.logits, self.config.dice_weight)
        elif truth.labelled is not None:
            raise ValueError(
                "this host computes its own loss, over every sample: name the logits and no loss "
                "in Taps, and pass the masks as sd(..., target=masks, labelled=flags)"
            )
        if seg is not None:
            losses["seg"] = seg
        for name, logits in (plain.also or {}).items():
            loss = truth.loss(logits, self.config.dice_weight)
            if loss is not None:
                losses[name] = loss
        if self.projection is not None:
            ranking = self.projection(plain)
            losses["align"] = self.projection.loss(ranking, truth)
        if self.knowledge is not None:
            losses.update(self.knowledge(plain, args, kwargs))
        teacher = None if self.teacher is None else self.teacher.logits(args, kwargs)
        return MainPass(plain, ranking, truth, step, losses, teacher)

    def activate(self, step: int) -> None:
        """Switch on the branches that run in a step."""
        for branch in self.branches.values():
            branch.active = step % branch.every == 0

    def skips_steps(self) -> bool:
        """Whether any branch skips some steps (``every`` above 1)."""
        return any(branch.every > 1 for branch in self.branches.values())

    def order(self) -> list[str]:
        """Name the active branches in the order they run.

        Those that mask the image come last, because low memory frees the image activations of the
        plain pass before them.
        """
        active = [name for name, branch in self.branches.items() if branch.active]
        return sorted(active, key=lambda name: "image" in self.branches[name].modalities)

    def branch(self, name: str, main: MainPass) -> BranchResult:
        """Run one branch."""
        return self.branches[name](self.segmenter, self.maskers, main)

    def zero_of_unused(self, main: MainPass) -> Tensor:
        """Return a zero of mask tokens and resting branches: DistributedDataParallel needs them."""
        idle = [masker.token for masker in self.maskers.values() if masker.token is not None]
        for branch in self.branches.values():
            idle += [] if branch.active else list(branch.parameters())
        return sum((0.0 * p.sum() for p in idle), main.plain.logits.new_zeros(()))

    def with_others(self, main: MainPass, distill_loss: Tensor) -> Tensor:
        """Add the plain pass's losses but for the segmentation loss, each with its weight."""
        weights = {} if self.knowledge is None else self.knowledge.weights
        for name, loss in main.losses.items():
            if name != "seg":
                distill_loss = distill_loss + weights.get(name, 1.0) * loss
        return distill_loss

    def with_seg(self, main: MainPass, distill_loss: Tensor) -> Tensor:
        """Add the segmentation loss of the plain pass, with its weight, to the branches' losses."""
        weight, seg = self.config.lambda_main, main.losses["seg"]
        if not self.learns_plainly(main.plain):
            return distill_loss
        return (seg if weight == 1.0 else weight * seg) + distill_loss

    def learns_plainly(self, plain: Pass) -> bool:
        """Whether the loss of the plain pass takes part.

        A weight of 0 leaves it out, so that no backward runs for nothing, where every parameter of
        the host gets its gradient from a masked pass (DistributedDataParallel needs each to). A
        loss of the host's own may have parameters that the logits do not have.
        """
        config = self.config
        if config.lambda_main != 0.0:
            return True
        own_loss = plain.loss is not None or "loss" in self.segmenter.sources
        masked = bool(self.order()) and config.share_weights and not config.one_pass
        return own_loss or not masked

    def total(
        self, main: MainPass, results: dict[str, BranchResult], idle: Tensor | None = None
    ) -> DistillOutput:
        """Add up the plain pass and the branches' results (Eq. 9)."""
        losses = dict(main.losses)
        masks: dict[str, Tensor] = {}
        relevance: dict[str, Tensor] = {}
        distill_loss = self.with_others(main, self.zero_of_unused(main) if idle is None else idle)
        for name, branch in self.branches.items():
            if name not in results:
                continue
            result = results[name]
            masks.update(result.masks)  # torch 2.7 does not compile |=
            relevance.update(result.relevance)
            if result.loss is not None:
                losses[name] = result.loss
                distill_loss = distill_loss + branch.weight * result.loss
        loss = self.with_seg(main, distill_loss) if "seg" in losses else MissingLoss()
        plain = main.plain
        masked = {name: each.logits for name, each in results.items() if each.logits is not None}
        return DistillOutput(
            loss, losses, distill_loss, plain.logits, masks, relevance, plain.host_output, masked
        )
