"""Folders that one process at a time writes to, and that take their place whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Self, TypeVar

from masksd.kit.storage.locks import locked

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_ATTEMPTS = 5
T = TypeVar("T")


class HeldFolder:
    """A folder that no other process of ours writes to; a context.

    The lock is on a hidden file beside the folder. It holds across containers and, where the file
    system can, machines; with ``wait``, entering waits for it. Entering also puts back a folder
    that a killed process left under its second name.
    """

    def __init__(self, target: Path, *, wait: bool = False) -> None:
        self.target = self.path = target.resolve()
        self.wait = wait
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.target.is_mount():
            raise ValueError(f"output {self.target} is a mount point; name a folder in it")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(beside(self.target, "lock"), self.target, wait=self.wait))
            _recover(self.target)
            self._enter()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def publish(self) -> None:
        """Do nothing: the folder is in its place."""

    def _enter(self) -> None:
        """Prepare the folder, under the lock."""


class StagedFolder(HeldFolder):
    """A held folder that is filled out of sight and takes its place by :meth:`publish`.

    Leaving the context removes what was not published, and an older folder stays untouched.
    ``check`` raises where the place may not be taken; it is called on entering and again before
    anything is replaced. ``path`` is hidden beside the target at first, then the target.
    """

    def __init__(self, target: Path, check: Callable[[], None], *, wait: bool = False) -> None:
        super().__init__(target, wait=wait)
        self.check = check
        self.path = beside(self.target, "partial")

    def _enter(self) -> None:
        self.check()
        _discard(self.path)  # of a killed process: the lock is ours now
        self.path.mkdir()

    def publish(self, retire: Callable[[Path], object] | None = None) -> None:
        """Take the place once; an older folder is deleted, or given to ``retire``, hidden."""
        if self.path == self.target:
            return
        self.check()
        older = _replace(self.target, self.path)
        self.path = self.target
        if older is not None:
            try:
                (retire or _discard)(older)
            except OSError as error:
                warnings.warn(
                    f"{self.target} is in its place, but what was there before is still at "
                    f"{older}: {error}",
                    UserWarning,
                    stacklevel=3,
                )

    def __exit__(self, *_: object) -> None:
        if self.path != self.target:
            _discard(self.path)
        super().__exit__()


def find_folder(folder: Path) -> Path:
    """Return where a folder is; a ``UserWarning`` if a killed process left it under another name.

    That is so between two renames of it, or of the one around it.
    """
    if folder.exists():
        return folder
    named = folder.resolve()
    for place in (beside(named, "previous"), beside(named.parent, "previous") / named.name):
        if place.is_dir():
            warnings.warn(
                f"saving to {folder} was interrupted; the one before it is read, at {place}",
                UserWarning,
                stacklevel=3,
            )
            return place
    return folder


def read_unchanged(folder: Path, read: Callable[[], T]) -> T:
    """Read from a folder; once more if it was replaced meanwhile, as a run's checkpoint may be."""
    for _ in range(_ATTEMPTS):
        before = _identity(folder)
        try:
            found = read()
        except (ValueError, OSError):
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found
    return read()


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def remove_folder(folder: Path) -> None:
    """Delete a folder; should this be interrupted, nothing of it is left under its name."""
    hidden = beside(folder, "removed")
    _discard(hidden)
    folder.rename(hidden)
    _discard(hidden)


def check_place(
    folder: Path, ours: Collection[str], *, kind: str, strange: str, over: bool
) -> None:
    """Raise a ``ValueError`` unless a folder that we write may take this place.

    It may hold ``ours`` alone: ``strange`` says what is wrong with others, as in "no run writes".
    ``over`` allows replacing an older ``kind``.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output {folder} is a file; choose another --output")
    names = {path.name for path in folder.iterdir()}
    words = ("tmp", "previous", "partial", "lock")
    left = tuple(f".{name}.{word}" for name in ours for word in words)
    others = sorted(name for name in names - set(ours) if not name.startswith(left))
    if others:
        raise ValueError(
            f"output {folder} holds {others[0]!r}, which {strange}; choose another --output"
        )
    if not over and names:
        raise ValueError(
            f"output {folder} holds a {kind} already; choose another --output or pass --overwrite"
        )


def beside(target: Path, word: str) -> Path:
    """Return a hidden name beside a file or folder."""
    return target.parent / f".{target.name}.{word}"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(target: Path, new: Path) -> Path | None:
    """Put a folder in its place and return where an older one is now."""
    older: Path | None = None
    if target.exists() and _exchange(new, target):
        older = new
    elif target.exists():
        older = beside(target, "previous")
        target.rename(older)
        try:
            new.rename(target)
        except BaseException:
            older.rename(target)
            raise
    else:
        new.rename(target)
    flush(target.parent)
    return older


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one operation; False where that is not supported, as on NFS and FUSE."""
    swap: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _NOT_SUPPORTED:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undo or finish what a killed process was doing between two renames."""
    previous = beside(target, "previous")
    if previous.is_dir():
        if target.exists():
            _discard(previous)
        else:
            previous.rename(target)
