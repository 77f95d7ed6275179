"""The arguments of somebody else's ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from masksd.errors import unknown_name
from masksd.hosts.layout import name_of, pick

Argument = int | str | Callable[..., Any]
"""A position, a name, a part of either as ``"batch:images"``, or a function of the whole call."""


class Arguments:
    """The arguments of a host's ``forward``."""

    def __init__(self, host: nn.Module) -> None:
        parameters = inspect.signature(host.forward).parameters.values()
        self._open = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
        self._names = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        self._host = type(host).__name__

    def check(self, field: str, which: Argument | None) -> None:
        """Raise a ``ValueError`` unless ``forward`` takes this argument."""
        names = [*self._names, *self._keywords]
        if which is None or callable(which) or self._open:
            return
        which = _whole(which)
        if isinstance(which, int) and not 0 <= which < len(self._names):
            raise ValueError(
                f"{field}={which} is not a position of {self._host}.forward({', '.join(names)})"
            )
        if isinstance(which, str) and which not in names:
            raise unknown_name(f"{field}: {self._host}.forward has no argument", which, names)

    def check_count(self, args: tuple[Any, ...]) -> None:
        """Raise a ``ValueError`` if a call has more positions than ``forward`` takes."""
        if len(args) > len(self._names) and not self._open:
            raise ValueError(
                f"{self._host}.forward takes {', '.join(self._names)}, but this call has "
                f"{len(args)} positional arguments; the truth goes by name: sd(..., target=masks)"
            )

    def get(
        self,
        which: Argument,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        field: str = "argument",
    ) -> Any:
        """Return the argument of a call; a missing one is an error."""
        found = self.find(which, args, kwargs, field)
        if found is None:
            what = f"{name_of(which)} gave None" if callable(which) else f"no argument {which!r}"
            raise ValueError(f"this call of {self._host} brought {what}")
        return found

    def find(
        self,
        which: Argument,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        field: str = "argument",
    ) -> Any:
        """Return the argument of a call, or None."""
        if callable(which):
            return which(*args, **kwargs)
        if isinstance(which, str) and ":" in which:
            whole = self.find(_whole(which), args, kwargs)
            return None if whole is None else pick(whole, which, field)
        if isinstance(which, int):
            position, name = which, self._names[which] if which < len(self._names) else None
        else:
            position = self._names.index(which) if which in self._names else len(args)
            name = which
        if position < len(args):
            return args[position]
        return None if name is None else kwargs.get(name)


def _whole(which: int | str) -> int | str:
    """Return the argument that a part is of."""
    if isinstance(which, int):
        return which
    name = which.partition(":")[0]
    return int(name) if name.isdigit() else name
