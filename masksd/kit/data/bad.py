"""What is wrong with data on disk: an error, or a count of what was left out and why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SHOWN = 3
_KEPT = 1_000


class DataError(ValueError):
    """Data on disk that are missing, damaged or contradict themselves.

    Example:
        >>> isinstance(DataError("instances.json: images[3]: field 'width' is 0"), ValueError)
        True
    """


class BadRecords:
    """Collects the records that are left out where the user asked to go on (``skip_bad``).

    Args:
        reasons: of what was left out before, one line each.
        count: how many records that were; None takes the number of reasons.

    Attributes:
        reasons: of the first 1,000 records, one line each: file, id and reason.
        count: how many records were left out, with those whose reason is not kept.

    Example:
        >>> bad = BadRecords()
        >>> bad.add("instances.json: annotation 5: the runs cover 3 of 80 pixels")
        >>> bad.count, bad.summary()
        (1, '1 bad record left out: instances.json: annotation 5: the runs cover 3 of 80 pixels')
    """

    def __init__(self, reasons: Iterable[str] = (), count: int | None = None) -> None:
        given = list(reasons)
        self.reasons = given[:_KEPT]
        self.count = len(given) if count is None else count

    def add(self, reason: str) -> None:
        """Note one record.

        Args:
            reason: file, id and what is wrong.
        """
        self.count += 1
        if len(self.reasons) < _KEPT:
            self.reasons.append(reason)

    def summary(self) -> str:
        """Return the count and the first reasons in one line; "" where nothing was left out."""
        if not self.reasons:
            return ""
        more = f"; and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        what = "bad record" if self.count == 1 else "bad records"
        return f"{self.count} {what} left out: {'; '.join(self.reasons[:_SHOWN])}{more}"

    def warn(self) -> None:
        """Emit the summary as one ``UserWarning``; nothing where nothing was left out."""
        if self.reasons:
            warnings.warn(self.summary(), UserWarning, stacklevel=3)


def attempt(
    bad: BadRecords | None, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Read a record, or note why it is left out.

    Args:
        bad: takes what is wrong; None raises it.
        read: reads and checks one record.
        args: of ``read``.
        kwargs: of ``read``.

    Returns:
        What ``read`` returns; None where the record is left out.

    Raises:
        DataError: what ``read`` raises, where ``bad`` is None.

    Example:
        >>> def refuse(name: str) -> int:
        ...     raise DataError(f"{name} is blank")
        >>> bad = BadRecords()
        >>> attempt(bad, refuse, "sentence 3"), bad.reasons
        (None, ['sentence 3 is blank'])
    """
    try:
        return read(*args, **kwargs)
    except DataError as error:
        if bad is None:
            raise
        bad.add(str(error))
        return None
