"""Reading one image file: bounded, complete, and always RGB."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from masksd.kit.data.records import DataError, ImageRecord, prefixed

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 64 * 2**20
_DARK = 16  # an image of 12 bits in 16, as of a satellite or a camera, has no larger value
_BLACK = (
    "{}: of its 16 bits a channel only the lower ones are used, so that it would turn black; "
    "stretch its values and save it with 8 bits"
)
_ORIENTATION = 0x0112  # the EXIF tag
_DAMAGE = (
    *(OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError),
    # Pillow looks up, divides by and asserts what a file says
    *(LookupError, ArithmeticError, AssertionError),
)
_OTHER_FILES = {  # what people put in the place of an image, by its first bytes
    b"%PDF": "a PDF",
    b"\0\0\0": "perhaps a HEIC or AVIF",
    b"<": "a web page or an SVG",
    b"version https://git-lfs": "a Git LFS pointer",
}


def read_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Read a JPEG, PNG, WEBP, BMP, GIF or TIFF image as 8-bit RGB, transparency laid onto white.

    Of 16 bits a channel the upper eight are taken, of several frames the first. A truncated file is
    an error here and not later. ``upright`` turns the image as its EXIF data say: not wanted where
    masks belong to the pixels as they are stored.
    """
    check_image_file(path)
    with _opened(path, str(path)) as image:
        return _to_rgb(image, upright, str(path))


def read_size(folder: Path, name: str, where: str) -> tuple[int, int]:
    """Return width and height of an image of a folder, as its first bytes say."""
    with _inside(folder, name, where) as image:
        return image.size


def read_mask(folder: Path, name: str, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Read a mask ``(H, W)`` from an image of this width and height: what is not 0 belongs to it.

    A palette counts by its numbers, colours by any channel; with transparency it is a DataError.
    """
    with _inside(folder, name, where) as image:
        if image.size != size:
            raise DataError(
                f"{where}: {name}: {image.width}x{image.height} pixels, but the picture has "
                f"{size[0]}x{size[1]}"
            )
        if image.format not in ("PNG", "BMP"):
            raise DataError(f"{where}: {name}: {image.format}, expected a mask in PNG or BMP")
        if image.mode in ("LA", "PA", "RGBA", "RGBa", "La"):
            raise DataError(f"{where}: {name}: a mask with transparency; save it without")
        image.load()
        values = np.asarray(image)
        return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def size_of_bytes(data: bytes, where: str) -> tuple[int, int, str]:
    """Return width, height and format of an image that is in memory, as its first bytes say."""
    with _opened(io.BytesIO(data), where) as image:
        return *image.size, str(image.format)


@contextlib.contextmanager
def _inside(folder: Path, name: str, where: str) -> Iterator[Image.Image]:
    path = folder / name
    with prefixed(where):
        check_image_file(path)
        check_stays_inside(folder, path)
        with _opened(path, str(path)) as image:
            yield image


@contextlib.contextmanager
def _opened(source: str | Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """Open an image of a known format and of no more pixels than are read."""
    try:
        with warnings.catch_warnings():
            # Pillow warns between one and two times its own limit, where ours is an error, and of
            # odd EXIF data, which are read as far as they go
            warnings.simplefilter("ignore")
            with Image.open(source, formats=FORMATS) as image:
                _check_pixels(image, name)
                yield image
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        seen = "" if isinstance(source, io.BytesIO) else _looks_like(source)
        raise DataError(f"{name}: not a readable {known} image{seen}") from None
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None


def read_recorded_image(folder: Path, record: ImageRecord) -> Image.Image:
    """Read an image of a data set; a DataError that says how to leave out such as it."""
    try:
        return check_recorded_image(folder, record)
    except DataError as error:
        raise DataError(
            f"{error}; `masksd data prepare --check-pictures --skip-bad` leaves such images out"
        ) from None


def check_recorded_image(folder: Path, record: ImageRecord) -> Image.Image:
    """Read an image of a data set; a DataError unless its size is the one on record."""
    path = folder / record.file_name
    with prefixed(f"image {record.image_id}"):
        check_stays_inside(folder, path)
        image = read_image(path)
    if image.size != (record.width, record.height):
        raise DataError(
            f"image {record.image_id}: {path}: {image.width}x{image.height} pixels, but "
            f"instances.json says {record.width}x{record.height}"
        )
    return image


def check_recorded_file(folder: Path, record: ImageRecord) -> None:
    """Raise a DataError unless an image of a data set is a regular file of its folder."""
    path = folder / record.file_name
    with prefixed(f"image {record.image_id}"):
        check_image_file(path)
        check_stays_inside(folder, path)


def check_stays_inside(folder: Path, path: Path) -> None:
    """Raise a DataError where a file of a folder is a link to a file outside.

    The user may have made the folder itself a link, and all above it. A link among the images came
    with them, and can show any file of the machine that is an image.
    """
    if path.parent == folder and not os.path.islink(path):
        return
    target = os.path.realpath(path)
    if not Path(target).is_relative_to(os.path.realpath(folder)):
        raise DataError(
            f"{path}: is a link that leads out of its folder, to {target}, and is not followed; "
            "copy the image in its place, or name the folder that it is in (--images)"
        )


def check_image_file(path: str | Path) -> None:
    """Raise a DataError unless there is a regular file, without opening it."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # the latter of a zero byte in it
        said = getattr(error, "strerror", error)
        raise DataError(f"{path}: cannot be read: {said}") from None
    if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
        raise DataError(f"{path}: cannot be decoded: not a regular file")


def to_rgb(image: Image.Image, upright: bool = False, name: str = "image") -> Image.Image:
    """Turn any image into RGB as :func:`read_image` does; errors call it ``name``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in _opened
        return _to_rgb(image, upright, name)


def from_array(array: NDArray[Any]) -> Image.Image:
    """Turn an array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)`` of 8 or 16 bits into an image."""
    shape, fix = array.shape, ""
    if array.dtype not in (np.uint8, np.uint16):
        fix = "(255 * array).astype(np.uint8), if white is 1"
    elif not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        fix = "array.transpose(1, 2, 0), if channels come first"
    if fix:
        raise ValueError(
            "an array must be uint8 or uint16 (H, W), (H, W, 3) or (H, W, 4), got "
            f"{array.dtype} {shape}; pass {fix}"
        )
    values = array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)
    seen = values if len(shape) == 2 else values[..., :3]
    if array.dtype == np.uint16 and seen.max() < _DARK:
        raise DataError(_BLACK.format("image"))
    return Image.fromarray(values)


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; at most {MAX_PIXELS} in all are read"
        )


def _to_rgb(image: Image.Image, upright: bool, name: str) -> Image.Image:
    _check_pixels(image, name)
    # of colours of 16 bits Pillow itself reads the upper eight
    codecs = [part[3] for part in getattr(image, "tile", ())]
    modes = [codec[0] if isinstance(codec, tuple) else codec for codec in codecs]
    deep = any(re.search(";16[BLN]$", str(mode)) for mode in modes)
    try:
        image.load()
    except _DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: {image.mode} has 32 bits a channel; convert it to 8 bits")
    if image.mode.startswith("I;16"):
        exif = image.getexif()
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.getexif().update(exif)
        deep = True
    if deep and max(_largest(image)) < _DARK:
        raise DataError(_BLACK.format(name))
    if upright:
        image = _upright(image, name)
    try:
        return _on_white(image)
    except _DAMAGE as error:
        raise DataError(f"{name}: {image.mode} cannot be turned into RGB: {error}") from None


def _largest(image: Image.Image) -> list[float]:
    """Return the largest value of each channel that is seen, not of transparency."""
    seen = image.convert("RGB").getextrema() if image.mode != "L" else [image.getextrema()]
    return [high for _, high in seen]  # type: ignore[misc]


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE as error:
        raise DataError(
            f"{name}: its EXIF data are damaged, so which way is up is unknown; save it without "
            f"them ({error})"
        ) from None
    if orientation not in range(2, 9):
        return image
    plain = image.copy()  # exif_transpose writes all other tags anew, and fails on odd ones
    plain.info = {key: value for key, value in image.info.items() if key == "transparency"}
    plain.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(plain)


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _looks_like(path: str | Path) -> str:
    with open(path, "rb") as file:
        begin = file.read(32)
    if not begin:
        return "; the file is empty"
    kinds = (kind for start, kind in _OTHER_FILES.items() if begin.startswith(start))
    return "".join(f"; it looks like {kind}" for kind in kinds)
