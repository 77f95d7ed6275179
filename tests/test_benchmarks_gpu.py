"""The run on a GPU, tried on a CPU: its parts, its time, its bounds, its rows and its page."""

from __future__ import annotations

import csv
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import measure
from benchmarks.gpu import __main__ as script
from benchmarks.gpu import correctness, rows, speed
from benchmarks.pages import readme

TINY = ("--tiny", "--device", "cpu")


def written(folder: Path) -> list[dict[str, str]]:
    with (folder / "gpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_all_parts_run(tmp_path: Path) -> None:
    assert script.main([*TINY, "--folder", str(tmp_path)]) == 0
    found = written(tmp_path)
    assert list(dict.fromkeys(each["part"] for each in found)) == list(script.PARTS)
    assert not [each for each in found if each["verdict"] == "failed"]
    compiled = {each["name"] for each in found if each["part"] == "compiled step"}
    assert compiled == {"host compiled", "masksd compiled"}
    copied = {e["setting"] for e in found if e["measure"] == "share of copying's speed"}
    sizes = "2 x 20 x 8 fp32", "2 x 20 x 8 bf16"
    wanted = {f"{o}, {s}" for o, s in itertools.product(speed.COPIES, sizes)}
    assert copied == wanted


def test_without_time_only_correctness_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "--minutes", "0", "--folder", str(tmp_path / "new"), "--commit", "abc"
    assert script.main([*TINY, *given]) == 0
    found = written(tmp_path / "new")
    assert {each["commit"] for each in found} == {"abc"}
    assert {each["part"] for each in found} == {"correctness"}
    assert {each["name"] for each in found} == set(correctness.CHECKS)
    assert {each["verdict"] for each in found} == {"within", ""}
    skipped = {each["name"] for each in found if each["note"] == "needs CUDA"}
    assert skipped == {"nothing waits for the device", "a replayed CUDA graph equals a call"}
    assert {each["torch"] for each in found} == {torch.__version__}
    assert "ran out: masking, step, compiled step" in capsys.readouterr().out


def test_steps_are_measured_beside_the_host() -> None:
    found = {(each["name"], each["measure"]): each for each in speed.step("cpu", rows.TINY)}
    assert found["host", "time to host"]["value"] == "1"
    assert found["naive", "kept to host"]["value"] == "3"
    assert found["masksd low_memory", "kept to host"]["verdict"] == "within"
    assert found["masksd", "time to host"]["bound"] == "<= 2.667"  # 1.05 of 2.54
    assert found["masksd", "time to host"]["two_plus_d"] == pytest.approx(2.54, abs=1e-3)


def out_of_memory_above(limit: int) -> Callable[[int], Iterator[rows.Row]]:
    def measured(batch: int) -> Iterator[rows.Row]:
        if batch > limit:
            raise torch.OutOfMemoryError("no")
        yield rows.row("step", "host", f"batch {batch}", "milliseconds", 1.0)

    return measured


def test_a_batch_that_does_not_fit_is_halved() -> None:
    (found,) = speed.fitting(out_of_memory_above(8), 32)
    assert (found["setting"], found["note"]) == ("batch 8", "batch 32 did not fit")
    (found,) = speed.fitting(out_of_memory_above(32), 32)
    assert (found["setting"], found["note"]) == ("batch 32", "")
    with pytest.raises(torch.OutOfMemoryError):
        list(speed.fitting(out_of_memory_above(0), 4))


def test_a_part_ends_wherever_it_is() -> None:
    def work() -> None:
        with script.ending(0.05):
            while time.monotonic() < start + 10.0:
                torch.zeros(10).sum()

    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    with pytest.raises(script.OutOfTime):
        work()
    assert time.monotonic() - start < 5.0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_failure_ends_a_part_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: str, size: rows.Size) -> Iterator[rows.Row]:
        yield rows.row("step", "host", "", "milliseconds", 1.0)
        raise RuntimeError("no kernel\nfor this")

    parts = script.PARTS | {"masking": (0.3, broken), "step": (0.6, broken)}
    del parts["compiled step"]
    monkeypatch.setattr(script, "PARTS", parts)
    monkeypatch.setattr(correctness, "CHECKS", {"right": lambda *_: {"masks": (0.0, 0)}})
    assert script.main([*TINY, "--folder", str(tmp_path)]) == 0
    assert [each["verdict"] for each in written(tmp_path)] == ["within", *["", "failed"] * 2]
    assert written(tmp_path)[-1]["note"] == "RuntimeError: no kernel"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "verdict"),
    [(lambda *_: {"masks": (1.0, 0)}, "outside"), (lambda *_: {}["masks"], "failed")],
)
def test_a_wrong_result_is_the_exit_code(
    check: Callable[..., correctness.Found],
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(correctness, "CHECKS", {"wrong": check})
    assert script.main([*TINY, "--minutes", "0", "--folder", str(tmp_path)]) == 1
    assert [each["verdict"] for each in written(tmp_path)] == [verdict]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "rows from a CPU need --tiny"),
        ([*TINY], "rows of --tiny do not belong in"),
        ([*TINY, "--folder", "rows", "--minutes", "-1"], "--minutes must be 0 or more, got -1"),
        ([*TINY, "--folder", "rows", "--minutes", "nan"], "--minutes must be 0 or more, got nan"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([])
    assert "torch finds no CUDA GPU: run on a machine with one, or add --tiny" in (
        capsys.readouterr().err
    )


def test_other_columns_are_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "gpu.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has other columns"):
        script.main([*TINY, "--folder", str(tmp_path)])


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.95, "goal"), (0.9, "goal"), (0.7, "within"), (0.69, "outside"), (float("nan"), "outside")],
)
def test_a_value_is_judged(value: float, verdict: str) -> None:
    found = rows.row("masking", "fused", "", "share", value, bound=">= 0.7", goal=">= 0.9")
    assert found["verdict"] == verdict


def test_the_page_says_that_there_are_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readme, "FOLDER", tmp_path)
    assert readme.gpu().startswith("No rows from a GPU exist yet")
    stamp = measure.environment() | {"device": "Some GPU", "commit": "abc"}
    found = [
        rows.row("step", "host", "batch 2", "milliseconds", 4.0, two_plus_d=2.4),
        rows.row("step", "host", "batch 2", "time to host", 1.0, two_plus_d=2.4),
        rows.row("step", "masksd", "batch 2", "milliseconds", 10.0, two_plus_d=2.4),
        rows.row("step", "masksd", "batch 2", "time to host", 2.5, bound="<= 2.52", two_plus_d=2.4),
        rows.row("correctness", "a graph", "masks", "error", note="needs CUDA"),
    ]
    measure.append("gpu", [each | stamp for each in found], tmp_path)
    page = readme.gpu()
    assert "No rows" not in page
    assert f"Training steps; 2 + d = 2.4; Some GPU, torch {torch.__version__}, commit abc" in page
    assert "| name | setting | milliseconds | time to host |\n" in page
    assert "| masksd | batch 2 | 10 | 2.5 (within <= 2.52) |" in page
    assert "| a graph | masks |  | needs CUDA |" in page


def test_rows_of_a_cpu_are_not_committed() -> None:
    path = measure.FOLDER / "gpu.csv"
    assert not path.exists() or not [e for e in written(path.parent) if "CPU" in e["device"]]
