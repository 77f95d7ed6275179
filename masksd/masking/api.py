"""The masking kernels' public side: check the arguments, then run an implementation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from masksd.errors import check_choice, check_fraction
from masksd.masking import fused, reference
from masksd.masking_config import COUNTS, ROUNDINGS, SELECTIONS

IMPLEMENTATIONS: dict[str, ModuleType] = {"fused": fused, "reference": reference}


def correlate(
    local: Tensor, pooled: Tensor, normalize: bool = False, *, implementation: str = "fused"
) -> Tensor:
    """Score every token by its dot product with a vector of the other modality (Eq. 3, 6).

    Args:
        local: token features ``(B, N, C)``, any floating dtype.
        pooled: the sentence's or the image's vector ``(B, C)``.
        normalize: take the cosine instead; a zero vector then scores 0.
        implementation: ``"fused"`` or ``"reference"``.

    Returns:
        Scores ``(B, N)``, accumulated in float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Example:
        >>> local = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> correlate(local, torch.tensor([[3.0, 4.0]]))
        tensor([[3., 8.]])
    """
    kernel = _kernel(implementation)
    if local.ndim != 3 or pooled.ndim != 2 or local.shape[::2] != pooled.shape:
        raise ValueError(
            f"local must be (B, N, C) and pooled (B, C), got {_shape(local)} and {_shape(pooled)}"
        )
    for name, tensor in (("local", local), ("pooled", pooled)):
        _check_floating(name, tensor)
    return kernel.correlate(local, pooled, normalize)


def select_tokens(
    scores: Tensor,
    top_k: float,
    ratio: float,
    *,
    noise: Tensor,
    valid: Tensor | None = None,
    selection: str = "top",
    rounding: str = "nearest",
    count: str = "words",
    implementation: str = "fused",
) -> Tensor:
    """Draw the tokens to mask: a share of the most relevant ones (Sec. III-B).

    Of the ``n`` tokens that may be masked, the ``T = ceil(top_k * n)`` of highest score are kept,
    and about ``ratio * T`` of these, those of lowest noise, are masked. Scores and noise are
    compared as float32; of equal ones, the first token comes first.

    Args:
        scores: relevance ``(B, N)``, any floating dtype. A token of score NaN is never masked; the
            reference raises instead.
        top_k: share of the tokens that passes the filter, in [0, 1] (``K`` of the paper).
        ratio: share of those that is masked, in [0, 1] (``α`` of the paper).
        noise: uniform numbers in [0, 1), ``(B, N)``; see :func:`keyed_noise`.
        valid: bool ``(B, N)``, the tokens that may be masked; None means all.
        selection: filter the ``"top"`` or the ``"bottom"`` scores.
        rounding: how ``ratio * T`` becomes whole. ``"nearest"``: half up, at least one where
            ``ratio`` and ``T`` are not zero; ``"stochastic"``: down, and one more with the
            probability of the rest, so that the expected share is exact; ``"floor"``;
            ``"floor_or_one"``, at least one where ``ratio`` and ``T`` are not zero; ``"ceil"``.
            ``"independent"`` counts nothing: each kept token is masked where its noise is below
            ``ratio``.
        count: ``"words"`` takes ``n`` as the number of valid tokens, ``"sequence"`` as ``N``
            (never masking more than there are).
        implementation: ``"fused"`` or ``"reference"``.

    Returns:
        The mask, bool ``(B, N)``, True where a token is to be replaced. Nothing to differentiate.

    Raises:
        ValueError: a share outside [0, 1], an unknown name, shapes or dtypes that do not fit.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9, 0.8, 0.2]])
        >>> noise = torch.tensor([[0.0, 0.7, 0.3, 0.0]])
        >>> select_tokens(scores, top_k=0.5, ratio=0.5, noise=noise)
        tensor([[False, False,  True, False]])
    """
    kernel = _kernel(implementation)
    check_fraction("top_k", top_k)
    check_fraction("ratio", ratio)
    check_choice("selection", selection, SELECTIONS)
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("count", count, COUNTS)
    if scores.ndim != 2:
        raise ValueError(f"scores must be (B, N), got {_shape(scores)}")
    _check_floating("scores", scores)
    _check_floating("noise", noise)
    if scores.device.type == "mps":
        raise ValueError("exact counts need float64, which MPS lacks: run on the CPU or CUDA")
    if noise.shape != scores.shape:
        raise ValueError(f"noise must be {_shape(scores)} as scores are, got {_shape(noise)}")
    if valid is not None and (valid.shape != scores.shape or valid.dtype != torch.bool):
        raise ValueError(
            f"valid must be bool {_shape(scores)} as scores are, got {valid.dtype} {_shape(valid)}"
        )
    return kernel.select_tokens(
        scores.detach(), top_k, ratio, noise, valid, selection, rounding, count
    )


def apply_mask(
    embeddings: Tensor,
    mask: Tensor,
    token: Tensor,
    channel_dim: int = -1,
    *,
    implementation: str = "fused",
) -> Tensor:
    """Replace the masked embeddings by the learnable token (Eq. 4, 7).

    Args:
        embeddings: ``(B, N, C)``, or on a grid ``(B, h, w, C)``, or ``(B, C, h, w)`` with
            ``channel_dim=1``.
        mask: bool, the embeddings' shape without the channels.
        token: ``(C,)``, one vector for all, or ``(N, C)`` / ``(h, w, C)``, one a position. It is
            cast to the embeddings' dtype.
        channel_dim: where the channels are.
        implementation: ``"fused"`` or ``"reference"``.

    Returns:
        As ``embeddings``, bit-identical where not masked. Gradients reach embeddings and token.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Example:
        >>> embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> apply_mask(embeddings, torch.tensor([[False, True]]), torch.tensor([9.0, 9.0]))
        tensor([[[1., 2.],
                 [9., 9.]]])
    """
    kernel = _kernel(implementation)
    _check_floating("embeddings", embeddings)
    _check_floating("token", token)
    within = -embeddings.ndim <= channel_dim < embeddings.ndim
    if embeddings.ndim < 3 or not within or channel_dim % embeddings.ndim == 0:
        raise ValueError(
            "embeddings must be (B, N, C), (B, h, w, C) or, with channel_dim=1, (B, C, h, w), "
            f"got {_shape(embeddings)} with channel_dim={channel_dim}"
        )
    positions = list(embeddings.shape)
    channels = positions.pop(channel_dim)
    if list(mask.shape) != positions or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool {tuple(positions)} for embeddings {_shape(embeddings)}, "
            f"got {mask.dtype} {_shape(mask)}"
        )
    if list(token.shape) not in ([channels], [*positions[1:], channels]):
        raise ValueError(
            f"token must be ({channels},) or {(*positions[1:], channels)}, got {_shape(token)}"
        )
    return kernel.apply_mask(embeddings, mask, token, channel_dim)


def mask_correlated(
    embeddings: Tensor,
    local: Tensor,
    pooled: Tensor,
    token: Tensor,
    top_k: float,
    ratio: float,
    *,
    noise: Tensor,
    normalize: bool = False,
    implementation: str = "fused",
    **choices: Any,
) -> tuple[Tensor, Tensor]:
    """Correlate, select and apply in one call: Eq. 3 and 4, or Eq. 6 and 7.

    Args:
        embeddings: what is masked, ``(B, N, D)``.
        local: what is ranked, ``(B, N, C)``.
        pooled: what ranks it, ``(B, C)``.
        token: the learnable token, ``(D,)`` or ``(N, D)``.
        top_k: as for :func:`select_tokens`.
        ratio: as for :func:`select_tokens`.
        noise: as for :func:`select_tokens`.
        normalize: as for :func:`correlate`.
        implementation: ``"fused"`` or ``"reference"``.
        **choices: the other choices of :func:`select_tokens`.

    Returns:
        The masked embeddings ``(B, N, D)`` and the mask, bool ``(B, N)``.

    Raises:
        ValueError: as the three kernels do.

    Example:
        >>> patches = torch.randn(2, 9, 16)
        >>> from masksd.masking import keyed_noise
        >>> masked, mask = mask_correlated(
        ...     patches, torch.randn(2, 9, 8), torch.randn(2, 8), torch.zeros(16),
        ...     top_k=0.5, ratio=0.4, noise=keyed_noise(2, 9, seed=0, step=0))
        >>> mask.sum(-1)
        tensor([2, 2])
    """
    with torch.no_grad():
        scores = correlate(local, pooled, normalize, implementation=implementation)
    mask = select_tokens(
        scores, top_k, ratio, noise=noise, implementation=implementation, **choices
    )
    return apply_mask(embeddings, mask, token, implementation=implementation), mask


def _kernel(implementation: str) -> ModuleType:
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    return IMPLEMENTATIONS[implementation]


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {tensor.dtype}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
