"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

from masksd.errors import one_line

MANIFEST = "manifest.json"


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files, by path, or none: under other names beside their places, then renamed."""
    temporary = {target: _beside(target, "tmp") for target in files}
    try:
        for target, data in files.items():
            if target.is_dir():
                raise IsADirectoryError(f"{target} is a folder; a file must be written there")
            temporary[target].write_bytes(data)
        for target, path in temporary.items():
            path.replace(target)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


class StagedFolder:
    """A folder that is filled out of sight and takes its place when :meth:`publish` is called.

    A context: leaving it removes what was not published, so that an error or Ctrl-C leaves nothing
    half written and an older folder untouched. ``check`` raises where the place may not be taken;
    it is called on entering and again before anything is replaced. ``path`` is where the folder is
    now: a hidden one beside the target at first, then the target.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "one"
        >>> with StagedFolder(target, lambda: None) as staged:
        ...     _ = (staged.path / "a").write_text("half")
        >>> target.exists(), list(target.parent.iterdir())
        (False, [])
        >>> with StagedFolder(target, lambda: None) as staged:
        ...     _ = (staged.path / "a").write_text("all")
        ...     staged.publish()
        >>> [path.name for path in target.iterdir()]
        ['a']
    """

    def __init__(self, target: Path, check: Callable[[], None]) -> None:
        self.target, self.check = target.resolve(), check
        self.path = partial_folder(self.target)

    def __enter__(self) -> Self:
        self.check()
        if self.target.is_mount():
            raise ValueError(f"output {self.target} is a mount point; name a folder in it")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        others = _partial_folders(self.target)
        if others:  # of another process, or another machine
            raise ValueError(
                f"output {self.target} is being written: {others[0]} exists; wait, choose another "
                "--output, or remove it if no run is under way"
            )
        self.path.mkdir()
        return self

    def publish(self) -> None:
        """Take the place, replacing an older folder; a second call does nothing."""
        if self.path == self.target:
            return
        self.check()
        _replace(self.target, self.path)
        self.path = self.target

    def __exit__(self, *_: object) -> None:
        if self.path != self.target:
            shutil.rmtree(self.path, ignore_errors=True)


def write_folder(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Make a folder with a manifest of sizes and SHA-256, flushed to the disk, then put in place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     done = write_folder(f"{place}/new", lambda path: (path / "a").touch())
        ...     sorted(entry.name for entry in verify_folder(done).iterdir())
        ['a', 'manifest.json']
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_folder(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        _seal(temporary)
        _replace(target, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _seal(folder: Path) -> None:
    """Add the manifest and flush every file."""
    files = _files(folder)
    manifest = {"files": {name: _describe(folder / name) for name in files}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    mode = (folder / MANIFEST).stat().st_mode & 0o777
    for name in [*files, MANIFEST]:
        (folder / name).chmod(mode)  # safetensors writes 0600 whatever the umask is
        _flush(folder / name)
    _flush(folder)


def _replace(target: Path, new: Path) -> None:
    """Rename a folder to its place; until that is done, the older one is kept beside it."""
    previous = _beside(target, "previous")
    older = target.exists()
    if older:
        shutil.rmtree(previous, ignore_errors=True)  # left by a killed process
        target.rename(previous)
    try:
        new.rename(target)
    except BaseException:
        if older:
            previous.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def check_place(
    folder: Path, ours: Collection[str], *, kind: str, strange: str, over: bool
) -> None:
    """Raise a ``ValueError`` unless a folder that we write may take this place.

    ``ours`` names what such a folder holds: anything else is never replaced. ``strange`` says what
    is wrong with another name, as in "no run writes"; ``over`` allows replacing an older ``kind``.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output {folder} is a file; choose another --output")
    names = {path.name for path in folder.iterdir()}
    left = tuple(f".{name}.{word}" for name in ours for word in ("tmp", "previous", "partial-"))
    others = sorted(name for name in names - set(ours) if not name.startswith(left))
    if others:
        raise ValueError(
            f"output {folder} holds {others[0]!r}, which {strange}; choose another --output"
        )
    if not over and names:
        raise ValueError(
            f"output {folder} holds a {kind} already; choose another --output or pass --overwrite"
        )


def verify_folder(folder: str | Path, wanted: tuple[str, ...] = ()) -> Path:
    """Check a folder of :func:`write_folder` against its manifest, which must have ``wanted``."""
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
        if name not in present:  # this also refuses names that lead out of the folder
            raise ValueError(f"checkpoint {root} is incomplete: {one_line(name)} is missing")
        found = _describe(root / name)
        if (found["bytes"], found["sha256"]) != (size, digest):
            raise ValueError(
                f"checkpoint {root} is damaged: {name} ({found['bytes']} bytes) is not the file "
                f"of {size} bytes that was saved; copy or train it again"
            )
    return root


def partial_folder(target: Path) -> Path:
    """Name this process's hidden folder beside a target, after removing those of dead processes.

    A name holds machine and process. Folders of other machines, which may share the disk, stay.

    Example:
        >>> partial_folder(Path("runs/one")).name.startswith(".one.partial-")
        True
    """
    own = f"{_beside(target, 'partial')}-{socket.gethostname()}-"
    for other in _partial_folders(target):
        process = str(other).removeprefix(own)
        if process.isdecimal() and not _alive(int(process)):
            shutil.rmtree(other, ignore_errors=True)
    return Path(f"{own}{os.getpid()}")


def _partial_folders(target: Path) -> list[Path]:
    if not target.parent.is_dir():
        return []
    beginning = f"{_beside(target, 'partial').name}-"
    return sorted(path for path in target.parent.iterdir() if path.name.startswith(beginning))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing, only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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
