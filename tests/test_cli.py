"""The program as users run it: results, one-line errors, and nothing half written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masksd.kit.cli import _parse, main
from masksd.kit.cli.data import data_commands
from masksd.kit.cli.demo import Demo
from masksd.kit.cli.evaluate import evaluate_command
from masksd.kit.cli.export import Export
from masksd.kit.cli.options import checked, option_names
from masksd.kit.cli.predict import Predict
from masksd.kit.cli.pretrain import pretrain_command
from masksd.kit.cli.runs import Runs
from masksd.kit.cli.shared import HEADINGS
from masksd.kit.cli.train import train_command
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from tests.scored import SHORT_TABLE

Done = subprocess.CompletedProcess[str]
RUN = ("--batch-size", "2", "--eval-samples", "4", "--sheet-rows", "2", "--cpu")
SMALL = ("--steps", "3", "--warmup", "1", *RUN)


def masksd(folder: Path, *arguments: str | Path, **environment: str) -> Done:
    """Run the program in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "masksd", *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "MASKSD_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a run and a picture."""
    folder = tmp_path_factory.mktemp("place")
    shapes = ShapesConfig(train=4, val=2, test_a=1, test_b=1)
    build_shapes(folder / "data", shapes, progress=False)
    strict = {"PYTHONWARNINGS": "error"}
    # a seed other than 0, which must not matter when the checkpoint is scored
    run = ("--data-root", "data", "--output", "runs/one", "--seed", "3", *SMALL)
    done = masksd(folder, "train", *run, **strict)
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (60, 40), (200, 190, 180)).save(folder / "picture.png")
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (6, 4)).save(folder / "a-mask.png")
    (folder / "b.png").mkdir()
    (folder / "c-mask.png").mkdir()
    (folder / "train.log").write_text(done.stdout + done.stderr)
    return folder


def everything(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_train_prints_a_table_and_shows_progress(place: Path) -> None:
    log = (place / "train.log").read_text()
    header, *rows = [line for line in log.splitlines() if "mIoU" in line or "sentence  " in line]
    assert header.split() == SHORT_TABLE
    assert [row.split("  ")[0] for row in rows[:3]] == [
        "the right sentence",
        "another object's sentence",
        "no sentence",
    ]
    assert "3/3" in log
    assert "loss=" in log
    assert (place / "runs/one/sheet.png").exists()


def test_runs_are_listed(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for name in ("old", "new"):
        shutil.copytree(place / "runs/one", tmp_path / name)
        os.utime(tmp_path / name / "metrics.jsonl", (0, 0 if name == "old" else 86_400))
    log = tmp_path / "new/metrics.jsonl"
    first, *_, last = log.read_text().splitlines()
    own = json.loads(last)["scores"]["own"]
    (tmp_path / "no run").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    (tmp_path / "damaged/metrics.jsonl").write_text("")
    done = masksd(tmp_path, "runs", tmp_path)
    assert f"warning: {tmp_path / 'damaged'} is left out" in done.stderr
    shutil.rmtree(tmp_path / "damaged")
    head, *rows, demo, export = [shlex.split(line) for line in done.stdout.splitlines()]
    assert head[:4] == ["run", "date", "model", "method"]
    assert [row[0] for row in rows] == [str(tmp_path / "new"), str(tmp_path / "old")]
    scores = [f"{100 * own[name]:.2f}" for name in ("mIoU", "oIoU")]
    checkpoint = str(tmp_path / "new/checkpoint")
    following = ["masksd", "evaluate", "--checkpoint", checkpoint]
    expected = ["clip_cris_tiny", "cm-masksd", "3/3", *scores, "finished", scores[0], *following]
    assert rows[0][3:] == expected
    assert demo == ["try", "it:", "masksd", "demo", checkpoint]
    assert export == ["pass", "it", "on:", "masksd", "export", checkpoint]
    assert main([*following[1:], "--cpu", "--no-progress"]) == main(export[4:]) == 0
    steps = f"{json.loads(first)['step']}/3"
    log.write_text(first + "\n")
    shutil.copytree(tmp_path / "new", tmp_path / "killed early")
    for name in ("checkpoint", "best", "export"):
        shutil.rmtree(tmp_path / "killed early" / name)
    for place, time in (("new", 90_000), ("killed early", 80_000)):
        os.utime(tmp_path / place / "metrics.jsonl", (0, time))
    capfd.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    _, new, killed, *_ = [shlex.split(line) for line in capfd.readouterr().out.splitlines()]
    resumed = ["masksd", "train", "--resume", str(tmp_path / "new")]
    assert new[5:] == [steps, "-", "-", "unfinished", scores[0], *resumed]
    *_, program, command, option, config, _, output = killed
    assert (program, command, option, output) == (
        *("masksd", "train", "--config"),
        str(tmp_path / "killed early"),
    )
    assert {"no", "checkpoint"} <= {*killed}
    assert main([command, option, config, "--output", output, "--no-progress"]) == 0


def test_train_ends_with_what_to_do_next(place: Path) -> None:
    lines = (place / "train.log").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("scored "))
    scored, images, command = lines[first : first + 3]
    assert re.fullmatch(
        r"scored 4 of \d+ expressions; "
        "for all: masksd evaluate --checkpoint runs/one/checkpoint",
        scored,
    )
    assert images == "images: data/images"
    program, *arguments = shlex.split(command.removeprefix("try: "))
    assert program == "masksd"
    done = masksd(place, *arguments, "--cpu", "--output", "tried.png")
    assert done.returncode == 0, done.stderr
    assert (place / "tried.png").exists()


def test_evaluate_repeats_the_scores_of_the_run_on_its_data(place: Path, tmp_path: Path) -> None:
    options = ("--eval-samples", "4", "--cpu", "--no-progress")
    checkpoint = place / "runs/one/checkpoint"
    done = masksd(tmp_path, "evaluate", "--checkpoint", checkpoint, *options)  # from elsewhere
    assert done.returncode == 0, done.stderr
    last = json.loads((place / "runs/one/metrics.jsonl").read_text().splitlines()[-1])
    title, _, *rows = done.stdout.splitlines()
    assert title.startswith(f"shapes ({place / 'data'}), val, ")
    assert len(rows) == len(last["scores"]) == 3
    for row, scores in zip(rows, last["scores"].values(), strict=True):
        values = [f"{100 * v:.2f}" for k, v in scores.items() if k != "samples"]
        assert row.split()[-len(values) - 1 :] == [*values, str(int(scores["samples"]))]


def test_options_of_the_data_replace_those_of_the_checkpoint(place: Path) -> None:
    def chosen(*options: str) -> DataConfig:
        return checked(DataConfig(), _parse(["evaluate", *options]).data)

    checkpoint = ("--checkpoint", str(place / "runs/one/checkpoint"))
    assert chosen(*checkpoint).data_root == place / "data"
    assert chosen(*checkpoint, "--level", "hard").level == "hard"
    assert chosen(*checkpoint, "--data-root", "None").data_root is None
    assert chosen().data_root is None


@pytest.mark.slow
def test_predict_writes_overlay_and_mask(place: Path) -> None:
    checkpoint = ("--checkpoint", "runs/one/checkpoint", "--cpu", "--threshold", "0")
    done = masksd(place, "predict", "picture.png", "the red dirigible", *checkpoint)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "masksd: warning: the model does not know 'dirigible'\n"
    assert done.stdout.startswith("picture-prediction.png and picture-prediction-mask.png: 2400")
    with Image.open(place / "picture-prediction-mask.png") as mask:
        assert np.asarray(mask).shape == (40, 60)
        assert (np.asarray(mask) == 255).all()
    with Image.open(place / "picture-prediction.png") as overlay:
        assert overlay.size == (60, 40)


def test_data_shapes_writes_the_folder_it_names(tmp_path: Path) -> None:
    counts = ("--train", "2", "--val", "1", "--test-a", "1", "--test-b", "1")
    done = masksd(tmp_path, "data", "shapes", "--output", "made", "--level", "hard", *counts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "made"
    assert len(list((tmp_path / "made/images").iterdir())) == 5


TRAIN = ("train", "--data-root", "data", "--output", "runs/two", *SMALL)
PREDICT = ("predict", "--checkpoint", "runs/one/checkpoint", "--output", "out.png")
COMMANDS = {
    "train": train_command(["train"]),
    "evaluate": evaluate_command([]),
    "predict": Predict,
    "demo": Demo,
    "export": Export,
    "pretrain": pretrain_command(),
    "runs": Runs,
    **{f"data {name}": made for name, made in data_commands().items()},
}
ERRORS = {
    "unknown command": (("evalute",), "unknown command 'evalute'; did you mean 'evaluate'?"),
    "unknown data command": (("data", "shpes"), "unknown command 'shpes'; did you mean 'shapes'?"),
    "unknown option": (("train", "--stepz", "5"), "unknown option --stepz; did you mean --steps?"),
    "part of an option": (("train", "--step=5"), "unknown option --step; did you mean --steps?"),
    "end of an option": (
        ("train", "--ratio", "1"),
        "--ratio; did you mean --distill.image.ratio or --distill.text.ratio?",
    ),
    "option of a part": (
        ("train", "--distill.image.ration", "1"),
        "did you mean --distill.image.ratio?",
    ),
    "option like no other": (("runs", "--qwerty"), "unknown option --qwerty; see --help"),
    "word for a number": (
        ("train", "--steps", "few"),
        "--steps takes INT, got 'few'; see masksd train --help",
    ),
    "no value": (("train", "--seed"), "missing value for argument '--seed'"),
    "no such choice": (("train", "--branches", "all"), "'none'); see masksd train --help"),
    "no picture": (("predict",), "missing from masksd predict: "),
    "stray word": (("train", "5"), "unrecognized options: 5; see masksd train --help"),
    "missing data folder": (("train", "--data-root", "nowhere", "--output", "runs/two"), "nowhere"),
    "unknown level of data": (("data", "shapes", "--level", "hrad"), "did you mean 'hard'?"),
    "existing run": (("train", "--data-root", "data", "--output", "runs/one"), "--overwrite"),
    "unknown model": ((*TRAIN, "--model", "clip_cris_tny"), "did you mean 'clip_cris_tiny'?"),
    "unknown preset": ((*TRAIN, "--preset", "cm-maskd"), "did you mean 'cm-masksd'?"),
    "unknown level": (("train", "--level", "eesy", "--output", "runs/two"), "did you mean 'easy'?"),
    "ratio": ((*TRAIN, "--distill.image.ratio", "1.5"), "ratio must be a number in [0, 1]"),
    "no steps": ((*TRAIN, "--steps", "0"), "steps must be a whole number of at least 1, got 0"),
    "data not generated": (("train", "--name", "refcoco"), "name the folder"),
    "empty expression": ((*PREDICT, "picture.png", ""), "the expression is empty"),
    "unknown words": ((*PREDICT, "picture.png", "zeppelin"), "knows no word of 'zeppelin'"),
    "unreadable image": ((*PREDICT, "text.png", "the red circle"), "text.png"),
    "missing image": ((*PREDICT, "nothing.png", "the red circle"), "nothing.png: no such file"),
    "picture as output": (
        ("predict", "picture.png", "circle", "--output", "picture.png"),
        "itself",
    ),
    "no such folder": (("predict", "picture.png", "red", "--output", "a/b.png"), "no folder a"),
    "missing checkpoint": (("predict", "picture.png", "red"), "no checkpoint at runs/shapes-easy"),
    "evaluate nothing": (("evaluate",), "no checkpoint at runs/shapes-easy/checkpoint"),
    "unknown split": (
        (
            "evaluate",
            "--checkpoint",
            "runs/one/checkpoint",
            "--data-root",
            "data",
            "--split",
            "vall",
        ),
        "did you mean 'val'?",
    ),
    "picture as mask": (
        ("predict", "a-mask.png", "red", "--output", "a.png"),
        "output a-mask.png is the image itself",
    ),
    "folder as output": (("predict", "picture.png", "red", "--output", "b.png"), "is a folder"),
    "folder as mask": (("predict", "picture.png", "red", "--output", "c.png"), "c-mask.png is a"),
    "several in one file": ((*PREDICT, "picture.png", "red", "blue"), "name a folder, as in out"),
    "a folder in one file": ((*PREDICT, "data/images", "red"), "name a folder, as in out"),
    "no expression": ((*PREDICT, "picture.png"), "no expression; say what to find"),
    "no picture in a folder": ((*PREDICT, "runs", "red"), "folder runs has no image"),
    "another ending": (("predict", "picture.png", "red", "--output", "a.jpg"), "must end in .png"),
    "folder that is full": (
        ("predict", "data/images", "red", "--output", "data"),
        "output data exists and is not empty",
    ),
    "no folder for run lengths": (
        (*PREDICT, "picture.png", "red", "--rle", "x/a.json"),
        "folder x",
    ),
    "picture as run lengths": (
        ("predict", "picture.png", "red", "blue", "--output", "o", "--rle", "picture.png"),
        "rle picture.png must end in .json",
    ),
    "overlay as run lengths": (
        ("predict", "picture.png", "red", "--output", "o.png", "--rle", "o.png"),
        "rle o.png is what --output writes",
    ),
    "dry run of a wrong split": ((*TRAIN, "--dry-run", "--eval-split", "vall"), "mean 'val'?"),
    "preset without a name": ((*TRAIN, "--preset", "--help"), "takes one of cm-masksd, paper-ref"),
    "model without a name": ((*TRAIN, "--model"), "--model takes one of clip_cris_mini, "),
    "weights that do not exist": ((*TRAIN, "--pretrained"), "no pretrained weights for 'clip_cris"),
    "two lengths": ((*TRAIN, "--epochs", "3"), "exactly one of steps and epochs"),
    "recipe without data": (
        ("train", "--preset", "cris-r50", "--output", "runs/two"),
        "data set 'refcoco' is not generated; name the folder",
    ),
    "dry run of a wrong value": ((*TRAIN, "--dry-run", "--lr", "0"), "lr must be a finite number"),
    "no Unicode": ((*PREDICT, "picture.png", "the red \udcff circle"), "not valid Unicode"),
    "no pictures a pass": (("evaluate", "--batch-size", "0"), "batch_size must be a whole number"),
    "fewer than no samples": (
        ("evaluate", "--eval-samples", "-1"),
        "eval_samples must be a whole number",
    ),
    "threshold of scoring": (("evaluate", "--threshold", "35"), "threshold must be a number"),
    "another word for --eval-samples": (("evaluate", "--limit", "3"), "mean --eval-samples?"),
    "no folder of runs": (("runs", "nowhere"), "no folder nowhere; `masksd train` writes runs/"),
    "no run in a folder": (("runs", "data"), "no run in data; start one with `masksd train`"),
    "another word for --cpu": ((*PREDICT, "picture.png", "red", "--device", "cpu"), "mean --cpu?"),
    "one token a position": (
        (*TRAIN, "--distill.image.token", "position", "--distill.image.positions", "7"),
        "positions",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_and_write_nothing(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = ERRORS[name]
    before = everything(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("MASKSD_CACHE", str(place / "cache"))
    assert main(arguments) == 2  # in this process: starting torch 20 times would take a minute
    printed = capfd.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("masksd: error: ")
    assert expected in line
    assert everything(place) == before


def test_program_leaves_with_code_2_and_one_line(place: Path) -> None:
    before = everything(place)
    done = masksd(place, "train", "--data-root", "data", "--output", "runs/one")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "masksd: error: output runs/one holds a run already; choose another --output or pass "
        "--overwrite\n"
    )
    assert everything(place) == before


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_options_that_are_known_are_those_of_the_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capfd.readouterr().out
    lines = re.findall(r"^│ (?:-h, )?((?:--[a-z.-]+(?:, )?)+)", text, re.MULTILINE)
    shown = {name for line in lines for name in line.split(", ")}
    assert {"--help", *option_names(COMMANDS[command])} == shown


@pytest.mark.parametrize("command", ["", "data"])
def test_no_command_shows_the_help(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert not left.value.code
    assert capfd.readouterr().out.startswith(f"usage: {f'masksd {command}'.strip()} [-h] {{")


def test_errors_that_nobody_foresaw_are_one_line_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for error in (RuntimeError("out\x1b[31m of\nmem\u202e\x07ory"), MemoryError()):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("masksd.kit.prediction.predictor.Predictor.from_checkpoint", fail)
        assert main([*PREDICT, "picture.png", "red"]) == 2
        text = "out of memory" if str(error) else "MemoryError"
        expected = f"masksd: error: {text} (MASKSD_TRACEBACK=1 shows where)\n"
        assert capfd.readouterr().err == expected


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    import masksd as package

    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"masksd {package.__version__}\n"


@pytest.mark.parametrize("arguments", [("--version",), ("train", "--help")])
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # before anything is written
    done = subprocess.run(
        [sys.executable, "-m", "masksd", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown model 'nothing'"):
        main([*TRAIN, "--model", "nothing"])


def test_the_options_that_most_runs_need_come_first(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    about, *boxes = re.split(r"^╭─ (.*?) ─+╮$", capfd.readouterr().out, flags=re.MULTILINE)
    titles = [title.removesuffix(" options") for title in boxes[::2]]
    options = {
        title: re.findall(r"^│ --([a-z.-]+)", text, re.MULTILINE)
        for title, text in zip(titles, boxes[1::2], strict=True)
    }
    assert "Most runs need no more than the options in the first box" in " ".join(about.split())
    needed = (
        "preset branches config resume allow dry-run data-root name level labels model image-size "
        "steps batch-size lr seed output"
    )
    assert " ".join(options["options"]) == needed
    inside = {"distill", "distill.image", "distill.text", "knowledge"}
    assert [title for title in titles if title not in inside] == ["options", *HEADINGS.values()]
    assert titles[-2] == HEADINGS["log_every"]
    assert "images" in options["data"]
    assert "schedule" in options["optimisation"]
    assert options["output"] == ["overwrite", "progress"]
    assert options["distill.image"][:2] == ["distill.image.top-k", "distill.image.ratio"]
    values = [name for box in options.values() for name in box]
    assert len(values) == len(set(values)) == len(TrainConfig().flat()) + 6


def test_completion_knows_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--tyro-print-completion", "bash"])
    assert not left.value.code
    script = capfd.readouterr().out
    for word in ("--eval-samples", "--distill.image.ratio", "pretrain", "runs", "--threshold"):
        assert word in script
    for word in ("prepare", "--check-pictures", "--least"):
        assert word in script


def test_help_shows_units_and_defaults(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    text = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "side of the square input, pixels" in text
    assert "--lr FLOAT peak learning rate. (default: 0.0015)" in text
    assert "--distill.image.ratio {None}|FLOAT share of those that is masked, in [0, 1]" in text
    assert "--level STR" in text


@pytest.mark.slow
def test_branches_turn_the_method_off(place: Path, tmp_path: Path) -> None:
    options = ("--data-root", place / "data", "--output", "plain", "--no-progress", *SMALL)
    done = masksd(tmp_path, "train", "--branches", "lmvsd", *options)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert config["distill"]["text"] is None
    assert config["distill"]["image"]["ratio"] == 0.25
    first = json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[0])
    assert first["losses"].keys() == {"seg", "lmvsd"}


@pytest.mark.slow
def test_dry_run_writes_nothing_and_needs_no_data(place: Path) -> None:
    before = everything(place)
    options = ("--preset", "cris-r50", "--steps", "7", "--batch-size", "2", "--schedule", "poly")
    done = masksd(place, "train", *options, "--dry-run", PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert everything(place) == before
    shown = dict(
        line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")
    )
    assert (shown["steps"], shown["epochs"], shown["warmup"]) == ("7", "-", "0")
    assert (shown["schedule"], shown["milestones"], shown["lr"]) == ("poly", "-", "0.0001")
    assert shown["refs"] == "42,404 items, 21,202 steps per epoch, 7 in all <- train_items"


@pytest.mark.slow
def test_epochs_and_branches_on_the_command_line(place: Path, tmp_path: Path) -> None:
    options = ("--data-root", place / "data", "--output", "run", "--no-progress", *RUN)
    run = ("train", "--epochs", "1", "--warmup-epochs", "1", "--model", "lavt_tiny", *options)
    done = masksd(tmp_path, *run)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["steps"], config["epochs"], config["warmup"]) == (None, 1, None)
    last = json.loads((tmp_path / "run/checkpoint/checkpoint.json").read_text())
    assert f"run: {last['step']} steps in" in done.stdout
    assert last["step"] > 0
    options = ("--checkpoint", "run/checkpoint", "--eval-samples", "2", "--no-progress", "--cpu")
    done = masksd(tmp_path, "evaluate", *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_predict_writes_a_folder(place: Path, tmp_path: Path) -> None:
    checkpoint = ("--checkpoint", place / "runs/one/checkpoint", "--cpu")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20), (200, 190, 180)).save(pictures / name)
    (pictures / "c.png").write_text("no picture")
    texts = ("the red circle", "the star")
    done = masksd(tmp_path, "predict", "pictures", *texts, *checkpoint, "--no-progress")
    assert done.returncode == 2
    assert done.stderr.startswith("masksd: error: pictures/c.png: ")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    options = ("--skip-bad", "--rle", "masks.json")
    done = masksd(tmp_path, "predict", "pictures", *texts, *checkpoint, *options)
    assert done.returncode == 0, done.stderr
    assert "masksd: warning: 1 of 3 images were left out: pictures/c.png: " in done.stderr
    assert "3/3" in done.stderr
    first, *numbered = done.stdout.splitlines()
    assert first == "pictures-predictions: overlays and masks of 2 images"
    areas = dict.fromkeys(texts, 0)
    for record in json.loads((tmp_path / "masks.json").read_text()):
        areas[record["expression"]] += record["area"]
    assert numbered == [
        f"  -{number}: {text}: {areas[text]} pixels ({areas[text] / 1200:.1%}) found"
        for number, text in enumerate(texts, start=1)
    ]
    found = sorted(path.name for path in (tmp_path / "pictures-predictions/masks").iterdir())
    assert found == ["a-1.png", "a-2.png", "b-1.png", "b-2.png"]
    assert len(json.loads((tmp_path / "masks.json").read_text())) == 4
