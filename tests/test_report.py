"""Reports are whole, right and readable; the command scores, writes and compares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masksd.kit.checkpoints import save_checkpoint
from masksd.kit.cli import main
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.evaluation.report_folder import CASES, case_rows, pick_cases, write_report
from masksd.kit.evaluation.scoring import score
from masksd.kit.figures import draw_cases
from masksd.kit.printing import markdown_table
from masksd.kit.scores.protocols import choose_threshold, get_protocol
from masksd.kit.scores.report import (
    REPORT,
    TABLES,
    Report,
    read_report,
    read_samples,
    score_cells,
)
from masksd.kit.sources import build_model
from tests.scored import SHORT_TABLE, make_checkpoint, open_data, write_data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two checkpoints that differ."""
    folder = tmp_path_factory.mktemp("place")
    data = build_shapes(
        folder / "data", ShapesConfig(train=1, val=4, test_a=1, test_b=1), progress=False
    )
    for name, seed in (("one", 1), ("two", 2)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = TrainConfig(data=DataConfig(data_root=data), threshold=0.5)
            checkpoint = build_model(config)
            for parameter in checkpoint.model.decoder.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        save_checkpoint(folder / name, checkpoint)
    return folder


def run(*arguments: str | Path) -> int:
    return main(["evaluate", "--cpu", "--no-progress", *map(str, arguments)])


@pytest.mark.parametrize("protocol", ["original", "lavt"])
def test_a_report_says_what_was_scored(small: Path, tmp_path: Path, protocol: str) -> None:
    checkpoint, dataset = make_checkpoint(), open_data(small)
    results = {
        kind: score(checkpoint, dataset, protocol=protocol, sentences=kind)
        for kind in ("own", "none")
    }
    written = Report(
        title="small, val",
        protocol=protocol,
        input_size=dataset.image_size,
        fit=dataset.fit,
        trained_fit=checkpoint.config.fit,
        threshold=choose_threshold(get_protocol(protocol), None, checkpoint.config.threshold),
        checkpoint="runs/x",
        data={"name": "small"},
        split="val",
        limit=0,
        version="0",
        scores={kind: result.scores for kind, result in results.items()},
        relevance={"recall": 0.5, "overall": 0.4, "chance": 0.3, "samples": 7},
    )
    write_report(tmp_path, written, checkpoint, dataset, results)
    names = {REPORT, TABLES, CASES, "samples-own.jsonl", "samples-none.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    fields = read_report(tmp_path)
    assert fields["protocol"] == protocol
    assert fields["input_size"] == 32
    assert fields["threshold"] == {"original": 0.4, "lavt": 0.5}[protocol]
    assert fields["scores"] == written.scores == {k: r.scores for k, r in results.items()}
    for kind, result in results.items():
        assert read_samples(tmp_path, kind) == result.rows
    text = (tmp_path / TABLES).read_text()
    assert text.startswith("# small, val\n")
    assert "protocol " + protocol + " at 32 px" in text
    assert "hold 50.00 % of the truth" in text
    row = next(line for line in text.splitlines() if line.startswith("| all |"))
    assert f"| {100 * results['own'].scores['all']['mIoU']:.2f} |" in row
    with Image.open(tmp_path / CASES) as picture:
        assert picture.size[0] > 1000


def test_markdown_tables_have_a_cell_for_every_score(small: Path) -> None:
    scores = score(make_checkpoint(), open_data(small)).scores
    lines = markdown_table(*score_cells(scores)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["all", "small object"]


def test_cases_are_the_extremes_on_different_pictures(small: Path) -> None:
    rows = score(make_checkpoint(), open_data(small)).rows
    worst, best = pick_cases(rows, 3)
    ious = [row["iou"] for row in rows]
    assert worst[0]["iou"] == min(ious)
    assert best[0]["iou"] == max(ious)
    for side in (worst, best):
        assert len({row["image_id"] for row in side}) == 3
    assert [row["iou"] for row in worst] == sorted(row["iou"] for row in worst)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=20), st.integers(1, 5))
def test_no_case_is_shown_twice(samples: list[tuple[int, float]], count: int) -> None:
    rows = [
        {"index": index, "image_id": image, "iou": iou}
        for index, (image, iou) in enumerate(samples)
    ]
    worst, best = pick_cases(rows, count)
    assert not {row["index"] for row in worst} & {row["index"] for row in best}
    assert max(len(worst), len(best)) <= count
    if rows:
        assert worst[0]["iou"] == min(row["iou"] for row in rows)
    if len(rows) > 1:
        assert best[0]["iou"] == max(row["iou"] for row in rows)


@pytest.mark.parametrize("protocol", ["original", "cris", "lavt"])
def test_what_is_drawn_is_what_was_scored(small: Path, protocol: str) -> None:
    checkpoint = make_checkpoint()
    dataset = open_data(small, "letterbox" if protocol == "cris" else "squash")
    rows = score(checkpoint, dataset, protocol=protocol, sentences="other").rows[:4]
    rules = get_protocol(protocol)
    threshold = choose_threshold(rules, None, checkpoint.config.threshold)
    drawn = case_rows(checkpoint, dataset, rows, rules, threshold)
    for row, case in zip(rows, drawn, strict=True):
        assert case.sentence == row["sentence"] == dataset.other_sentence(row["index"])
        assert case.truth.shape == case.prediction.shape == case.image.size[::-1]
        assert int(case.truth.sum()) == row["truth_area"]
        assert int(case.prediction.sum()) == row["predicted_area"]
        assert int((case.truth & case.prediction).sum()) == row["intersection"]


def test_a_sheet_without_cases_is_refused_and_an_uneven_one_drawn(
    small: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        draw_cases([], [], tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []
    checkpoint, dataset = make_checkpoint(), open_data(small)
    rows = score(checkpoint, dataset, limit=3).rows
    cases = case_rows(checkpoint, dataset, rows, get_protocol("original"), 0.4)
    dollars = cases[0]._replace(sentence="the $5 bill \\frac{ of $")
    draw_cases([dollars, *cases[1:]], cases[:1], tmp_path / "uneven.png")
    with Image.open(tmp_path / "uneven.png") as picture:
        assert (np.asarray(picture.convert("L")) < 100).mean() > 0.01


def test_the_command_prints_and_writes_a_report_and_compares_two(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--protocol", "lavt", "--workers", "1", "--sentences", "own", "--relevance")
    for name in ("one", "two"):
        done = run("--checkpoint", place / name, "--output", tmp_path / name, *options)
        assert done == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "protocol lavt at 64 px instead of 480, scored at the input size" in printed
    assert "> 10 words" not in printed
    assert re.search(r"the top patches hold [\d.]+% of the truth, by chance 50.0%", printed)
    fields = read_report(tmp_path / "one")
    assert fields["scores"].keys() == {"own"}
    assert fields["data"]["data_root"] == str(place / "data")
    assert fields["relevance"]["samples"] == fields["scores"]["own"]["all"]["samples"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    assert run("--compare", tmp_path / "one", tmp_path / "two") == 0
    header, *lines = capsys.readouterr().out.splitlines()[3:]
    assert header.split() == ["A", "B", "B", "-", "A", "95", "%", "interval", "verdict"]
    assert [line.split()[0] for line in lines[:5]] == ["mIoU", "oIoU", "gIoU", "cIoU", "Pr@0.5"]
    for line in lines:
        low, high = re.search(r"\[(.+), (.+)\]", line).groups()  # type: ignore[union-attr]
        shown = line.endswith("no difference could be shown")
        assert shown == (float(low) <= 0 <= float(high))


def test_the_default_is_the_short_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", place / "one") == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("val, per cent, at the original size")
    assert header.split() == SHORT_TABLE
    assert len(rows) == 3


def test_the_original_protocol_prints_both_comparisons(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", place / "one", "--protocol", "original", "--eval-samples", "3") == 0
    printed = capsys.readouterr().out
    assert "Pr@0.5 (>=)" in printed
    assert "mOver" in printed


def test_reports_are_replaced_only_when_asked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--checkpoint", place / "one", "--eval-samples", "2", "--sentences", "own")
    target = tmp_path / "report"
    assert run(*options, "--output", target) == 0
    before = {path: path.read_bytes() for path in target.iterdir()}
    capsys.readouterr()
    assert run(*options, "--output", target) == 2
    assert "holds a report already; choose another --output or pass --overwrite" in (
        capsys.readouterr().err
    )
    # an error on the way leaves the older report as it was, and nothing beside it
    assert run(*options, "--output", target, "--overwrite", "--split", "vall") == 2
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]
    assert run(*options, "--output", target, "--overwrite", "--eval-samples", "4") == 0
    assert len(read_samples(target)) == 4
    (target / "notes.txt").write_text("mine")
    assert run(*options, "--output", target, "--overwrite") == 2
    assert "holds 'notes.txt', which no report has" in capsys.readouterr().err
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.filterwarnings("always:the model was trained on")
def test_the_split_is_that_of_the_training_and_its_own_images_are_a_warning(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(data_root=place / "data")
    checkpoint = build_model(TrainConfig(data=data, train_split="val", eval_split="testA"))
    options = ("--checkpoint", save_checkpoint(tmp_path / "one", checkpoint), "--sentences", "own")
    assert run(*options, "--output", tmp_path / "new") == 0
    printed = capsys.readouterr()
    assert "), testA, per cent" in printed.out
    assert printed.err == ""
    assert "Warning" not in (tmp_path / "new" / TABLES).read_text()
    assert run(*options, "--output", tmp_path / "seen", "--split", "val") == 0
    says = "the model was trained on split 'val' of shapes: scores there are not those of unseen"
    assert says in capsys.readouterr().err
    assert f"**Warning: {says} images" in (tmp_path / "seen" / TABLES).read_text()
    assert read_report(tmp_path / "seen")["warning"].startswith(says)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "lavd"), "unknown protocol 'lavd'; did you mean 'lavt'"),
        (("--sentences", "mine"), "unknown sentences 'mine'"),
        (("--protocol", "cris", "--threshold", "0.5"), "threshold 0.5 contradicts protocol 'cris'"),
        (("--workers", "-1"), "workers must be a whole number of at least 0"),
        (("--compare", "{place}/one", "{place}/two"), "one is a checkpoint or a run"),
        (("--compare", "a", "b", "--output", "c"), "--compare prints and writes nothing"),
        (("--output", "{place}/one/model.safetensors"), "is a file; choose another --output"),
    ],
)
def test_wrong_options_are_one_line(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    filled = [argument.format(place=place) for argument in arguments]
    assert run("--checkpoint", place / "one", *filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_json_reports_are_plain_json(place: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", place / "one", "--eval-samples", "2", "--protocol", "cris")
    assert run(*options, "--output", tmp_path / "report") == 0
    fields = json.loads((tmp_path / "report" / REPORT).read_text())
    assert fields["fit"] == "letterbox"
    text = (tmp_path / "report" / TABLES).read_text()
    assert "Images: letterbox (trained with squash); foreground: probability above 0.35" in text
    assert fields["protocol"]["steps"][1] == {
        "to": "original",
        "mode": "bicubic",
        "align_corners": False,
        "border": "zero",
    }
