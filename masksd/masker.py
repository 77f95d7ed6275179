"""From a plain pass to the tokens of one modality that are replaced, and what replaces them."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from masksd.config import DistillConfig, MaskingConfig
from masksd.masking import keyed_noise, select_tokens
from masksd.relevance import rank_tokens
from masksd.segmenter import Pass
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


class TokenMasker(nn.Module):
    """Ranks the tokens of a modality, draws those to replace, and holds what replaces them.

    Args:
        modality: ``"image"`` or ``"text"``.
        config: the distillation's configuration; ``config.image`` or ``config.text`` is this one's.
        width: channels of the embedding that is masked.
        shared_space: what relevance ``"auto"`` goes by.

    Attributes:
        token: the learnable mask token, ``(C,)`` or ``(positions, C)``, first drawn from
            N(0, 0.02) by the config's seed.
        relevance: who ranks, ``"auto"`` resolved.

    Raises:
        ValueError: the modality is off in the config.

    Example:
        >>> TokenMasker("text", DistillConfig(), width=8).token.shape
        torch.Size([8])
    """

    token: nn.Parameter

    def __init__(
        self, modality: str, config: DistillConfig, width: int, shared_space: bool = True
    ) -> None:
        super().__init__()
        masking = config.image if modality == "image" else config.text
        if masking is None:
            raise ValueError(f"config.{modality} is None: this modality is not masked")
        self.modality = modality
        self.seed = config.seed
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

    @torch.no_grad()
    def draw(
        self, plain: Pass, target: Tensor | None, step: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """Rank the tokens and draw those to mask.

        Args:
            plain: the pass that ranks.
            target: the truth, for relevance ``"ground_truth"``.
            step: 0-d int64, keys the draw.
            first: global position in the batch of the first sample here.

        Returns:
            The mask, bool ``(B, N)``, and the scores ``(B, N)``.

        Raises:
            ValueError: the truth is needed and missing, or the features do not rank.
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
            cast(float, masking.ratio),  # DistillConfig has put a value in
            noise=noise(stream=_STREAMS["select", modality]),
            valid=valid,
            selection=masking.selection,
            rounding=cast(str, masking.rounding),
            count=masking.count,
        )
        return mask, relevance

    def token_mask(self, mask: Tensor, grid: tuple[int, int] | None) -> TokenMask:
        """Put mask and token together for a masked pass.

        Args:
            mask: bool ``(B, N)``.
            grid: rows and columns of the patches; None for words.

        Raises:
            ValueError: one token a position, and another number of positions.
        """
        length = mask.shape[1]
        if self.token.ndim == 1:
            return TokenMask(mask, self.token, grid)
        positions = self.token.shape[0]
        # Patches sit on a grid, where a prefix of the tokens would be other places.
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
