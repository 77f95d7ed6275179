"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from masksd.errors import one_line
from masksd.kit.storage.places import StagedFolder, beside, find_folder, flush

MANIFEST = "manifest.json"


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, by path, or none: under other names beside their places, then renamed."""
    temporary = {target: beside(target, "tmp") for target in files}
    try:
        for target, data in files.items():
            if target.is_dir():
                raise IsADirectoryError(f"{target} is a folder; a file must be written there")
            temporary[target].write_bytes(data)
            flush(temporary[target])
        for target, path in temporary.items():
            path.replace(target)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_folder(
    folder: str | Path,
    write: Callable[[Path], object],
    retire: Callable[[Path], object] | None = None,
) -> Path:
    """Make a folder with a manifest of sizes and SHA-256, flushed to the disk, then put in place.

    An older folder in that place is deleted, or handed to ``retire`` under a hidden name.
    """
    with StagedFolder(Path(folder), lambda: None) as staged:
        write(staged.path)
        _seal(staged.path)
        staged.publish(retire)
    return Path(folder)


def _seal(folder: Path) -> None:
    """Add the manifest and flush every file."""
    files = _files(folder)
    manifest = {"files": {name: _describe(folder / name) for name in files}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    mode = (folder / MANIFEST).stat().st_mode & 0o777
    for name in [*files, MANIFEST]:
        (folder / name).chmod(mode)  # safetensors writes 0600 whatever the umask is
        flush(folder / name)
    for inside in [path for path in folder.rglob("*") if path.is_dir()]:
        flush(inside)
    flush(folder)


def find_checkpoint(folder: str | Path) -> Path:
    """Return where a checkpoint is now, without a look at its files."""
    root = find_folder(Path(folder))
    if not root.is_dir():
        raise ValueError(
            f"no checkpoint at {root}; `masksd runs` lists those there are, `masksd train` makes "
            "one"
        )
    if not (root / MANIFEST).is_file():
        near = root / "checkpoint"
        hint = f"; did you mean {near}?" if (near / MANIFEST).is_file() else ""
        raise ValueError(f"{root} is not a checkpoint: it has no {MANIFEST}{hint}")
    return root


def verify_folder(folder: str | Path, wanted: tuple[str, ...] = ()) -> Path:
    """Check a folder of :func:`write_folder` against its manifest, which must have ``wanted``."""
    root = find_checkpoint(folder)
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
        if name not in present:  # this also refuses names that lead out of the folder
            raise ValueError(
                f"checkpoint {root} is incomplete: {one_line(name)} is missing; "
                "copy or train it again"
            )
        found = _describe(root / name)
        if (found["bytes"], found["sha256"]) != (size, digest):
            raise ValueError(
                f"checkpoint {root} is damaged: {name} ({found['bytes']} bytes) is not the file "
                f"of {size} bytes that was saved; copy or train it again"
            )
    return root


def _files(root: Path) -> list[str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files if path.name != MANIFEST)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
