"""A masked branch: rank the tokens, draw a mask, run the masked pass, compare with the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.config import DistillConfig, MaskingConfig
from masksd.losses import consistency_loss
from masksd.masking import keyed_noise, select_tokens
from masksd.modules import frozen_statistics
from masksd.relevance import rank_tokens
from masksd.segmenter import Pass, Segmenter, check_containers
from masksd.tap import TokenMask
from masksd.truth import Truth

NAMES = {"image": "lmvsd", "text": "vmlsd"}
"""The paper's names of the branches, by the modality that is masked."""

JOINT = "joint"
"""The name of the branch that masks patches and words in one pass."""

# Draws of one step that must be independent, by purpose and modality.
_STREAMS = {
    ("select", "image"): 0,
    ("select", "text"): 1,
    ("rank", "image"): 2,
    ("rank", "text"): 3,
    ("token", "image"): 4,
    ("token", "text"): 5,
}


def branch_modalities(config: DistillConfig) -> dict[str, tuple[str, ...]]:
    """Return which branches are on, and what each masks.

    Example:
        >>> branch_modalities(DistillConfig())
        {'lmvsd': ('image',), 'vmlsd': ('text',)}
        >>> branch_modalities(DistillConfig(joint=True))
        {'joint': ('image', 'text')}
    """
    on = tuple(modality for modality in NAMES if getattr(config, modality) is not None)
    return {JOINT: on} if config.joint else {NAMES[modality]: (modality,) for modality in on}


class MainPass(NamedTuple):
    """The plain pass of a step, and what the branches need of it.

    Attributes:
        plain: the pass.
        ranking: the same in the space of the learned projection, where there is one.
        truth: the masks.
        step: 0-d int64, which keys the draws.
        losses: ``"seg"`` and ``"align"``, where there are any.
        teacher: the teacher's logits, where there is one.
    """

    plain: Pass
    ranking: Pass
    truth: Truth
    step: Tensor
    losses: dict[str, Tensor]
    teacher: Tensor | None = None


class BranchResult(NamedTuple):
    """The unweighted loss of a branch, and its masks and relevance by the paper's names."""

    loss: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]


class TokenMasker(nn.Module):
    """Ranks the tokens of a modality, draws those to replace, and holds what replaces them.

    Attributes:
        token: the learnable mask token, ``(C,)`` or ``(positions, C)``, drawn from N(0, 0.02) by
            the config's seed.
        relevance: the kind of relevance that ranks, with ``"auto"`` resolved.
    """

    token: nn.Parameter

    def __init__(
        self, modality: str, config: DistillConfig, width: int, shared_space: bool = True
    ) -> None:
        super().__init__()
        self.modality = modality
        self.seed = config.seed
        self.masking: MaskingConfig = getattr(config, modality)
        self.relevance: str = self.masking.relevance
        if self.relevance == "auto":
            otherwise = "prediction" if modality == "image" else "random"
            self.relevance = "dot" if shared_space else otherwise
        self.token = nn.Parameter(self._initial_token(width).to(torch.get_default_dtype()))

    def _initial_token(self, width: int) -> Tensor:
        rows, stream = self.masking.positions or 1, _STREAMS["token", self.modality]
        uniform = keyed_noise(rows, width, seed=self.seed, step=0, stream=stream)
        normal = torch.special.ndtri(uniform.double() + 2.0**-25) * 0.02
        return normal if self.masking.token == "position" else normal[0]

    def _apply(self, fn: Any, recurse: bool = True) -> TokenMasker:
        """Draw the token again when a wrapper built on the meta device becomes real."""
        was_meta = self.token.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.token.is_meta:
            with torch.no_grad():
                self.token.copy_(self._initial_token(self.token.shape[-1]))
        return self

    @torch.no_grad()
    def draw(
        self, plain: Pass, target: Tensor | None, step: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return the mask and the relevance that it was drawn by, both ``(B, N)``.

        ``first`` is the global position in the batch of the first sample here.
        """
        if self.modality == "image":
            valid, tokens = None, plain.image.grid[0] * plain.image.grid[1]
        else:
            valid, tokens = plain.text.valid, plain.text.valid.shape[1]
        noise = partial(
            keyed_noise,
            plain.logits.shape[0],
            tokens,
            seed=self.seed,
            step=step,
            first=first,
            device=plain.logits.device,
        )
        masking, modality = self.masking, self.modality
        rank_noise = partial(noise, stream=_STREAMS["rank", modality])
        relevance = rank_tokens(self.relevance, modality, plain, target, rank_noise)
        mask = select_tokens(
            relevance,
            masking.top_k,
            cast(float, masking.ratio),  # DistillConfig has filled it in
            noise=noise(stream=_STREAMS["select", modality]),
            valid=valid,
            selection=masking.selection,
            rounding=cast(str, masking.rounding),
            count=masking.count,
        )
        return mask, relevance

    def token_mask(self, mask: Tensor, grid: tuple[int, int] | None) -> TokenMask:
        """Join a mask ``(B, N)`` and the token; ``grid`` is that of the patches."""
        length = mask.shape[1]
        if self.token.ndim == 1:
            return TokenMask(mask, self.token, grid)
        positions = self.token.shape[0]
        # The first tokens of a larger grid would lie elsewhere on a smaller one.
        if length > positions or (self.modality == "image" and length != positions):
            raise ValueError(
                f"config.{self.modality}.positions is {positions}, but the model has {length} "
                f"tokens of {self.modality}"
            )
        return TokenMask(mask, self.token[:length], grid)

    def extra_repr(self) -> str:
        """Say what is masked, for ``print``."""
        kept = f"{self.masking.selection} {self.masking.top_k:.1%}"
        return f"{self.masking.ratio:.1%} of the {kept} of {self.modality}"


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
        rows, first = self.rows(batch), _first_position(batch)
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
            masks[NAMES[modality]], relevance[NAMES[modality]] = mask, scores
            grid = plain.image.grid if modality == "image" else None
            replaced[modality] = masker.token_mask(mask, grid)
        with frozen_statistics(segmenter), segmenter.keeping_buffers():
            logits = segmenter.masked(
                plain, replaced.get("image"), replaced.get("text"), **dict(self.parts.items())
            )
        teacher = None if main.teacher is None else main.teacher[:rows]
        return BranchResult(self._loss(logits, plain, truth, teacher), masks, relevance)

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


def _first_position(batch: int) -> int:
    """Global position of this process's first sample: each process has an equal share."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * batch
    return 0


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
    )
