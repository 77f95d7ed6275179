"""The published data sets of the RefCOCO family: their splits, and where copies of them lie.

Sentences are those that CM-MaskSD prints (Section IV-A) and, for the test of G-Ref (umd), that the
paper of the split prints. None is where no source was found, or where sources disagree: for the
train split of RefCOCO+ CM-MaskSD prints RefCOCO's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_PAGE = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_ARCHIVES = {  # the server is gone, the web archive's copies work
    "refcoco": f"https://web.archive.org/web/20220413011718/{_PAGE}/refcoco.zip",
    "refcoco+": f"https://web.archive.org/web/20220413011656/{_PAGE}/refcoco+.zip",
    "refcocog": f"https://web.archive.org/web/20220413012904/{_PAGE}/refcocog.zip",
}
_TARS = {"refcoco": "184 MB", "refcoco+": "152 MB", "refcocog": "192 MB"}
_PICTURES = "http://images.cocodataset.org/zips/train2014.zip"


@dataclass(frozen=True, slots=True)
class SplitSize:
    """How large a published split is: its refs, and its sentences where that is known."""

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


def preferred_split(name: str) -> str | None:
    """Return whose split of a published data set papers use; None for any other data set.

    Example:
        >>> preferred_split("refcocog"), preferred_split("mine")
        ('umd', None)
    """
    return next((split_by for known, split_by in PUBLISHED if known == name), None)


def count_difference(name: str, split_by: str, split: str, refs: int, sentences: int) -> str | None:
    """Compare a split with the published one.

    Args:
        name: of the data set.
        split_by: whose split it is.
        split: as its refs name it.
        refs: found in it.
        sentences: found in it.

    Returns:
        One sentence that names every difference; None where there is none, or nothing is known.

    Example:
        >>> count_difference("refcoco", "unc", "val", 3810, 10834)
        "split 'val' of refcoco (unc) has 3 810 refs, published 3 811"
        >>> count_difference("mine", "unc", "val", 3, 9) is None
        True
    """
    splits = PUBLISHED.get((name, split_by))
    if splits is None:
        return None
    what = f"split {split!r} of {name} ({split_by})"
    size = splits.get(split)
    if size is None:
        return f"{what} is not published; published are {', '.join(map(repr, splits))}"
    differences = [
        f"{_spaced(found)} {kind}, published {_spaced(known)}"
        for kind, found, known in (
            ("refs", refs, size.refs),
            ("sentences", sentences, size.sentences),
        )
        if known is not None and found != known
    ]
    return f"{what} has {' and '.join(differences)}" if differences else None


def where_to_find(name: str) -> str:
    """Say where the files of a published data set can be had.

    Args:
        name: of the data set.

    Returns:
        Sentences with addresses; "" for a data set that is not in the catalogue.

    Example:
        >>> "20220413011718" in where_to_find("refcoco")
        True
        >>> where_to_find("mine")
        ''
    """
    if name not in _ARCHIVES:
        return ""
    return (
        f"The server of {name}.zip is gone; copies: {_ARCHIVES[name]} (web archive), or {name}.tar "
        f"({_TARS[name]}) in the Hugging Face data set wusize/coco; unpack it so that the folder "
        f"{name} lies in the root. Pictures: {_PICTURES} (13 GB), COCO's train2014; unpack it "
        "anywhere and name the folder"
    )


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
