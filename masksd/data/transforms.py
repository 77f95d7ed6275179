"""From a picture and its mask to tensors. Pixels stay 8-bit until they are on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_picture(picture: Image.Image, size: int) -> Tensor:
    """Squash a picture to a square, bilinear with antialiasing.

    Args:
        picture: any size, mode ``"RGB"``.
        size: side of the square in pixels.

    Returns:
        ``(3, size, size)`` uint8.

    Raises:
        ValueError: a picture that is not RGB, or a size below 1.

    Example:
        >>> resize_picture(Image.new("RGB", (9, 5), (1, 2, 3)), 4)[:, 0, 0]
        tensor([1, 2, 3], dtype=torch.uint8)
    """
    _check_size(size)
    if picture.mode != "RGB":
        raise ValueError(f"picture has mode {picture.mode!r}, expected 'RGB'; use .convert('RGB')")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # antialiased in Pillow
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def resize_mask(mask: NDArray[Any], size: int) -> Tensor:
    """Squash a mask to a square: each new pixel takes the value at its centre (nearest).

    Args:
        mask: ``(H, W)``, zero or not.
        size: side of the square in pixels.

    Returns:
        ``(size, size)`` uint8 of 0 and 1.

    Raises:
        ValueError: a mask that is not two-dimensional, or a size below 1.

    Example:
        >>> resize_mask(np.array([[0, 1], [0, 0]]), 4)[0]
        tensor([0, 0, 1, 1], dtype=torch.uint8)
    """
    _check_size(size)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected (H, W)")
    height, width = mask.shape
    rows = ((np.arange(size) + 0.5) * height / size).astype(np.int64)
    columns = ((np.arange(size) + 0.5) * width / size).astype(np.int64)
    return torch.from_numpy((mask[rows[:, None], columns] != 0).astype(np.uint8))


def normalize(
    images: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """Scale 8-bit pictures to [0, 1], subtract the mean and divide by the deviation.

    Runs on the device of ``images``: only a quarter of the bytes travel there.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        mean: of red, green, blue, in [0, 1].
        std: of red, green, blue, in [0, 1].

    Returns:
        ``(B, 3, H, W)`` float32.

    Raises:
        ValueError: another shape or dtype.

    Example:
        >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), [0.5] * 3, [0.5] * 3).max()
        tensor(1.)
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - shift) / scale


def _check_size(size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size must be a whole number of pixels of at least 1, got {size!r}")
