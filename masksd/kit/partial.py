"""Where something is written before it takes its place, and sweeping what killed processes left."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path


def partial_folder(target: Path) -> Path:
    """Name this process's hidden folder beside a target, after sweeping those of dead processes.

    A dead one is a folder whose name holds this machine and a process id that no process has;
    other machines may share the disk, and theirs are left alone.

    Args:
        target: where the finished folder will go; need not exist.

    Returns:
        A path beside it; nothing is made.

    Example:
        >>> partial_folder(Path("runs/one")).name.startswith(".one.partial-")
        True
    """
    own = f"{_prefix(target)}{socket.gethostname()}-"
    for other in partial_folders(target):
        process = other.name.removeprefix(own)
        if process.isdecimal() and not _alive(int(process)):
            shutil.rmtree(other, ignore_errors=True)
    return target.with_name(f"{own}{os.getpid()}")


def partial_folders(target: Path) -> list[Path]:
    """List the hidden folders beside a target, of every process and machine.

    Args:
        target: as in :func:`partial_folder`.
    """
    if not target.parent.is_dir():
        return []
    return sorted(p for p in target.parent.iterdir() if p.name.startswith(_prefix(target)))


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing, only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
