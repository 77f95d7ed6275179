"""From a map over the model's square input back to the image it was made from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.kit.data.transforms import cubic_kernel, letterbox_geometry


def resize(
    values: Tensor, size: tuple[int, int], mode: str = "bilinear", align_corners: bool = False
) -> Tensor:
    """Resize one map ``(1, h, w)`` to float32 ``(1, H, W)`` without antialiasing."""
    return F.interpolate(values.float()[None], size=size, mode=mode, align_corners=align_corners)[0]


def unletterbox(
    values: Tensor,
    size: tuple[int, int],
    input_size: int,
    mode: str = "bilinear",
    border: str = "edge",
) -> Tensor:
    """Cut the image, at its own size, out of a letterbox's map ``(1, h, w)``.

    Its pixel ``(x, y)`` takes the map's value at ``(scale * x + left, scale * y + top)``: OpenCV's
    ``warpAffine``, without its rounding of these positions to 1/32 pixel. In a map smaller than the
    input they are scaled with the outer corners aligned.
    """
    scale, left, top = letterbox_geometry(size[0], size[1], input_size)
    out = values[0].float()
    # rows, then columns: a letterbox only moves and scales
    for axis, shift in ((0, top), (1, left)):
        position = scale * torch.arange(size[axis], dtype=torch.float64) + shift
        position = (position + 0.5) * (out.shape[axis] / input_size) - 0.5
        out = _resample(out, axis, position, mode, border)
    return out[None]


def _resample(values: Tensor, axis: int, position: Tensor, mode: str, border: str) -> Tensor:
    """Sample ``(h, w)`` along one axis at fractional indices ``(n,)``."""
    length = values.shape[axis]
    first = position.floor()
    total: Tensor | float = 0.0
    for tap in range(-1, 3) if mode == "bicubic" else range(2):
        index = first + tap
        distance = (position - index).abs()
        weight = 1 - distance
        if mode == "bicubic":
            weight = torch.from_numpy(cubic_kernel(distance.numpy()))
        if border == "zero":
            weight = weight * ((index >= 0) & (index < length))
        picked = index.clamp(0, length - 1).long().to(values.device)
        factor = weight.float().to(values.device)
        factor = factor[:, None] if axis == 0 else factor
        total = total + values.index_select(axis, picked) * factor
    return torch.as_tensor(total)
