"""Squash and letterbox, nearest masks, and normalisation on 8-bit pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masksd.kit.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    fit_image,
    fit_mask,
    letterbox_geometry,
    normalize,
    resize_image,
    resize_mask,
)


def test_resize_picture_agrees_with_torch_antialiasing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    result = resize_image(Image.fromarray(pixels), 32)
    wide = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(
        wide, size=(32, 32), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert result.dtype == torch.uint8
    assert (result.float() - expected).abs().max() <= 1.5  # two roundings to 8 bits


def test_resize_picture_keeps_channels_and_a_fitting_size() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    result = resize_image(Image.fromarray(pixels), 4)
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


def test_squash_is_the_default_fit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(fit_image(picture, 6), resize_image(picture, 6))
    assert torch.equal(fit_mask(pixels[..., 0] > 99, 6), resize_mask(pixels[..., 0] > 99, 6))


def cubic(x: float) -> float:
    """OpenCV's kernel, as its documentation of INTER_CUBIC has it, with a = -0.75."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def warp_affine_pixel(pixels: np.ndarray, x: float, y: float) -> list[float]:
    """One pixel of warpAffine with INTER_CUBIC and a constant border, at a position of 1/32."""
    height, width, _ = pixels.shape
    x, y = math.floor(x * 32 + 0.5) / 32, math.floor(y * 32 + 0.5) / 32
    total = np.zeros(3)
    for row in range(math.floor(y) - 1, math.floor(y) + 3):
        for column in range(math.floor(x) - 1, math.floor(x) + 3):
            inside = 0 <= row < height and 0 <= column < width
            value = pixels[row, column] if inside else np.array([123, 117, 104])
            total += cubic(x - column) * cubic(y - row) * value
    return total.clip(0, 255).tolist()


sides = st.integers(1, 14)


@given(height=sides, width=sides, size=st.integers(1, 18), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_letterbox_is_that_of_cris(height: int, width: int, size: int, seed: int) -> None:
    key = np.random.default_rng(seed)
    pixels = key.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = key.integers(0, 2, (height, width), dtype=np.uint8)
    result = fit_image(Image.fromarray(pixels), size, "letterbox")
    fitted = fit_mask(mask, size, "letterbox")
    assert result.shape == (3, size, size)
    assert result.is_contiguous()
    assert fitted.shape == (size, size)
    assert fitted.dtype == result.dtype == torch.uint8
    scale = min(size / height, size / width)
    left, top = (size - width * scale) / 2, (size - height * scale) / 2
    for row in range(size):
        for column in range(size):
            x, y = (column - left) / scale, (row - top) / scale
            expected = warp_affine_pixel(pixels, x, y)
            assert np.allclose(result[:, row, column].tolist(), expected, atol=0.51)
            nearest_x, nearest_y = math.floor(x + 0.5), math.floor(y + 0.5)
            inside = 0 <= nearest_x < width and 0 <= nearest_y < height
            assert fitted[row, column] == (mask[nearest_y, nearest_x] if inside else 0)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.integers(1, 1000))
def test_letterbox_geometry_centres_and_fills(height: int, width: int, size: int) -> None:
    scale, left, top = letterbox_geometry(height, width, size)
    assert max(height, width) * scale == pytest.approx(size)
    assert (min(left, top), 2 * left + width * scale) == pytest.approx((0, size), abs=1e-9)
    assert 2 * top + height * scale == pytest.approx(size)


def test_letterbox_of_a_fitting_square_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    result = fit_image(Image.fromarray(pixels), 8, "letterbox")
    assert torch.equal(result, torch.from_numpy(pixels).permute(2, 0, 1))
    mask = pixels[..., 0] > 99
    assert torch.equal(fit_mask(mask, 8, "letterbox"), torch.from_numpy(mask.astype(np.uint8)))


def test_letterbox_pads_with_the_mean_colour() -> None:
    result = fit_image(Image.new("RGB", (64, 16), (9, 9, 9)), 32, "letterbox")
    assert result[:, 0, 0].tolist() == [round(255 * each) for each in CLIP_MEAN]
    assert result[:, 16, 16].tolist() == [9, 9, 9]
    assert result[:, 31, 31].tolist() == [123, 117, 104]


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
        resize_image(Image.new("L", (2, 2)), 4)
    with pytest.raises(
        ValueError, match="size must be a whole number of pixels of at least 1, got 0"
    ):
        resize_image(Image.new("RGB", (2, 2)), 0)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\), expected \(H, W\)"):
        resize_mask(np.zeros((2, 2, 1)), 4)
    for fit in ("squash", "letterbox"):
        with pytest.raises(ValueError, match="mode 'L', expected 'RGB'"):
            fit_image(Image.new("L", (2, 2)), 4, fit)
        with pytest.raises(ValueError, match="at least 1, got 0"):
            fit_image(Image.new("RGB", (2, 2)), 0, fit)
        with pytest.raises(ValueError, match=r"expected \(H, W\)"):
            fit_mask(np.zeros((2, 2, 1)), 4, fit)
    with pytest.raises(ValueError, match="unknown fit 'letterbx'; did you mean 'letterbox'"):
        fit_image(Image.new("RGB", (2, 2)), 4, "letterbx")
    with pytest.raises(ValueError, match="unknown fit 'crop'"):
        fit_mask(np.zeros((2, 2)), 4, "crop")
    with pytest.raises(ValueError, match="width must be a whole number of pixels of at least 1"):
        letterbox_geometry(4, 0, 8)
