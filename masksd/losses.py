"""The losses of Eq. 9, the Dice and class-weighted terms beside it, and CRIS's alignment loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["alignment_loss", "class_weighted_loss", "consistency_loss", "segmentation_loss"]


def segmentation_loss(
    logits: Tensor, target: Tensor, dice_weight: float = 0.0, *, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of a mask against the truth (``Loss_seg`` of Eq. 9), plus Dice.

    The Dice loss of a sample is ``1 - (2 Σ p y + 1) / (Σ p + Σ y + 1)`` (Milletari et al., V-Net,
    with linear sums and a smoothing of one); both terms are means over the batch.

    Args:
        logits: ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of background and
            foreground before the softmax; the loss of two channels is their cross-entropy.
        target: truth in [0, 1], bool, integer or floating, ``(B, h, w)`` or ``(B, 1, h, w)`` at any
            size: it is resized to the logits by nearest neighbour.
        dice_weight: weight of the Dice term, 0 or more.
        weights: of the samples, ``(B,)``, 0 or more, with a mean of 1; None weighs all alike.

    Returns:
        0-d loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that disagree, or a target outside [0, 1].

    Example:
        >>> logits = torch.tensor([[[[9.0, -9.0]]]])
        >>> segmentation_loss(logits, torch.tensor([[[1, 0]]])) < 0.001
        tensor(True)
    """
    check_logits("logits", logits)
    logits = foreground(in_full_precision(logits))
    truth = resize_target(target, logits)
    each = None if weights is None else weights.view(-1, 1, 1, 1)
    loss = F.binary_cross_entropy_with_logits(logits, truth, each)
    if dice_weight:
        probability, truth = logits.sigmoid().flatten(1), truth.flatten(1)
        overlap = 2.0 * (probability * truth).sum(1) + 1.0
        dice = 1.0 - overlap / (probability.sum(1) + truth.sum(1) + 1.0)
        loss = loss + dice_weight * (dice if weights is None else weights * dice).mean()
    return loss


def consistency_loss(
    logits: Tensor, main_logits: Tensor, detach_target: bool = True, *, confidence: str = "none"
) -> Tensor:
    """Binary cross-entropy of a masked branch against the main branch's probabilities.

    ``Loss_LMVSD`` and ``Loss_VMLSD`` of Eq. 9.

    Args:
        logits: the masked branch, ``(B, 1, H, W)`` before the sigmoid, or ``(B, 2, H, W)`` of
            background and foreground before the softmax.
        main_logits: the main branch, the same shape; its probabilities are the target. For two
            channels this is the cross-entropy of one softmax against the other.
        detach_target: keep the gradient out of the main branch. The paper does not say.
        confidence: what a pixel counts by the target's probability ``p``: ``"none"`` counts all
            alike, ``"threshold"`` only those whose ``max(p, 1 - p)`` is at least 0.7, ``"soft"``
            each ``1.3 - exp(-(p - 0.5)² / (2 · 0.1²))`` (SemiRES, arXiv 2406.01451).

    Returns:
        0-d loss, a mean over pixels, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that disagree.

    Example:
        >>> same = torch.zeros(1, 1, 2, 2)
        >>> round(consistency_loss(same, same).item(), 4)  # the entropy of a fair coin
        0.6931
    """
    check_logits("logits", logits)
    if logits.shape != main_logits.shape:
        raise ValueError(
            f"main_logits must be {tuple(logits.shape)} as logits are, "
            f"got {tuple(main_logits.shape)}"
        )
    target = foreground(in_full_precision(main_logits)).sigmoid()
    if detach_target:
        target = target.detach()
    weight = confidence_weight(target.detach(), confidence)
    return F.binary_cross_entropy_with_logits(foreground(in_full_precision(logits)), target, weight)


def confidence_weight(probability: Tensor, kind: str) -> Tensor | None:
    """Return what each pixel counts; None counts all alike. See :func:`consistency_loss`."""
    if kind == "threshold":
        return (torch.maximum(probability, 1 - probability) >= 0.7).to(probability.dtype)
    if kind == "soft":
        return 1.3 - torch.exp(-((probability - 0.5) ** 2) / (2 * 0.1**2))
    return None


def class_weighted_loss(logits: Tensor, target: Tensor, weights: tuple[float, float]) -> Tensor:
    """Cross-entropy with one weight for background pixels and one for foreground pixels.

    ``Σ w_c · -log p_c / Σ w_c`` over all pixels of the batch, as torch's ``cross_entropy``. LAVT
    trains with weights 0.9 and 1.1. A logit of one channel equals a background of 0; the target is
    as for :func:`segmentation_loss`.
    """
    check_logits("logits", logits)
    logits = in_full_precision(logits)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    truth = resize_target(target, logits)[:, 0] > 0.5
    return F.cross_entropy(logits, truth.long(), weight=logits.new_tensor(weights))


def alignment_loss(
    patches: Tensor,
    sentence: Tensor,
    target: Tensor,
    grid: tuple[int, int],
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Pull the sentence's vector towards the patches it refers to and away from all others.

    The text-to-pixel contrastive loss of CRIS (CVPR 2022, Eq. 8 to 10): ``-log σ(z_t · z_v)`` for
    patches of the referred object and ``-log(1 - σ(z_t · z_v))`` for the rest. A patch that the
    object covers in part counts with that share.

    Patches are ``(B, N, C)`` on a grid, the sentence ``(B, C)``; target and weights are as for
    :func:`segmentation_loss`. A mean over patches, at least float32.
    """
    scores = (in_full_precision(patches) * in_full_precision(sentence)[:, None]).sum(-1)
    truth = with_channel(target, patches.shape[0]).to(scores.dtype)
    share = F.adaptive_avg_pool2d(truth, grid).flatten(1)
    weight = None if weights is None else weights[:, None]
    return F.binary_cross_entropy_with_logits(scores, share, weight)


def check_logits(name: str, logits: Tensor) -> None:
    """Raise a ``ValueError`` unless ``logits`` are ``(B, 1, H, W)`` or ``(B, 2, H, W)``."""
    if logits.ndim != 4 or logits.shape[1] not in (1, 2):
        raise ValueError(f"{name} must be (B, 1 or 2, H, W), got {tuple(logits.shape)}")


_RESHAPES = (
    *("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "Permute"),
    *("Transpose", "Clone", "ToCopy", "Index", "Upsample", "Alias"),
)


def check_not_probabilities(logits: Tensor) -> None:
    """Refuse the output of a sigmoid or softmax, reshaped or resized, by how autograd made it."""
    node = None if torch.compiler.is_compiling() else logits.grad_fn
    while node is not None:
        made = node.name()
        if made.startswith(("Sigmoid", "Softmax")):
            raise ValueError(
                f"logits are the output of a {made[:7].lower()}: name the module before it, whose "
                "output is not yet a probability"
            )
        inputs = [function for function, _ in node.next_functions if function is not None]
        node = inputs[0] if len(inputs) == 1 and made.startswith(_RESHAPES) else None


def in_full_precision(logits: Tensor) -> Tensor:
    """Return at least float32: 16 bits cannot hold a mean over 10**5 pixels."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def foreground(logits: Tensor) -> Tensor:
    """Return the logit of foreground against background, ``(B, 1, H, W)``."""
    # A softmax over two channels is the sigmoid of their difference.
    return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


def averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average maps ``(B, K, h, w)`` over the areas of a grid."""
    return maps if tuple(maps.shape[2:]) == grid else F.adaptive_avg_pool2d(maps, grid)


def resize_target(target: Tensor, logits: Tensor) -> Tensor:
    """Bring the truth to the logits' size and dtype by nearest neighbour, ``(B, 1, H, W)``."""
    target = with_channel(target, logits.shape[0]).to(logits.dtype)
    if target.shape == logits.shape:
        return target
    # "nearest-exact" samples cell centres; "nearest" would shift the truth by half a cell.
    return F.interpolate(target, size=logits.shape[-2:], mode="nearest-exact")


def with_channel(target: Tensor, batch: int) -> Tensor:
    """Return the truth as ``(B, 1, h, w)``, or raise a ``ValueError`` that says what is wrong."""
    wanted = f"target must be a tensor (B, h, w) or (B, 1, h, w) with B={batch}"
    if not isinstance(target, Tensor):
        raise ValueError(f"{wanted}, got a {type(target).__name__}")
    shape = tuple(target.shape)
    if target.ndim == 3:
        target = target[:, None]
    if target.ndim != 4 or target.shape[:2] != (batch, 1) or target.numel() == 0:
        raise ValueError(f"{wanted}, got {shape}")
    if target.is_complex():
        raise ValueError(f"{wanted}, bool, integer or floating, got {target.dtype}")
    _check_range(target)
    return target


def _check_range(target: Tensor) -> None:
    """Refuse a truth outside [0, 1]; only on a CPU, elsewhere looking would stall the device."""
    if torch.compiler.is_compiling() or target.device.type != "cpu" or target.dtype == torch.bool:
        return
    low, high = (bound.item() for bound in target.aminmax())
    if low >= 0 and high <= 1:
        return
    if low != low or high != high:
        raise ValueError("target must be in [0, 1], got NaN")
    if high > 1:
        raise ValueError(
            f"target must be in [0, 1], got values up to {high}: divide a mask of 0 and 255 by "
            "255, or compare it with 0"
        )
    raise ValueError(
        f"target must be in [0, 1], got values down to {low}: pixels to ignore are not supported; "
        "set them to 0 or 1"
    )
