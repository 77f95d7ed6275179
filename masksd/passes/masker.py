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
from masksd.relevance import on_grid, rank_tokens
from masksd.segmenter import Pass
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.grids import square_cells

# Draws of one step that must be independent, by purpose and modality.
_STREAMS = {
    ("select", "image"): 0,
    ("select", "text"): 1,
    ("rank", "image"): 2,
    ("rank", "text"): 3,
    ("token", "image"): 4,
    ("token", "text"): 5,
    ("choice", "text"): 6,
    ("map", "image"): 7,
}


class TokenMasker(nn.Module):
    """Ranks the tokens of a modality, draws those to replace, and holds what replaces them."""

    token: nn.Parameter | None  # (C,) or (positions, C); None where masking zeroes the input

    def __init__(
        self, modality: str, config: DistillConfig, width: int, shared_space: bool = True
    ) -> None:
        super().__init__()
        self.modality = modality
        self.seed = config.seed
        self.masking: MaskingConfig = getattr(config, modality)
        self.relevance: str = self.masking.relevance
        self.shared_space = shared_space
        if self.relevance == "auto":
            otherwise = "prediction" if modality == "image" and not config.one_pass else "random"
            self.relevance = "dot" if shared_space and not config.one_pass else otherwise
        self.token = None
        if self.masking.token != "zero":
            self.token = nn.Parameter(self._initial_token(width).to(torch.get_default_dtype()))

    def _initial_token(self, width: int) -> Tensor:
        """Draw from N(0, 0.02) by the config's seed."""
        rows, stream = self.masking.positions or 1, _STREAMS["token", self.modality]
        uniform = keyed_noise(rows, width, seed=self.seed, step=0, stream=stream)
        normal = torch.special.ndtri(uniform.double() + 2.0**-25) * 0.02
        return normal if self.masking.token == "position" else normal[0]

    def _apply(self, fn: Any, recurse: bool = True) -> TokenMasker:
        """Draw the token again when a wrapper built on the meta device becomes real."""
        was_meta = self.token is not None and self.token.is_meta
        super()._apply(fn, recurse)
        if self.token is not None and was_meta and not self.token.is_meta:
            with torch.no_grad():
                self.token.copy_(self._initial_token(self.token.shape[-1]))
        return self

    @torch.no_grad()
    def draw(
        self, plain: Pass, target: Tensor | None, step: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return mask and relevance, ``(B, N)``; ``first`` is the first sample's global place."""
        grid, device = self.grid(plain), plain.logits.device
        tokens = math.prod(grid) if grid else plain.text.valid.shape[1]
        ranking = on_grid(plain, grid) if grid else plain
        word_map = partial(self._word_map, device=device)

        def rank(noise: Callable[[], Tensor]) -> Tensor:
            return rank_tokens(self.relevance, self.modality, ranking, target, noise, word_map)

        size, valid = (plain.logits.shape[0], tokens), None if grid else plain.text.valid
        return self.draw_by(rank, size, valid, device, step, first)

    def grid(self, plain: Pass) -> tuple[int, int] | None:
        """Return rows and columns of the patches or cells that are drawn; None for words."""
        if self.modality == "text" or self.masking.cell is None:
            return None if self.modality == "text" else plain.image.grid
        if plain.size is None:
            raise ValueError(
                f"image.cell={self.masking.cell} needs the images' height and width: return "
                "masksd.Pass(..., size=(H, W)) from the plain pass of your segmenter"
            )
        return square_cells(plain.size, self.masking.cell)

    def _word_map(self, words: int, patches: int, device: torch.device) -> Tensor | None:
        """Draw a linear map as torch initialises one, the same at every step and on every rank.

        It is in no state, since the seed says all of it. None where the space is shared already.
        """
        if self.shared_space and words == patches:
            return None
        stream = _STREAMS["map", "image"]
        uniform = keyed_noise(
            patches, words + 1, seed=self.seed, step=0, stream=stream, device=device
        )
        return (2 * uniform - 1) / words**0.5

    @torch.no_grad()
    def draw_by(
        self,
        rank: Callable[[Callable[[], Tensor]], Tensor],
        size: tuple[int, int],
        valid: Tensor | None,
        device: torch.device,
        step: Tensor,
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """Draw a mask of ``size`` (B, N) by the scores that ``rank`` gives; it may use noise."""
        noise = partial(keyed_noise, *size, seed=self.seed, step=step, first=first, device=device)
        masking = self.masking
        relevance = rank(partial(noise, stream=_STREAMS["rank", self.modality]))
        if masking.threshold is not None:
            low = relevance < masking.threshold
            valid = low if valid is None else valid & low
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

    def token_mask(
        self, mask: Tensor, grid: tuple[int, int] | None, step: Tensor | None = None, first: int = 0
    ) -> TokenMask:
        """Join a mask ``(B, N)`` and what replaces; without a step, the token replaces all."""
        length = mask.shape[1]
        if self.token is None:
            nothing = torch.zeros(1, device=mask.device)
            return TokenMask(mask, nothing, grid, zero_input=True)
        if self.masking.token == "vocabulary" and step is not None:
            stream, size = _STREAMS["choice", "text"], (len(mask), length)
            choice = keyed_noise(
                *size, seed=self.seed, step=step, first=first, stream=stream, device=mask.device
            )
            return TokenMask(mask, self.token, grid, choice)
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


def first_position(batch: int) -> int:
    """Global position of this process's first sample: each process has an equal share."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * batch
    return 0
