"""What is known of a batch: its masks, and which samples have one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masksd.losses import segmentation_loss, with_channel


class Truth(NamedTuple):
    """The masks of a batch, of which some may be missing."""

    target: Tensor | None  # (B, h, w) or (B, 1, h, w) in [0, 1]
    labelled: Tensor | None = None  # bool (B,), True where the mask is the truth; None: all are

    def check(self, batch: int, ranked_by_truth: bool) -> None:
        """Raise a ``ValueError`` that says what is wrong with it for ``batch`` samples."""
        if self.target is not None:
            with_channel(self.target, batch)  # for its errors alone
        if self.labelled is None:
            return
        flags = self.labelled
        if not isinstance(flags, Tensor) or flags.dtype != torch.bool or flags.shape != (batch,):
            came = f"a {type(flags).__name__}"
            if isinstance(flags, Tensor):
                came = f"{flags.dtype} {tuple(flags.shape)}"
            raise ValueError(f"labelled must be a bool tensor (B,) with B={batch}, got {came}")
        if self.target is None:
            raise ValueError(
                "labelled says which samples of target are the truth: call sd(..., target=masks, "
                "labelled=flags); masks of the others may be 0"
            )
        if ranked_by_truth:
            raise ValueError(
                "relevance 'ground_truth' ranks by masks that unlabelled samples do not have: use "
                "another relevance, or leave labelled out"
            )

    def first(self, rows: int) -> Truth:
        """Return that of the first samples."""
        return Truth(*(None if each is None else each[:rows] for each in self))

    def loss(self, logits: Tensor, dice_weight: float = 0.0) -> Tensor | None:
        """Return the segmentation loss of the labelled samples, or None without any mask."""
        if self.target is None:
            return None
        return segmentation_loss(logits, self.target, dice_weight, weights=self.weights(logits))

    def weights(self, like: Tensor) -> Tensor | None:
        """Weigh samples so that a mean over the batch is one over the labelled samples, ``(B,)``.

        Over several processes, a mean of their means is one over the labelled samples of all; all
        of them must ask, or none. Without gradients, as in a preview, each process is on its own.
        Without any labelled sample, every weight is 0.
        """
        if self.labelled is None:
            return None
        seen = self.labelled.to(torch.promote_types(like.dtype, torch.float32))
        counts = torch.stack([seen.sum(), torch.ones_like(seen).sum()])
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together and torch.is_grad_enabled():
            torch.distributed.all_reduce(counts)
        return seen * (counts[1] / counts[0].clamp(min=1.0))
