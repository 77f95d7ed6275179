"""Where the files of a data set in refer format lie, or one error that says which are wanted.

Layout::

    <root>/<name>/instances.json          pictures and objects, COCO's layout
    <root>/<name>/refs(<split_by>).p      refs with their sentences (or .json, or refs.json alone)
    <root>/<name>/index(<split_by>)/      made by ``masksd data prepare``; may be missing
    <images>/<file_name>                  pictures, by default in <root>/images
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masksd.errors import unknown_name
from masksd.kit.data.bad import DataError
from masksd.kit.data.catalog import preferred_split, where_to_find

_ROOT = "ROOT, --data-root"  # as commands name it


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one data set; ``index`` need not exist, the others were found."""

    name: str
    split_by: str
    images: Path
    refs: Path
    instances: Path
    index: Path


def find_files(
    root: str | Path,
    name: str,
    split_by: str,
    images: str | Path | None = None,
    index: str | Path | None = None,
) -> Layout:
    """Find refs, instances and picture folder, or say in one error what is missing.

    Args:
        root: the folder that holds the data sets.
        name: the data set's folder in it.
        split_by: whose split it is, as the name of the refs file says.
        images: the folder of the pictures; None takes ``<root>/images``.
        index: the folder of the index, which must exist; None takes
            ``<root>/<name>/index(<split_by>)``, which need not.

    Returns:
        The places.

    Raises:
        DataError: a folder that may not be read, or what is missing, what is wanted, the nearest
            names, and for a published data set where copies lie.

    Example:
        >>> import tempfile
        >>> find_files(tempfile.mkdtemp(), "mine", "unc")
        Traceback (most recent call last):
        ...
        masksd.kit.data.bad.DataError: no folder /tmp/.../mine ...
    """
    root = Path(root)
    folder = root / name
    image_folder = root / "images" if images is None else Path(images)
    for each, option in ((root, _ROOT), (folder, "NAME, --name"), (image_folder, "--images")):
        _check_readable(each, option)
    known = _split_names(folder)
    refs_names = [f"refs({split_by}).p", f"refs({split_by}).json"]
    if not known:  # which would say whose split it is
        refs_names.append("refs.json")
    refs = next((folder / each for each in refs_names if (folder / each).is_file()), None)
    missing = []
    if not folder.is_dir():
        missing.append(f"no folder {folder}{_unknown('data set', name, data_sets(root), 'name')}")
    elif refs is None:
        missing.append(f"no refs in {folder}{_unknown('split_by', split_by, known, 'split_by')}")
        if any(folder.glob("grefs(*")):
            missing.append("grefs(...) holds refs of several objects, which are not supported")
    if folder.is_dir() and not (folder / "instances.json").is_file():
        missing.append(f"no instances.json in {folder}")
    if not image_folder.is_dir():
        missing.append(
            f"no picture folder {image_folder} (if it is elsewhere, set images, --images)"
        )
    if index is not None and not Path(index).is_dir():
        missing.append(f"no index {index} (set index, --index, or leave it out)")
    if missing or refs is None:
        advice = where_to_find(name)
        raise DataError(
            f"{'; '.join(missing)}. Wanted: {folder / 'instances.json'}, one of "
            f"{', '.join(refs_names)} beside it, and the pictures in {image_folder}"
            + (f". {advice}" if advice else "")
        )
    place = folder / f"index({split_by})" if index is None else Path(index)
    return Layout(name, split_by, image_folder, refs, folder / "instances.json", place)


def find_split_by(root: str | Path, name: str) -> str:
    """Choose the refs file where the user names none: the papers' one, or the only one there.

    Args:
        root: the folder that holds the data sets.
        name: the data set's folder in it.

    Returns:
        The ``split_by`` of the refs file.

    Raises:
        DataError: a data set that is not in the catalogue has several refs files.

    Example:
        >>> find_split_by("anywhere", "refcocog")
        'umd'
    """
    found = _split_names(Path(root) / name)
    preferred = preferred_split(name)
    if preferred in found or (preferred and not found):
        return preferred
    if len(found) > 1:
        raise DataError(
            f"{Path(root) / name} has the refs of several splits: {', '.join(found)}; name one "
            "with split_by (--split-by)"
        )
    return found[0] if found else "unc"


def data_sets(root: str | Path) -> list[str]:
    """List the folders of a root that hold an ``instances.json``, or all where none does.

    Example:
        >>> data_sets("nowhere")
        []
    """
    root = Path(root)
    _check_readable(root, _ROOT)
    folders = sorted(each for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    whole = [each.name for each in folders if os.path.isfile(each / "instances.json")]
    return whole or [each.name for each in folders]


def _split_names(folder: Path) -> list[str]:
    paths = (path for path in folder.glob("refs(*).*") if path.suffix in (".p", ".json"))
    return sorted({path.name[5:].split(")")[0] for path in paths})


def _check_readable(folder: Path, option: str) -> None:
    """Raise unless a folder may be read, if there is one."""
    # in this form, which asks and does not raise where a folder above may not be read
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder} cannot be read: permission denied; choose another ({option})")


def _unknown(what: str, got: str, known: Sequence[str], field: str) -> str:
    """Say in brackets what is there instead; "" where nothing is."""
    if not known:
        return ""
    error = str(unknown_name(what, got, known))
    if len(known) == 1 and "did you mean" not in error:  # nothing else can be meant
        error = f"unknown {what} {got!r}; did you mean {known[0]!r}? It is the only one"
    return f" ({error}; set {field}, --{field.replace('_', '-')})"
