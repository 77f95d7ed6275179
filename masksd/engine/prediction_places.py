"""Which pictures are predicted on, and where predictions may be written."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder, sorted by name; folders in it are not looked into.

    Args:
        folder: with JPEG, PNG, WEBP or BMP files.

    Raises:
        ValueError: there is none, or two differ in their suffix only, so that their masks would
            have one name.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "b.PNG").touch(), (folder / "a.jpg").touch(), (folder / "notes.txt").touch()
        (None, None, None)
        >>> [path.name for path in list_pictures(folder)]
        ['a.jpg', 'b.PNG']
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise ValueError(f"folder {folder} has no picture ({', '.join(SUFFIXES)})")
    by_stem: dict[str, Path] = {}
    for path in found:
        if path.stem in by_stem:
            raise ValueError(
                f"{by_stem[path.stem].name} and {path.name} in {folder} would have masks of one "
                "name; rename one of them"
            )
        by_stem[path.stem] = path
    return found


def mask_beside(output: Path) -> Path:
    """Name the mask of an overlay.

    Example:
        >>> mask_beside(Path("a/dog.png")).as_posix()
        'a/dog-mask.png'
    """
    return output.with_name(f"{output.stem}-mask.png")


def check_files(picture: Path, output: Path, rle: Path | None = None) -> None:
    """Raise a ``ValueError`` unless the files of one prediction may be written.

    Args:
        picture: which shall not be overwritten.
        output: the overlay.
        rle: the run lengths.

    Example:
        >>> check_files(Path("dog.jpg"), Path("dog.png"))
    """
    for path in (output, mask_beside(output), *([] if rle is None else [rle])):
        _check_place(path)
        if path.exists() and picture.exists() and path.samefile(picture):
            raise ValueError(f"output {path} is the picture itself; choose another --output")


def check_folder(output: Path, rle: Path | None = None) -> None:
    """Raise a ``ValueError`` unless a folder of predictions may be written.

    Args:
        output: the folder.
        rle: the run lengths, in it or elsewhere.

    Example:
        >>> check_folder(Path("nothing"))
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; choose another --output")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output {output} exists and is not empty; choose another --output")
    if rle is not None and not lies_in(rle, output):
        _check_place(rle)


def lies_in(path: Path, folder: Path) -> bool:
    """Say whether a file is directly in a folder; neither need exist.

    Example:
        >>> lies_in(Path("a/b.json"), Path("a")), lies_in(Path("b.json"), Path("a"))
        (True, False)
    """
    return path.resolve().parent == folder.resolve()


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"output {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; choose another --output")
