"""Links of the user are followed; a link that came with the images does not lead out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masksd.kit.data.prepare import prepare_data
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.text.tokenizers import load_tokenizer
from tests.refer_folders import annotation, image, ref, write_refer


def open_mine(root: Path, **options: Any) -> ReferDataset:
    tokenizer = load_tokenizer("shapes", 17)
    return ReferDataset(root, "mine", "val", tokenizer=tokenizer, image_size=16, **options)


def linked(root: Path, target: Path) -> Path:
    """A set of two images, the second of which is a link."""
    lists = [image(7), image(9)], [annotation(70, 7), annotation(90, 9)], [ref(1, 70, 7)]
    write_refer(root, *lists[:2], [*lists[2], ref(2, 90, 9)])
    link = root / "images" / "9.png"
    link.rename(target)
    link.symlink_to(target)
    return root


def test_a_link_among_the_images_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    root = linked(tmp_path / "root", tmp_path / "private.png")
    says = (
        r"image 9: .*9\.png: is a link that leads out of its folder, to .*private\.png, .*--images"
    )
    with pytest.raises(DataError, match=says):
        open_mine(root)[1]
    with pytest.raises(DataError, match=says):
        prepare_data(root, "mine", progress=False)
    with pytest.warns(UserWarning, match=rf"1 bad record left out: {says}"):
        left = open_mine(root, skip_bad=True)
    assert [left.record(index)["image_id"] for index in range(len(left))] == [7]
    with pytest.warns(UserWarning, match=rf"2 bad records left out: {says}"):
        assert len(prepare_data(root, "mine", skip_bad=True, progress=False)[1].refs) == 1


def test_a_chain_of_links_is_judged_by_its_end(tmp_path: Path) -> None:
    root = linked(tmp_path / "root", tmp_path / "private.png")
    (root / "images" / "9.png").rename(root / "images" / "between.png")
    (root / "images" / "9.png").symlink_to("between.png")
    with pytest.raises(DataError, match=r"image 9: .*leads out of its folder, to .*private\.png"):
        open_mine(root)[1]
    (root / "images" / "9.png").unlink()
    (root / "images" / "9.png").symlink_to("9.png")  # a circle
    with pytest.raises(DataError, match=r"image 9: .*9\.png: cannot be read: .*symbolic links"):
        open_mine(root)[1]


def test_links_that_the_user_makes_are_followed(tmp_path: Path) -> None:
    root = linked(tmp_path / "data", tmp_path / "data" / "images" / "other.png")  # stays inside
    assert len(open_mine(root)) == 2
    assert open_mine(root)[1]["image"].shape == (3, 16, 16)
    elsewhere = tmp_path / "disk" / "train2014"
    elsewhere.parent.mkdir()
    (root / "images").rename(elsewhere)
    (elsewhere / "9.png").unlink()
    (elsewhere / "9.png").symlink_to("other.png")
    (root / "images").symlink_to(elsewhere)  # the folder of the images
    assert open_mine(root)[1]["image"].shape == (3, 16, 16)
    (tmp_path / "link").symlink_to(root)  # and the root
    assert open_mine(tmp_path / "link")[1]["image"].shape == (3, 16, 16)
    assert len(prepare_data(tmp_path / "link", "mine", progress=False)[1].refs) == 2
