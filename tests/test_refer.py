"""The reader of the refer format: right on right files, one clear error on wrong ones."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as coco_mask

from masksd.kit.data.images import read_image
from masksd.kit.data.records import DataError, check_file_name
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.segmentation import check_segmentation, decode_mask, encode_runs
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data.transforms import fit_image, fit_mask

TOKENIZER = load_tokenizer("shapes", 17)

# -- masks -----------------------------------------------------------------------------------------

masks = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)
)


@given(mask=masks.filter(np.any))  # what draws no pixel is refused
def test_run_lengths_agree_with_pycocotools(mask: np.ndarray) -> None:
    height, width = mask.shape
    code = coco_mask.encode(np.asfortranarray(mask))
    compressed = {"size": [height, width], "counts": code["counts"].decode()}
    runs = {"size": [height, width], "counts": encode_runs(mask)}
    assert coco_mask.frPyObjects(runs, height, width) == code
    for segmentation in (compressed, runs):
        checked, dropped = check_segmentation(segmentation, height, width)
        assert dropped == 0
        assert np.array_equal(decode_mask(checked, height, width), mask)


def test_long_runs_of_large_pictures() -> None:
    mask = np.zeros((700, 900), dtype=np.uint8)
    mask[100:600, 50:850] = 1
    mask[300, 300:500:7] = 0
    code = coco_mask.encode(np.asfortranarray(mask))
    checked, _ = check_segmentation(
        {"size": [700, 900], "counts": code["counts"].decode()}, 700, 900
    )
    assert np.array_equal(decode_mask(checked, 700, 900), mask)


def test_polygons_are_united() -> None:
    squares = [[1, 1, 6, 1, 6, 6, 1, 6], [4, 4, 9, 4, 9, 9, 4, 9]]
    checked, _ = check_segmentation(squares, 10, 12)
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[1:6, 1:6] = 1
    expected[4:9, 4:9] = 1
    assert np.array_equal(decode_mask(checked, 10, 12), expected)


def test_a_polygon_is_what_pillow_draws() -> None:
    points = [(20.0, 10.0), (80.0, 30.0), (60.0, 85.0), (15.0, 60.0)]
    drawn = Image.new("L", (1000, 1000))
    ImageDraw.Draw(drawn).polygon([(10 * x, 10 * y) for x, y in points], fill=1)
    expected = np.asarray(drawn)[5::10, 5::10]  # the centres of the pixels
    flat = [value for point in points for value in point]
    result = decode_mask(check_segmentation([flat], 100, 100)[0], 100, 100)
    assert (result & expected).sum() / (result | expected).sum() > 0.97


@given(
    polygon=st.lists(st.floats() | st.integers(-(10**12), 10**12), max_size=10),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_any_polygon_is_drawn_or_refused(polygon: list[float], height: int, width: int) -> None:
    try:
        checked, _ = check_segmentation([polygon], height, width)
    except DataError:
        return
    assert decode_mask(checked, height, width).max(initial=0) <= 1


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_counts_are_drawn_or_refused(text: str) -> None:
    try:
        checked, _ = check_segmentation({"size": [5, 4], "counts": text}, 5, 4)
    except DataError:
        return
    assert decode_mask(checked, 5, 4).shape == (5, 4)


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[0, 0, 5, 0, 5, float("nan")]], "coordinate nan is not a number within 20 pixels"),
        ([[0, 0, 5, 0, 5, float("inf")]], "coordinate inf"),
        ([[0, 0, 5, 0, 5, 1e30]], r"coordinate 1e\+30"),
        ([[0, 0, 5, 0, 5, "5"]], "coordinate '5'"),
        ([[0, 0, 5, 0, 5, True]], "coordinate True"),
        ([[0, 0, 5, 0]], "no polygon of at least 3 points"),
        ([], "no polygon"),
        ([3], "a polygon must be a list"),
        (None, "segmentation is a NoneType"),
        ({"size": [8, 10], "counts": [80]}, r"size is \[8, 10\], but the image has \[10, 8\]"),
        ({"size": [10, 8], "counts": [79]}, "the runs cover 79 of 80 pixels"),
        ({"size": [10, 8], "counts": [90, -10]}, "ints of at least 0"),
        ({"size": [10, 8], "counts": [80.0]}, "counts must be a string or a list of ints"),
        ({"size": [10, 8]}, "counts must be"),
        ({"size": [10, 8], "counts": "P"}, "counts end within a number"),
        ({"size": [10, 8], "counts": "\x00"}, "has no meaning in counts"),
        ({"size": [10, 8], "counts": "oooooooooo"}, "has no meaning in counts"),
        ({"size": [10, 8], "counts": "0"}, "the runs cover 0 of 80"),
    ],
)
def test_bad_segmentations(segmentation: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_segmentation(segmentation, 10, 8)


def test_unusable_polygons_are_counted() -> None:
    triangle = [0, 0, 5, 0, 5, 5]
    assert check_segmentation([[1, 2], triangle, [*triangle, 3]], 10, 8) == ([triangle], 2)


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (6, 4), (200, 10, 30)).save(tmp_path / "a", form)
    result = read_image(tmp_path / "a")
    assert (result.mode, result.size) == ("RGB", (6, 4))
    assert np.abs(np.array(result.getpixel((3, 2))) - (200, 10, 30)).max() < 12


def test_transparency_is_laid_onto_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png")
    result = read_image(tmp_path / "a.png")
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_turned_only_where_wanted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (6, 4)
    assert read_image(tmp_path / "a.jpg", upright=True).size == (4, 6)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_bad_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match=r"a.bin: no such file"):
        read_image(path)
    with pytest.raises(DataError, match=r"cannot be decoded"):
        read_image(tmp_path)
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"a.bin: not a readable JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        read_image(path)
    Image.new("RGB", (4, 4)).save(path, "PPM")
    with pytest.raises(DataError, match="not a readable"):
        read_image(path)
    for width, height in ((9000, 9000), (12000, 10000), (60000, 60000)):
        path.write_bytes(png_header(width, height))
        with pytest.raises(DataError, match=r"at most|exceeds limit"):
            read_image(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_every_truncation_is_an_error(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole", form)
    data = (tmp_path / "whole").read_bytes()
    for end in range(0, len(data) * 9 // 10, max(1, len(data) // 60)):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(DataError, match="cut: "):
            read_image(tmp_path / "cut")


# -- the data set ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ShapesConfig(level="medium", train=5, val=3, test_a=2, test_b=2)
    return build_shapes(tmp_path_factory.mktemp("data") / "medium", config, progress=False)


def dataset(root: Path, split: str = "train", **options: Any) -> ReferDataset:
    known = {"tokenizer": TOKENIZER, "image_size": 64, "split_by": "masksd", **options}
    return ReferDataset(root, "shapes", split, **known)


def raw_refs(root: Path, split: str) -> list[dict[str, Any]]:
    data = (root / "shapes" / "refs(masksd).p").read_bytes()
    return [ref for ref in pickle.loads(data) if ref["split"] == split]


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
@pytest.mark.parametrize("text", ["sent", "raw"])
def test_evaluation_has_every_sentence(root: Path, split: str, text: str) -> None:
    data = dataset(root, split, text=text)
    expected = [each[text] for ref in raw_refs(root, split) for each in ref["sentences"]]
    assert [data.sentence(index) for index in range(len(data))] == expected
    assert len(dataset(root, split, training=True, train_items="sentences")) == len(expected)


def test_items(root: Path) -> None:
    data = dataset(root)
    annotations = json.loads((root / "shapes" / "instances.json").read_text())["annotations"]
    areas = {each["id"]: each["area"] for each in annotations}
    owners = [ref["ann_id"] for ref in raw_refs(root, "train") for _ in ref["sentences"]]
    for index in range(len(data)):
        item = data[index]
        assert set(item) == {"image", "tokens", "target", "index"}
        assert item["index"] == index
        assert item["image"].dtype == item["target"].dtype == torch.uint8
        assert item["image"].shape == (3, 64, 64)
        assert item["target"].shape == (64, 64)
        assert item["target"].max() == 1
        assert torch.equal(item["tokens"], TOKENIZER.encode(data.sentence(index)))
        assert data.image(index).size == (96, 96)
        truth = data.truth(index)
        assert truth.shape == (96, 96)
        assert truth.sum() == areas[owners[index]]
        assert abs(item["target"].float().mean() - truth.mean()) < 0.01


def test_cache_changes_nothing(root: Path) -> None:
    plain, cached = dataset(root), dataset(root, cache=True)
    for _ in range(2):
        for index in range(len(plain)):
            one, two = plain[index], cached[index]
            assert all(torch.equal(one[key], two[key]) for key in ("image", "target", "tokens"))
            two["image"].zero_()  # a caller's change must not reach the cache
            two["target"].zero_()


def test_training_draws_one_sentence_a_ref_by_seed_epoch_and_index(root: Path) -> None:
    refs = raw_refs(root, "train")
    data = dataset(root, training=True)
    assert len(data) == len(refs)

    def epochs(which: ReferDataset) -> list[list[str]]:
        drawn = []
        for epoch in range(30):
            which.set_epoch(epoch)
            drawn.append([which.sentence(index) for index in range(len(which))])
        return drawn

    drawn = epochs(data)
    for index, ref in enumerate(refs):
        assert {each[index] for each in drawn} == {each["sent"] for each in ref["sentences"]}
    assert epochs(dataset(root, training=True)) == drawn
    assert epochs(dataset(root, training=True, seed=1)) != drawn
    data.set_epoch(7)
    assert data.epoch == 7
    assert torch.equal(data[2]["tokens"], TOKENIZER.encode(drawn[7][2]))


# newer Pythons warn of any fork beside torch's threads; the worker here uses none of them
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(root: Path, start: str) -> None:
    data = dataset(root, training=True)
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=1, persistent_workers=True, multiprocessing_context=start
    )
    for epoch in (0, 5):
        data.set_epoch(epoch)
        tokens = torch.cat([batch["tokens"] for batch in loader])
        expected = [TOKENIZER.encode(data.sentence(index)) for index in range(len(data))]
        assert torch.equal(tokens, torch.stack(expected))


def test_other_sentence_belongs_to_another_object_of_the_picture(root: Path) -> None:
    refs = raw_refs(root, "val")
    data = dataset(root, "val")
    owners = [ref for ref in refs for _ in ref["sentences"]]
    for index, owner in enumerate(owners):
        allowed = {
            each["sent"]
            for ref in refs
            if ref["image_id"] == owner["image_id"] and ref["ann_id"] != owner["ann_id"]
            for each in ref["sentences"]
        }
        assert data.other_sentence(index) in allowed
        assert data.other_sentence(index) == dataset(root, "val").other_sentence(index)


# -- hand-made folders, good and bad ---------------------------------------------------------------


def folder(
    tmp_path: Path,
    image: dict[str, Any] | None = None,
    annotation: dict[str, Any] | None = None,
    ref: dict[str, Any] | None = None,
    sentence: dict[str, Any] | None = None,
    repeat: str = "",
) -> Path:
    """A data set of one picture and one sentence, with some fields replaced (None: left out)."""

    def change(record: dict[str, Any], by: dict[str, Any] | None) -> dict[str, Any]:
        return {key: each for key, each in (record | (by or {})).items() if each is not None}

    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    images = [change({"id": 7, "file_name": "a.png", "width": 8, "height": 6}, image)]
    annotations = [change({"id": 5, "image_id": 7, "segmentation": square}, annotation)]
    sentences = [change({"sent_id": 0, "sent": "red circle", "raw": "Red!"}, sentence)]
    refs = [
        change(
            {"ref_id": 1, "ann_id": 5, "image_id": 7, "split": "val", "sentences": sentences}, ref
        )
    ]
    lists = {"images": images, "annotations": annotations, "refs": refs, "sentences": sentences}
    if repeat:
        lists[repeat].append(dict(lists[repeat][0]))
    (tmp_path / "mine").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    instances = {"images": images, "annotations": annotations}
    (tmp_path / "mine" / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "mine" / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return tmp_path


def open_mine(root: Path, **options: Any) -> ReferDataset:
    return ReferDataset(root, "mine", "val", tokenizer=TOKENIZER, image_size=8, **options)


def test_hand_made_folder(tmp_path: Path) -> None:
    data = open_mine(folder(tmp_path))
    assert len(data) == 1
    assert data.truth(0).sum() == 16
    assert data.other_sentence(0) is None
    assert data.dropped_polygons == 0
    with pytest.raises(IndexError, match="item 1 of a data set of 1"):
        data[1]


def test_json_refs_and_another_picture_folder(tmp_path: Path) -> None:
    root = folder(tmp_path)
    refs = pickle.loads((root / "mine" / "refs(unc).p").read_bytes())
    (root / "mine" / "refs(unc).p").unlink()
    (root / "images").rename(root / "train2014")
    for name in ("refs.json", "refs(unc).json"):
        path = root / "mine" / name
        path.write_text(json.dumps(refs))
        assert open_mine(root, images=root / "train2014")[0]["target"].sum() > 0
        path.unlink()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"image": {"id": "7"}},
            r"images\[0\]: field 'id' must be of type int, but is of type str",
        ),
        ({"image": {"id": None}}, r"images\[0\]: field 'id' must be of type int, but is missing"),
        (
            {"image": {"width": 0}},
            r"images\[0\] \(id 7\): field 'width' is 0, expected at least",
        ),
        ({"image": {"width": True}}, "field 'width' must be of type int, but is of type bool"),
        ({"image": {"width": 40000}}, r"\(id 5\): an image of 40000x6 pixels"),
        ({"image": {"file_name": "../a.png"}}, "'../a.png', expected a bare file name"),
        ({"image": {"file_name": ".."}}, "a bare file name"),
        ({"image": {"file_name": ""}}, "a bare file name"),
        ({"image": {"file_name": "c:\\a.png"}}, "a bare file name"),
        (
            {"image": {"file_name": "ä" * 128}},
            r"\(id 7\): field 'file_name' has 256 bytes, at most",
        ),
        ({"sentence": {"sent": "r" * 10_001}}, r"\(sent_id 0\): field 'sent' has 10001 characters"),
        ({"sentence": {"raw": "r" * 10_001}}, r"\(sent_id 0\): field 'raw' has 10001 characters"),
        ({"repeat": "images"}, r"images\[1\] \(id 7\): field 'id' is 7, which another"),
        ({"repeat": "annotations"}, r"annotations\[1\] \(id 5\): field 'id' is 5"),
        (
            {"annotation": {"image_id": 8}},
            r"annotations\[0\] \(id 5\): field 'image_id' is 8, but there is no such",
        ),
        ({"annotation": {"segmentation": 3}}, "field 'segmentation' must be a list or an object"),
        ({"annotation": {"segmentation": [[1, 2]]}}, r"\(id 5\): segmentation: no polygon"),
        (
            {"ref": {"ann_id": 6}},
            r"refs\[0\] \(ref_id 1\): field 'ann_id' is 6, which is not in instances.json",
        ),
        ({"ref": {"image_id": 8}}, "field 'image_id' is 8, but object 5 belongs to image 7"),
        ({"ref": {"split": None}}, r"refs\[0\] \(ref_id 1\): field 'split' must be of type str"),
        ({"ref": {"sentences": []}}, "field 'sentences' has no usable sentence"),
        ({"ref": {"sentences": ["red"]}}, r"sentences\[0\] must be of type dict"),
        ({"repeat": "refs"}, r"refs\[1\] \(ref_id 1\): field 'ref_id' is 1, which another"),
        ({"repeat": "sentences"}, r"refs\[0\] \(ref_id 1\): sentences: field 'sent_id' is 0"),
        ({"sentence": {"sent": "  "}}, "ref_id 1: sent_id 0: field 'sent' is missing or blank"),
        (
            {"sentence": {"sent": "  ", "raw": ""}},
            r"\(sent_id 0\): fields 'sent' and 'raw' are both bl",
        ),
        ({"sentence": {"sent": None}}, "ref_id 1: sent_id 0: field 'sent' is missing or blank"),
        ({"sentence": {"sent": 3}}, "field 'sent' must be of type str, but is of type int"),
        ({"ref": {"category_id": "3"}}, "field 'category_id' must be of type int"),
        ({"ref": {"ann_id": [5, 6]}}, "field 'ann_id' is 6, which is not in instances.json"),
        ({"sentence": {"sent_id": 0.5}}, "field 'sent_id' must be of type int"),
    ],
)
def test_bad_records(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_mine(folder(tmp_path, **changes))


def test_a_record_says_what_identifies_an_item(tmp_path: Path) -> None:
    data = open_mine(folder(tmp_path, ref={"category_id": 17}))
    known = {"ref_id": 1, "ann_id": 5, "image_id": 7, "sent_id": 0}
    assert data.record(0) == {**known, "category_id": 17, "height": 6, "width": 8}
    other = open_mine(folder(tmp_path / "other"))
    assert other.record(0)["category_id"] is None


def test_sentences_of_one_form_only(tmp_path: Path) -> None:
    root = folder(tmp_path, sentence={"sent": None})
    assert open_mine(root, text="raw").sentence(0) == "Red!"
    with pytest.raises(DataError, match=r"no expression of split 'val' has it: .*--text raw"):
        open_mine(root, skip_bad=True)
    path = root / "mine" / "refs(unc).p"
    [one] = pickle.loads(path.read_bytes())
    two = {**one, "ref_id": 2, "sentences": [{"sent_id": 1, "sent": "blue"}]}
    path.write_bytes(pickle.dumps([one, two], 2))
    with pytest.warns(UserWarning, match=r"1 bad record left out: .*field 'sent' is missing"):
        assert len(open_mine(root, skip_bad=True)) == 1


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_fit(tmp_path: Path, fit: str) -> None:
    data = open_mine(folder(tmp_path), fit=fit)
    item = data[0]
    assert torch.equal(item["image"], fit_image(data.image(0), 8, fit))
    assert torch.equal(item["target"], fit_mask(data.truth(0), 8, fit))


def test_unicode_and_long_expressions(tmp_path: Path) -> None:
    for number, text in enumerate(("左边的红色圆 🔴", "ein rötlicher Kreis", "red " * 2500)):
        data = open_mine(folder(tmp_path / str(number), sentence={"sent": text}))
        assert data.sentence(0) == text


def test_file_names_that_are_no_ascii(tmp_path: Path) -> None:
    root = folder(tmp_path, image={"file_name": "bild-ä-圆.png"})
    (root / "images" / "a.png").rename(root / "images" / "bild-ä-圆.png")
    assert open_mine(root)[0]["target"].sum() > 0


def test_a_colon_in_a_file_name_is_refused_on_windows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, image={"file_name": "12:30.png"})
    (root / "images" / "a.png").rename(root / "images" / "12:30.png")
    assert open_mine(root)[0]["target"].sum() > 0
    with monkeypatch.context() as patch:
        patch.setattr("os.name", "nt")
        with pytest.raises(DataError, match=r"images\[0\]: .* is 'c:a.png', expected a bare file"):
            check_file_name("c:a.png", "images[0]")


def test_refs_json_counts_only_alone(tmp_path: Path) -> None:
    """Beside refs that say whose split they are it would stand for any name that is mistyped."""
    root = folder(tmp_path)
    (root / "mine" / "refs.json").write_text("[]")
    assert len(open_mine(root)) == 1
    with pytest.raises(DataError, match=r"unknown split_by 'und'.*'unc'; set split_by, --split-by"):
        open_mine(root, split_by="und")
    (root / "mine" / "refs(unc).p").rename(root / "mine" / "refs(unc).p.old")
    with pytest.raises(DataError, match=r"refs.json: no ref is left: the file holds none"):
        open_mine(root)


def test_the_only_data_set_is_meant(tmp_path: Path) -> None:
    folder(tmp_path)
    says = r"\(unknown data set 'shapes'; did you mean 'mine'\? .*; set name, --name\)"
    with pytest.raises(DataError, match=says):
        ReferDataset(tmp_path, "shapes", "val", tokenizer=TOKENIZER, image_size=8)
    with pytest.raises(DataError, match=r"no folder \S+/empty/shapes; no image folder"):
        ReferDataset(tmp_path / "empty", "shapes", "val", tokenizer=TOKENIZER, image_size=8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("which", [".", "mine", "images"])
def test_folders_that_may_not_be_read(tmp_path: Path, which: str) -> None:
    root = folder(tmp_path / "data")
    option = {".": "--data-root", "mine": "--name", "images": "--images"}[which]
    (root / which).chmod(0)
    try:
        with pytest.raises(DataError, match=rf"{root / which} cannot be read: .*{option}\)"):
            open_mine(root)
    finally:
        (root / which).chmod(0o700)


def test_a_run_length_code_in_a_list(tmp_path: Path) -> None:
    code = {"size": [6, 8], "counts": [6, 3, 39]}
    plain = open_mine(folder(tmp_path / "1", annotation={"segmentation": code}))
    listed = open_mine(folder(tmp_path / "2", annotation={"segmentation": [code]}))
    assert np.array_equal(plain.truth(0), listed.truth(0))
    assert plain.truth(0)[:, 1].tolist() == [1, 1, 1, 0, 0, 0]


def test_bad_files(tmp_path: Path) -> None:
    root = folder(tmp_path)
    instances, refs = root / "mine" / "instances.json", root / "mine" / "refs(unc).p"
    good = instances.read_bytes()
    for text, says in (("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[]", "dict")):
        instances.write_text(text)
        with pytest.raises(DataError, match=rf"instances.json: .*{says}"):
            open_mine(root)
    instances.write_bytes(good)
    refs.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"refs\(unc\).p: opcode GLOBAL at byte 0 is refused"):
        open_mine(root)


def test_bad_pictures_name_file_id_and_reason(tmp_path: Path) -> None:
    root = folder(tmp_path)
    path = root / "images" / "a.png"
    data = open_mine(root)
    Image.new("RGB", (6, 8)).save(path)
    with pytest.raises(
        DataError, match=r"image 7: .*a.png: 6x8 pixels, but instances.json says 8x6"
    ):
        data[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"image 7: .*a.png: "):
        data[0]
    path.unlink()
    with pytest.raises(DataError, match=r"image 7: .*a.png: no such file"):
        data[0]


def test_missing_files_are_named_at_once(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError) as caught:
        ReferDataset(tmp_path / "none", "refcoco", "val", tokenizer=TOKENIZER, image_size=8)
    for word in ("no folder", "no image folder", "Wanted:", "instances.json", "refs(unc).p"):
        assert word in str(caught.value)
    with pytest.raises(DataError, match="unknown data set 'shape'; did you mean 'shapes'"):
        ReferDataset(root, "shape", "val", tokenizer=TOKENIZER, image_size=8)
    with pytest.raises(DataError, match="unknown split_by 'masks'; did you mean 'masksd'"):
        dataset(root, split_by="masks")
    with pytest.raises(DataError, match="if it is elsewhere, set images, --images"):
        dataset(root, images=tmp_path / "none")
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match=r"no refs in .*; no instances.json .*; no image folder"):
        open_mine(tmp_path)


def test_bad_options(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'testC'; did you mean 'testB'"):
        dataset(root, "testC")
    with pytest.raises(ValueError, match="unknown text 'sents'; did you mean 'sent'"):
        dataset(root, text="sents")
    with pytest.raises(ValueError, match="unknown train_items 'ref'; did you mean 'refs'"):
        dataset(root, train_items="ref")
    with pytest.raises(ValueError, match="unknown fit 'letterbx'; did you mean 'letterbox'"):
        dataset(root, fit="letterbx")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        dataset(root, seed=-1)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        dataset(root).set_epoch(-1)


def test_errors_survive_a_worker() -> None:
    assert str(pickle.loads(pickle.dumps(DataError("a.png: cut")))) == "a.png: cut"


def test_scoring_does_not_depend_on_the_seed(root: Path) -> None:
    sentences = [
        [data.other_sentence(index) for index in range(len(data))]
        for data in (dataset(root, seed=seed) for seed in (0, 5))
    ]
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_makes_of_it(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", upright=True)), expected)


def test_odd_exif_does_not_matter(tmp_path: Path) -> None:
    """Orientation 6 and a rational number given as bytes, which Pillow reads and cannot write."""
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    entries += struct.pack("<HHLL", 0x011A, 2, 4, 0x616263)
    block = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + struct.pack("<L", 0)
    Image.new("RGB", (5, 3)).save(tmp_path / "a.jpg", exif=block)
    with Image.open(tmp_path / "a.jpg") as stored, pytest.raises(TypeError):
        ImageOps.exif_transpose(stored)
    assert read_image(tmp_path / "a.jpg", upright=True).size == (3, 5)
