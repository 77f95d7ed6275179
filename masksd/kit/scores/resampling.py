"""From a map over the model's square input back to the image it was made from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masksd.kit.data.transforms import letterbox_geometry


def resize(
    values: Tensor, size: tuple[int, int], mode: str = "bilinear", align_corners: bool = False
) -> Tensor:
    """Resize one map ``(1, h, w)`` to float32 ``(1, H, W)`` without antialiasing.

    Example:
        >>> resize(torch.tensor([[[0.0, 3.0]]]), (1, 4), align_corners=True)
        tensor([[[0., 1., 2., 3.]]])
    """
    return F.interpolate(values.float()[None], size=size, mode=mode, align_corners=align_corners)[0]


def unletterbox(
    values: Tensor,
    size: tuple[int, int],
    input_size: int,
    mode: str = "bilinear",
    border: str = "edge",
) -> Tensor:
    """Cut the image, at its own size, out of a letterbox's map ``(1, h, w)``.

    The pixel ``(x, y)`` of the image takes the map's value at ``(scale * x + left,
    scale * y + top)`` (:func:`masksd.kit.data.transforms.letterbox_geometry`), as OpenCV's
    ``warpAffine`` defines it. OpenCV 4 rounds these positions to 1/32 pixel; here they are exact.
    In a map smaller than the input they are scaled with the outer corners aligned.

    Example:
        >>> values = torch.zeros(1, 4, 4)
        >>> values[:, 1:3] = 1.0  # where an image twice as wide as high lies
        >>> unletterbox(values, (2, 4), 4, "bicubic", "zero").tolist()
        [[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]
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
        weight = _cubic(distance) if mode == "bicubic" else 1 - distance
        if border == "zero":
            weight = weight * ((index >= 0) & (index < length))
        picked = index.clamp(0, length - 1).long().to(values.device)
        factor = weight.float().to(values.device)
        factor = factor[:, None] if axis == 0 else factor
        total = total + values.index_select(axis, picked) * factor
    return torch.as_tensor(total)


def _cubic(x: Tensor, a: float = -0.75) -> Tensor:
    """Keys' cubic kernel for distances of 0 to 2 pixels."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, far)
