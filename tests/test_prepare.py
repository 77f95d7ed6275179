"""``masksd data prepare`` and ``inspect``: what is there is verified, what is bad is named."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masksd.kit.cli import main
from masksd.kit.data.index import open_index
from masksd.kit.data.layout import find_files
from masksd.kit.data.prepare import prepare_data
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data_config import DataConfig
from masksd.kit.sources import open_split
from tests.refer_folders import annotation, image, ref, write_refer
from tests.test_index import TOKENIZER


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures with an object and a ref each."""
    images = [image(number) for number in (7, 8, 9)]
    annotations = [annotation(10 * number, number) for number in (7, 8, 9)]
    refs = [ref(number, 10 * number, number, f"circle {number}") for number in (7, 8, 9)]
    return write_refer(tmp_path / "data", images, annotations, refs)


def ref_ids(root: Path) -> list[int]:
    return open_index(find_files(root, "mine", "unc")).refs["ref_id"].tolist()


def spoil(root: Path, how: str) -> str:
    """Spoil picture 8; return the error that names it."""
    path = root / "images" / "8.png"
    if how == "missing":
        path.unlink()
        return r"image 8: .*8.png: no such file"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:40])
        return r"image 8: .*8.png: "
    Image.new("RGB", (6, 8)).save(path)
    return r"image 8: .*8.png: 6x8 pixels, but instances.json says 8x6"


@pytest.mark.parametrize("how", ["missing", "cut", "turned"])
def test_bad_pictures(root: Path, how: str) -> None:
    says = spoil(root, how)
    decode = how != "missing"
    with pytest.raises(DataError, match=says):
        prepare_data(root, "mine", check_pictures=decode, progress=False)
    assert not (root / "mine" / "index(unc).safetensors").exists()
    with pytest.warns(
        UserWarning, match=rf"2 bad records left out: {says}.*; .*ref_id 8"
    ) as caught:
        prepare_data(root, "mine", check_pictures=decode, skip_bad=True, progress=False)
    assert len(caught) == 1
    assert ref_ids(root) == [7, 9]
    bad = open_index(find_files(root, "mine", "unc")).bad
    assert bad.count == 2
    assert "image 8" in bad.reasons[0]
    # nothing is dropped in silence: opening what was prepared so says it again
    with pytest.warns(UserWarning, match="2 bad records left out"):
        data = ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8)
    assert [data.sentence(index) for index in range(len(data))] == ["circle 7", "circle 9"]


def test_pictures_are_not_decoded_unless_asked(root: Path) -> None:
    spoil(root, "cut")
    prepare_data(root, "mine", progress=False)
    assert ref_ids(root) == [7, 8, 9]


def test_a_data_set_opened_with_skip_bad_leaves_missing_pictures_out(root: Path) -> None:
    prepare_data(root, "mine", progress=False)
    spoil(root, "missing")
    with pytest.warns(UserWarning, match="1 bad record left out: image 8: .*no such file"):
        data = ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8, skip_bad=True)
    assert [item["index"] for item in data] == [0, 1]
    assert [data.record(index)["ref_id"] for index in range(2)] == [7, 9]
    assert data.bad.count == 1


@pytest.mark.parametrize("how", ["cut", "size"])
def test_a_bad_picture_names_the_command_that_leaves_it_out(root: Path, how: str) -> None:
    says = spoil(root, how)
    data = ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8, skip_bad=True)
    hint = "; `masksd data prepare --check-pictures --skip-bad` leaves such images out"
    with pytest.raises(DataError, match=f"{says}.*{hint}"):
        data[1]
    with pytest.warns(UserWarning, match="2 bad records left out: image 8") as caught:
        prepare_data(root, "mine", check_pictures=True, skip_bad=True, progress=False)
    assert not any("masksd data prepare" in str(each.message) for each in caught)
    with pytest.warns(UserWarning, match="2 bad records left out: image 8"):
        data = ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8)
    assert [data[index]["index"] for index in range(len(data))] == [0, 1]
    assert data.bad.count == 2


def test_a_split_that_a_filter_empties_is_an_error_that_names_it(root: Path) -> None:
    def opened(**options: Any) -> ReferDataset:
        return ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8, **options)

    refs = [ref(number, 10 * number, number) for number in (7, 8, 9)]
    for each in refs:
        del each["sentences"][0]["raw"]
    (root / "mine" / "refs(unc).p").write_bytes(pickle.dumps(refs))
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"ref_id 7: .*field 'raw' is missing") as caught:
            opened(text="raw", skip_bad=skip_bad)
        says = "no expression of split 'val' has it: use text='sent' (--text sent)"
        assert str(caught.value).endswith(says)
    refs[0]["sentences"][0]["raw"] = "a"
    (root / "mine" / "refs(unc).p").write_bytes(pickle.dumps(refs))
    with pytest.raises(DataError, match=r"ref_id 8: .* leaves such sentences out"):
        opened(text="raw")
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of its 3 images can be found, as in image 9.*--im"):
        opened(skip_bad=True)


@pytest.mark.filterwarnings("default:images of split")  # the program prints it
def test_images_of_train_in_other_splits_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [image(number) for number in (6, 7, 8)] + [image(9, file_name="8.png")]
    annotations = [annotation(10 * number, number) for number in (6, 7, 8, 9)]
    annotations += [annotation(71, 7)]
    refs = [ref(n, 10 * n, n, split=split) for n, split in ((6, "train"), (7, "train"))]
    refs += [ref(8, 80, 8, split="train"), ref(9, 90, 9, split="val"), ref(1, 71, 7, split="val")]
    refs += [ref(10, 70, 7, split="test")]
    root = write_refer(tmp_path / "data", images, annotations, refs)
    says = "images of split 'train' are in other splits, too (val 2, test 1)"
    with pytest.warns(UserWarning, match=re.escape(says)):
        prepare_data(root, "mine", progress=False)
    assert main(["data", "inspect", "data", "mine"]) == 0
    assert f"masksd: warning: {says}: scores there are not" in capfd.readouterr().err


def test_a_failed_check_leaves_the_older_index(root: Path) -> None:
    layout, _ = prepare_data(root, "mine", progress=False)
    before = layout.index.read_bytes()
    spoil(root, "missing")
    with pytest.raises(DataError, match="image 8"):
        prepare_data(root, "mine", progress=False)
    assert layout.index.read_bytes() == before
    assert {path.name for path in (root / "mine").iterdir()} == {
        "instances.json",
        "refs(unc).p",
        "index(unc).safetensors",
    }


def test_places_that_are_not_taken(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file exists and is not an index; choose ano"):
        prepare_data(root, "mine", output=tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="is a folder; name a file, such as "):
        prepare_data(root, "mine", output=root / "images", progress=False)
    assert len(list((root / "images").iterdir())) == 3


def test_an_older_or_damaged_index_is_replaced(root: Path, tmp_path: Path) -> None:
    for output in (None, tmp_path / "mine"):
        layout, _ = prepare_data(root, "mine", output=output, progress=False)
        content = layout.index.read_bytes()
        layout.index.write_bytes(content[:300])
        prepare_data(root, "mine", output=output, progress=False)
        assert layout.index.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written(root: Path) -> None:
    (root / "mine").chmod(0o500)
    try:
        with pytest.raises(ValueError, match=r"cannot be written .* choose another --output"):
            prepare_data(root, "mine", progress=False)
    finally:
        (root / "mine").chmod(0o700)


@pytest.mark.parametrize("folder", ["file/index", "file/deep/index", f"{'x' * 300}/index"])
def test_a_place_that_cannot_be(root: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=rf"output \S+{folder} cannot be written .*--output"):
        prepare_data(root, "mine", output=tmp_path / folder, progress=False)


def unreadable(path: Path) -> None:
    """Make a path that no user, not even root, can look at: a link to itself."""
    path.unlink()
    path.symlink_to(path)


def test_pictures_that_cannot_be_looked_at_are_bad_ones(root: Path) -> None:
    unreadable(root / "images" / "8.png")
    says = r"image 8: .*8.png: cannot be read: Too many"
    with pytest.raises(DataError, match=says):
        prepare_data(root, "mine", progress=False)
    with pytest.warns(UserWarning, match=f"1 bad record left out: {says}"):
        data = ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8, skip_bad=True)
    assert len(data) == 2
    with pytest.warns(UserWarning, match=f"2 bad records left out: {says}"):
        prepare_data(root, "mine", skip_bad=True, progress=False)
    assert ref_ids(root) == [7, 9]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_sources_that_may_not_be_read_are_not_the_output(root: Path, name: str) -> None:
    (root / "mine" / name).chmod(0)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied$") as caught:
        prepare_data(root, "mine", progress=False)
    assert name in str(caught.value)


# -- the commands ----------------------------------------------------------------------------------


def test_prepare_prints_what_is_there(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads((root / "mine" / "instances.json").read_text())
    content["annotations"][1]["segmentation"].append([1, 2])
    (root / "mine" / "instances.json").write_text(json.dumps(content))
    assert main(["data", "prepare", str(root), "mine", "--check-pictures"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].split() == ["split", "images", "objects", "refs", "sentences"]
    assert out[1].split() == ["val", "3", "3", "3", "3"]
    assert out[2].endswith("dropped from objects that have others: 1")
    assert out[3] == f"refer format: {root / 'mine' / 'refs(unc).p'} and 1 more"
    assert out[4] == f"3 images decoded in {root / 'images'}"
    assert out[5].startswith(f"{root / 'mine' / 'index(unc).safetensors'} (")
    assert out[6] == f"next: masksd data inspect {root} mine"


# the program prints its warnings, it does not raise them
@pytest.mark.filterwarnings("default:2 bad records left out")
def test_prepare_counts_what_it_leaves_out(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil(root, "missing")
    assert main(["data", "prepare", str(root), "mine"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("masksd: error: image 8: ")
    assert error.endswith("or leave its refs out with --skip-bad")
    assert main(["data", "prepare", str(root), "mine", "--skip-bad"]) == 0
    assert "masksd: warning: 2 bad records left out: image 8" in capfd.readouterr().err


def test_prepare_says_which_files_it_wants(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "refcocog", str(tmp_path)]) == 2
    hint = f"did you mean masksd data prepare {tmp_path} refcocog?"
    assert hint in capfd.readouterr().err
    assert main(["data", "prepare", str(tmp_path), "refcocog"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"Wanted: {tmp_path / 'refcocog' / 'instances.json'}, one of refs(umd).p" in error
    assert "https://web.archive.org/web/20220413012904/" in error


@pytest.mark.filterwarnings("default:split 'val' of refcoco")
def test_published_counts_are_printed_beside(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "mine").rename(root / "refcoco+")
    assert main(["data", "prepare", str(root), "refcoco+"]) == 0
    found = capfd.readouterr()
    head, row = found.out.splitlines()[:2]
    assert head.endswith("refs published  sentences published")
    assert row.split() == ["val", "3", "3", "3", "3", "3805", "10758"]
    assert "warning: split 'val' of refcoco+ (unc) has 3 refs, published 3 805" in found.err


def test_an_index_elsewhere_serves_other_commands(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "index"
    assert main(["data", "prepare", str(root), "mine", "--output", str(place)]) == 0
    assert main(["data", "inspect", str(root), "mine", "--index", str(place)]) == 0
    stored = DataConfig(data_root=root, name="mine", index=place)
    data = open_split(DataConfig.from_dict(stored.to_dict()), "val", TOKENIZER, 8)
    assert data._index.path == place
    assert main(["data", "inspect", str(root), "mine", "--index", "none"]) == 2
    assert "no index none (set index, --index" in capfd.readouterr().err


def test_inspect_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ShapesConfig(train=3, val=2, test_a=1, test_b=1)
    build_shapes(tmp_path / "data", config, progress=False)
    assert main(["data", "inspect", "data", "--samples", "6"]) == 0
    out = capfd.readouterr().out
    assert "area, % of the image: median" in out
    with Image.open("shapes-masksd.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    outline = np.abs(pixels - (0xD8, 0x1B, 0x60)).sum(-1) < 12
    halves = np.array_split(outline, 2)  # two rows of pictures
    assert all(half.sum() > 100 for half in halves)
    assert outline.mean() < 0.05
    assert main(["data", "inspect", "data", "shapes", "--output", "none/a.png"]) == 2
    assert "there is no folder none; make it first" in capfd.readouterr().err
    assert main(["data", "inspect", "data", "--output", "a.jpg"]) == 2
    assert "must end in .png" in capfd.readouterr().err
    assert main(["data", "inspect", "data", "--samples", "0"]) == 2
    assert "samples must be at least 1" in capfd.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "holds no data set, as ROOT/NAME/instances.json" in capfd.readouterr().err
