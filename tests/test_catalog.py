"""The catalogue: its numbers agree with each other, and a difference from them is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masksd.kit.data.layout import (
    PUBLISHED,
    count_difference,
    find_files,
    find_split_by,
    preferred_split,
    where_to_find,
)
from masksd.kit.data.prepare import prepare_data
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from tests.refer_folders import annotation, image, ref, write_refer
from tests.test_index import TOKENIZER


def count_refs(name: str, split_by: str) -> int:
    return sum(each.refs for each in PUBLISHED[name, split_by].values())


def test_splits_add_up_to_what_the_papers_say() -> None:
    assert count_refs("refcoco", "unc") == count_refs("refcoco", "google") == 50_000
    assert count_refs("refcoco+", "unc") == 49_856
    assert count_refs("refcocog", "umd") == count_refs("refcocog", "google")  # divided in two ways
    sentences = [each.sentences or 0 for each in PUBLISHED["refcoco", "unc"].values()]
    assert sum(sentences) == 142_210  # the paper prints 142,209 in all, and these splits
    assert "test" not in PUBLISHED["refcocog", "google"]


@pytest.mark.parametrize(("name", "split_by"), PUBLISHED)
def test_published_counts_are_no_difference_and_others_are_named(name: str, split_by: str) -> None:
    for split, size in PUBLISHED[name, split_by].items():
        assert count_difference(name, split_by, split, size.refs, size.sentences or 7) is None
        text = count_difference(name, split_by, split, size.refs - 1, size.sentences or 7)
        assert text is not None
        assert text.replace(" ", "").endswith(f"has{size.refs - 1}refs,published{size.refs}")
        if size.sentences:
            text = count_difference(name, split_by, split, size.refs, size.sentences + 1)
            assert text is not None
            assert f"published {size.sentences:,}".replace(",", " ") in text


def test_a_split_that_was_never_published() -> None:
    text = count_difference("refcocog", "google", "test", 1, 1)
    assert text == (
        "split 'test' of refcocog (google) is not a published one; those are 'train', 'val'"
    )
    assert count_difference("refcoco", "mine", "val", 1, 1) is None


def small(tmp_path: Path, **options: Any) -> Path:
    return write_refer(tmp_path, [image(7)], [annotation(70, 7)], [ref(1, 70, 7)], **options)


def test_opening_a_published_data_set_of_another_size_warns_once(tmp_path: Path) -> None:
    root = small(tmp_path, name="refcoco")
    says = r"split 'val' of refcoco \(unc\) has 1 refs, published 3 811 and 1 sentences, publ"
    for _ in ("from the sources", "from the index"):
        with pytest.warns(UserWarning, match=says) as caught:
            ReferDataset(root, "refcoco", "val", tokenizer=TOKENIZER, image_size=8)
        assert len(caught) == 1
        with pytest.warns(UserWarning, match=says):
            prepare_data(root, "refcoco", progress=False)


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_missing_files_come_with_the_places_of_copies(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data(tmp_path, name)
    text = str(caught.value)
    assert f"/licheng/referit/data/{name}.zip (web archive)" in text
    assert "https://web.archive.org/web/2022" in text
    assert "train2014.zip" in text
    assert f"refs({preferred_split(name)}).p" in text
    assert where_to_find(name) in text


def test_a_data_set_of_ones_own_has_no_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"and the images in .*images$"):
        find_files(tmp_path, "mine", "unc")


def test_which_split_is_taken(tmp_path: Path) -> None:
    assert find_split_by(tmp_path, "refcocog") == "umd"
    assert find_split_by(tmp_path, "mine") == "unc"
    small(tmp_path, name="refcocog", split_by="google")
    assert find_split_by(tmp_path, "refcocog") == "google"
    small(tmp_path, name="refcocog", split_by="umd")
    assert find_split_by(tmp_path, "refcocog") == "umd"
    small(tmp_path, split_by="first")
    assert find_split_by(tmp_path, "mine") == "first"
    small(tmp_path, split_by="second")
    with pytest.raises(DataError, match="several refs or splits: first, second; name one"):
        find_split_by(tmp_path, "mine")
