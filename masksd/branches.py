"""A masked branch: rank the tokens, draw a mask, run the masked pass, compare with the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.config import DistillConfig
from masksd.embeddings import TokenMask
from masksd.features import first_of_picture
from masksd.losses import consistency_loss
from masksd.masker import TokenMasker, first_position
from masksd.masking_config import MaskingConfig
from masksd.modules import frozen_statistics
from masksd.segmenter import Pass, Segmenter, check_containers
from masksd.truth import Truth

NAMES = {"image": "lmvsd", "text": "vmlsd"}
"""The paper's names of the branches, by the modality that is masked."""

JOINT = "joint"
"""The name of the branch that masks patches and words in one pass."""


def branch_modalities(config: DistillConfig) -> dict[str, tuple[str, ...]]:
    """Return which branches are on, and what each masks.

    Example:
        >>> branch_modalities(DistillConfig())
        {'lmvsd': ('image',), 'vmlsd': ('text',)}
        >>> branch_modalities(DistillConfig(joint=True))
        {'joint': ('image', 'text')}
    """
    on = tuple(modality for modality in NAMES if getattr(config, modality) is not None)
    together = config.joint or (config.one_pass and len(on) > 1)
    return {JOINT: on} if together else {NAMES[modality]: (modality,) for modality in on}


class MainPass(NamedTuple):
    """The plain pass of a step, and what the branches need of it.

    Attributes:
        plain: the pass.
        ranking: the same in the space of the learned projection, where there is one.
        truth: the masks.
        step: 0-d int64, which keys the draws.
        losses: ``"seg"``, ``"align"`` and those against a teacher's features, where there are any.
        teacher: the teacher's logits, where there is one.
    """

    plain: Pass
    ranking: Pass
    truth: Truth
    step: Tensor
    losses: dict[str, Tensor]
    teacher: Tensor | None = None


class BranchResult(NamedTuple):
    """The unweighted loss of a branch, its masks and relevance by the paper's names, its logits."""

    loss: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]
    logits: Tensor


class MaskedBranch(nn.Module):
    """One masked self-distillation branch (Sec. III-B): LMVSD, VMLSD, or both in one pass.

    Args:
        modalities: what it masks: ``("image",)`` (LMVSD), ``("text",)`` (VMLSD), or both.
        config: the distillation's configuration.
        parts: a neck and a decoder of its own, for ``share_weights=False``.

    Attributes:
        weight: the loss weight λ, a 0-d buffer that a trainer may change; the sum of both for a
            joint branch.
        active: whether it runs in the next step; see ``MaskingConfig.every``.
    """

    weight: Tensor

    def __init__(
        self,
        modalities: tuple[str, ...],
        config: DistillConfig,
        parts: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.config = config
        masking: MaskingConfig = getattr(config, modalities[0])  # both agree in a joint branch
        self.every, self.samples = masking.every, masking.samples
        self.active = True
        weights = {"image": config.lambda_image, "text": config.lambda_text}
        # Not in the state: a run that resumes goes by its config.
        self._initial_weight = float(sum(weights[modality] for modality in modalities))
        self.register_buffer("weight", torch.tensor(self._initial_weight), persistent=False)
        self.parts = nn.ModuleDict(parts or {})

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedBranch:
        """Make the weight again when a wrapper built on the meta device becomes real."""
        was_meta = self.weight.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.weight.is_meta:
            self.weight.fill_(self._initial_weight)
        return self

    def forward(
        self, segmenter: Segmenter, maskers: Mapping[str, TokenMasker], main: MainPass
    ) -> BranchResult:
        """Draw the masks, run the masked pass, and compare it with the target."""
        batch = main.plain.logits.shape[0]
        rows, first = self.rows(batch), first_position(batch)
        plain = first_samples(main.plain, rows)
        truth = main.truth.first(rows)
        masks: dict[str, Tensor] = {}
        relevance: dict[str, Tensor] = {}
        replaced: dict[str, TokenMask] = {}
        for modality in self.modalities:
            masker = maskers[modality]
            projected = masker.relevance == "projection"
            ranking = first_samples(main.ranking, rows) if projected else plain
            mask, scores = masker.draw(ranking, truth.target, main.step, first)
            if modality == "image" and plain.pictures is not None:
                shared = first_of_picture(plain.pictures)
                mask, scores = mask[shared], scores[shared]
            masks[NAMES[modality]], relevance[NAMES[modality]] = mask, scores
            replaced[modality] = masker.token_mask(mask, masker.grid(plain), main.step, first)
        with frozen_statistics(segmenter), segmenter.keeping_buffers():
            logits = segmenter.masked(
                plain, replaced.get("image"), replaced.get("text"), **dict(self.parts.items())
            )
        teacher = None if main.teacher is None else main.teacher[:rows]
        loss = self._loss(logits, plain, truth, teacher)
        return BranchResult(loss, masks, relevance, logits.detach())

    def _loss(self, logits: Tensor, plain: Pass, truth: Truth, teacher: Tensor | None) -> Tensor:
        """Return the loss against the target of the config; Dice is for the plain pass alone."""
        config = self.config
        if config.target == "ground_truth":
            loss = truth.loss(logits)
            if loss is None:
                raise ValueError(
                    "target='ground_truth' needs the truth: call sd(..., target=masks)"
                )
            return loss
        target = plain.logits if teacher is None else teacher
        return consistency_loss(logits, target, config.detach_target, confidence=config.confidence)

    def rows(self, batch: int) -> int:
        """Return how many samples of a batch the branch sees, at least one."""
        return max(1, math.ceil(self.samples * batch - 1e-9))

    def extra_repr(self) -> str:
        """Say what is masked and when, for ``print``."""
        return f"{' and '.join(self.modalities)}, every {self.every}, {self.samples:.0%} of a batch"


def first_samples(plain: Pass, rows: int) -> Pass:
    """Return the pass of the first samples alone.

    Cuts every input and every floating or bool feature whose first dimension is the batch. Integer
    features, such as the sizes of maps, may have that length by coincidence and stay whole.
    """
    batch = plain.logits.shape[0]
    if rows == batch:
        return plain

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return leaf[:rows] if whole else leaf

    def cut_feature(leaf: Any) -> Any:
        whole_numbers = isinstance(leaf, Tensor) and not (
            leaf.is_floating_point() or leaf.dtype == torch.bool
        )
        return leaf if whole_numbers else cut(leaf)

    check_containers((plain.image, plain.text), "samples")
    return plain._replace(
        logits=cut(plain.logits),
        image=tree_map(cut_feature, plain.image),
        text=tree_map(cut_feature, plain.text),
        inputs=tree_map(cut, plain.inputs),
        host_output=None,
        neck=cut(plain.neck),
    )
