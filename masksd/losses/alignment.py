"""Text-to-pixel alignment, the contrastive loss of CRIS (CVPR 2022, Eq. 8 to 10)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from masksd.losses.shapes import in_full_precision, with_channel


def alignment_loss(
    patches: Tensor, sentence: Tensor, target: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Pull the sentence's vector to the patches it refers to, and away from the others.

    ``-log σ(z_t · z_v)`` for patches of the referred object and ``-log(1 - σ(z_t · z_v))`` for the
    rest; a patch that the object covers in part counts with that share.

    Args:
        patches: ``(B, N, C)``.
        sentence: ``(B, C)``.
        target: truth in [0, 1], ``(B, h, w)`` or ``(B, 1, h, w)``.
        grid: rows and columns of the patches.

    Returns:
        0-d loss, a mean over patches, at least float32.

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> import torch
        >>> patches = torch.tensor([[[9.0], [-9.0]]])
        >>> truth = torch.tensor([[[1.0, 0.0]]])
        >>> alignment_loss(patches, torch.ones(1, 1), truth, grid=(1, 2)) < 0.001
        tensor(True)
    """
    scores = (in_full_precision(patches) * in_full_precision(sentence)[:, None]).sum(-1)
    truth = with_channel(target, patches.shape[0]).to(scores.dtype)
    share = F.adaptive_avg_pool2d(truth, grid).flatten(1)
    return F.binary_cross_entropy_with_logits(scores, share)
