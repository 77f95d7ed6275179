"""Where the files of a data set in refer format lie, and what is known of the published ones.

Layout::

    <root>/<name>/instances.json                    images and objects, COCO's layout
    <root>/<name>/refs(<split_by>).p                refs (or .json, or refs.json alone)
    <root>/<name>/index(<split_by>).safetensors     from ``masksd data prepare``; may be missing
    <images>/<file_name>                            images, by default in <root>/images

The published counts of expressions are those that CM-MaskSD prints (Section IV-A) and, for the test
of G-Ref (umd), that the paper of the split prints. None is where no source was found, or where
sources disagree: for the train split of RefCOCO+ CM-MaskSD prints RefCOCO's number.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from masksd.errors import unknown_name
from masksd.kit.data.records import DataError

_ROOT = "ROOT, --data-root"  # as commands name it
_PAGE = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_ARCHIVES = {  # the server is gone, the web archive's copies work
    "refcoco": f"https://web.archive.org/web/20220413011718/{_PAGE}/refcoco.zip",
    "refcoco+": f"https://web.archive.org/web/20220413011656/{_PAGE}/refcoco+.zip",
    "refcocog": f"https://web.archive.org/web/20220413012904/{_PAGE}/refcocog.zip",
}
_TARS = {"refcoco": "184 MB", "refcoco+": "152 MB", "refcocog": "192 MB"}
_IMAGES = "http://images.cocodataset.org/zips/train2014.zip"


@dataclass(frozen=True, slots=True)
class SplitSize:
    """How large a published split is: its refs, and its expressions where that is known."""

    refs: int
    sentences: int | None


PUBLISHED: Mapping[tuple[str, str], Mapping[str, SplitSize]] = {
    ("refcoco", "unc"): {
        "train": SplitSize(42_404, 120_624),
        "val": SplitSize(3_811, 10_834),
        "testA": SplitSize(1_975, 5_657),
        "testB": SplitSize(1_810, 5_095),
    },
    ("refcoco", "google"): {
        "train": SplitSize(40_000, None),
        "val": SplitSize(5_000, None),
        "test": SplitSize(5_000, None),
    },
    ("refcoco+", "unc"): {
        "train": SplitSize(42_278, None),
        "val": SplitSize(3_805, 10_758),
        "testA": SplitSize(1_975, 5_726),
        "testB": SplitSize(1_798, 4_889),
    },
    ("refcocog", "umd"): {
        "train": SplitSize(42_226, None),
        "val": SplitSize(2_573, None),
        "test": SplitSize(5_023, 9_602),
    },
    ("refcocog", "google"): {  # it has no test
        "train": SplitSize(44_822, None),
        "val": SplitSize(5_000, None),
    },
}


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
    """Find refs, instances and image folder, or say in one DataError all that is missing.

    ``images`` is None for ``<root>/images``. An ``index`` that is named must exist; None takes
    ``<root>/<name>/index(<split_by>).safetensors``, which need not.
    """
    root = Path(root)
    folder = root / name
    image_folder = root / "images" if images is None else Path(images)
    for each, option in ((root, _ROOT), (folder, "NAME, --name"), (image_folder, "--images")):
        _check_readable(each, option)
    known = _split_names(folder)
    refs_names = [f"refs({split_by}).p", f"refs({split_by}).json"]
    if not known:  # then refs.json can only be of this split
        refs_names.append("refs.json")
    refs = next((folder / each for each in refs_names if (folder / each).is_file()), None)
    missing = []
    if not folder.is_dir():
        missing.append(f"no folder {folder}{_known('data set', name, data_sets(root), 'name')}")
    elif refs is None:
        missing.append(f"no refs in {folder}{_known('split_by', split_by, known, 'split_by')}")
        if any(folder.glob("grefs(*")):
            missing.append("grefs(...) holds refs of several objects, which are not supported")
    if folder.is_dir() and not (folder / "instances.json").is_file():
        missing.append(f"no instances.json in {folder}")
    if not image_folder.is_dir():
        missing.append(f"no image folder {image_folder} (if it is elsewhere, set images, --images)")
    if index is not None and not Path(index).is_file():
        fix = "set index, --index, or leave it out"
        if Path(index).is_dir():
            fix = "it is a folder, as older versions wrote; run `masksd data prepare` again"
        missing.append(f"no index {index} ({fix})")
    if missing or refs is None:
        advice = where_to_find(name)
        raise DataError(
            f"{'; '.join(missing)}. Wanted: {folder / 'instances.json'}, one of "
            f"{', '.join(refs_names)} beside it, and the images in {image_folder}"
            + (f". {advice}" if advice else "")
        )
    place = folder / f"index({split_by}).safetensors" if index is None else Path(index)
    return Layout(name, split_by, image_folder, refs, folder / "instances.json", place)


def find_split_by(root: str | Path, name: str) -> str:
    """Choose the refs file where the user names none: the one papers use, or the only one there."""
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
    """List the folders of a root that hold an ``instances.json``, or all where none does."""
    root = Path(root)
    _check_readable(root, _ROOT)
    folders = sorted(each for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    whole = [each.name for each in folders if os.path.isfile(each / "instances.json")]
    return whole or [each.name for each in folders]


def preferred_split(name: str) -> str | None:
    """Return the ``split_by`` that papers use for a published data set; None for any other one."""
    return next((split_by for known, split_by in PUBLISHED if known == name), None)


def count_difference(name: str, split_by: str, split: str, refs: int, sentences: int) -> str | None:
    """Say how a split differs from the published one; None where it does not, or nothing is known.

    Example:
        >>> count_difference("refcoco", "unc", "val", 3810, 10834)
        "split 'val' of refcoco (unc) has 3 810 refs, published 3 811"
    """
    splits = PUBLISHED.get((name, split_by))
    if splits is None:
        return None
    this = f"split {split!r} of {name} ({split_by})"
    size = splits.get(split)
    if size is None:
        return f"{this} is not a published one; those are {', '.join(map(repr, splits))}"
    differences = [
        f"{_spaced(found)} {kind}, published {_spaced(known)}"
        for kind, found, known in (
            ("refs", refs, size.refs),
            ("sentences", sentences, size.sentences),
        )
        if known is not None and found != known
    ]
    return f"{this} has {' and '.join(differences)}" if differences else None


def warn_of_shared_images(names: Mapping[str, Set[str]], train: str = "train") -> None:
    """Warn if image files of the training split are in others, too, given all names by split."""
    own = names.get(train, frozenset())
    shared = {split: len(own & found) for split, found in names.items() if split != train}
    counts = ", ".join(f"{split} {count}" for split, count in shared.items() if count)
    if counts:
        warnings.warn(
            f"images of split {train!r} are in other splits, too ({counts}): scores there are not "
            "those of unseen images",
            UserWarning,
            stacklevel=3,
        )


def where_to_find(name: str) -> str:
    """Say where the files of a published data set can be downloaded; "" for any other one."""
    if name not in _ARCHIVES:
        return ""
    return (
        f"The server of {name}.zip is gone; copies: {_ARCHIVES[name]} (web archive), or {name}.tar "
        f"({_TARS[name]}) in the Hugging Face data set wusize/coco; unpack it so that the folder "
        f"{name} lies in the root. Images: {_IMAGES} (13 GB), COCO's train2014; unpack it anywhere "
        "and name the folder"
    )


def _split_names(folder: Path) -> list[str]:
    paths = (path for path in folder.glob("refs(*).*") if path.suffix in (".p", ".json"))
    return sorted({path.name[5:].split(")")[0] for path in paths})


def _check_readable(folder: Path, option: str) -> None:
    # os.path.isdir does not raise where a folder above may not be read
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder} cannot be read: permission denied; choose another ({option})")


def _known(what: str, got: str, known: Sequence[str], field: str) -> str:
    """Say in brackets which names there are; "" where there are none."""
    if not known:
        return ""
    error = str(unknown_name(what, got, known))
    if len(known) == 1 and "did you mean" not in error:
        error = f"unknown {what} {got!r}; did you mean {known[0]!r}? It is the only one"
    return f" ({error}; set {field}, --{field.replace('_', '-')})"


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
