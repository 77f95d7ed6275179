"""What ranks and draws the tokens of a modality, and holds what replaces them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksd.config import DistillConfig
from masksd.masking import keyed_noise, select_tokens
from masksd.masking_config import MaskingConfig
from masksd.relevance import rank_tokens
from masksd.segmenter import Pass
from masksd.tap import TokenMask

# Draws of one step that must be independent, by purpose and modality.
_STREAMS = {
    ("select", "image"): 0,
    ("select", "text"): 1,
    ("rank", "image"): 2,
    ("rank", "text"): 3,
    ("token", "image"): 4,
    ("token", "text"): 5,
}


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
            if config.one_pass:
                self.relevance = "random"
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
        image = self.modality == "image"
        valid = None if image else plain.text.valid
        tokens = math.prod(plain.image.grid) if image else plain.text.valid.shape[1]
        size = (plain.logits.shape[0], tokens)

        def rank(noise: Callable[[], Tensor]) -> Tensor:
            return rank_tokens(self.relevance, self.modality, plain, target, noise)

        return self._draw(size, valid, plain.logits.device, step, first, rank)

    @torch.no_grad()
    def draw_blindly(
        self,
        size: tuple[int, int],
        valid: Tensor | None,
        device: torch.device,
        step: Tensor,
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """Do so at random, for a batch of ``size`` (B, N) that no model has seen yet."""
        return self._draw(size, valid, device, step, first, lambda noise: noise())

    def _draw(
        self,
        size: tuple[int, int],
        valid: Tensor | None,
        device: torch.device,
        step: Tensor,
        first: int,
        rank: Callable[[Callable[[], Tensor]], Tensor],
    ) -> tuple[Tensor, Tensor]:
        noise = partial(keyed_noise, *size, seed=self.seed, step=step, first=first, device=device)
        masking = self.masking
        relevance = rank(partial(noise, stream=_STREAMS["rank", self.modality]))
        mask = select_tokens(
            relevance,
            masking.top_k,
            cast(float, masking.ratio),  # DistillConfig has filled it in
            noise=noise(stream=_STREAMS["select", self.modality]),
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


def first_position(batch: int) -> int:
    """Global position of this process's first sample: each process has an equal share."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * batch
    return 0
