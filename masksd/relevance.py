"""Who ranks the tokens: one function a kind, all returning scores ``(B, N)``, higher first."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from masksd.losses.shapes import with_channel
from masksd.masking import correlate
from masksd.segmenter import Pass


def rank_tokens(
    kind: str,
    modality: str,
    plain: Pass,
    target: Tensor | None,
    noise: Callable[[], Tensor],
) -> Tensor:
    """Score every patch or word for the correlation filter (Sec. III-B).

    Args:
        kind: ``"dot"``, ``"random"`` or ``"ground_truth"``.
        modality: ``"image"`` or ``"text"``.
        plain: the plain pass, whose features rank.
        target: the truth ``(B, h, w)`` or ``(B, 1, h, w)``, which ``"ground_truth"`` needs.
        noise: gives uniform numbers ``(B, N)``, for ``"random"``.

    Returns:
        Scores ``(B, N)``, at least float32.

    Raises:
        ValueError: this pass does not offer what the kind needs; names the kinds that it allows.

    Example:
        >>> import torch
        >>> from masksd import ImageFeatures, Pass, TextFeatures
        >>> image = ImageFeatures(torch.eye(2)[None], grid=(1, 2), pooled=torch.ones(1, 2))
        >>> sentence = torch.tensor([[3.0, 5.0]])
        >>> text = TextFeatures(torch.ones(1, 1, 2), sentence, torch.ones(1, 1) > 0)
        >>> plain = Pass(torch.zeros(1, 1, 1, 2), image, text, None, ())
        >>> rank_tokens("dot", "image", plain, None, lambda: torch.zeros(1, 2))
        tensor([[3., 5.]])
    """
    if kind == "random":
        return noise()
    if kind == "ground_truth":
        return _share_of_truth(plain, target)
    image = modality == "image"
    local = plain.image.local if image else plain.text.local
    pooled = plain.text.pooled if image else plain.image.pooled
    other = "text" if image else "image"
    if pooled is None or pooled.shape[-1] != local.shape[-1]:
        came = "no pooled vector" if pooled is None else f"one of width {pooled.shape[-1]}"
        possible = "'random', 'ground_truth'" if image else "'random'"
        raise ValueError(
            f"relevance 'dot' of {modality} needs a pooled vector of {other} in the space of its "
            f"tokens, width {local.shape[-1]}; got {came}. Possible here: {possible}"
        )
    return correlate(local, pooled)


def _share_of_truth(plain: Pass, target: Tensor | None) -> Tensor:
    """The share of each patch that the truth covers."""
    if target is None:
        raise ValueError("relevance 'ground_truth' needs a target: call sd(..., target=masks)")
    truth = with_channel(target, batch=plain.image.local.shape[0])
    return F.adaptive_avg_pool2d(truth.float(), plain.image.grid).flatten(1)
