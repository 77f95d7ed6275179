"""A branch: relevance -> mask -> masked pass -> consistency."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from masksd.config import DistillConfig, MaskingConfig
from masksd.losses import consistency_loss, segmentation_loss
from masksd.masking import keyed_noise, select_tokens
from masksd.relevance import rank_tokens
from masksd.segmenter import Pass, Segmenter
from masksd.tap import TokenMask

NAMES = {"image": "lmvsd", "text": "vmlsd"}
"""The paper's names of the branches, by the modality that is masked."""

# Draws of one step that must not repeat each other, by purpose and modality.
_STREAMS = {
    ("select", "image"): 0,
    ("select", "text"): 1,
    ("rank", "image"): 2,
    ("rank", "text"): 3,
    ("token", "image"): 4,
    ("token", "text"): 5,
}


class BranchOutput(NamedTuple):
    """What a branch adds to a step.

    Attributes:
        loss: consistency with the target, 0-d, not yet weighted.
        mask: bool ``(B, N)``, the tokens that were replaced.
        relevance: the scores ``(B, N)`` that the filter saw.
    """

    loss: Tensor
    mask: Tensor
    relevance: Tensor


class MaskedBranch(nn.Module):
    """One masked self-distillation branch (Sec. III-B) and all that it learns.

    Args:
        modality: ``"image"`` (LMVSD) or ``"text"`` (VMLSD).
        config: the distillation's configuration; ``config.image`` or ``config.text`` is this one's.
        width: channels of the embedding that is masked.
        parts: a neck and a decoder of its own, for ``share_weights=False``.
        shared_space: what relevance ``"auto"`` goes by.

    Attributes:
        token: the learnable mask token, ``(C,)`` or ``(positions, C)``, first drawn from
            N(0, 0.02) by the config's seed.
        weight: the loss weight λ, a 0-d buffer that a trainer may change.
        relevance: who ranks, ``"auto"`` resolved.

    Example:
        >>> MaskedBranch("text", DistillConfig(), width=8).token.shape
        torch.Size([8])
    """

    token: nn.Parameter
    weight: Tensor

    def __init__(
        self,
        modality: str,
        config: DistillConfig,
        width: int,
        parts: dict[str, nn.Module] | None = None,
        shared_space: bool = True,
    ) -> None:
        super().__init__()
        masking, weight = (
            (config.image, config.lambda_image)
            if modality == "image"
            else (config.text, config.lambda_text)
        )
        if masking is None:
            raise ValueError(f"config.{modality} is None: this branch is off")
        self.modality = modality
        self.config = config
        self.masking: MaskingConfig = masking
        self.relevance: str = masking.relevance
        if masking.relevance == "auto":
            without = "prediction" if modality == "image" else "random"
            self.relevance = "dot" if shared_space else without
        rows = masking.positions or 1
        uniform = keyed_noise(
            rows, width, seed=config.seed, step=0, stream=_STREAMS["token", modality]
        )
        normal = torch.special.ndtri(uniform.double() + 2.0**-25) * 0.02
        token = normal if masking.token == "position" else normal[0]
        self.token = nn.Parameter(token.to(torch.get_default_dtype()))
        # Not in the state: a run that resumes goes by its config.
        self.register_buffer("weight", torch.tensor(float(weight)), persistent=False)
        self.parts = nn.ModuleDict(parts or {})

    def forward(
        self,
        segmenter: Segmenter,
        plain: Pass,
        ranking: Pass,
        target: Tensor | None,
        step: Tensor,
        first: int,
    ) -> BranchOutput:
        """Rank, draw, run the masked pass and compare.

        Args:
            segmenter: the model.
            plain: its plain pass.
            ranking: the pass that ranks: the plain one, or its projection.
            target: the truth, for what needs it.
            step: 0-d int64, keys the draw.
            first: global position in the batch of the first sample here.

        Raises:
            ValueError: the truth is needed and missing, or the tokens do not fit.
        """
        mask, relevance = self.draw(ranking, target, step, first)
        token = self._token(mask.shape[1])
        image, text = (
            (TokenMask(mask, token, plain.image.grid), None)
            if self.modality == "image"
            else (None, TokenMask(mask, token))
        )
        with frozen_statistics(segmenter):  # parts of its own are used nowhere else
            logits = segmenter.masked(plain, image, text, **dict(self.parts.items()))
        if self.config.target == "main":
            loss = consistency_loss(logits, plain.logits, self.config.detach_target)
        elif target is None:
            raise ValueError("target='ground_truth' needs the truth: call sd(..., target=masks)")
        else:
            loss = segmentation_loss(logits, target)
        # Where nothing lets the token learn (an encoder under no_grad), it still takes part, as
        # DistributedDataParallel expects of every parameter.
        return BranchOutput(loss + 0.0 * self.token.sum(), mask, relevance)

    @torch.no_grad()
    def draw(
        self, plain: Pass, target: Tensor | None, step: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Rank the tokens and draw those to mask: ``(mask (B, N) bool, relevance (B, N))``."""
        if self.modality == "image":
            valid, tokens = None, plain.image.grid[0] * plain.image.grid[1]
        else:
            valid, tokens = plain.text.valid, plain.text.valid.shape[1]
        noise = partial(
            keyed_noise,
            plain.logits.shape[0],
            tokens,
            seed=self.config.seed,
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
            cast(float, masking.ratio),  # DistillConfig has put a value in
            noise=noise(stream=_STREAMS["select", modality]),
            valid=valid,
            selection=masking.selection,
            rounding=cast(str, masking.rounding),
            count=masking.count,
        )
        return mask, relevance

    def _token(self, length: int) -> Tensor:
        if self.masking.token == "shared":
            return self.token
        positions = self.token.shape[0]
        # Patches sit on a grid, where a prefix of the tokens would be other places.
        if length > positions or (self.modality == "image" and length != positions):
            raise ValueError(
                f"config.{self.modality}.positions is {positions}, but the model has {length} "
                f"tokens of {self.modality}"
            )
        return self.token[:length]

    def extra_repr(self) -> str:
        """Say what is masked, for ``print``."""
        kept = f"{self.masking.selection} {self.masking.top_k:.1%}"
        return f"{self.masking.ratio:.1%} of the {kept} of {self.modality}"


@contextlib.contextmanager
def frozen_statistics(model: object) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are; it normalises by the batch as before.

    A masked pass shows the model pictures and sentences that inference never sees: they must not
    move what BatchNorm will use there.

    Args:
        model: whose BatchNorm layers in training mode are held.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.running_mean.tolist(), int(norm.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    held = [
        layer
        for layer in cast(nn.Module, model).modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.training
        and layer.track_running_stats
    ]
    try:
        for layer in held:
            layer.track_running_stats = False
        yield
    finally:
        for layer in held:
            layer.track_running_stats = True
