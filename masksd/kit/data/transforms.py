"""From an image and its mask to tensors. Pixels stay 8-bit until they are on the device.

Two ways to make a square: *squash* changes the proportions, *letterbox* keeps them and pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masksd.errors import check_choice
from masksd.kit.data_config import FITS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PAD = torch.tensor([123.0, 117.0, 104.0])  # CLIP's mean in 8 bits


def resize_image(image: Image.Image, size: int) -> Tensor:
    """Squash an RGB image to ``(3, size, size)`` uint8, bilinear with antialiasing."""
    _check_image(image, size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)  # antialiased in Pillow
    channels = np.empty((3, size, size), dtype=np.uint8)
    for index, channel in enumerate(image.split()):  # faster than one array and its transpose
        channels[index] = np.asarray(channel)
    return torch.from_numpy(channels)


def resize_mask(mask: NDArray[Any], size: int) -> Tensor:
    """Squash a mask ``(H, W)`` to ``(size, size)`` uint8 of 0 and 1: the nearest value."""
    _check_mask(mask, size)
    height, width = mask.shape
    rows = ((np.arange(size) + 0.5) * height / size).astype(np.int64)
    columns = ((np.arange(size) + 0.5) * width / size).astype(np.int64)
    resized = mask[rows][:, columns]  # one axis after the other is faster than both at once
    return torch.from_numpy((resized != 0).astype(np.uint8))


def fit_image(image: Image.Image, size: int, fit: str = "squash") -> Tensor:
    """Bring an RGB image into a square, ``(3, S, S)`` uint8.

    ``"letterbox"`` is CRIS's way, as OpenCV's ``warpAffine`` defines it: scaled by
    :func:`letterbox_geometry`, centred, cubic without antialiasing at positions of 1/32 pixel,
    padded with CLIP's mean colour.
    """
    check_choice("fit", fit, FITS)
    if fit == "squash":
        return resize_image(image, size)
    _check_image(image, size)
    scale, left, top = letterbox_geometry(image.height, image.width, size)
    width, height = image.size
    pixels = torch.from_numpy(np.array(image)).view(height, 3 * width).float()
    pixels -= _PAD.repeat(width)  # with the padding as zero, what lies outside needs no tap
    rows = torch.sparse.mm(_cubic_taps(height, size, scale, top), pixels)  # (S, 3 W)
    turned = rows.view(size, width, 3).permute(1, 2, 0).reshape(width, 3 * size)
    columns = torch.sparse.mm(_cubic_taps(width, size, scale, left), turned)  # (S, 3 S)
    fitted = (columns.view(size, 3, size) + _PAD.view(3, 1)).round().clamp(0, 255)
    return fitted.to(torch.uint8).permute(1, 2, 0).contiguous()


def fit_mask(mask: NDArray[Any], size: int, fit: str = "squash") -> Tensor:
    """Bring a mask ``(H, W)`` into a square like its image: ``(S, S)`` uint8 of 0 and 1."""
    check_choice("fit", fit, FITS)
    if fit == "squash":
        return resize_mask(mask, size)
    _check_mask(mask, size)
    height, width = mask.shape
    scale, left, top = letterbox_geometry(height, width, size)
    padded = np.zeros((height + 1, width + 1), dtype=np.uint8)
    padded[:-1, :-1] = mask != 0  # the last row and column stand for what lies outside
    rows = _nearest(height, size, scale, top)
    columns = _nearest(width, size, scale, left)
    return torch.from_numpy(padded[rows][:, columns])


def letterbox_geometry(height: int, width: int, size: int) -> tuple[float, float, float]:
    """Return ``scale, left, top`` of a letterbox: ``x' = scale * x + left``, and ``y'`` likewise.

    Coordinates are pixel indices: (0, 0) is the centre of the first pixel, as in CRIS.
    """
    _check_side("height", height)
    _check_side("width", width)
    _check_side("size", size)
    scale = min(size / height, size / width)
    return scale, (size - width * scale) / 2, (size - height * scale) / 2


def normalize(
    images: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """Scale 8-bit images ``(B, 3, H, W)``, on their device, to [0, 1] and by mean and deviation."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - shift) / scale


def _cubic_taps(length: int, size: int, scale: float, shift: float) -> Tensor:
    """Return the matrix ``(size, length)``, sparse, that resamples one axis of an image."""
    position = np.floor((np.arange(size) - shift) / scale * 32 + 0.5) / 32
    taps = np.floor(position).astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = cubic_kernel(np.abs(position[:, None] - taps))
    inside = np.nonzero((taps >= 0) & (taps < length))
    places = torch.from_numpy(np.stack([inside[0], taps[inside]]))
    values = torch.from_numpy(weights[inside].astype(np.float32))
    return torch.sparse_coo_tensor(
        places, values, (size, length), check_invariants=True, is_coalesced=True
    )


def cubic_kernel(x: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    """Keys' cubic kernel for distances of 0 to 2 pixels."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def _nearest(length: int, size: int, scale: float, shift: float) -> NDArray[np.int64]:
    """Return the index that each of ``size`` pixels takes; -1 outside."""
    index = np.floor((np.arange(size) - shift) / scale + 0.5).astype(np.int64)
    return np.where((index >= 0) & (index < length), index, -1)


def _check_image(image: Image.Image, size: int) -> None:
    _check_side("size", size)
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode!r}, expected 'RGB'; use .convert('RGB')")


def _check_mask(mask: NDArray[Any], size: int) -> None:
    _check_side("size", size)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected (H, W)")


def _check_side(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of pixels of at least 1, got {value!r}")
