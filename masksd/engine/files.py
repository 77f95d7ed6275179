"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_file(path: str | Path, data: bytes) -> Path:
    """Write a file under another name beside its place, then rename it.

    Args:
        path: where it goes; an older file is replaced.
        data: its whole content.

    Returns:
        ``path`` as a path.

    Raises:
        OSError: if the place cannot be written; then an older file is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_file(f"{place}/note.txt", b"all of it").read_bytes()
        b'all of it'
    """
    target = Path(path)
    temporary = _beside(target, "tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Make a folder that appears at once and whole, with a manifest of sizes and SHA-256.

    Args:
        folder: where it goes; an older one is replaced.
        write: fills the (empty) folder it is given.

    Returns:
        ``folder`` as a path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     done = write_folder(f"{place}/new", lambda path: (path / "a").touch())
        ...     sorted(entry.name for entry in verify_folder(done).iterdir())
        ['a', 'manifest.json']
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, previous = _beside(target, "tmp"), _beside(target, "previous")
    if temporary.exists():  # of a killed process
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        write(temporary)
        files = _files(temporary)
        manifest = {"files": {name: _describe(temporary / name) for name in files}}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        mode = (temporary / MANIFEST).stat().st_mode & 0o777
        for name in [*files, MANIFEST]:
            (temporary / name).chmod(mode)  # safetensors writes 0600 whatever the umask is
            _flush(temporary / name)
        _flush(temporary)
        if target.exists():
            if previous.exists():
                shutil.rmtree(previous)
            target.rename(previous)
        temporary.rename(target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if previous.exists():
        shutil.rmtree(previous)
    return target


def verify_folder(folder: str | Path, wanted: tuple[str, ...] = ()) -> Path:
    """Check a folder against its manifest.

    Args:
        folder: as given to :func:`write_folder`.
        wanted: names that must be in the manifest.

    Returns:
        ``folder`` as a path.

    Raises:
        ValueError: one line saying what is missing or changed.
    """
    root = Path(folder)
    previous = _beside(root, "previous")
    if not root.is_dir():
        hint = "give the folder that `masksd train` wrote, as in runs/NAME/checkpoint"
        if previous.is_dir():
            hint = f"saving was interrupted; the one before it is complete at {previous}"
        raise ValueError(f"no checkpoint at {root}: {hint}")
    if not (root / MANIFEST).is_file():
        near = root / "checkpoint"
        hint = f"; did you mean {near}?" if (near / MANIFEST).is_file() else ""
        raise ValueError(f"{root} is not a checkpoint: it has no {MANIFEST}{hint}")
    try:
        files = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{root / MANIFEST} is damaged: {error!r}") from None
    for name in wanted:
        if name not in entries:
            raise ValueError(f"checkpoint {root} has no {name}")
    present = set(_files(root))
    for name, (size, digest) in entries.items():
        if name not in present:  # this refuses names that lead out of the folder, too
            raise ValueError(f"checkpoint {root} is incomplete: {name} is missing")
        found = _describe(root / name)
        if (found["bytes"], found["sha256"]) != (size, digest):
            raise ValueError(
                f"checkpoint {root} is damaged: {name} ({found['bytes']} bytes) is not the file "
                f"of {size} bytes that was saved; copy or train it again"
            )
    return root


def _beside(target: Path, word: str) -> Path:
    return target.parent / f".{target.name}.{word}"


def _files(root: Path) -> list[str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files if path.name != MANIFEST)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
