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

from masksd.kit.data import index as index_module
from masksd.kit.data.index import ARRAYS, Index, describe_sources, load_index, open_index
from masksd.kit.data.layout import Layout, find_files
from masksd.kit.data.prepare import find_index, gather_index, prepare_data
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.tokenizers import load_tokenizer
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


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
@pytest.mark.parametrize("text", ["sent", "raw"])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_data_set_item_by_item(
    plain: Path, prepared: Path, split: str, text: str, training: bool
) -> None:
    one = dataset(plain, split, text=text, training=training)
    two = dataset(prepared, split, text=text, training=training)
    assert find_files(prepared, "shapes", "masksd").index.is_dir()
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


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


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
    path: Path = getattr(place, which)
    os.utime(path, ns=(1, 1))
    assert len(open_index(place).refs) > 0
    content = path.read_bytes()
    path.write_bytes(content.replace(b"circle", b"cirkle", 1).replace(b'"area"', b'"aera"', 1))
    assert path.stat().st_size == len(content)
    with pytest.raises(DataError, match=r"does not belong to .*; run `masksd data prepare shapes"):
        find_index(place)
    prepare_data(place.instances.parent.parent, "shapes", progress=False)
    assert len(open_index(place).refs) > 0
    path.write_bytes(content + b" ")
    with pytest.raises(DataError, match="does not belong to"):
        open_index(place)


def test_opening_reads_no_source(place: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(index_module, "_digest", refuse)
    assert len(open_index(place).refs) > 0
    os.utime(place.refs, ns=(1, 1))
    with pytest.raises(AssertionError, match="was hashed"):
        open_index(place)


def test_another_format_is_refused(place: Layout) -> None:
    metadata = json.loads((place.index / "index.json").read_text())
    (place.index / "index.json").write_text(json.dumps(metadata | {"format": 1}))
    with pytest.raises(DataError, match=r"format 1 is not 2\); run `masksd data prepare` again"):
        open_index(place)


@pytest.mark.parametrize("name", [*(f"{each}.npy" for each in ARRAYS), "index.json"])
def test_a_missing_or_cut_file_is_refused(place: Layout, name: str) -> None:
    path = place.index / name
    content = path.read_bytes()
    for cut in (0, 1, 20, len(content) // 2, len(content) - 8):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match="is no index that can be read"):
            open_index(place)
    path.unlink()
    with pytest.raises(DataError, match="is no index that can be read"):
        open_index(place)


def test_pickled_arrays_are_refused(place: Layout) -> None:
    canary = place.index / "canary"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (canary,)

    np.save(place.index / "refs.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is no index that can be read"):
        open_index(place)
    assert not canary.exists()


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
    array = np.load(place.index / f"{name}.npy")
    if field is None:
        array[row] = value
    else:
        array[field][row] = value
    np.save(place.index / f"{name}.npy", array)
    with pytest.raises(DataError, match=r"array '\w+' is damaged"):
        open_index(place)


def test_an_outline_without_measure_is_refused(place: Layout) -> None:
    """Drawing one takes memory for every pixel of it."""
    coordinates = np.load(place.index / "coordinates.npy")
    coordinates.reshape(-1, 2)[::2] = 65_000
    coordinates.reshape(-1, 2)[1::2] = -65_000
    np.save(place.index / "coordinates.npy", coordinates)
    with pytest.raises(DataError, match="array 'polygons' is damaged"):
        open_index(place)


def test_any_changed_byte_is_an_error_or_a_picture_of_masks(place: Layout) -> None:
    """A reader that trusted the numbers would leave the arrays, or crash in drawing."""
    draw = np.random.default_rng(0)
    files = [place.index / f"{name}.npy" for name in ARRAYS] + [place.index / "index.json"]
    refused = 0
    for _ in range(300):
        path = files[int(draw.integers(len(files)))]
        content = path.read_bytes()
        changed = bytearray(content)
        changed[int(draw.integers(len(changed)))] = int(draw.integers(256))
        path.write_bytes(changed)
        try:
            index = load_index(place.index)
            for split in index.splits:
                for row in index.rows(split)[:3].tolist():
                    index.image(int(index.refs["image"][row]))
                    assert index.mask(int(index.refs["object"][row])).max() <= 1
                    index.sentence(int(index.refs["sentences"][row][0]), "raw")
        except DataError:
            refused += 1
        path.write_bytes(content)
    assert 10 < refused < 300


def test_text_and_names_of_a_hostile_index(place: Layout) -> None:
    text = np.load(place.index / "text.npy")
    index = load_index(place.index)
    first, last = index.images["name"][0].tolist()
    text[first : last - 3] = ord("/")
    text[last - 3 : last] = 0xFF
    np.save(place.index / "text.npy", text)
    with pytest.raises(DataError, match="array 'text' is damaged"):
        load_index(place.index).image(0)
    text[last - 3 : last] = ord("a")
    np.save(place.index / "text.npy", text)
    with pytest.raises(DataError, match="a bare file name is expected"):
        load_index(place.index).image(0)


# -- light and whole -------------------------------------------------------------------------------


def test_an_index_travels_as_the_name_of_its_folder(plain: Path, prepared: Path) -> None:
    opened = dataset(prepared)._index
    assert len(pickle.dumps(opened)) < 500
    again = pickle.loads(pickle.dumps(opened))
    assert isinstance(again, Index)
    assert np.array_equal(again.refs, opened.refs)
    gathered = pickle.loads(pickle.dumps(dataset(plain)._index))
    assert np.array_equal(gathered.refs, opened.refs)


# newer Pythons warn of any fork beside torch's threads; the worker here uses none of them
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
    left_out = json.loads((layout.index / "left-out.json").read_text())
    assert (left_out["count"], len(left_out["reasons"])) == (index.bad.count, 1_000)
    for damaged in ("[]", "3", '{"reasons": []}', '{"reasons": [], "count": "x"}'):
        (layout.index / "left-out.json").write_text(damaged)
        with pytest.raises(DataError, match="is no index that can be read"):
            open_index(layout)


def test_an_index_that_is_named_must_be_there(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no index \S+none \(set index, --index, or leave it out"):
        dataset(plain, index=tmp_path / "none")


def test_an_index_in_another_folder(plain: Path, tmp_path: Path) -> None:
    layout, _ = prepare_data(plain, "shapes", output=tmp_path / "mine", progress=False)
    assert layout.index == tmp_path / "mine"
    assert not find_files(plain, "shapes", "masksd").index.exists()
    data = dataset(plain, index=tmp_path / "mine")
    assert data._index.folder == tmp_path / "mine"


def test_the_metadata_says_what_it_was_made_from(place: Layout) -> None:
    import hashlib

    sources = json.loads((place.index / "index.json").read_text())["sources"]
    for role, path in (("refs", place.refs), ("instances", place.instances)):
        assert sources[role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sources[role]["bytes"] == path.stat().st_size
    assert describe_sources(place).keys() == sources.keys()
