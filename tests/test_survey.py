"""The numbers of ``masksd data inspect``, against plain loops over the data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from masksd.kit.data.index import Index
from masksd.kit.data.layout import find_files
from masksd.kit.data.prepare import gather_index
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.survey import (
    count_split,
    draw_data_sheet,
    draw_refs,
    format_surveys,
    read_cell,
    survey_split,
)
from tests.refer_folders import annotation, image, ref, write_refer
from tests.test_index import TOKENIZER


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ShapesConfig(level="hard", variant="g", train=6, val=3, test_a=2, test_b=2)
    return build_shapes(tmp_path_factory.mktemp("data") / "hard", config, progress=False)


def test_numbers_are_those_of_the_data_set(root: Path) -> None:
    index = gather_index(find_files(root, "shapes", "masksd"))
    for split in index.splits:
        data = ReferDataset(
            root, "shapes", split, tokenizer=TOKENIZER, image_size=8, split_by="masksd"
        )
        records = [data.record(each) for each in range(len(data))]
        counts = count_split(index, split)
        assert counts.sentences == len(data)
        assert counts.refs == len({each["ref_id"] for each in records})
        assert counts.objects == len({each["ann_id"] for each in records})
        assert counts.images == len({each["image_id"] for each in records})
        survey = survey_split(index, split)
        words = [len(data.sentence(each).split()) for each in range(len(data))]
        areas = {each["ann_id"]: data.truth(at).mean() for at, each in enumerate(records)}
        assert (survey.words.least, survey.words.most) == (min(words), max(words))
        assert survey.words.mean == pytest.approx(np.mean(words))
        assert survey.words.median == np.median(words)
        assert survey.over_15 == pytest.approx(np.mean([each > 15 for each in words]))
        assert survey.over_20 == pytest.approx(np.mean([each > 20 for each in words]))
        assert survey.area.mean == pytest.approx(np.mean(list(areas.values())))
        assert survey.area.most == pytest.approx(max(areas.values()))
        assert survey.area.p95 == pytest.approx(np.quantile(list(areas.values()), 0.95))


def mixed(tmp_path: Path) -> Index:
    """Two overlapping squares, a run-length code, one square with a stray point."""
    squares = [[1, 1, 5, 1, 5, 5, 1, 5], [3, 1, 7, 1, 7, 5, 3, 5]]
    annotations = [
        annotation(70, 7, segmentation=squares),
        annotation(71, 7, segmentation={"size": [6, 8], "counts": [6, 3, 39]}),
        annotation(72, 7, segmentation=[squares[0], [2, 2]]),
    ]
    long = " ".join(["red"] * 21)
    refs = [
        ref(1, 70, 7, "a", long),
        ref(2, 71, 7, " ".join(["b"] * 16)),
        ref(3, 72, 7, "左边的 $x$ 圆 🔴"),
    ]
    root = write_refer(tmp_path, [image(7)], annotations, refs)
    return gather_index(find_files(root, "mine", "unc"))


def test_polygons_runs_and_long_sentences_are_counted(tmp_path: Path) -> None:
    survey = survey_split(mixed(tmp_path), "val")
    assert (survey.several_polygons, survey.run_lengths, survey.dropped_polygons) == (1, 1, 1)
    assert survey.area.most == 24 / 48  # 16 + 16 pixels, 8 of them twice
    assert survey.area.least == 3 / 48
    assert (survey.over_15, survey.over_20) == (2 / 4, 1 / 4)
    table = format_surveys({"val": survey}).splitlines()
    assert ["over", "15", "words,", "%", "50"] in [line.split() for line in table]
    assert table[0].strip() == "val"


def test_a_sheet_of_any_script_and_any_number(tmp_path: Path) -> None:
    index = mixed(tmp_path)
    layout = find_files(tmp_path, "mine", "unc")
    rows = draw_refs(index, 0, 5)
    assert sorted(rows) == [0, 1, 2]
    cells = [read_cell(layout, index, row) for row in rows]
    assert draw_data_sheet(cells, tmp_path / "sheet.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="at least one ref"):
        draw_data_sheet([], tmp_path / "sheet.png")


def test_every_split_is_on_the_sheet_and_the_seed_decides(root: Path) -> None:
    index = gather_index(find_files(root, "shapes", "masksd"))
    drawn = draw_refs(index, 0, 9)
    assert len(drawn) == len(set(drawn)) == 9
    assert set(index.refs["split"][drawn].tolist()) == {0, 1, 2, 3}
    assert drawn == draw_refs(index, 0, 9)
    assert drawn != draw_refs(index, 1, 9)
    with pytest.raises(ValueError, match="seed at least 0"):
        draw_refs(index, -1, 9)
