"""A masked branch: rank the tokens, draw a mask, run the masked pass, compare with the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.config import DistillConfig
from masksd.features import first_of_picture
from masksd.losses import consistency_loss
from masksd.masking_config import MaskingConfig
from masksd.passes.masker import TokenMasker, first_position
from masksd.passes.truth import Truth
from masksd.segmenter import Pass, Segmenter, check_containers
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.modules import frozen_statistics

NAMES = {"image": "lmvsd", "text": "vmlsd"}
"""The paper's names of the branches, by the modality that is masked."""

JOINT = "joint"
"""The name of the branch that masks patches and words in one pass."""


def branch_modalities(config: DistillConfig) -> dict[str, tuple[str, ...]]:
    """Return which branches are on, and what each masks, as ``{"lmvsd": ("image",)}``."""
    on = tuple(modality for modality in NAMES if getattr(config, modality) is not None)
    together = config.joint or (config.one_pass and len(on) > 1)
    return {JOINT: on} if together else {NAMES[modality]: (modality,) for modality in on}


class MainPass(NamedTuple):
    """The plain pass of a step, and what the branches need of it."""

    plain: Pass
    ranking: Pass  # in the space of the learned projection, where there is one
    truth: Truth
    step: Tensor  # 0-d int64, which keys the draws
    losses: dict[str, Tensor]  # all but those of branches
    teacher: Tensor | None = None  # its logits


class BranchResult(NamedTuple):
    """What a branch gives; in one pass there may be no loss, and no logits but the main ones."""

    loss: Tensor | None  # unweighted
    masks: dict[str, Tensor]  # by the paper's names, as relevance
    relevance: dict[str, Tensor]
    logits: Tensor | None


class MaskedBranch(nn.Module):
    """One masked self-distillation branch (Sec. III-B): LMVSD, VMLSD, or both in one pass."""

    weight: Tensor  # λ, 0-d, which a trainer may change

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
        self.active = True  # in the next step
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
        config = self.config
        if config.target == "ground_truth":
            loss = truth.loss(logits)  # Dice is for the plain pass alone
            if loss is None:
                raise ValueError(
                    "target='ground_truth' needs the truth: call sd(..., target=masks)"
                )
        else:
            target = plain.logits if main.teacher is None else main.teacher[:rows]
            loss = consistency_loss(
                logits, target, config.detach_target, confidence=config.confidence
            )
        return BranchResult(loss, masks, relevance, logits.detach())

    def rows(self, batch: int) -> int:
        """Return how many samples of a batch the branch sees, at least one."""
        return max(1, math.ceil(self.samples * batch - 1e-9))


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
        features = isinstance(leaf, Tensor) and (
            leaf.is_floating_point() or leaf.dtype == torch.bool
        )
        return cut(leaf) if features else leaf

    check_containers((plain.image, plain.text), "samples")
    return plain._replace(
        logits=cut(plain.logits),
        image=tree_map(cut_feature, plain.image),
        text=tree_map(cut_feature, plain.text),
        inputs=tree_map(cut, plain.inputs),
        host_output=None,
        neck=cut(plain.neck),
    )
