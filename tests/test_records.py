"""Records of the refer format: bad ones are left out and counted, damage is always an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from masksd.kit.data.layout import find_files
from masksd.kit.data.prepare import gather_index
from masksd.kit.data.readers.refer import read_instances, read_refs
from masksd.kit.data.records import Annotation, BadRecords, DataError
from tests.refer_folders import SQUARE, annotation, image, ref, write_refer

NAN = float("nan")
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("images", {"file_name": "../9.png"}, r"images\[1\] \(id 9\): field 'file_name' is '../9.png'"),
    ("images", {"width": 0}, r"images\[1\] \(id 9\): field 'width' is 0"),
    ("images", {"height": "6"}, r"images\[1\] \(id 9\): field 'height' must be of type int"),
    ("images", {"width": 40000}, r"\(id 90\): an image of 40000x6 pixels"),
    ("annotations", {"segmentation": None}, r"annotations\[1\] \(id 90\): field 'segmentation'"),
    ("annotations", {"image_id": 5}, r"annotations\[1\] \(id 90\): field 'image_id' is 5"),
    ("annotations", {"segmentation": [[1, 2, 3, 4]]}, r"\(id 90\): segmentation: no polygon"),
    ("annotations", {"segmentation": [[0, 0, 1, 0, 1, NAN]]}, r"\(id 90\): .*nan"),
    ("annotations", {"segmentation": {"size": [6, 8], "counts": [3]}}, r"\(id 90\): .* 3 of 48"),
    ("refs", {"sentences": []}, r"refs\[1\] \(ref_id 2\): field 'sentences' has no usable"),
    (
        "refs",
        {"sentences": [{"sent_id": 1, "sent": " "}]},
        r"sentences\[0\] \(sent_id 1\): .*blank",
    ),
    (
        "refs",
        {"sentences": [{"sent_id": 1, "sent": "\u200b", "raw": " \ufeff\u2060\x00"}]},
        r"sentences\[0\] \(sent_id 1\): .*blank",
    ),
    (
        "refs",
        {"sentences": [{"sent_id": 1, "sent": "\u3164", "raw": "\ufe0f\u2800"}]},
        r"sentences\[0\] \(sent_id 1\): .*blank",
    ),
    ("refs", {"sentences": ["red"]}, r"refs\[1\] \(ref_id 2\): sentences\[0\] must be of type"),
    (
        "refs",
        {"ann_id": 91},
        r"refs\[1\] \(ref_id 2\): field 'ann_id' is 91, which is not in instances",
    ),
    ("refs", {"ann_id": [70, 90]}, r"refs\[1\] \(ref_id 2\): .* object 70 belongs to image 7"),
    ("refs", {"image_id": 7}, r"refs\[1\] \(ref_id 2\): field 'image_id' is 7, but object 90"),
    ("refs", {"split": 3}, r"refs\[1\] \(ref_id 2\): field 'split' must be of type str"),
    ("refs", {"ref_id": None}, r"refs\[1\]: field 'ref_id' must be of type int, but is missing"),
]


def lists() -> dict[str, list[Any]]:
    """Two pictures with an object and a ref each; the second ones are to be spoilt."""
    return {
        "images": [image(7), image(9)],
        "annotations": [annotation(70, 7), annotation(90, 9)],
        "refs": [ref(1, 70, 7), ref(2, 90, 9)],
    }


@pytest.mark.parametrize(("which", "changes", "says"), BAD)
def test_bad_records_are_left_out_only_where_asked(
    tmp_path: Path, which: str, changes: dict[str, Any], says: str
) -> None:
    records = lists()
    records[which][1] |= changes
    layout = find_files(write_refer(tmp_path, **records), "mine", "unc")
    with pytest.raises(DataError, match=says):
        gather_index(layout)
    bad = BadRecords()
    index = gather_index(layout, bad)
    assert index.refs["ref_id"].tolist() == [1]
    assert index.sentence(0, "sent") == "red circle"
    named = "refs" if which == "refs" else "instances"
    assert named in bad.reasons[0]
    with pytest.raises(DataError, match=says):
        raise DataError(bad.reasons[0])
    # what follows from it is named as well: nothing goes without a word
    assert bad.count == 1 or any("ref_id 2" in reason for reason in bad.reasons[1:])


@pytest.mark.parametrize("which", ["images", "annotations", "refs"])
def test_a_record_that_is_no_object(tmp_path: Path, which: str) -> None:
    records = lists()
    records[which].append("text")
    layout = find_files(write_refer(tmp_path, **records), "mine", "unc")
    with pytest.raises(DataError, match=rf"{which}\[2\] must be of type dict, but is of type str"):
        gather_index(layout)
    bad = BadRecords()
    assert len(gather_index(layout, bad).refs) == 2
    assert bad.count == 1


def test_a_bad_sentence_leaves_its_ref(tmp_path: Path) -> None:
    records = lists()
    records["refs"][1]["sentences"].append({"sent_id": 201, "sent": "", "raw": " "})
    bad = BadRecords()
    index = gather_index(find_files(write_refer(tmp_path, **records), "mine", "unc"), bad)
    assert (len(index.refs), len(index.sentences), bad.count) == (2, 2, 1)


@pytest.mark.parametrize("which", ["images", "annotations", "refs"])
def test_an_id_that_comes_twice_is_always_an_error(tmp_path: Path, which: str) -> None:
    records = lists()
    records[which].append(dict(records[which][0]))
    layout = find_files(write_refer(tmp_path, **records), "mine", "unc")
    with pytest.raises(DataError, match="which another record already has"):
        gather_index(layout, BadRecords())


def test_a_sentence_id_that_comes_twice_is_always_an_error(tmp_path: Path) -> None:
    records = lists()
    records["refs"][1]["sentences"] = records["refs"][0]["sentences"]
    layout = find_files(write_refer(tmp_path, **records), "mine", "unc")
    with pytest.raises(DataError, match="'sent_id' is 100, which another record already has"):
        gather_index(layout, BadRecords())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("3", "must be of type list"),
        ("null", "but is missing"),
        ('{"a": 1}', "must be of type list, but is of type dict"),
    ],
)
def test_files_that_are_no_such_files_are_always_an_error(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "refs.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"refs.json: .*{says}"):
        read_refs(path, {}, BadRecords())
    if text != '{"a": 1}':
        with pytest.raises(DataError, match=r"refs.json: "):
            read_instances(path, BadRecords())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ref_id": 2**63}, r"refs\[0\]: field 'ref_id' does not fit in 64 bits"),
        ({"ann_id": -(2**70)}, r"\(ref_id 1\): field 'ann_id' does not fit in"),
        ({"category_id": 2**64}, "field 'category_id' does not fit in"),
        ({"split": "\ud800"}, "field 'split' is not valid Unicode text"),
        ({"sentences": [{"sent_id": 0, "sent": "\udfff"}]}, "field 'sent' is not valid Unicode"),
    ],
)
def test_what_json_can_hold_and_an_index_cannot(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "refs.json"
    path.write_text(json.dumps([ref(1, 70, 7) | changes]))
    with pytest.raises(DataError, match=says):
        read_refs(path, {70: Annotation(70, 7, SQUARE)})


def test_a_set_without_any_ref_is_an_error(tmp_path: Path) -> None:
    records = lists()
    for each in records["refs"]:
        each["sentences"] = []
    layout = find_files(write_refer(tmp_path, **records), "mine", "unc")
    with pytest.raises(DataError, match=r"no ref is left: 2 bad records left out: .*no usable"):
        gather_index(layout, BadRecords())


def test_equal_texts_are_kept_once(tmp_path: Path) -> None:
    said = "x" * 9_999
    refs = [ref(number, 70, 7, said, said) for number in range(20)]
    root = write_refer(tmp_path, [image(7)], [annotation(70, 7)], refs)
    index = gather_index(find_files(root, "mine", "unc"))
    assert {index.sentence(row, "sent") for row in range(40)} == {said}
    assert len(index._arrays["text"]) < 3 * len(said)  # "sent" once, and "raw" with its mark


def test_reasons_are_kept_up_to_a_number_and_all_are_counted() -> None:
    bad = BadRecords()
    for number in range(1_500):
        bad.add(f"annotation {number}")
    assert (bad.count, len(bad.reasons), bad.reasons[-1]) == (1_500, 1_000, "annotation 999")
    assert bad.summary().startswith("1500 bad records left out: annotation 0; ")
    assert bad.summary().endswith("; and 1497 more")


def test_a_summary_names_the_first_and_counts_the_rest() -> None:
    bad = BadRecords()
    bad.warn()  # nothing to say: a warning would be an error here
    assert bad.summary() == ""
    for number in range(5):
        bad.add(f"a.json: annotation {number}: no polygon")
    assert bad.summary() == (
        "5 bad records left out: a.json: annotation 0: no polygon; a.json: annotation 1: no "
        "polygon; a.json: annotation 2: no polygon; and 2 more"
    )
    with pytest.warns(UserWarning, match="5 bad records left out") as caught:
        bad.warn()
    assert len(caught) == 1
