"""Squash resize, nearest masks, and normalisation on 8-bit pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masksd.data.transforms import CLIP_MEAN, CLIP_STD, normalize, resize_mask, resize_picture


def test_resize_picture_agrees_with_torch_antialiasing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    result = resize_picture(Image.fromarray(pixels), 32)
    wide = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(
        wide, size=(32, 32), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert result.dtype == torch.uint8
    assert (result.float() - expected).abs().max() <= 1.5  # two roundings to 8 bits


def test_resize_picture_keeps_channels_and_a_fitting_size() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    result = resize_picture(Image.fromarray(pixels), 4)
    assert torch.equal(result, torch.from_numpy(pixels).permute(2, 0, 1))
    assert result.is_contiguous()


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    size=st.integers(1, 24),
    seed=st.integers(0),
)
def test_resize_mask_takes_the_pixel_at_each_centre(
    height: int, width: int, size: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)
    result = resize_mask(mask, size)
    assert result.shape == (size, size)
    for row in range(size):
        for column in range(size):
            # exact integers: floor((row + 1/2) * height / size)
            source = mask[
                (2 * row + 1) * height // (2 * size), (2 * column + 1) * width // (2 * size)
            ]
            assert result[row, column] == source


def test_resize_mask_reads_any_nonzero_as_one() -> None:
    assert resize_mask(np.array([[0, 255]]), 2).tolist() == [[0, 1], [0, 1]]


def test_normalize_is_clips() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    result = normalize(images)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        assert torch.allclose(result[:, channel].double(), expected, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.uint8)])
def test_normalize_refuses(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 3, H, W\), got"):
        normalize(bad)


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match="mode 'L', expected 'RGB'"):
        resize_picture(Image.new("L", (2, 2)), 4)
    with pytest.raises(
        ValueError, match="size must be a whole number of pixels of at least 1, got 0"
    ):
        resize_picture(Image.new("RGB", (2, 2)), 0)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\), expected \(H, W\)"):
        resize_mask(np.zeros((2, 2, 1)), 4)
