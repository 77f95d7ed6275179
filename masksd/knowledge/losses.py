"""What a student can be asked to share with its teacher: relations, channels, maps or logits.

The first two follow the abstract of "Channel Attention-Guided Cross-Modal Knowledge Distillation
for Referring Image Segmentation" (arXiv 2604.16806), of which no formula can be had. Each function
says what is the abstract's, whose formula it takes, and what is our reading. The others are the
controls. None has a term of single pixels' features. All compute in at least float32, whatever
autocast says; gradients go to the student alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.losses import averaged, check_logits, foreground, in_full_precision
from masksd.masking.fused import without_autocast

Grid = tuple[int, int]


def relation_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    valid: Tensor,
    grids: tuple[Grid, Grid],
    share: float = 0.5,
) -> Tensor:
    """Match how patches and words relate: the cosines within one model against the other's.

    The abstract's: the "high-order fine-grained correlations between vision and language". Our
    reading: the correlation of patch ``i`` and word ``j`` is the cosine ``a_ij`` of their features,
    a product of two features where pixel-wise distillation matches one (relational distillation,
    RKD, arXiv 1904.05068, matches distances and angles within a batch); the loss is the mean of
    ``(a_ij - b_ij)²`` against the teacher's ``b_ij``. Models of other widths need no projection. On
    other grids, cosines are averaged over the areas of the coarser grid.

    The student "retains part of its independent learning ability": our reading leaves it free where
    the teacher is least sure. Of each word's patches only the ``share`` counts whose cosine is
    furthest from the word's mean over the image, which is what the word singles out.

    Both models give patches ``(B, N, C)`` and words ``(B, L, C)``; only words that are ``valid
    (B, L)`` count. A mean over samples of means over relations; 0 for a sample without a word.
    """
    with without_autocast(student[0].device):
        ours, theirs = cosines(*student, grids[0]), cosines(*teacher, grids[1]).detach()
        ours, theirs = (maps.flatten(2) for maps in on_one_grid(ours, theirs))
        counts = largest((theirs - theirs.mean(-1, keepdim=True)).abs(), share)
        counts = counts & valid[..., None]
        apart = ((ours - theirs) ** 2).masked_fill(~counts, 0.0).sum((1, 2))
        return (apart / counts.sum((1, 2)).clamp(min=1)).mean()


def channel_loss(
    student: Tensor, teacher: Tensor, share: float = 1.0, weighted: bool = False
) -> Tensor:
    """Match how channels relate to each other over the image.

    The abstract's: the "correlations between semantic components represented by each channel",
    guided by channel attention. ICKD's formula (arXiv 2202.03680): ``G = F Fᵀ (C, C)`` with rows of
    length 1, and ``‖G_s - G_t‖² / C`` a sample. It has no trace of the grid.

    Our reading of the guidance: a row counts by the teacher's :func:`channel_attention`, and of the
    "independent learning ability": only the ``share`` of rows with the most attention counts.
    ``Σ_c w_c ‖g_s,c - g_t,c‖² / Σ_c w_c``; unweighted and with a share of 1 it is ICKD's. Both give
    patches ``(B, N, C)`` of one width, on any grids.
    """
    _check_width(student, teacher)
    with without_autocast(student.device):
        ours, theirs = correlations(student), correlations(teacher).detach()
        attention = channel_attention(teacher)
        counts = largest(attention, share).to(attention.dtype)
        weight = counts * attention if weighted else counts
        apart = ((ours - theirs) ** 2).sum(-1)
        return ((weight * apart).sum(-1) / weight.sum(-1)).mean()


def channel_attention(teacher: Tensor) -> Tensor:
    """Say how much each channel attends to the image, ``(B, C)`` with a mean of 1.

    Our reading of "channel attention": squeezed as in SE and CBAM (a mean over space), of absolute
    values as in attention transfer (arXiv 1612.03928), without learned weights:
    ``C · softmax(m / mean(m))`` with ``m_c`` the mean over patches of ``|F_c|``. It does not depend
    on the features' scale.
    """
    squeezed = in_full_precision(teacher).detach().abs().mean(1)
    mean = squeezed.mean(-1, keepdim=True).clamp_min(torch.finfo(squeezed.dtype).tiny)
    return (squeezed / mean).softmax(-1) * squeezed.shape[-1]


def channel_wise_loss(
    student: Tensor, teacher: Tensor, grids: tuple[Grid, Grid], temperature: float = 4.0
) -> Tensor:
    """Match where each channel is active: a control, CWD (arXiv 2011.13256).

    ``τ² / C · Σ_c KL(softmax(T_c / τ) ‖ softmax(S_c / τ))`` a sample, the softmax over patches
    ``(B, N, C)``. On other grids, features are averaged over the areas of the coarser grid.
    """
    _check_width(student, teacher)
    with without_autocast(student.device):
        maps = (
            in_full_precision(local).transpose(1, 2).unflatten(2, grid)
            for local, grid in zip((student, teacher.detach()), grids, strict=True)
        )
        ours, theirs = (
            (each.flatten(2) / temperature).log_softmax(-1) for each in on_one_grid(*maps)
        )
        apart = (theirs.exp() * (theirs - ours)).sum(-1)
        return temperature**2 * apart.mean()


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Match the mask's logits: a control, Hinton's distillation (arXiv 1503.02531).

    ``τ² · KL(p(t / τ) ‖ p(s / τ))`` of background and foreground, a mean over pixels. Logits of
    other sizes are averaged over the areas of the coarser size; either may have two channels.
    """
    check_logits("the student's logits", student)
    check_logits("the teacher's logits", teacher)
    ours, theirs = (
        each / temperature
        for each in on_one_grid(
            foreground(in_full_precision(student)), foreground(in_full_precision(teacher.detach()))
        )
    )
    apart = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    apart = apart + (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return temperature**2 * apart.mean()


def cosines(patches: Tensor, words: Tensor, grid: Grid) -> Tensor:
    """Return the cosine of every word with every patch, as maps ``(B, L, h, w)``."""
    patches, words = (F.normalize(in_full_precision(each), dim=-1) for each in (patches, words))
    return (words @ patches.transpose(1, 2)).unflatten(2, grid)


def correlations(local: Tensor) -> Tensor:
    """Return ``F Fᵀ`` of channels ``F (C, N)``, with rows of length 1, ``(B, C, C)``."""
    local = in_full_precision(local)
    return F.normalize(local.transpose(1, 2) @ local, dim=-1)


def on_one_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average two stacks of maps ``(B, K, h, w)`` over the areas of the coarser grid."""
    (rows, columns), (others, other_columns) = first.shape[-2:], second.shape[-2:]
    grid = (min(rows, others), min(columns, other_columns))
    return averaged(first, grid), averaged(second, grid)


def largest(scores: Tensor, share: float) -> Tensor:
    """Mark the ``share`` of largest scores of each row, at least one; ties in order."""
    count = max(1, math.ceil(share * scores.shape[-1] - 1e-9))
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


def _check_width(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"channels are compared one by one, but the student has {student.shape[-1]} and the "
            f"teacher {teacher.shape[-1]}: give CrossModalDistill(..., example=(images, tokens)), "
            "which learns an embedding of the student's into the teacher's"
        )
