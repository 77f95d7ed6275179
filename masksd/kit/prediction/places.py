"""Which pictures are predicted on, and where predictions may be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PARTS = ("overlays", "masks")
"""Folders in a folder of predictions."""


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
        rle: the run lengths, a JSON file.

    Example:
        >>> check_files(Path("dog.jpg"), Path("dog.png"))
    """
    targets = {output: "output", mask_beside(output): "output"}
    if rle is not None:
        if rle.resolve() in {path.resolve() for path in targets}:
            raise ValueError(f"rle {rle} is what --output writes; choose another --rle")
        _check_ending(rle)
        targets[rle] = "rle"
    for path, option in targets.items():
        _check_place(path, option, [picture])


def check_folder(output: Path, rle: Path | None = None, pictures: Sequence[Path] = ()) -> None:
    """Raise a ``ValueError`` unless a folder of predictions may be written.

    Args:
        output: the folder.
        rle: the run lengths, a JSON file directly in it or elsewhere.
        pictures: which shall not be overwritten.

    Example:
        >>> check_folder(Path("nothing"))
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; choose another --output")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output {output} exists and is not empty; choose another --output")
    if rle is None:
        return
    place, folder = rle.resolve(), output.resolve()
    inside = lies_in(rle, output) and place.name not in PARTS
    if place == folder or (folder in place.parents and not inside):
        raise ValueError(
            f"rle {rle} must be a file beside {' and '.join(PARTS)} in the output folder, as in "
            f"{output / 'masks.json'}, or lie outside it"
        )
    _check_ending(rle)
    if not inside:
        _check_place(rle, "rle", pictures)


def lies_in(path: Path, folder: Path) -> bool:
    """Say whether a file is directly in a folder; neither need exist.

    Example:
        >>> lies_in(Path("a/b.json"), Path("a")), lies_in(Path("b.json"), Path("a"))
        (True, False)
    """
    return path.resolve().parent == folder.resolve()


def _check_ending(rle: Path) -> None:
    if rle.suffix.lower() != ".json":
        raise ValueError(f"rle {rle} must end in .json; choose another --rle")


def _check_place(path: Path, option: str, pictures: Sequence[Path]) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; choose another --{option}")
    if path.exists() and any(each.exists() and path.samefile(each) for each in pictures):
        raise ValueError(f"{option} {path} is the picture itself; choose another --{option}")
