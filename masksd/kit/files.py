"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self

from masksd.kit.partial import partial_folder, partial_folders

MANIFEST = "manifest.json"


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files under other names beside their places, then rename all of them.

    Args:
        files: their whole contents by path; older files are replaced.

    Raises:
        OSError: if one of the places cannot be written; then every older file is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_files({Path(place) / "note.txt": b"all of it"})
        ...     (Path(place) / "note.txt").read_bytes()
        b'all of it'
    """
    temporary = {target: _beside(target, "tmp") for target in files}
    try:
        for target, data in files.items():
            if target.is_dir():
                raise IsADirectoryError(f"{target} is a folder, a file was to be written there")
            temporary[target].write_bytes(data)
        for target, path in temporary.items():
            path.replace(target)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


class StagedFolder:
    """A folder that is filled out of sight and takes its place when it is worth keeping.

    As a context it removes on leaving what has not taken its place, so that an error or Ctrl-C
    leaves nothing half written and an older folder untouched.

    Args:
        target: its place.
        check: raises where the place may not be taken; called before work starts, and again
            before anything is replaced.

    Raises:
        ValueError: what ``check`` raises, a mount point, or a place that another run works for.

    Attributes:
        path: where the folder is now; the hidden one at first, then the target.

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
        others = partial_folders(self.target)
        if others:  # of another process, or another machine
            raise ValueError(
                f"output {self.target} is being written: {others[0]} exists; wait, choose another "
                "--output, or remove it if no run is under way"
            )
        self.path.mkdir()
        return self

    def publish(self) -> None:
        """Take the place; the older folder there, if any, is removed. Does nothing later on.

        Raises:
            ValueError: what ``check`` raises.
        """
        if self.path == self.target:
            return
        self.check()
        previous = _beside(self.target, "previous")
        shutil.rmtree(previous, ignore_errors=True)  # of a killed process
        older = self.target.exists()
        if older:
            self.target.rename(previous)
        try:
            self.path.rename(self.target)
        except BaseException:
            if older:
                previous.rename(self.target)
            raise
        self.path = self.target
        shutil.rmtree(previous, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        if self.path != self.target:
            shutil.rmtree(self.path, ignore_errors=True)


def check_place(
    folder: Path, ours: Collection[str], *, kind: str, strange: str, over: bool
) -> None:
    """Raise a ``ValueError`` unless a folder of ours may take a place.

    Args:
        folder: where it goes.
        ours: names of what such a folder may hold; anything else is never replaced.
        kind: what it is, in a word.
        strange: what is wrong with another name, as in ``"no run writes"``.
        over: whether an older one may be replaced.

    Example:
        >>> check_place(Path("nothing/here"), (), kind="run", strange="no run writes", over=False)
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output {folder} is a file; choose another --output")
    others = sorted({path.name for path in folder.iterdir()} - set(ours))
    if others:
        raise ValueError(
            f"output {folder} holds {others[0]!r}, which {strange}; choose another --output"
        )
    if not over and any(folder.iterdir()):
        raise ValueError(
            f"output {folder} holds a {kind} already; choose another --output or pass --overwrite"
        )


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
