"""Reading one picture file: bounded, complete, and always RGB."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from masksd.data.records import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64 * 2**20


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
    try:
        with warnings.catch_warnings():
            # Pillow warns between one and two times its own limit; ours is lower and an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path, formats=FORMATS)
        with file as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} "
                    "in all are read"
                )
            picture.load()
            if picture.mode[0] in "IF":
                raise DataError(
                    f"{path}: {picture.mode} has more than 8 bits a channel; convert it to 8 bits"
                )
            turned = ImageOps.exif_transpose(picture) if upright else picture
            if turned.has_transparency_data:
                layer = turned.convert("RGBA")
                white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, layer).convert("RGB")
            return turned.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable {', '.join(FORMATS)} picture") from None
    except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be decoded: {error}") from None
