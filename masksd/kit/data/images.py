"""Reading one image file: bounded, complete, and always RGB."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from masksd.kit.data.records import DataError, ImageRecord

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64 * 2**20
_ORIENTATION = 0x0112  # the EXIF tag
_DAMAGE = (
    *(OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError),
    # Pillow looks up, divides by and asserts what a file says
    *(LookupError, ArithmeticError, AssertionError),
)
_OTHER_FILES = {  # what people put in the place of an image, by its first bytes
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"\0\0\0": "perhaps a HEIC or AVIF",
    b"<": "a web page or an SVG",
    b"version https://git-lfs": "a Git LFS pointer",
}


def read_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Read an image as 8-bit RGB, with transparency laid onto white.

    The pixel limit is checked before anything is decoded, and the file is decoded to its end, so
    that a truncated one is an error here and not later.

    Args:
        path: a JPEG, PNG, WEBP or BMP file of at most 64 Mi pixels.
        upright: turn the image as its EXIF orientation says. Wanted for images from a camera; not
            for data sets, whose masks belong to the pixels as they are stored.

    Raises:
        DataError: the file is missing, damaged, too large, of another format or has 16 or 32 bits
            a channel.
    """
    check_image_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns between one and two times its own limit, where ours is an error, and of
            # odd EXIF data, which are read as far as they go
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return _to_rgb(image, upright, str(path))
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: not a readable {known} image{_looks_like(path)}") from None
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from None


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
    try:
        check_stays_inside(folder, path)
        image = read_image(path)
    except DataError as error:
        raise DataError(f"image {record.image_id}: {error}") from None
    if image.size != (record.width, record.height):
        raise DataError(
            f"image {record.image_id}: {path}: {image.width}x{image.height} pixels, but "
            f"instances.json says {record.width}x{record.height}"
        )
    return image


def check_recorded_file(folder: Path, record: ImageRecord) -> None:
    """Raise a DataError unless an image of a data set is a regular file of its folder."""
    path = folder / record.file_name
    try:
        check_image_file(path)
        check_stays_inside(folder, path)
    except DataError as error:
        raise DataError(f"image {record.image_id}: {error}") from None


def check_stays_inside(folder: Path, path: Path) -> None:
    """Raise a DataError where a file of a folder is a link to a file outside.

    The folder itself, and all above it, may be links: those are made by the user. A link among the
    images came with them, and can show any file of the machine that is an image.
    """
    if not os.path.islink(path):
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
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a zero byte in it
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
        raise DataError(f"{path}: cannot be decoded: not a regular file")


def to_rgb(image: Image.Image, upright: bool = False, name: str = "image") -> Image.Image:
    """Turn any 8-bit image into RGB as :func:`read_image` does; errors call it ``name``.

    Example:
        >>> to_rgb(Image.new("LA", (4, 3), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in read_image
        return _to_rgb(image, upright, name)


def _to_rgb(image: Image.Image, upright: bool, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; at most {MAX_PIXELS} in all are read"
        )
    # Pillow reads colours of 16 bits as 8 bits: what a camera or satellite wrote turns black
    deep = any(str(part[3]).endswith(";16B") for part in getattr(image, "tile", ()))
    try:
        image.load()
    except _DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None
    if deep or image.mode[0] in "IF":
        depth = image.mode if image.mode[0] in "IF" else f"16-bit {image.mode}"
        raise DataError(f"{name}: {depth} has more than 8 bits a channel; convert it to 8 bits")
    if upright:
        image = _upright(image, name)
    try:
        return _on_white(image)
    except _DAMAGE as error:
        raise DataError(f"{name}: {image.mode} cannot be turned into RGB: {error}") from None


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
