"""Where something is written before it takes its place, and sweeping what killed processes left."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path


def partial_folder(target: Path) -> Path:
    """Name this process's hidden folder beside a target, after sweeping those of dead processes.

    Other machines may share the disk, and their folders are left alone.
    """
    own = f"{_prefix(target)}{socket.gethostname()}-"
    for other in partial_folders(target):
        process = other.name.removeprefix(own)
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(other, ignore_errors=True)
    return target.with_name(f"{own}{os.getpid()}")


def partial_folders(target: Path) -> list[Path]:
    """List the hidden folders beside a target, of every process and machine."""
    if not target.parent.is_dir():
        return []
    return sorted(p for p in target.parent.iterdir() if p.name.startswith(_prefix(target)))


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing, only asks
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
