"""Reading one picture file: bounded, complete, and always RGB."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from masksd.kit.data.bad import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64 * 2**20
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # the tag's value: what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGE = (
    *(OSError, SyntaxError, EOFError, ValueError, struct.error, Image.DecompressionBombError),
    # Pillow looks up, divides by and asserts what a file says
    *(LookupError, ArithmeticError, AssertionError),
)
_OTHERS = {  # what is found in the place of a picture, by its first bytes
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"\0\0\0": "perhaps a HEIC or AVIF",
    b"<": "a web page or an SVG",
    b"version https://git-lfs": "a Git LFS pointer",
}


def read_picture(path: str | Path, upright: bool = False) -> Image.Image:
    """Read a picture as 8-bit RGB.

    Transparency is laid onto white. The pixel limit is checked before anything is decoded, and the
    file is decoded to its end, so a truncated one is an error here and not later.

    Args:
        path: a JPEG, PNG, WEBP or BMP file of at most 64 Mi pixels.
        upright: turn the picture as its EXIF orientation says. Wanted for pictures from a camera;
            not for data sets, whose masks belong to the pixels as they are stored.

    Returns:
        The picture, mode ``"RGB"``.

    Raises:
        DataError: the file is missing, damaged, too large, of another format or has 16 or 32 bits
            a channel, with its name and the reason.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("RGBA", (4, 3), (255, 0, 0, 0)).save(path)
        >>> read_picture(path).getpixel((0, 0))
        (255, 255, 255)
    """
    find_picture(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns between one and two times its own limit, where ours is an error, and of
            # odd EXIF data, which are read as far as they go
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                return _to_rgb(picture, upright, str(path))
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: not a readable {known} picture{_looks_like(path)}") from None
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from None


def find_picture(path: str | Path) -> None:
    """Look whether there is a file that can be opened, without opening it.

    Args:
        path: of the picture.

    Raises:
        DataError: it is missing, no regular file, or the system refuses to look.

    Example:
        >>> find_picture("none/a.png")
        Traceback (most recent call last):
        ...
        masksd.kit.data.bad.DataError: none/a.png: no such file
    """
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


def to_rgb(picture: Image.Image, upright: bool = False, name: str = "picture") -> Image.Image:
    """Turn any 8-bit picture into RGB, as :func:`read_picture` does with a file.

    Args:
        picture: of any mode and at most 64 Mi pixels; if it is still to be decoded, it is now.
        upright: see :func:`read_picture`.
        name: of the picture, for errors.

    Returns:
        A picture of mode ``"RGB"``, white where it was transparent; the same object if it has this
        mode already and need not be turned.

    Raises:
        DataError: as :func:`read_picture`, with the name and the reason.

    Example:
        >>> to_rgb(Image.new("LA", (4, 3), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in read_picture
        return _to_rgb(picture, upright, name)


def _to_rgb(picture: Image.Image, upright: bool, name: str) -> Image.Image:
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{name}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} in all are read"
        )
    try:
        picture.load()
    except _DAMAGE as error:
        raise DataError(f"{name}: cannot be decoded: {error}") from None
    if picture.mode[0] in "IF":
        raise DataError(
            f"{name}: {picture.mode} has more than 8 bits a channel; convert it to 8 bits"
        )
    turn = _UPRIGHT.get(_orientation(picture, name)) if upright else None
    try:
        return _on_white(picture if turn is None else picture.transpose(turn))
    except _DAMAGE as error:
        raise DataError(f"{name}: {picture.mode} cannot be turned into RGB: {error}") from None


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _orientation(picture: Image.Image, name: str) -> Any:
    try:
        # this tag alone: rewriting the others, as Pillow's exif_transpose does, fails on odd ones
        return picture.getexif().get(_ORIENTATION)
    except _DAMAGE as error:
        raise DataError(
            f"{name}: its EXIF data are damaged, so which way is up? Save it without them ({error})"
        ) from None


def _looks_like(path: str | Path) -> str:
    with open(path, "rb") as file:
        begin = file.read(32)
    if not begin:
        return "; the file is empty"
    found = (what for start, what in _OTHERS.items() if begin.startswith(start))
    return "".join(f"; it looks like {what}" for what in found)
