"""Where the data of a run come from, and the checks that configs share."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from masksd.errors import check_choice, unknown_name

FITS = ("squash", "letterbox")
"""How an image becomes a square; see :mod:`masksd.kit.data.transforms`."""


def cache_folder() -> Path:
    """Where generated data go: ``$MASKSD_CACHE``, else ``masksd`` in the user's cache folder."""
    own = os.environ.get("MASKSD_CACHE")
    if own:
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache or Path.home() / ".cache") / "masksd"
    except RuntimeError:
        raise ValueError(
            "the user has no home folder to keep generated data in; set MASKSD_CACHE to a folder"
        ) from None


@dataclass(frozen=True)
class DataConfig:
    """Where images and expressions come from: a folder in refer format, or generated shapes.

    Attributes:
        data_root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p, or with other files
            in NAME (parquet, labelme, table); None generates the shapes data set in the cache
            folder ($MASKSD_CACHE, else the user's cache).
        images: folder of the images; None takes DATA_ROOT/images, or DATA_ROOT/NAME for other
            files.
        name: of the data set inside the root: shapes, refcoco, refcoco+, refcocog.
        split_by: who made the splits, as in the refs file's name: masksd, unc, google, umd; for
            other files their kind; None takes the one that papers use, or the only one.
        index: file that masksd data prepare wrote; None takes the one beside the refs file, or the
            source files if there is none.
        text: which form of an expression: sent (cleaned, as CRIS) or raw (as LAVT).
        skip_bad: leave out, and count, bad records, blank expressions and refs without an image.
        level: of generated shapes: easy, medium, hard.
        variant: of generated shapes: empty, + (no location words), g (long expressions).
        pictures: images generated for training, apart from the other splits; None takes the
            default.

    Raises:
        ValueError: a field is out of range.

    Example:
        >>> DataConfig(level="hard").title()
        'shapes-hard'
        >>> DataConfig(pictures=0)
        Traceback (most recent call last):
        ValueError: pictures must be a whole number of at least 1, got 0
    """

    data_root: Path | None = None
    images: Path | None = None
    name: str = "shapes"
    split_by: str | None = None
    index: Path | None = None
    text: Literal["sent", "raw"] = "sent"
    skip_bad: bool = False
    level: str = "easy"
    variant: str = ""
    pictures: int | None = None

    def __post_init__(self) -> None:
        check_choice("text", self.text, ("sent", "raw"))
        check_whole(self, pictures=1)

    def title(self) -> str:
        """Return a short name of the data, for folders and tables."""
        made = self.data_root is None and self.name == "shapes"
        return f"shapes-{self.level}{self.variant}" if made else self.name

    def generated(self) -> bool:
        """Say whether the data are generated; if not, a folder must be named."""
        if self.data_root is None and self.name != "shapes":
            raise ValueError(
                f"data set {self.name!r} is not generated; name the folder that holds "
                f"{self.name}/instances.json with data_root (--data-root); "
                "only 'shapes' is generated (--name)"
            )
        return self.data_root is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, with absolute paths."""
        fields = dataclasses.asdict(self)
        return {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DataConfig:
        """Check and take back what :meth:`to_dict` returned; absent fields have their default."""
        default = dataclasses.asdict(cls())
        values = dict(fields)
        for name, value in fields.items():
            if name not in default:
                raise unknown_name("field of the data", name, default)
            if value is None and default[name] is None:
                continue
            if name == "skip_bad" and not isinstance(value, bool):
                raise ValueError(f"field {name!r} of the data must be true or false, got {value!r}")
            if name not in ("pictures", "skip_bad") and not isinstance(value, str):
                raise ValueError(f"field {name!r} of the data must be a string, got {value!r}")
            if name in ("data_root", "images", "index"):
                values[name] = Path(value)
        return cls(**values)


def check_whole(config: object, **least: int) -> None:
    """Raise a ``ValueError`` unless the fields are None or whole numbers of at least ``least``."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")


def check_finite(config: object, *names: str, zero: bool) -> None:
    """Raise a ``ValueError`` unless the fields are finite and above 0, or 0 where ``zero``."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf or (value == 0 and not zero):
            bound = ", 0 or more" if zero else " above 0"
            raise ValueError(f"{name} must be a finite number{bound}, got {value}")
