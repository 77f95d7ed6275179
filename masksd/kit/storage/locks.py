"""A lock on a place: one process at a time, for as long as it lives."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_held: set[Path] = set()  # lock files of this process: the system's do not tell threads apart


@contextlib.contextmanager
def locked(path: Path, target: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock of the system on a file that stands for ``target``; it ends with the process."""
    busy = ValueError(
        f"output {target} is being written by another run; wait for it to end, or choose another "
        "--output"
    )
    if path in _held:
        raise busy
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock_file(descriptor, target, wait=wait)
        except BlockingIOError:
            os.close(descriptor)
            raise busy from None
        if _names(path, descriptor):
            break
        os.close(descriptor)  # its holder removed the file meanwhile: lock the new one
    _held.add(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # first, while it is locked
        os.close(descriptor)
        _held.discard(path)


def _lock_file(descriptor: int, target: Path, *, wait: bool) -> None:
    """Lock an open file for this process; raise a ``BlockingIOError`` if another has it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no fcntl")
        # not flock, which data workers would inherit, and hold when this process is killed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError from None
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {target} has no locks ({error.strerror}): nothing stops a second "
            "run from writing there",
            UserWarning,
            stacklevel=7,
        )


def _names(path: Path, descriptor: int) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
