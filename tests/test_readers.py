"""Every kind of source gives the masks that it was written from, or one error naming the record."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from masksd.kit.cli import main
from masksd.kit.data.index import Index
from masksd.kit.data.layout import data_sets, find_files, find_split_by
from masksd.kit.data.prepare import find_index, prepare_data
from masksd.kit.data.readers.labelme import read_labelme
from masksd.kit.data.readers.parquet import _CocoRows, _picture
from masksd.kit.data.readers.refer import Records
from masksd.kit.data.readers.reviewed import drop_errors
from masksd.kit.data.readers.rows import Rows, split_of
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from tests.refer_folders import annotation, image, ref, write_refer
from tests.test_index import TOKENIZER

WIDTH, HEIGHT = 12, 9
SQUARE = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
SQUARE[2:6, 3:8] = 1
SQUARE_POLYGON = [3, 2, 8, 2, 8, 6, 3, 6]
CORNER = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
CORNER[0:3, 0:4] = 1
CORNER_POLYGON = [0, 0, 4, 0, 4, 3, 0, 3]


def runs(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def picture(color: str = "white") -> Image.Image:
    return Image.new("RGB", (WIDTH, HEIGHT), color)


def png(color: str = "white") -> bytes:
    file = io.BytesIO()
    picture(color).save(file, "PNG")
    return file.getvalue()


def truths(root: Path, split: str = "train", index: Index | None = None) -> dict[str, np.ndarray]:
    """The mask of every expression of a split, from the index in memory or on disk."""
    if index is None:
        index = find_index(find_files(root, "mine", find_split_by(root, "mine")))
    found = {}
    for row in index.rows(split):
        first, last = index.refs["sentences"][row]
        for sentence in range(first, last):
            found[index.sentence(sentence, "sent")] = index.mask(int(index.refs["object"][row]))
    return found


def check(root: Path, expected: dict[str, np.ndarray], split: str = "train") -> None:
    """The same from the sources and, once prepared, from the index; pictures can be read."""
    prepare_data(root, "mine", check_pictures=True, progress=False)
    layout = find_files(root, "mine", find_split_by(root, "mine"))
    assert layout.index.is_file()
    for _ in ("prepared", "sources"):
        found = truths(root, split)
        assert found.keys() == expected.keys()
        for sentence, mask in expected.items():
            assert np.array_equal(found[sentence], mask), sentence
        layout.index.unlink(missing_ok=True)
    data = ReferDataset(
        root, "mine", split, split_by=layout.split_by, tokenizer=TOKENIZER, image_size=8
    )
    assert data[0]["image"].shape == (3, 8, 8)
    assert {data.sentence(index) for index in range(len(data))} == expected.keys()


def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir(parents=True, exist_ok=True)
    return tmp_path / "mine"


# -- tables ----------------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


MASKS: dict[str, Callable[[Path], Any]] = {
    "numbers": lambda place: SQUARE_POLYGON,
    "points": lambda place: [[3, 2], [8, 2], [8, 6], [3, 6]],
    "polygons": lambda place: [SQUARE_POLYGON],
    "polygons of points": lambda place: [[[3, 2], [8, 2], [8, 6], [3, 6]]],
    "run lengths": lambda place: runs(SQUARE),
    "grey": lambda place: save_mask(place, Image.fromarray(SQUARE * 255)),
    "grey of ones": lambda place: save_mask(place, Image.fromarray(SQUARE)),
    "one bit": lambda place: save_mask(place, Image.fromarray(SQUARE * 255).convert("1")),
    "palette": lambda place: save_mask(place, with_palette()),
    "colour": lambda place: save_mask(
        place, Image.fromarray(np.dstack([0 * SQUARE, SQUARE, SQUARE]))
    ),
}


def with_palette() -> Image.Image:
    drawn = Image.fromarray(SQUARE, mode=None).convert("P")
    drawn = Image.frombytes("P", (WIDTH, HEIGHT), SQUARE.tobytes())
    drawn.putpalette([255, 255, 255, 0, 0, 0])  # number 1 is black
    return drawn


def save_mask(place: Path, mask: Image.Image) -> str:
    (place / "masks").mkdir(exist_ok=True)
    mask.save(place / "masks" / "a.png")
    return "masks/a.png"


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
@pytest.mark.parametrize("kind", MASKS)
def test_a_table(tmp_path: Path, kind: str, write: Any) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    mask = MASKS[kind](place)
    if write is write_csv and not isinstance(mask, str):
        mask = json.dumps(mask)
    end = "csv" if write is write_csv else "jsonl"
    rows = [{"picture": "a.png", "sentence": said, "mask": mask} for said in ("one, two", "three")]
    write(place / f"data.{end}", rows)
    assert data_sets(tmp_path) == ["mine"]
    assert find_split_by(tmp_path, "mine") == "table"
    check(tmp_path, {"one, two": SQUARE, "three": SQUARE})
    index = find_index(find_files(tmp_path, "mine", "table"))
    assert (len(index.refs), len(index.objects)) == (1, 1)  # one mask of one picture is one object


def test_a_table_of_splits_pictures_in_folders_and_no_object(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "deep").mkdir()
    picture().save(place / "deep" / "a.png")
    base = {"picture": "deep/a.png"}
    rows = [
        {**base, "sentence": "square", "polygon": SQUARE_POLYGON},
        {**base, "sentence": "corner", "rle": runs(CORNER)},
        {**base, "sentence": "nothing", "mask": []},
    ]
    write_jsonl(place / "validation.jsonl", rows)
    write_jsonl(place / "test-1.jsonl", [{**rows[0], "split": "testB"}])
    check(tmp_path, {"square": SQUARE, "corner": CORNER, "nothing": 0 * SQUARE}, "val")
    index = find_index(find_files(tmp_path, "mine", "table"))
    assert index.splits == ("testB", "val")
    assert index.no_object.tolist() == [False, False, False, True]


def test_rows_that_say_the_same_count_once(tmp_path: Path) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    row = {"picture": "a.png", "mask": json.dumps([SQUARE_POLYGON])}
    several = {**row, "sentence": json.dumps(["one", "two"])}
    write_csv(place / "data.csv", [{**row, "sentence": "one"}, several, several])
    _, index = prepare_data(tmp_path, "mine", progress=False)
    assert truths(tmp_path, index=index).keys() == {"one", "two"}
    assert len(index.sentences) == 2


def huge(place: Path) -> str:
    Image.new("1", (9_000, 9_000)).save(place / "huge.png")
    return "huge.png"


def jpeg_mask(place: Path) -> str:
    Image.fromarray(SQUARE * 255).save(place / "m.jpg")
    return "m.jpg"


ROW = {"picture": "a.png", "sentence": "a", "mask": [SQUARE_POLYGON]}
HOSTILE: list[tuple[Any, str]] = [
    (
        {**ROW, "picture": "../a.png"},
        r"field 'picture' is '\.\./a\.png', expected a file name with",
    ),
    ({**ROW, "picture": "/etc/passwd"}, r"field 'picture' is '/etc/passwd', expected"),
    ({**ROW, "picture": "x/../../a.png"}, "field 'picture' is .*expected a file name within"),
    ({**ROW, "picture": "/".join("a" * 20)}, "field 'picture' is .*expected a file name within"),
    ({**ROW, "picture": "none.png"}, r"none\.png: no such file"),
    ({**ROW, "picture": 3}, "field 'picture' must be of type str, but is of type int"),
    ({**ROW, "picture": "text.png"}, r"text\.png: not a readable"),
    ({**ROW, "picture": huge}, "9000x9000 pixels; at most"),
    ({**ROW, "picture": "out.png"}, "is a link that leads out of its folder"),
    ({**ROW, "picture": "gone/a.png"}, "is a link that leads out of its folder"),
    ({**ROW, "mask": "../m.png"}, r"field 'mask' is '\.\./m\.png', expected a file name with"),
    ({**ROW, "mask": "none.png"}, r"none\.png: no such file"),
    ({**ROW, "mask": "small.png"}, r"small\.png: 3x3 pixels, but the picture has 12x9"),
    ({**ROW, "mask": "clear.png"}, r"clear\.png: a mask with transparency"),
    ({**ROW, "mask": "blank.png"}, "its runs draw no pixel"),
    ({**ROW, "mask": jpeg_mask}, "expected a mask in PNG or BMP"),
    ({**ROW, "mask": "text.png"}, r"text\.png: not a readable"),
    ({**ROW, "mask": [[0, 0, 1, 0, 1, float("nan")]]}, "nan is not a number within 24 pixels"),
    ({**ROW, "mask": [[0, 0, 1, 0, 1, 1e30]]}, "1e\\+30 is not a number within 24 pixels"),
    ({**ROW, "mask": [[0, 0, 5, 5]]}, "no polygon of at least 3 points"),
    ({**ROW, "mask": [[0.2, 0.2, 1, 0.2, 1, 0.7]]}, "coordinates from 0 to 1, and they are pixels"),
    ({**ROW, "mask": [[[[[0]]]]]}, "segmentation: "),
    ({**ROW, "mask": {"size": [9, 12], "counts": [5]}}, "the runs cover 5 of 108 pixels"),
    ({**ROW, "mask": {"size": [12, 9], "counts": [108]}}, "its height and width are swapped"),
    ({**ROW, "mask": {"size": [9, 12], "counts": "~~"}}, "has no meaning in counts"),
    ({**ROW, "mask": {"size": [9, 12], "counts": [-1, 109]}}, "got a run of -1"),
    ({**ROW, "mask": {}}, "size is None, but the image has"),
    ({**ROW, "mask": 7}, "field 'mask' is 7, expected the file of a mask, polygons, a"),
    ({**ROW, "mask": "[1, 2"}, "field 'mask' is not valid JSON"),
    ({**ROW, "mask": "[" * 100_000}, "field 'mask' is not valid JSON"),
    ({"picture": "a.png", "sentence": "a"}, "no 'mask'; wanted a column 'mask' or 'polygon' or"),
    ({"picture": "a.png", "mask": [1]}, "no 'sentence'; wanted a column"),
    ({**ROW, "sentence": " "}, "an expression needs a word"),
    ({**ROW, "sentence": [3]}, "field 'sent' must be of type str, but is of type int"),
    ({**ROW, "sentence": "a" * 20_000}, "has 20000 characters"),
    ({**ROW, "sentence": "\ud800"}, "not valid Unicode"),
    ({**ROW, "split": 3}, "field 'split' is 3, expected a text"),
]


@pytest.mark.parametrize(("row", "says"), HOSTILE)
def test_hostile_rows(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    place = folder(tmp_path / "root")
    picture().save(place / "a.png")
    (place / "text.png").write_text("no image")
    Image.new("L", (3, 3)).save(place / "small.png")
    Image.new("RGBA", (WIDTH, HEIGHT)).save(place / "clear.png")
    Image.new("L", (WIDTH, HEIGHT)).save(place / "blank.png")
    picture().save(tmp_path / "a.png")
    (place / "out.png").symlink_to(tmp_path / "a.png")
    (place / "gone").symlink_to(tmp_path)
    row = {key: value(place) if callable(value) else value for key, value in row.items()}
    good = {**ROW, "sentence": "good", "mask": [CORNER_POLYGON]}
    write_jsonl(place / "data.jsonl", [good, row])
    with pytest.raises(DataError, match=rf"data\.jsonl: line 2.*{says}"):
        prepare_data(tmp_path / "root", "mine", progress=False)
    with pytest.warns(UserWarning, match=rf"bad records? left out: .*line 2.*{says}"):
        _, index = prepare_data(tmp_path / "root", "mine", skip_bad=True, progress=False)
    assert list(truths(tmp_path / "root", index=index)) == ["good"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("data.csv", b"", "no ref is left"),
        ("data.jsonl", b"\n\n", "no ref is left"),
        ("data.jsonl", b"3\n", "line 1 must be of type dict, but is of type int"),
        ("data.jsonl", b"{\n", "line 1: not valid JSON"),
        ("data.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("data.jsonl", b" " * 2**24, "line 1: longer than"),
        ("data.csv", b"a" * 2**24, "line 1: longer than"),
        ("data.csv", b"picture,sentence,mask\n\xff,a,b\n", "not UTF-8"),
        ("data.csv", b'picture,sentence,mask\na,"b', "not valid CSV: unexpected end"),
        ("data.csv", b"picture,sentence,mask\na," + b"x" * 200_000 + b",m\n", "not valid CSV"),
        ("data.csv", b"picture\na.png\n", "no 'sentence'; .* it has 'picture'"),
        ("data.csv", b"picture,sentence,mask\na.png,b,m,more,yet\n", "5 cells, but the header has"),
        ("data.csv", b"picture;sentence;mask\na.png;b;m\n", "a CSV has commas between its cells"),
    ],
)
def test_hostile_tables(tmp_path: Path, name: str, text: bytes, says: str) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    (place / name).write_bytes(text)
    with pytest.raises(DataError, match=says) as caught:
        prepare_data(tmp_path, "mine", progress=False)
    assert name in str(caught.value)


# -- labelme ---------------------------------------------------------------------------------------


def shape(label: str, polygon: list[int], **changes: Any) -> dict[str, Any]:
    points = np.reshape(polygon, (-1, 2)).tolist()
    return {"label": label, "points": points, "shape_type": "polygon", **changes}


def write_labelme(path: Path, shapes: list[Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture().save(path.with_suffix(".png"))
    path.write_text(json.dumps({"shapes": shapes, **more}))


def test_a_folder_of_reasonseg(tmp_path: Path) -> None:
    both = [shape("target", SQUARE_POLYGON), shape("Target", CORNER_POLYGON), shape("flag", [])]
    write_labelme(tmp_path / "mine/val/1.json", both, text=["both", "two"], is_sentence=False)
    write_labelme(tmp_path / "mine/val/2.json", [], text="nothing at all", is_sentence=True)
    write_labelme(tmp_path / "mine/train/1.json", [shape("target", SQUARE_POLYGON)], text=["one"])
    assert find_split_by(tmp_path, "mine") == "labelme"
    union = SQUARE | CORNER
    check(tmp_path, {"both": union, "two": union, "nothing at all": 0 * SQUARE}, "val")
    assert truths(tmp_path).keys() == {"one"}
    assert np.array_equal(truths(tmp_path)["one"], SQUARE)


def test_ignored_areas_are_background_and_counted(tmp_path: Path) -> None:
    inner = [4, 3, 6, 3, 6, 5, 4, 5]
    shapes = [shape("ignore", inner), shape("target", SQUARE_POLYGON)]
    write_labelme(tmp_path / "mine/val/1.json", shapes, text=["ring"])
    expected = SQUARE.copy()
    expected[3:5, 4:6] = 0
    with pytest.warns(UserWarning, match="1 areas labelled 'ignore' are background here"):
        assert np.array_equal(truths(tmp_path, "val")["ring"], expected)


def test_labels_are_expressions_where_there_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "1.json"
    rectangle = {"label": "box", "points": [[0, 0], [4, 3]], "shape_type": "rectangle"}
    write_labelme(path, [shape("cat", SQUARE_POLYGON), rectangle], imagePath="named.png")
    path.with_suffix(".png").rename(path.with_name("named.png"))
    check(tmp_path, {"cat": SQUARE, "box": CORNER})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b'{"shapes": ', "not valid JSON"),
        (b'{"shapes": []' + b"[" * 100_000, "not valid JSON"),
        (b'["shapes", "shapes"]', r"must be of type dict"),
        ({"shapes": 3}, "field 'shapes' must be of type list"),
        ({"shapes": ["a"]}, r"shapes\[0\] must be of type dict"),
        ({"shapes": [{"points": []}]}, "field 'label' must be of type str, but is missing"),
        ({"shapes": [shape("a", [0, 0, 5, 5])]}, "no polygon of at least 3 points"),
        ({"shapes": [shape("a", CORNER_POLYGON, points=[[0, 0, 0]])]}, r"expected \[x, y\]"),
        ({"shapes": [shape("a", CORNER_POLYGON, points=4)]}, "field 'points' must be of type list"),
        ({"shapes": [shape("a", CORNER_POLYGON, shape_type="circle")]}, "'circle' has no area"),
        ({"shapes": [shape("a", [0, 0, 1, 0, 1, float("nan")])]}, "nan is not a number"),
        ({"shapes": [], "text": 7}, "field 'sent' must be of type str"),
        ({"shapes": [], "text": []}, "has no usable sentence"),
    ],
)
def test_hostile_labelme(tmp_path: Path, content: Any, says: str) -> None:
    write_labelme(tmp_path / "mine/val/1.json", [shape("good", SQUARE_POLYGON)])
    write_labelme(tmp_path / "mine/val/2.json", [])
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "mine/val/2.json").write_bytes(data)
    with pytest.raises(DataError, match=rf"2\.json.*{says}"):
        prepare_data(tmp_path, "mine", progress=False)
    with pytest.warns(UserWarning, match=rf"2\.json.*{says}"):
        _, index = prepare_data(tmp_path, "mine", skip_bad=True, progress=False)
    assert list(truths(tmp_path, "val", index)) == ["good"]


def test_explanations_beside_reasonseg_are_no_data(tmp_path: Path) -> None:
    write_labelme(tmp_path / "mine/val/1.json", [shape("target", SQUARE_POLYGON)], text="one")
    (tmp_path / "mine/explanatory").mkdir()
    (tmp_path / "mine/explanatory/train.json").write_text("[]")
    (tmp_path / "mine/classes.json").write_text("{}")
    check(tmp_path, {"one": SQUARE}, "val")


def test_a_picture_that_labelme_names_stays_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine/1.json"
    write_labelme(path, [shape("a", SQUARE_POLYGON)], imagePath="..\\../a.png")
    path.with_suffix(".png").unlink()
    with pytest.raises(DataError, match=r"field 'imagePath' is .*a\.png', expected a bare file"):
        prepare_data(tmp_path, "mine", progress=False)
    path.write_text(path.read_text().replace(r"..\\../a", "none"))
    with pytest.raises(DataError, match=r"1\.json: .*none\.png: no such file"):
        prepare_data(tmp_path, "mine", progress=False)


# -- parquet ---------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def hub_rows() -> list[dict[str, Any]]:
    """Rows as those of lmms-lab/RefCOCO."""
    one = {"question_id": "1", "image": {"bytes": png(), "path": None}, "question": "?"}
    return [
        {**one, "answer": ["a square", "it"], "segmentation": [float(v) for v in SQUARE_POLYGON],
         "file_name": "COCO_train2014_000000000001_0.jpg"},
        {**one, "answer": ["a corner"], "segmentation": [float(v) for v in CORNER_POLYGON],
         "file_name": "COCO_train2014_000000000001_1.jpg"},
        {**one, "image": {"bytes": png("red"), "path": None}, "answer": ["red"],
         "segmentation": [float(v) for v in SQUARE_POLYGON], "file_name": "2.jpg"},
    ]  # fmt: skip


def test_parquet_with_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path)
    write_parquet(place / "data" / "val-00000-of-00002.parquet", hub_rows()[:2])
    write_parquet(place / "data" / "val-00001-of-00002.parquet", hub_rows()[2:])
    assert find_split_by(tmp_path, "mine") == "parquet"
    with pytest.raises(DataError, match=r"row 0: its picture lies in the file; unpack .*prepare"):
        truths(tmp_path, "val")
    expected = {"a square": SQUARE, "it": SQUARE, "a corner": CORNER, "red": SQUARE}
    assert main(["data", "prepare", str(tmp_path), "mine"]) == 0
    out = capfd.readouterr().out
    assert f"parquet, as on the Hugging Face Hub: {place / 'data' / 'val-00000'}" in out
    assert "and 1 more" in out
    names = sorted(path.name for path in (place / "pictures").iterdir())
    assert len(names) == 2  # equal pictures are one file
    assert (place / "pictures" / names[0]).read_bytes() in (png(), png("red"))
    check(tmp_path, expected, "val")
    data = ReferDataset(
        tmp_path, "mine", "val", split_by="parquet", tokenizer=TOKENIZER, image_size=8
    )
    assert data.other_sentence(2) in ("a square", "it")


def test_parquet_of_one_picture_and_many_samples(tmp_path: Path) -> None:
    """Rows as those of moondream/refcoco-m."""
    samples = [
        {"id": 5, "sentences": ["square"], "mask": runs(SQUARE)},
        {"id": 6, "sentences": ["corner", "it"], "mask": runs(CORNER)},
    ]
    row = {"image": {"bytes": png(), "path": "1.png"}, "image_id": 3, "samples": samples}
    write_parquet(folder(tmp_path) / "validation-00000-of-00001.parquet", [row])
    check(tmp_path, {"square": SQUARE, "corner": CORNER, "it": CORNER}, "val")


def coco_rows(**changes: Any) -> list[dict[str, Any]]:
    """Rows as those of jxu124/refcoco."""
    rows = []
    for number, polygon in ((70, SQUARE_POLYGON), (71, CORNER_POLYGON)):
        refs = ref(number, number, 7, f"object {number}") | {"bbox": [1.0, 2.0]}
        raw = {"id": number, "image_id": 7, "segmentation": [polygon]}
        info = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
        texts = {"raw_anns": json.dumps(raw), "raw_image_info": json.dumps(info)}
        rows.append({**refs, **texts, **changes})
    return rows


def test_parquet_of_coco_records(tmp_path: Path) -> None:
    place = folder(tmp_path)
    write_parquet(place / "data" / "validation-00000-of-00001.parquet", coco_rows())
    with pytest.raises(DataError, match=r"image 7: .*a\.png: no such file; name the folder of the"):
        prepare_data(tmp_path, "mine", progress=False)
    picture().save(place / "a.png")
    check(tmp_path, {"object 70": SQUARE, "object 71": CORNER}, "val")
    index = find_index(find_files(tmp_path, "mine", "parquet"))
    assert index.refs["ref_id"].tolist() == [70, 71]  # as in the refer format
    assert index.sentences["sent_id"].tolist() == [7000, 7100]


def test_parquet_of_two_layouts_or_of_two_objects_of_one_id(tmp_path: Path) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    write_parquet(place / "train.parquet", coco_rows())
    rows = [{"picture": "a.png", "sentence": "a", "mask": json.dumps([CORNER_POLYGON])}]
    write_parquet(place / "val.parquet", rows)
    with pytest.raises(DataError, match="parquet files of two layouts"):
        prepare_data(tmp_path, "mine", progress=False)
    (place / "val.parquet").unlink()
    first, second = coco_rows()
    second["raw_anns"] = second["raw_anns"].replace('"id": 71', '"id": 70')
    write_parquet(place / "train.parquet", [first, second | {"ann_id": 70}])
    with pytest.raises(DataError, match=r"'raw_anns' has id 70, which is another in .*row 0"):
        prepare_data(tmp_path, "mine", progress=False)


def test_splits_have_one_word_each(tmp_path: Path) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    write_parquet(place / "all.parquet", coco_rows(split="validation"))
    check(tmp_path, {"object 70": SQUARE, "object 71": CORNER}, "val")
    for name in ("refcoco_val", "val_0", "val2", "Valid", "dev", "ref-l4-val"):
        assert split_of(name) == "val", name
    assert [split_of(name) for name in ("my-test", "refcoco_testA", "data")] == [
        *("test", "testA", "train")
    ]
    with pytest.raises(DataError, match="'train_val' says train and val: name the split"):
        split_of("train_val")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"image": {"bytes": b"no image", "path": None}}], "row 0: its picture: not a readable"),
        ([{**hub_rows()[0], "segmentation": [0.0, 0.0, 1.0, float("inf"), 1.0, 1.0]}], "row 0:.*i"),
        ([{key: hub_rows()[0][key] for key in ("image", "answer")}], "row 0: no 'mask'; wanted"),
        ([{**hub_rows()[0], "answer": [3]}], "row 0: .* 'sent' must be of type str"),
        ([{**hub_rows()[0], "answer": []}], "row 0: .*has no usable sentence"),
        ([{"a": 1}], "row 0: no 'picture'; wanted a column"),
        (coco_rows(raw_anns="{"), "row 0: field 'raw_anns' is not valid JSON"),
        (coco_rows(raw_anns="3"), "row 0: field 'raw_anns' must be of type dict"),
        (coco_rows(raw_image_info='{"id": 7}'), "row 0: field 'raw_image_info': field 'file_name'"),
        (coco_rows(ann_id=5), "row 0: field 'ann_id' is 5, which is not in"),
        (coco_rows(image_id=8), "row 0: field 'image_id' is 8, but object 70 belongs to image 7"),
        (coco_rows(ref_id=5), "row 1: field 'ref_id' is 5, which another record already has"),
    ],
)  # fmt: skip
def test_hostile_parquet(tmp_path: Path, rows: list[dict[str, Any]], says: str) -> None:
    place = folder(tmp_path)
    picture().save(place / "a.png")
    write_parquet(place / "val.parquet", rows)
    with pytest.raises(DataError, match=rf"val\.parquet: {says}"):
        prepare_data(tmp_path, "mine", progress=False)


@pytest.mark.parametrize("cut", [0, 4, 100, -4])
def test_damaged_parquet(tmp_path: Path, cut: int) -> None:
    path = folder(tmp_path) / "val.parquet"
    write_parquet(path, hub_rows())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"val\.parquet: row 0: not a readable parquet file: "):
        prepare_data(tmp_path, "mine", progress=False)


def test_flipped_bytes_of_parquet_end_in_records_or_an_error(tmp_path: Path) -> None:
    path = folder(tmp_path) / "val.parquet"
    write_parquet(path, hub_rows())
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(len(data), size=4):
            data[place] ^= int(random.integers(1, 256))
        path.write_bytes(data)
        said = "val.parquet"
        try:
            prepare_data(tmp_path, "mine", progress=False)
        except DataError as error:
            said = str(error)
        assert "val.parquet" in said


def test_pictures_are_not_unpacked_through_links(tmp_path: Path) -> None:
    place = folder(tmp_path / "root")
    write_parquet(place / "val.parquet", hub_rows())
    (tmp_path / "private").mkdir()
    (place / "pictures").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match="pictures: is a link that leads out of its folder"):
        prepare_data(tmp_path / "root", "mine", progress=False)
    assert not list((tmp_path / "private").iterdir())


def test_without_pyarrow_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(folder(tmp_path) / "val.parquet", hub_rows())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"need pyarrow; install it with `pip install 'masksd\[tra"):
        prepare_data(tmp_path, "mine", progress=False)


# -- several objects, none, and reviewed expressions -----------------------------------------------


def write_grefs(root: Path, refs: list[Any], annotations: list[Any] | None = None) -> Path:
    images = [image(7, width=WIDTH, height=HEIGHT), image(8, width=WIDTH, height=HEIGHT)]
    found = [
        annotation(70, 7, segmentation=[SQUARE_POLYGON]),
        annotation(71, 7, segmentation=[CORNER_POLYGON]),
        annotation(72, 7, segmentation=runs(CORNER)),
        annotation(80, 8, segmentation=[CORNER_POLYGON]),
    ]
    write_refer(root, images, annotations or found, [])
    for number in (7, 8):
        picture().save(root / "images" / f"{number}.png")
    (root / "mine" / "refs(unc).p").unlink()
    (root / "mine" / "grefs(unc).json").write_text(json.dumps(refs))
    return root


def test_refs_of_several_objects_and_of_none(tmp_path: Path) -> None:
    def gref(number: int, ann_id: list[int], image_id: int = 7, **more: Any) -> dict[str, Any]:
        return ref(number, ann_id, image_id, f"ref {number}", **more)  # type: ignore[arg-type]

    refs = [
        gref(1, [70], category_id=[3], no_target=False),
        gref(2, [70, 71], category_id=[3, 4], no_target=False),
        gref(3, [72, 70], category_id=[3, 4], no_target=False),
        gref(4, [-1], category_id=[-1], no_target=True),
        gref(5, [71, 70], no_target=False),
        gref(6, [-1], 8, no_target=True),
    ]
    write_grefs(tmp_path, refs)
    both, none = SQUARE | CORNER, 0 * SQUARE
    expected = {
        f"ref {n}": mask for n, mask in enumerate((SQUARE, both, both, none, both, none), 1)
    }
    check(tmp_path, expected, "val")
    index = find_index(find_files(tmp_path, "mine", "unc"))
    assert index.no_object.tolist() == [False, False, False, True, False, True]
    row = index.refs["object"].tolist()
    assert row[1] == row[4]  # the same objects in another order
    assert len(set(row)) == 5


def test_refs_of_grefcoco_without_sentences_or_with_a_bare_minus_one(tmp_path: Path) -> None:
    refs = [ref(1, 70, 7, "one"), ref(2, [-1], 7, "x") | {"sentences": []}, ref(3, -1, 8, "none")]
    write_grefs(tmp_path, refs)
    with pytest.warns(UserWarning, match="1 refs without any sentence are left out"):
        check(tmp_path, {"one": SQUARE, "none": 0 * SQUARE}, "val")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ann_id": [70, 99]}, "field 'ann_id' is 99, which is not in instances.json"),
        ({"ann_id": [70, 80]}, "field 'image_id' is 7, but object 80 belongs to image 8"),
        ({"ann_id": [70, "71"]}, "field 'ann_id' must be of type int, but is of type str"),
        ({"ann_id": [70, [71]]}, "field 'ann_id' must be of type int, but is of type list"),
        ({"ann_id": [2**70]}, "field 'ann_id' does not fit in 64 bits"),
        ({"ann_id": [-1], "image_id": 9}, "field 'image_id' is 9, but there is no such image"),
        ({"ann_id": [], "image_id": None}, "field 'image_id' must be of type int, but is missing"),
    ],
)
def test_hostile_grefs(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_grefs(tmp_path, [ref(1, 70, 7), ref(2, 70, 7, "b") | changes])
    with pytest.raises(DataError, match=rf"grefs\(unc\)\.json: refs\[1\] \(ref_id 2\): {says}"):
        prepare_data(tmp_path, "mine", progress=False)


def write_reviewed(root: Path, *quality: int, **changes: Any) -> None:
    texts = ["LEFT  one", "the wrong one", "right"]
    images = [
        {"id": n, "file_name": "7.png", "caption": text, "original_id": 70} | changes
        for n, text in enumerate(texts)
    ]
    marks = [{"id": n, "image_id": n, "caption_quality": mark} for n, mark in enumerate(quality)]
    path = root / "mine" / "mine_val_reviewed.json"
    path.write_text(json.dumps({"images": images, "annotations": marks}))


def test_reviewed_expressions_are_left_out_where_asked(tmp_path: Path) -> None:
    refs = [
        ref(1, 70, 7, "left one", "the wrong one"),
        ref(2, 71, 7, "right"),
        ref(3, 80, 8, "right"),
    ]
    write_refer(
        tmp_path, [image(7), image(8)], [annotation(n, n // 10) for n in (70, 71, 80)], refs
    )
    write_reviewed(tmp_path, 1, 0, 0)
    assert find_split_by(tmp_path, "mine") == "unc"
    assert len(truths(tmp_path, "val")) == 3  # "right" comes twice
    found = find_index(find_files(tmp_path, "mine", "unc-reviewed"))
    kept = [found.sentence(row, "sent") for row in range(len(found.sentences))]
    assert kept == ["left one", "right"]
    assert found.refs["ref_id"].tolist() == [1, 3]
    prepare_data(tmp_path, "mine", split_by="unc-reviewed", progress=False)
    assert (tmp_path / "mine" / "index(unc-reviewed).safetensors").is_file()


def test_a_review_speaks_of_one_object_and_one_data_set(tmp_path: Path) -> None:
    refs = [ref(1, 70, 7, "left guy"), ref(2, 71, 7, "left guy")]
    write_refer(tmp_path, [image(7)], [annotation(n, 7) for n in (70, 71)], refs)
    said = {"file_name": "7.png", "caption": "left guy"}
    marks = [
        {"id": n, "image_id": n, "caption_quality": n, "original_id": 70 + n} for n in range(2)
    ]
    review = json.dumps({"images": [{"id": n, **said} for n in range(2)], "annotations": marks})
    (tmp_path / "mine/mine_val_reviewed.json").write_text(review)
    (tmp_path / "mine/refcoco+_val_reviewed.json").write_text("{")  # not of this data set
    found = find_index(find_files(tmp_path, "mine", "unc-reviewed"))
    assert found.refs["ref_id"].tolist() == [2]
    (tmp_path / "mine/mine_val_reviewed.json").write_text(
        review.replace('_quality": 1', '_quality": 0')
    )
    with pytest.raises(DataError, match="it calls every expression of the refs wrong"):
        find_index(find_files(tmp_path, "mine", "unc-reviewed"))


@pytest.mark.parametrize(
    ("quality", "changes", "says"),
    [
        ((1, 1, 1), {"file_name": "other.png"}, "none of its expressions is one of the refs"),
        ((1, 1, 1), {"caption": None}, r"images\[0\] \(id 0\): field 'caption' must be of"),
        ((1, 1, 1, 0), {}, r"annotations\[3\] \(id 3\): field 'image_id' is 3, which no image has"),
        ((1, None), {}, r"annotations\[1\] \(id 1\): field 'caption_quality' must be of type int"),
    ],
)  # fmt: skip
def test_hostile_reviews(tmp_path: Path, quality: Any, changes: Any, says: str) -> None:
    write_refer(tmp_path, [image(7)], [annotation(70, 7)], [ref(1, 70, 7, "left one")])
    with pytest.raises(DataError, match=r"no \*_reviewed\.json in .*'unc-reviewed' stands for"):
        find_files(tmp_path, "mine", "unc-reviewed")
    write_reviewed(tmp_path, *quality, **changes)
    with pytest.raises(DataError, match=rf"mine_val_reviewed\.json: {says}"):
        prepare_data(tmp_path, "mine", split_by="unc-reviewed", progress=False)


def test_an_index_belongs_to_all_of_its_files(tmp_path: Path) -> None:
    for number in (1, 2):
        write_labelme(tmp_path / f"mine/val/{number}.json", [shape(f"n{number}", SQUARE_POLYGON)])
    prepare_data(tmp_path, "mine", progress=False)
    assert truths(tmp_path, "val").keys() == {"n1", "n2"}
    path = tmp_path / "mine/val/2.json"
    path.write_text(path.read_text().replace("n2", "other"))
    with pytest.raises(DataError, match=r"does not belong to .*2\.json as it is now"):
        truths(tmp_path, "val")


# -- anything at all -------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-3, 20), st.floats(), st.sampled_from([2**70, True]))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        NUMBERS,
        st.text(max_size=4),
        st.sampled_from(["a.png", "[1]", "1.png", "target"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(NUMBERS, min_size=6, max_size=8),
        st.dictionaries(st.sampled_from(["size", "counts", "label", "points", "id"]), inner),
    ),
    max_leaves=12,
)
ANYTHING = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


COCO_FIELDS = ["ref_id", "ann_id", "image_id", "category_id", "split", "sentences", "bbox"]


def survive(read: Callable[[], object]) -> None:
    """Records, or a DataError."""
    try:
        found = read()
    except DataError:
        found = None
    if isinstance(found, Records):
        assert all(type(key) is int for key in found.images | found.annotations)


@ANYTHING
@given(cells=st.dictionaries(st.sampled_from(["picture", "mask", "sentence", "split"]), VALUES))
def test_any_row(tmp_path: Path, cells: dict[str, Any]) -> None:
    picture().save(tmp_path / "a.png")
    for row in (cells, ROW | cells):
        rows = Rows(tmp_path, None)

        def read(rows: Rows = rows, row: dict[str, Any] = row) -> Records:
            rows.add(row, "row 1", "train")
            return rows.records()

        survive(read)


@pytest.mark.filterwarnings("ignore:. areas labelled")
@ANYTHING
@given(text=VALUES, shapes=VALUES, points=VALUES, label=VALUES)
def test_any_labelme(tmp_path: Path, text: Any, shapes: Any, points: Any, label: Any) -> None:
    path = tmp_path / "1.json"
    for found in (shapes, [{"label": label, "points": points}, shape("ignore", CORNER_POLYGON)]):
        write_labelme(path, found, text=text)
        survive(lambda: read_labelme([path], tmp_path, None))


@pytest.mark.filterwarnings("ignore:.* refs without any sentence:UserWarning")
@ANYTHING
@given(raw=VALUES, info=VALUES, changes=st.dictionaries(st.sampled_from(COCO_FIELDS), VALUES))
def test_any_row_of_parquet(raw: Any, info: Any, changes: dict[str, Any]) -> None:
    plain = coco_rows()[0]
    texts = {"raw_anns": json.dumps(raw), "raw_image_info": json.dumps(info)}
    for row in (plain | changes, plain | texts):
        coco = _CocoRows(None)

        def read(coco: _CocoRows = coco, row: dict[str, Any] = row) -> Records:
            coco.add(row, "row 1")
            return coco.records()

        survive(read)
    for cell in (raw, {"bytes": raw, "path": info}):
        survive(lambda cell=cell: _picture({"image": cell}, "row 1"))  # type: ignore[misc]


@ANYTHING
@given(images=VALUES, marks=VALUES, one=VALUES)
def test_any_review(tmp_path: Path, images: Any, marks: Any, one: Any) -> None:
    path = tmp_path / "a_reviewed.json"
    for content in ({"images": images, "annotations": marks}, {"images": [one]}, one):
        path.write_text(json.dumps(content))
        survive(lambda: drop_errors([], {}, [path]))
