"""Where the files of a data set lie, and what is known of the published ones.

Layout of the refer format::

    <root>/<name>/instances.json                    images and objects, COCO's layout
    <root>/<name>/refs(<split_by>).p                refs (or .json, or refs.json alone, or grefs)
    <root>/<name>/index(<split_by>).safetensors     from ``masksd data prepare``; may be missing
    <images>/<file_name>                            images, by default in <root>/images

Other kinds are told by their files (:data:`masksd.kit.data.readers.KINDS`); the name of the kind
stands for ``<split_by>``, and their images lie in <root>/<name> by default. With files
``*_reviewed.json`` beside the refs, ``<split_by>-reviewed`` leaves out what they call wrong.

The published counts of expressions are those of CM-MaskSD (Section IV-A) and, for the test of G-Ref
(umd), of its own paper; None where sources are missing or disagree, as on RefCOCO+'s train split.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from masksd.errors import unknown_name
from masksd.kit.data.readers import KINDS, REFER, Kind, kinds_in
from masksd.kit.data.records import DataError
from masksd.kit.storage.files import sha256_of

T = TypeVar("T")

_ROOT = "ROOT, --data-root"  # as commands name it
_COPIES = {  # the server is gone: when the web archive copied it, and how large another copy is
    "refcoco": ("20220413011718", "184 MB"),
    "refcoco+": ("20220413011656", "152 MB"),
    "refcocog": ("20220413012904", "192 MB"),
}
_REVIEWED = "-reviewed"
_IMAGES = "http://images.cocodataset.org/zips/train2014.zip"


class SplitSize(NamedTuple):
    """How large a published split is: its refs, and its expressions where that is known."""

    refs: int
    sentences: int | None


def _sizes(**splits: tuple[int, int | None]) -> dict[str, SplitSize]:
    return {split: SplitSize(*size) for split, size in splits.items()}


PUBLISHED: Mapping[tuple[str, str], Mapping[str, SplitSize]] = {
    ("refcoco", "unc"): _sizes(
        train=(42_404, 120_624), val=(3_811, 10_834), testA=(1_975, 5_657), testB=(1_810, 5_095)
    ),
    ("refcoco", "google"): _sizes(train=(40_000, None), val=(5_000, None), test=(5_000, None)),
    ("refcoco+", "unc"): _sizes(
        train=(42_278, None), val=(3_805, 10_758), testA=(1_975, 5_726), testB=(1_798, 4_889)
    ),
    ("refcocog", "umd"): _sizes(train=(42_226, None), val=(2_573, None), test=(5_023, 9_602)),
    ("refcocog", "google"): _sizes(train=(44_822, None), val=(5_000, None)),  # it has no test
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one data set; ``index`` is made from ``files``, and need not exist yet."""

    name: str
    split_by: str
    images: Path
    files: tuple[Path, ...]
    index: Path

    @property
    def kind(self) -> Kind:
        """How the files are read."""
        return KINDS.get(self.split_by, REFER)

    @property
    def refs(self) -> Path:
        """The first of the files."""
        return self.files[0]

    @property
    def sources(self) -> Mapping[str, tuple[Path, ...]]:
        """The files by role: refs, or the first of another kind, and all others."""
        return {"refs": self.files[:1], "instances": self.files[1:]}


def find_files(
    root: str | Path,
    name: str,
    split_by: str,
    images: str | Path | None = None,
    index: str | Path | None = None,
) -> Layout:
    """Find refs, instances and image folder, or say in one DataError all that is missing.

    ``images`` is None for ``<root>/images``, or ``<root>/<name>`` for other kinds of files. An
    ``index`` that is named must exist; None takes ``<root>/<name>/index(<split_by>).safetensors``,
    which need not.
    """
    root = Path(root)
    folder = root / name
    files = KINDS[split_by].find(folder) if split_by in KINDS else []
    image_folder = Path(images or (folder if files else root / "images"))
    for each, option in ((root, _ROOT), (folder, "NAME, --name"), (image_folder, "--images")):
        _check_readable(each, option)
    known = _split_names(folder)
    author = split_by.removesuffix(_REVIEWED)
    reviewed = sorted(folder.glob("*_reviewed.json")) if author != split_by else []
    # Ref-L4 gives the files of all published sets at once; one of another set is not for this one
    other_sets = {published for published, _ in PUBLISHED} - {name}
    reviewed = [path for path in reviewed if path.name.partition("_")[0] not in other_sets]
    refs_names = [f"{kind}refs({author}).{end}" for kind in ("", "g") for end in ("p", "json")]
    if not known:  # then refs.json can only be of this split
        refs_names.append("refs.json")
    refs = next((folder / each for each in refs_names if (folder / each).is_file()), None)
    missing = []
    if not folder.is_dir():
        missing.append(f"no folder {folder}{_known('data set', name, data_sets(root), 'name')}")
    elif refs is None and not files:
        missing.append(f"no refs in {folder}{_known('split_by', split_by, known, 'split_by')}")
    if folder.is_dir() and not files and not (folder / "instances.json").is_file():
        missing.append(f"no instances.json in {folder}")
    if author != split_by and not reviewed:
        missing.append(f"no *_reviewed.json in {folder}, which {split_by!r} stands for")
    if not image_folder.is_dir():
        missing.append(f"no image folder {image_folder} (if it is elsewhere, set images, --images)")
    if index is not None and not Path(index).is_file():
        fix = "set index, --index, or leave it out"
        if Path(index).is_dir():
            fix = "it is a folder, as older versions wrote; run `masksd data prepare` again"
        missing.append(f"no index {index} ({fix})")
    if refs is not None and not files:
        files = [refs, folder / "instances.json", *reviewed]
    if missing or not files:
        advice = where_to_find(name)
        others = "" if advice else f"{', '.join(KINDS)} (see masksd/kit/README.md), or "
        raise DataError(
            f"{'; '.join(missing)}. Wanted: {others}{folder / 'instances.json'}, one of "
            f"{', '.join(refs_names)} beside it, and the images in {image_folder}"
            + (f". {advice}" if advice else "")
        )
    place = folder / f"index({split_by}).safetensors" if index is None else Path(index)
    return Layout(name, split_by, image_folder, tuple(files), place)


def describe_sources(layout: Layout) -> dict[str, Any]:
    """Return size in bytes, time of change (ns) and SHA-256 of the sources, by role."""
    return {
        role: {**stamp(paths), "sha256": digest(paths)} for role, paths in layout.sources.items()
    }


def stamp(paths: Sequence[Path]) -> dict[str, int]:
    """Return the size of all files, and the latest time of change."""
    found = [_unless_unreadable(path, Path.stat) for path in paths]
    return {
        "bytes": sum(each.st_size for each in found),
        "mtime_ns": max((each.st_mtime_ns for each in found), default=0),
    }


def digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of a file, or that of the ones of several files."""
    digests = [_unless_unreadable(path, sha256_of) for path in paths]
    return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()


def _unless_unreadable(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def find_split_by(root: str | Path, name: str) -> str:
    """Choose refs where the user names none: those that papers use, or the only ones there."""
    found = _split_names(Path(root) / name)
    preferred = preferred_split(name)
    if preferred in found or (preferred and not found):
        return preferred
    if len(found) > 1:
        raise DataError(
            f"{Path(root) / name} has several refs or splits: {', '.join(found)}; name one "
            "with split_by (--split-by)"
        )
    return found[0] if found else "unc"


def data_sets(root: str | Path) -> list[str]:
    """List the folders of a root that hold a data set, or all where none does."""
    root = Path(root)
    _check_readable(root, _ROOT)
    folders = sorted(each for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    whole = [
        each.name
        for each in folders
        if os.path.isfile(each / "instances.json")
        or (os.access(each, os.R_OK | os.X_OK) and kinds_in(each))
    ]
    return whole or [each.name for each in folders]


def preferred_split(name: str) -> str | None:
    """Return the ``split_by`` that papers use for a published data set; None for any other one."""
    return next((split_by for known, split_by in PUBLISHED if known == name), None)


def count_difference(name: str, split_by: str, split: str, refs: int, sentences: int) -> str | None:
    """Say how a split differs from the published one; None where it does not, or none is known."""
    splits = PUBLISHED.get((name, split_by))
    if splits is None:
        return None
    this = f"split {split!r} of {name} ({split_by})"
    size = splits.get(split)
    if size is None:
        return f"{this} is not a published one; those are {', '.join(map(repr, splits))}"
    differences = [
        f"{_spaced(found)} {kind}, published {_spaced(known)}"
        for kind, found, known in zip(size._fields, (refs, sentences), size, strict=True)
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
    if name not in _COPIES:
        return ""
    copied, size = _COPIES[name]
    page = f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{name}.zip"
    return (
        f"The server of {name}.zip is gone; copies: https://web.archive.org/web/{copied}/{page} "
        f"(web archive), or {name}.tar ({size}) in the Hugging Face data set wusize/coco; unpack "
        f"it so that the folder {name} lies in the root. Images: {_IMAGES} (13 GB), COCO's "
        "train2014; unpack it anywhere and name the folder"
    )


def _split_names(folder: Path) -> list[str]:
    """List whose refs a folder holds or, where it holds none, of which kinds its files are."""
    found = [*folder.glob("refs(*).*"), *folder.glob("grefs(*).*")]
    paths = (path for path in found if path.suffix in (".p", ".json"))
    names = sorted({path.name.split("(")[1].split(")")[0] for path in paths})
    return names or ([] if (folder / "instances.json").is_file() else kinds_in(folder))


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
