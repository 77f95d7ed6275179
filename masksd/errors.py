"""How errors are worded: what came, what was expected, and the nearest match."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


def unknown_name(what: str, got: object, known: Iterable[str]) -> ValueError:
    """Return (not raise) the error for a name outside a known set, with the nearest match."""
    names = sorted(known)
    close = difflib.get_close_matches(str(got), names, n=1)
    close = close or [name for name in names if got and str(got).lower() in name.lower()]
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"unknown {what} {got!r}; {hint}Known: {', '.join(map(repr, names))}")


def check_choice(what: str, got: str, known: Iterable[str]) -> None:
    """Raise :func:`unknown_name` unless ``got`` is one of ``known``."""
    names = list(known)
    if got not in names:
        raise unknown_name(what, got, names)


def check_fraction(what: str, got: float) -> None:
    """Raise a ``ValueError`` unless ``got`` is a number in [0, 1]."""
    # A tuple of types: torch 2.7 does not compile a union.
    if not isinstance(got, (int, float)) or isinstance(got, bool) or not 0.0 <= got <= 1.0:
        raise ValueError(f"{what} must be a number in [0, 1], got {got!r}")


def check_weight(what: str, got: float) -> None:
    """Raise a ``ValueError`` unless ``got`` is a finite number of at least 0."""
    number = isinstance(got, (int, float)) and not isinstance(got, bool)
    if not number or not 0 <= got < float("inf"):
        raise ValueError(f"{what} must be a finite number, 0 or more, got {got!r}")


def one_line(message: object) -> str:
    """Put a message that quotes a file or a library on one line, without colours and controls."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", str(message)).split())
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf"))
