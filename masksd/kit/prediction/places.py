"""Which images are predicted on, and where predictions may be written.

One prediction is an overlay with its mask beside it; they replace older files, but never the image.
Several are a new folder. Run lengths are a JSON file, directly in that folder or outside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARTS = ("overlays", "masks")  # folders in a folder of predictions


def plan_output(
    image: Path, expressions: Sequence[str], output: Path | None, rle: Path | None
) -> tuple[list[Path], Path]:
    """Choose the images, and where predictions go: to a PNG for one, else to a folder."""
    if not expressions:
        raise ValueError("no expression; say what to find, as in 'the red circle'")
    if not image.exists():
        raise ValueError(f"image {image}: no such file or folder")
    images = list_images(image) if image.is_dir() else [image]
    several = image.is_dir() or len(expressions) > 1
    if output is None:
        name = image.resolve().name if image.is_dir() else image.stem
        output = Path(f"{name}-predictions" if several else f"{name}-prediction.png")
    if output.suffix.lower() not in ("", ".png"):
        raise ValueError(f"output {output} must end in .png, or be a folder without an ending")
    if several and output.suffix:
        raise ValueError(
            f"output {output} is one file, and there are several predictions; name a folder, "
            f"as in {output.with_suffix('')}"
        )
    if output.suffix:
        check_files(image, output, rle)
    else:
        check_folder(output, rle, images)
    return images, output


def list_images(folder: Path) -> list[Path]:
    """List the images directly in a folder, sorted by name; no two may have one stem."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise ValueError(f"folder {folder} has no image ({', '.join(SUFFIXES)})")
    by_stem: dict[str, Path] = {}
    for path in found:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(
                f"the masks of {other.name} and {path.name} in {folder} would have the same name; "
                "rename one of them"
            )
    return found


def mask_beside(output: Path) -> Path:
    """Name the mask of an overlay."""
    return output.with_name(f"{output.stem}-mask.png")


def check_files(image: Path, output: Path, rle: Path | None = None) -> None:
    """Raise a ``ValueError`` unless the files of one prediction may be written."""
    ours = (output, mask_beside(output))
    if rle is not None:
        if rle.resolve() in {path.resolve() for path in ours}:
            raise ValueError(f"rle {rle} is what --output writes; choose another --rle")
        _check_ending(rle)
        _check_file("rle", rle, [image])
    for path in ours:
        _check_file("output", path, [image])


def check_folder(output: Path, rle: Path | None, images: Sequence[Path]) -> None:
    """Raise a ``ValueError`` unless a folder of predictions may be written."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; choose another --output")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output {output} exists and is not empty; choose another --output")
    if rle is None:
        return
    place, folder = rle.resolve(), output.resolve()
    beside = place.parent == folder and place.name not in PARTS
    if not beside and folder in (place, *place.parents):
        raise ValueError(
            f"rle {rle} must be a file beside {' and '.join(PARTS)} in the output folder, as in "
            f"{output / 'masks.json'}, or lie outside it"
        )
    _check_ending(rle)
    if not beside:
        _check_file("rle", rle, images)


def _check_ending(rle: Path) -> None:
    if rle.suffix.lower() != ".json":
        raise ValueError(f"rle {rle} must end in .json; choose another --rle")


def _check_file(option: str, path: Path, images: Sequence[Path]) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; choose another --{option}")
    if path.exists() and any(each.exists() and path.samefile(each) for each in images):
        raise ValueError(f"{option} {path} is the image itself; choose another --{option}")
