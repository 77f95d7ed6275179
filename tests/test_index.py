"""The index: the same data set as its sources, current or refused, never a pickle."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from masksd.kit.data import index as index_module
from masksd.kit.data.index import (
    ARRAYS,
    METADATA,
    Index,
    load_index,
    open_index,
)
from masksd.kit.data.layout import Layout, describe_sources, find_files
from masksd.kit.data.prepare import find_index, gather_index, prepare_data
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.text.cleaning import is_blank
from masksd.kit.data.text.tokenizers import load_tokenizer
from tests.refer_folders import annotation, image, ref, write_refer

TOKENIZER = load_tokenizer("shapes", 17)
SMALL = ShapesConfig(level="hard", train=4, val=3, test_a=1, test_b=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shapes(tmp_path_factory.mktemp("plain") / "data", SMALL, progress=False)


@pytest.fixture(scope="module")
def prepared(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "data"
    shutil.copytree(plain, root)
    prepare_data(root, "shapes", progress=False)
    return root


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Layout:
    """A copy of the prepared data set, to be spoilt."""
    shutil.copytree(prepared, tmp_path / "data")
    return find_files(tmp_path / "data", "shapes", "masksd")


def dataset(root: Path, split: str = "train", **options: Any) -> ReferDataset:
    known = {"tokenizer": TOKENIZER, "image_size": 32, "split_by": "masksd", **options}
    return ReferDataset(root, "shapes", split, **known)


def stored(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an index file, tables as rows, and its metadata."""
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()[METADATA])
    for name, kind in ARRAYS.items():
        if np.dtype(kind).names:
            arrays[name] = arrays[name].view(kind)[:, 0]
    return arrays, metadata


def store(path: Path, arrays: dict[str, np.ndarray], metadata: Any) -> None:
    """Write an index file, whatever it says."""
    tensors = {
        name: each.view("u1").reshape(len(each), -1) if each.dtype.names else each
        for name, each in arrays.items()
    }
    save_file(tensors, path, metadata={METADATA: json.dumps(metadata)})


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
@pytest.mark.parametrize("text", ["sent", "raw"])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_data_set_item_by_item(
    plain: Path, prepared: Path, split: str, text: str, training: bool
) -> None:
    one = dataset(plain, split, text=text, training=training)
    two = dataset(prepared, split, text=text, training=training)
    assert find_files(prepared, "shapes", "masksd").index.is_file()
    assert len(one) == len(two) > 0
    for epoch in (0, 3):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        for index in range(len(one)):
            assert one.record(index) == two.record(index)
            assert one.sentence(index) == two.sentence(index)
            assert one.other_sentence(index) == two.other_sentence(index)
            assert np.array_equal(one.truth(index), two.truth(index))
            a, b = one[index], two[index]
            assert all(torch.equal(a[key], b[key]) for key in ("image", "tokens", "target"))


def test_saved_and_opened_arrays_are_the_same(plain: Path, prepared: Path) -> None:
    gathered = gather_index(find_files(plain, "shapes", "masksd"))
    opened = open_index(find_files(prepared, "shapes", "masksd"))
    assert gathered.splits == opened.splits
    for name in ARRAYS:
        assert np.array_equal(gathered._arrays[name], opened._arrays[name])
        assert opened._arrays[name].base is not None  # mapped from the file, not read


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not is_blank(text)
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=4),
    ids=st.lists(st.integers(-(2**62), 2**62), min_size=4, max_size=4, unique=True),
    categories=st.lists(st.none() | st.integers(-3, 90), min_size=4, max_size=4),
)
def test_whatever_refs_hold_comes_back(
    tmp_path: Path, sentences: list[list[str]], ids: list[int], categories: list[int | None]
) -> None:
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    refs = [
        ref(number, ids[number], 7, *said, ref_id=ids[number], category_id=categories[number])
        for number, said in enumerate(sentences)
    ]
    annotations = [annotation(each["ann_id"], 7) for each in refs]
    write_refer(place, [image(7)], annotations, refs)
    layout, _ = prepare_data(place, "mine", progress=False)
    index = open_index(layout)
    for row, each in enumerate(refs):
        entry = index.refs[row]
        assert entry["ref_id"] == each["ref_id"]
        assert index.objects["ann_id"][entry["object"]] == each["ann_id"]
        category = int(entry["category_id"]) if entry["has_category"] else None
        assert category == each["category_id"]
        found = [
            {
                "sent_id": int(index.sentences["sent_id"][place]),
                "sent": index.sentence(place, "sent"),
                "raw": index.sentence(place, "raw"),
            }
            for place in range(*entry["sentences"].tolist())
        ]
        assert found == each["sentences"]


def test_other_objects_and_pictures_are_left_where_they_are(tmp_path: Path) -> None:
    bad = annotation(71, 7, segmentation=[[float("nan")] * 6])  # nobody speaks of it
    root = write_refer(tmp_path, [image(7), image(8)], [annotation(70, 7), bad], [ref(1, 70, 7)])
    index = gather_index(find_files(root, "mine", "unc"))
    assert (len(index.images), len(index.objects)) == (1, 1)


# -- current or refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["refs", "instances"])
def test_changed_sources_are_refused_and_touched_ones_are_not(place: Layout, which: str) -> None:
    path: Path = dict(zip(("refs", "instances"), place.files, strict=True))[which]
    os.utime(path, ns=(1, 1))
    assert len(open_index(place).refs) > 0
    content = path.read_bytes()
    path.write_bytes(content.replace(b"circle", b"cirkle", 1).replace(b'"area"', b'"aera"', 1))
    assert path.stat().st_size == len(content)
    with pytest.raises(DataError, match=r"does not belong to .*; run `masksd data prepare ROOT"):
        find_index(place)
    prepare_data(place.refs.parent.parent, "shapes", progress=False)
    assert len(open_index(place).refs) > 0
    path.write_bytes(content + b" ")
    with pytest.raises(DataError, match="does not belong to"):
        open_index(place)


def test_opening_reads_no_source(place: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: tuple[Path, ...]) -> str:
        raise AssertionError(f"{paths} was hashed")

    monkeypatch.setattr(index_module, "digest", refuse)
    assert len(open_index(place).refs) > 0
    os.utime(place.refs, ns=(1, 1))
    with pytest.raises(AssertionError, match="was hashed"):
        open_index(place)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2, expected 3"),
        ({"splits": [1, 2, 3, 4]}, "its splits are not strings"),
        ({"splits": None}, "is not iterable"),
        ({"sources": {}}, "'refs'"),
        ({"sources": {"refs": {}, "instances": {}}}, "which refs it was made from"),
        ({"left_out": []}, "list indices"),
        ({"left_out": {"reasons": []}}, "'count'"),
        ({"left_out": {"reasons": [], "count": "x"}}, "invalid literal"),
    ],
)
def test_metadata_that_say_something_else_are_refused(
    place: Layout, change: dict[str, Any], says: str
) -> None:
    arrays, metadata = stored(place.index)
    store(place.index, arrays, metadata | change)
    with pytest.raises(DataError, match=rf"{says}.*; run `masksd data prepare` again"):
        open_index(place)


@pytest.mark.parametrize("content", ["[]", "3", "{", "[" * 100_000])
def test_metadata_that_are_no_object_are_refused(place: Layout, content: str) -> None:
    arrays, _ = stored(place.index)
    tensors = {name: each for name, each in arrays.items() if each.dtype.names is None}
    save_file(tensors, place.index, metadata={METADATA: content})
    with pytest.raises(DataError, match="is not a readable index"):
        open_index(place)


def test_a_missing_or_cut_file_is_refused(place: Layout) -> None:
    content = place.index.read_bytes()
    for cut in (0, 1, 20, 400, len(content) // 2, len(content) - 8, len(content) - 1):
        place.index.write_bytes(content[:cut])
        with pytest.raises(DataError, match="is not a readable index"):
            open_index(place)
    place.index.unlink()
    with pytest.raises(DataError, match="is not a readable index"):
        open_index(place)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_missing_or_of_another_type_is_refused(place: Layout, name: str) -> None:
    arrays, metadata = stored(place.index)
    without = {key: each for key, each in arrays.items() if key != name}
    wrong = [np.zeros((3, 5), "u1"), np.zeros(3, "f2"), np.zeros((2, 2, 2), "i8"), None]
    for each in wrong:
        changed = without if each is None else {**without, name: each}
        store(place.index, changed, metadata)
        with pytest.raises(DataError, match="is not a readable index"):
            open_index(place)


def test_files_of_another_kind_are_refused(place: Layout) -> None:
    canary = place.index.with_name("canary")

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    place.index.write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match="is not a readable index"):
        open_index(place)
    assert not canary.exists()
    save_file({"weight": np.zeros(3)}, place.index)
    with pytest.raises(DataError, match="is not a readable index"):
        open_index(place)


@pytest.mark.parametrize(
    ("name", "field", "row", "value"),
    [
        ("refs", "object", 0, 10**6),
        ("refs", "object", 0, -1),
        ("refs", "image", 0, 8),
        ("refs", "split", 0, 4),
        ("refs", "sentences", 0, (0, 10**9)),
        ("refs", "sentences", 0, (3, 3)),
        ("sentences", "sent", 1, (-5, 3)),
        ("sentences", "raw", 1, (9, 3)),
        ("images", "width", 0, 0),
        ("images", "height", 0, 10**6),
        ("images", "name", 0, (0, 10**9)),
        ("objects", "parts", 0, (0, 10**9)),
        ("objects", "is_runs", 0, True),
        ("polygons", "points", 0, (0, 7)),
        ("polygons", "points", 0, (0, 4)),
        ("coordinates", None, 3, float("nan")),
        ("coordinates", None, 3, float("inf")),
        ("coordinates", None, 3, -1e30),
        ("runs", None, 1, -1),
        ("runs", None, 1, 2**62),
        ("runs", None, 1, 0),
    ],
)
def test_numbers_that_lead_elsewhere_are_refused(
    place: Layout, name: str, field: str | None, row: int, value: Any
) -> None:
    arrays, metadata = stored(place.index)
    if field is None:
        arrays[name][row] = value
    else:
        arrays[name][field][row] = value
    store(place.index, arrays, metadata)
    with pytest.raises(DataError, match=r"array '\w+' is damaged"):
        open_index(place)


def test_an_outline_without_measure_is_refused(place: Layout) -> None:
    """Drawing one takes memory for every pixel of it."""
    arrays, metadata = stored(place.index)
    arrays["coordinates"].reshape(-1, 2)[::2] = 65_000
    arrays["coordinates"].reshape(-1, 2)[1::2] = -65_000
    store(place.index, arrays, metadata)
    with pytest.raises(DataError, match="array 'polygons' is damaged"):
        open_index(place)


def test_any_changed_byte_is_an_error_or_a_picture_of_masks(place: Layout) -> None:
    """A reader that trusted the numbers would leave the arrays, or crash in drawing."""
    draw = np.random.default_rng(0)
    content = place.index.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for number in range(400):
        changed = bytearray(content)
        # the header, the tables in small numbers, or anywhere
        end = [header, header + 2_000, len(changed)][number % 3]
        changed[int(draw.integers(end))] = int(draw.integers(256))
        place.index.write_bytes(changed)
        try:
            index = load_index(place.index)
            for split in index.splits:
                for row in index.rows(split)[:3].tolist():
                    index.image(int(index.refs["image"][row]))
                    assert index.mask(int(index.refs["object"][row])).max() <= 1
                    index.sentence(int(index.refs["sentences"][row][0]), "raw")
        except DataError:
            refused += 1
    assert 50 < refused < 400


def test_text_and_names_of_a_hostile_index(place: Layout) -> None:
    arrays, metadata = stored(place.index)
    first, last = arrays["images"]["name"][0].tolist()
    arrays["text"][first : last - 3] = ord("/")
    arrays["text"][last - 3 : last] = 0xFF
    store(place.index, arrays, metadata)
    with pytest.raises(DataError, match="array 'text' is damaged"):
        load_index(place.index).image(0)
    arrays["text"][last - 3 : last] = ord("a")
    store(place.index, arrays, metadata)
    with pytest.raises(DataError, match="expected a file name"):
        load_index(place.index).image(0)


@pytest.mark.parametrize("begin", ["../", "/etc/", "a/../../", "./", "..", "a\0"])
def test_no_name_in_an_index_leaves_the_image_folder(place: Layout, begin: str) -> None:
    arrays, metadata = stored(place.index)
    first, last = arrays["images"]["name"][0].tolist()
    if begin == "..":
        arrays["images"]["name"][0] = first, first + 2
    name = begin.encode().ljust(last - first, b"x")
    arrays["text"][first:last] = np.frombuffer(name, dtype=np.uint8)
    store(place.index, arrays, metadata)
    with pytest.raises(DataError, match=r"field 'file_name' is .*, expected a file name"):
        load_index(place.index).image(0)


# -- light and whole -------------------------------------------------------------------------------


def test_an_index_travels_as_the_path_of_its_file(plain: Path, prepared: Path) -> None:
    opened = dataset(prepared)._index
    assert len(pickle.dumps(opened)) < 500
    again = pickle.loads(pickle.dumps(opened))
    assert isinstance(again, Index)
    assert np.array_equal(again.refs, opened.refs)
    gathered = pickle.loads(pickle.dumps(dataset(plain)._index))
    assert np.array_equal(gathered.refs, opened.refs)


# newer Pythons warn of any fork beside torch's threads; the worker here uses none of them
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same(prepared: Path, start: str) -> None:
    data = dataset(prepared, training=True)
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=1, multiprocessing_context=start
    )
    for name in ("image", "tokens", "target"):
        together = torch.cat([batch[name] for batch in loader])
        assert torch.equal(together, torch.stack([data[i][name] for i in range(len(data))]))


def test_a_worker_refuses_an_index_that_was_rewritten(tmp_path: Path) -> None:
    """Of two refs another one is left, so that all arrays have the same lengths as before."""
    images, annotations = [image(7), image(8)], [annotation(70, 7), annotation(80, 8)]
    root = write_refer(tmp_path, images, annotations, [ref(1, 70, 7), ref(2, 80, 8)])

    def prepare_without(number: int) -> Layout:
        (root / "images" / f"{number}.png").rename(tmp_path / "away")
        with pytest.warns(UserWarning, match="2 bad records left out"):
            layout, _ = prepare_data(root, "mine", skip_bad=True, progress=False)
        (tmp_path / "away").rename(root / "images" / f"{number}.png")
        return layout

    travelling = pickle.dumps(open_index(prepare_without(7)))
    assert pickle.loads(travelling).refs["ref_id"].tolist() == [2]
    prepare_without(7)
    assert pickle.loads(travelling).refs["ref_id"].tolist() == [2]
    prepare_without(8)
    with pytest.raises(DataError, match="the index was rewritten while it was open; open the data"):
        pickle.loads(travelling)


def test_left_out_records_are_all_counted(tmp_path: Path) -> None:
    refs = [ref(1, 70, 7), *(ref(number, 71, 7) for number in range(2, 1_200))]
    root = write_refer(tmp_path, [image(7)], [annotation(70, 7)], refs)
    with pytest.warns(UserWarning, match="^1198 bad records left out: .*; and 1195 more$"):
        layout, index = prepare_data(root, "mine", skip_bad=True, progress=False)
    left_out = stored(layout.index)[1]["left_out"]
    assert (left_out["count"], len(left_out["reasons"])) == (index.bad.count, 1_000)
    assert open_index(layout).bad.count == index.bad.count


def test_an_index_that_is_named_must_be_there(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no index \S+none \(set index, --index, or leave it out"):
        dataset(plain, index=tmp_path / "none")
    with pytest.raises(DataError, match=r"no index \S+ \(it is a folder, as older ver"):
        dataset(plain, index=tmp_path)


def test_an_index_in_another_place(plain: Path, tmp_path: Path) -> None:
    layout, _ = prepare_data(plain, "shapes", output=tmp_path / "mine", progress=False)
    assert layout.index == tmp_path / "mine"
    assert not find_files(plain, "shapes", "masksd").index.exists()
    data = dataset(plain, index=tmp_path / "mine")
    assert data._index.path == tmp_path / "mine"


def test_the_metadata_says_what_it_was_made_from(place: Layout) -> None:
    import hashlib

    sources = stored(place.index)[1]["sources"]
    for role, path in zip(("refs", "instances"), place.files, strict=True):
        assert sources[role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sources[role]["bytes"] == path.stat().st_size
    assert describe_sources(place).keys() == sources.keys()
