"""Pictures of every odd kind are read right, and broken ones are one error with file and reason."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from masksd.kit.data.images import from_array, read_image, to_rgb
from masksd.kit.data.records import DataError

Pixels = NDArray[np.uint8]


def noise(height: int = 20, width: int = 30) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image | Pixels, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, form, **options)
    return file.getvalue()


# -- PNG by hand, for what Pillow does not write ---------------------------------------------------
def chunk(name: bytes, body: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(name + body) if check is None else check
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png(
    width: int, height: int, rows: bytes, bits: int = 8, colour: int = 2, more: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + end


def deep_pixels(channels: int, most: int = 65536) -> NDArray[np.uint16]:
    return np.random.default_rng(4).integers(0, most, (5, 4, channels), dtype=np.uint16)


def deep_png(channels: int, most: int = 65536) -> bytes:
    """16 bits a channel: grey or colour, without or with alpha."""
    pixels = deep_pixels(channels, most)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(4, 5, rows, bits=16, colour={1: 0, 3: 2, 2: 4, 4: 6}[channels])


# -- read right ------------------------------------------------------------------------------------
def over_white(pixels: Pixels, alpha: NDArray[Any]) -> NDArray[Any]:
    share = alpha.astype(np.float64)[..., None] / 255
    return pixels * share + 255 * (1 - share)


def flat(mode: str, *values: int) -> Image.Image:
    return Image.new(mode, (16, 16), values)


def palette(**options: Any) -> tuple[bytes, Pixels, Pixels]:
    """A palette of four colours: the file, its colours by pixel and its indices."""
    indices = np.random.default_rng(1).integers(0, 4, (6, 9), dtype=np.uint8)
    colours = np.array([[9, 8, 7], [200, 100, 50], [0, 255, 0], [77, 66, 255]], dtype=np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(colours.ravel().tolist())
    return encoded(picture, "PNG", **options), colours[indices], indices


def palette_with_alpha() -> tuple[bytes, NDArray[Any]]:
    data, pixels, indices = palette(transparency=b"\x00\x80\xff\x10")
    return data, over_white(pixels, np.array([0, 128, 255, 16])[indices])


def palette_with_a_clear_colour() -> tuple[bytes, NDArray[Any]]:
    data, pixels, indices = palette(transparency=2)
    return data, over_white(pixels, np.where(indices == 2, 0, 255))


def layered(mode: str, form: str) -> tuple[bytes, NDArray[Any]]:
    pixels = noise()
    alpha = np.random.default_rng(2).integers(0, 256, pixels.shape[:2], dtype=np.uint8)
    if mode == "LA":
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    picture = Image.fromarray(np.dstack([pixels, alpha])).convert("RGBA")
    if mode == "LA":
        bands = (Image.fromarray(pixels[..., 0]), Image.fromarray(alpha))
        picture = Image.merge("LA", bands)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    return encoded(picture, form, **options), over_white(pixels, alpha)


def clear_colour(grey: bool) -> tuple[bytes, NDArray[Any]]:
    pixels = np.array([[[10, 20, 30], [40, 40, 40]]], dtype=np.uint8)
    if grey:
        more = chunk(b"tRNS", struct.pack(">H", 40))
        data = png(2, 1, b"\0\x0a\x28", colour=0, more=more)
        return data, np.array([[[10] * 3, [255] * 3]])
    more = chunk(b"tRNS", struct.pack(">HHH", 40, 40, 40))
    data = png(2, 1, b"\0" + pixels.tobytes(), more=more)
    return data, np.array([[[10, 20, 30], [255] * 3]])


def cmyk() -> tuple[bytes, NDArray[Any]]:
    ink = (200, 30, 90, 40)
    data = encoded(flat("CMYK", *ink), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data  # written inverted, as Adobe does
    rgb = [(255 - each) * (255 - ink[3]) / 255 for each in ink[:3]]
    return data, np.full((16, 16, 3), rgb)


def one_bit() -> tuple[bytes, NDArray[Any]]:
    bits = np.random.default_rng(3).integers(0, 2, (7, 11), dtype=np.uint8)
    return encoded(Image.fromarray(bits * 255).convert("1"), "PNG"), np.dstack([bits * 255] * 3)


def animated(form: str) -> tuple[bytes, NDArray[Any]]:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    more = [Image.fromarray(255 - noise())]
    return encoded(noise(), form, save_all=True, append_images=more, **options), noise()


def with_profile(form: str) -> tuple[bytes, NDArray[Any]]:
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    data = encoded(flat("RGB", 90, 80, 70), form, icc_profile=b"no profile at all", **options)
    return data, np.full((16, 16, 3), [90, 80, 70])


def deep(channels: int) -> tuple[bytes, NDArray[Any]]:
    seen, alpha = np.array_split(deep_pixels(channels) >> 8, [3 if channels > 2 else 1], axis=2)
    if alpha.size:
        seen = over_white(seen, alpha[..., 0])
    return deep_png(channels), np.broadcast_to(seen, (5, 4, 3))


def deep_tiff() -> tuple[bytes, NDArray[Any]]:
    pixels = deep_pixels(1)[..., 0]
    return encoded(Image.fromarray(pixels), "TIFF"), np.dstack([pixels >> 8] * 3)


def gif(**options: Any) -> tuple[bytes, NDArray[Any]]:
    first, indices = Image.fromarray(noise()).quantize(16), 3
    expected = np.asarray(first.convert("RGB")).astype(float)
    if "transparency" in options:
        expected[np.asarray(first) == indices] = 255
    second = Image.new("P", first.size)
    return encoded(first, "GIF", save_all=True, append_images=[second], **options), expected


def grey_jpeg() -> tuple[bytes, NDArray[Any]]:
    return encoded(flat("L", 99), "JPEG"), np.full((16, 16, 3), 99)


def progressive() -> tuple[bytes, NDArray[Any]]:
    data = encoded(flat("RGB", 90, 80, 70), "JPEG", quality=100, progressive=True)
    return data, np.full((16, 16, 3), [90, 80, 70])


def exact(data: bytes) -> tuple[bytes, NDArray[Any]]:
    return data, noise()


READ: dict[str, Callable[[], tuple[bytes, NDArray[Any]]]] = {
    "cmyk-of-adobe": cmyk,
    "grey-jpeg": grey_jpeg,
    "progressive-jpeg": progressive,
    "jpeg-with-rubbish-behind": lambda: (grey_jpeg()[0] + b"\0" * 99, grey_jpeg()[1]),
    **{f"sixteen-bit-png-{n}": functools.partial(deep, n) for n in (1, 2, 3, 4)},
    "sixteen-bit-tiff": deep_tiff,
    "gif": gif,
    "gif-with-a-clear-colour": lambda: gif(transparency=3),
    "tiff": lambda: exact(encoded(noise(), "TIFF")),
    "packed-tiff": lambda: exact(encoded(noise(), "TIFF", compression="tiff_lzw")),
    "one-bit": one_bit,
    "palette": lambda: palette()[:2],
    "palette-with-alpha": palette_with_alpha,
    "palette-with-a-clear-colour": palette_with_a_clear_colour,
    "grey-with-alpha": lambda: layered("LA", "PNG"),
    "colour-with-alpha": lambda: layered("RGBA", "PNG"),
    "webp-with-alpha": lambda: layered("RGBA", "WEBP"),
    "colour-with-a-clear-colour": lambda: clear_colour(grey=False),
    "grey-with-a-clear-grey": lambda: clear_colour(grey=True),
    "animated-webp": lambda: animated("WEBP"),
    "animated-png": lambda: animated("PNG"),
    "broken-profile-in-png": lambda: with_profile("PNG"),
    "broken-profile-in-jpeg": lambda: with_profile("JPEG"),
    "png-with-a-bad-check-of-whole-data": lambda: exact(bad_check(b"IDAT")),
    "jpeg-with-broken-exif": lambda: (
        encoded(flat("L", 99), "JPEG", exif=b"Exif\0\0not what it should be"),
        grey_jpeg()[1],
    ),
    "bmp": lambda: exact(encoded(noise(), "BMP")),
    "webp": lambda: exact(encoded(noise(), "WEBP", lossless=True)),
    "text-of-another-language": lambda: exact(
        encoded(noise(), "PNG")[:-12] + chunk(b"tEXt", b"\xff\xfe") + chunk(b"IEND", b"")
    ),
}


@pytest.mark.parametrize("name", READ)
def test_odd_picture_is_read_right(name: str, tmp_path: Path) -> None:
    data, expected = READ[name]()
    path = tmp_path / "a.jpg"  # whatever it is: the content counts
    path.write_bytes(data)
    picture = read_image(path)
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).astype(np.float64)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= (3 if data[:2] == b"\xff\xd8" else 1)


TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),  # the camera was turned: clockwise makes it right
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
    0: lambda p: p,  # no meaning
    9: lambda p: p,
}


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_camera_pictures_are_turned_where_it_is_wanted(
    orientation: int, form: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(), form, exif=exif, **options))
    assert np.array_equal(np.asarray(read_image(path)), noise())
    turned = np.asarray(read_image(path, upright=True))
    assert np.array_equal(turned, TURNED[orientation](noise()))


def test_camera_jpeg_is_turned(tmp_path: Path) -> None:
    half = np.zeros((16, 32, 3), dtype=np.uint8)
    half[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(half, "JPEG", exif=exif))
    picture = np.asarray(read_image(path, upright=True))
    assert picture.shape == (32, 16, 3)
    assert picture[:15].min() > 200
    assert picture[17:].max() < 50


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_any_mode_of_8_bits_in_memory(mode: str) -> None:
    picture = Image.new("RGBA" if "a" in mode else "RGB", (4, 3), (10, 10, 10))
    assert to_rgb(picture.convert(mode)).mode == "RGB"
    assert np.abs(np.asarray(to_rgb(picture.convert(mode))).astype(int) - 10).max() <= 2


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_32_bits_in_memory_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=rf"^image: {mode} has 32 bits a channel; convert it to 8"):
        to_rgb(Image.new(mode, (4, 3)))


@given(deep=arrays(np.uint16, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_an_array_is_read_as_its_file(deep: NDArray[np.uint16]) -> None:
    deep[0, 0] |= 0x8000  # not black
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    read = to_rgb(Image.open(file))
    assert np.array_equal(np.asarray(read), np.asarray(to_rgb(from_array(deep))))
    assert np.array_equal(np.asarray(read)[..., 1], deep // 256)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\); pass \(255 \* array\).astype\(np.uint8\)"),
        (np.zeros((3, 5, 6), np.uint8), r"uint8 \(3, 5, 6\); pass array.transpose\(1, 2, 0\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        (np.full((4, 4), 4095, np.uint16), "would turn black; stretch its values"),
    ],
)
def test_other_arrays_are_refused_with_the_fix(array: NDArray[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_array(array)


def test_a_mode_that_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^mine: La cannot be turned into RGB"):
        to_rgb(Image.new("La", (4, 3)), name="mine")


# -- refused ---------------------------------------------------------------------------------------
def file_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def cut(data: bytes, share: float) -> Callable[[Path], object]:
    return file_of(data[: int(len(data) * share)])


def huge_jpeg(side: int) -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5  # height and width of the frame
    data[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def huge_bmp(side: int) -> bytes:
    data = bytearray(encoded(noise(), "BMP"))
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def huge_webp() -> bytes:
    """The largest that the extended format can declare, 2 ** 24 each way, less one pixel."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\xff\xff" + b"\xff\xff\xff"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bad_stream() -> bytes:
    data = png(4, 4, b"\0" * 52)
    place = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[place - 4 : place])
    junk = chunk(b"IDAT", b"\xaa" * size)
    return data[: place - 4] + junk + chunk(b"IEND", b"")


def flipped_pixel() -> bytes:
    """Not packed, so that only the stream's own checksum can tell."""
    body = bytearray(zlib.compress(b"\0" * 52, 0))
    body[21] ^= 255
    return png(4, 4, b"")[:33] + chunk(b"IDAT", bytes(body)) + chunk(b"IEND", b"")


def bad_check(name: bytes) -> bytes:
    data = bytearray(encoded(noise(), "PNG"))
    place = data.index(name)
    (size,) = struct.unpack(">I", data[place - 4 : place])
    data[place + 4 + size] ^= 255
    return bytes(data)


def bomb(name: bytes, start: bytes) -> bytes:
    """A chunk of text or of a colour profile that inflates to 300 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" * 10**6) for _ in range(300)) + packer.flush()
    return png(1, 1, b"\0\1\2\3", more=chunk(name, start + packed))


def with_broken_exif(path: Path) -> None:
    path.write_bytes(encoded(noise(), "PNG", exif=b"Exif\0\0not what it should be"))


def a_symlink_loop(path: Path) -> None:
    path.symlink_to(path)


JPEG, PNG, WEBP = (encoded(noise(200, 300), form) for form in ("JPEG", "PNG", "WEBP"))
LIMIT = "at most 67108864 in all are read"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "jpeg-cut-in-its-header": (cut(JPEG, 0.003), "cannot be decoded: Truncated File Read"),
    "jpeg-cut-at-a-tenth": (cut(JPEG, 0.1), "cannot be decoded: image file is truncated"),
    "jpeg-cut-in-the-middle": (cut(JPEG, 0.5), "cannot be decoded: image file is truncated"),
    "jpeg-cut-near-its-end": (cut(JPEG, 0.98), "cannot be decoded: image file is truncated"),
    "png-cut-in-its-header": (cut(PNG, 0.0001), "cannot be decoded: Truncated File Read"),
    "png-cut-in-the-middle": (cut(PNG, 0.5), "cannot be decoded"),
    "webp-cut-in-the-middle": (cut(WEBP, 0.5), "cannot be decoded"),
    "bmp-cut-in-the-middle": (cut(encoded(noise(), "BMP"), 0.5), "cannot be decoded: image file"),
    "png-with-a-bad-check-of-its-header": (file_of(bad_check(b"IHDR")), "not a readable"),
    "png-with-a-flipped-pixel": (file_of(flipped_pixel()), "broken data stream"),
    "png-with-bad-data": (file_of(bad_stream()), "cannot be decoded"),
    "png-without-pixels": (file_of(png(0, 0, b"")), "not a readable"),
    "png-of-9000-each-way": (file_of(png(9000, 9000, b"")), f"9000x9000 pixels; {LIMIT}"),
    "png-of-12000-by-10000": (file_of(png(12000, 10000, b"")), f"12000x10000 pixels; {LIMIT}"),
    "png-of-2-billion-each-way": (file_of(png(2**31 - 1, 2**31 - 1, b"")), "cannot be decoded"),
    "jpeg-of-65500-each-way": (file_of(huge_jpeg(65500)), "cannot be decoded"),
    "jpeg-of-9000-each-way": (file_of(huge_jpeg(9000)), LIMIT),
    "bmp-of-9000-each-way": (file_of(huge_bmp(9000)), LIMIT),
    "bmp-of-2-billion-each-way": (file_of(huge_bmp(2**31 - 1)), "cannot be decoded"),
    "webp-of-16-million-each-way": (file_of(huge_webp()), "cannot be decoded"),
    "text-that-inflates": (file_of(bomb(b"zTXt", b"a\0\0")), "cannot be decoded"),
    **{
        f"twelve-bit-{channels}": (file_of(deep_png(channels, 4096)), "would turn black; stretch")
        for channels in (1, 3)
    },
    "tiff-of-floats": (file_of(encoded(Image.new("F", (4, 4)), "TIFF")), "F has 32 bits a channel"),
    "pdf": (file_of(encoded(noise(), "PDF")), "it looks like a PDF"),
    "empty-file": (file_of(b""), "GIF, TIFF image; the file is empty"),
    "text": (file_of(b"a red circle"), "not a readable JPEG, PNG, WEBP, BMP, GIF, TIFF image"),
    "web-page": (file_of(b"<!DOCTYPE html>"), "it looks like a web page or an SVG"),
    "git-lfs-pointer": (file_of(b"version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
    "zeros": (file_of(b"\0" * 5000), "not a readable"),
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "symlink-loop": (a_symlink_loop, "cannot be read"),
    "missing": (lambda path: None, "no such file"),
    "broken-exif": (with_broken_exif, "its EXIF data are damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_picture_is_one_error_with_file_and_reason(name: str, tmp_path: Path) -> None:
    make, says = BROKEN[name]
    path = tmp_path / "a.jpg"
    make(path)
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        read_image(path, upright=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert time.process_time() - start < 2


def test_broken_exif_does_not_matter_where_nothing_is_turned(tmp_path: Path) -> None:
    with_broken_exif(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (30, 20)


def test_profile_that_inflates_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bomb(b"iCCP", b"a\0\0"))
    start = time.process_time()
    try:
        assert np.asarray(read_image(path)).tolist() == [[[1, 2, 3]]]
    except DataError as error:
        assert "cannot be decoded" in str(error)  # noqa: PT017
    assert time.process_time() - start < 2


# -- damage ----------------------------------------------------------------------------------------
def good_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    small = Image.fromarray(noise())
    return {
        "jpeg": encoded(small, "JPEG", exif=exif),
        "progressive": encoded(small, "JPEG", progressive=True),
        "cmyk": encoded(small.convert("CMYK"), "JPEG"),
        "png": encoded(small, "PNG", exif=exif, icc_profile=b"a profile"),
        "palette": encoded(small.quantize(16), "PNG", transparency=b"\1\2\3"),
        "webp": encoded(small, "WEBP", exif=exif),
        "lossless": encoded(small, "WEBP", lossless=True),
        "animated-webp": animated("WEBP")[0],
        "animated-png": animated("PNG")[0],
        "bmp": encoded(small, "BMP"),
        "gif": gif(transparency=3)[0],
        "tiff": encoded(small, "TIFF"),
        "packed-tiff": encoded(small, "TIFF", compression="tiff_lzw"),
        "deep-tiff": deep_tiff()[0],
        "deep-png": deep_png(3),
        "palette-bmp": encoded(small.quantize(16), "BMP"),
    }


def damaged(data: bytes, key: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(key.randint(1, 4)):
        at = key.randrange(min(len(result), key.choice([40, 200, len(data)])))
        kind = key.choice(["byte", "byte", "byte", "huge", "delete", "insert", "cut"])
        if kind == "byte":
            result[at] = key.randrange(256)
        elif kind == "huge":
            result[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == "delete":
            del result[at : at + key.randint(1, 20)]
        elif kind == "insert":
            result[at:at] = key.randbytes(key.randint(1, 20))
        else:
            del result[max(at, 1) :]
    return bytes(result)


def with_right_checks(data: bytes) -> bytes:
    """Give the chunks of a PNG their checks again, so that the damage is not found at once."""
    result, place = data[:8], 8
    while place + 8 <= len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        result += chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + size])
        place += size + 12
    return result


@pytest.mark.parametrize("name", good_files())
def test_random_damage_raises_nothing_else(name: str, tmp_path: Path) -> None:
    good = good_files()[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(good)
    assert read_image(path).size in {(30, 20), (4, 5)}
    for number in range(200):
        data = damaged(good, random.Random(number))
        path.write_bytes(with_right_checks(data) if name.endswith("png") else data)
        try:
            picture = read_image(path, upright=number % 2 == 0)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            assert picture.mode == "RGB"
