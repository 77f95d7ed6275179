"""Several processes are one job: they agree, score as one, and end when one of them is lost.

What takes longer runs by ``pytest -m slow tests/test_processes.py``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from masksd.kit import cli
from masksd.kit.checkpoints import save_checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.processes import LostProcess, start_processes, watch_others
from masksd.kit.sources import build_model
from tests import losing
from tests.losing import KEPT, PATIENCE

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.losing"])


def run(*command: str) -> subprocess.CompletedProcess[str]:
    threads = str(torch.get_num_threads())  # as here, so that scores are equal
    others = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
    return subprocess.run(
        command,
        env={**os.environ, **others},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def start(world: int, function: Any, *arguments: Any) -> list[Any]:
    """Start processes as torchrun does, but none that watches them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in map(str, range(world)):
        variables = {**address, "WORLD_SIZE": str(world), "RANK": rank, "LOCAL_RANK": rank}
        process = SERVER.Process(target=losing.launched, args=(variables, function, *arguments))
        process.start()
        started.append(process)
    return started


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def ours(stderr: str) -> list[str]:
    return sorted(line for line in stderr.splitlines() if line.startswith("masksd: "))


def test_two_processes_agree_and_one_ends_when_the_other_is_killed(tmp_path: Path) -> None:
    for process in (started := start(2, losing.take_part, tmp_path, signal.SIGKILL)):
        process.join(100)
    assert [process.exitcode for process in started] == [2, -signal.SIGKILL]
    seen = [read(tmp_path / f"{rank}.json") for rank in range(2)]
    assert seen[0] == seen[1]
    fix = "; start every process with the same options"
    many = ", ".join(f"p{number} is 0 on process 0 and 1 on process 1" for number in range(8))
    assert seen[0] == {
        "processes": 2,  # without --cpu, on a machine without a GPU
        "one": f"lr is 0.001 on process 0 and 0.002 on process 1{fix}",
        "two": 'split is "val" on process 0 and "testA" on process 1, '
        f"b is 1 on process 0 and missing on process 1{fix}",
        "many": f"{many}, 4 more differ{fix}",
        "waited": True,
    }
    message, seconds = read(tmp_path / "0-lost.json")
    assert message == f"process 0 of 2: another process died or failed; {KEPT}"
    assert seconds < 3


@pytest.mark.slow
def test_a_stopped_process_ends_the_others_in_the_stated_time(tmp_path: Path) -> None:
    other, stopped = start(2, losing.take_part, tmp_path, signal.SIGSTOP)
    try:
        other.join(100)
        assert other.exitcode == 2
        assert stopped.is_alive()
    finally:
        for process in (other, stopped):
            process.kill()
            process.join()
    message, seconds = read(tmp_path / "0-lost.json")
    assert message == f"process 0 of 2: another process did not answer within 3 s; {KEPT}"
    assert PATIENCE - 0.5 < seconds < PATIENCE + 3


def test_the_stated_timeout_reaches_gloo(tmp_path: Path) -> None:
    """Accelerate itself drops 600 s, so that gloo would wait for half an hour."""
    [process] = start(1, losing.alone, tmp_path)
    process.join(100)
    assert read(tmp_path / "timeout.json") == pytest.approx(600, abs=0.01)


@pytest.mark.long
def test_torchrun_ends_a_job_with_a_killed_process(tmp_path: Path) -> None:
    done = run(*TORCHRUN, "2", losing.__file__, str(tmp_path), "SIGKILL")
    assert done.returncode == 1
    assert time.time() - (tmp_path / "lost").stat().st_mtime < 10
    assert "another process died or failed" in read(tmp_path / "0-lost.json")[0]


@pytest.mark.long  # torchrun itself waits 30 s before it kills a stopped process
def test_torchrun_ends_a_job_with_a_stopped_process(tmp_path: Path) -> None:
    done = run(*TORCHRUN, "2", losing.__file__, str(tmp_path), "SIGSTOP")
    whole = time.time() - (tmp_path / "lost").stat().st_mtime
    assert done.returncode == 1
    assert "did not answer" in read(tmp_path / "0-lost.json")[0]
    assert whole < PATIENCE + 30 + 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    shapes = ShapesConfig(train=1, val=3, test_a=1, test_b=1)
    data = build_shapes(folder / "data", shapes, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        checkpoint = build_model(TrainConfig(data=DataConfig(data_root=data), threshold=0.5))
        for parameter in checkpoint.model.decoder.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    save_checkpoint(folder / "checkpoint", checkpoint)
    return folder


def evaluate_arguments(place: Path, output: Path) -> list[str]:
    options = ["--eval-samples", "7", "--batch-size", "2", "--protocol", "original", "--relevance"]
    paths = ["--checkpoint", str(place / "checkpoint"), "--output", str(output)]
    return ["evaluate", *paths, *options, "--no-progress"]


def evaluate_on_two(place: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return run(*TORCHRUN, "2", "-m", "masksd", *evaluate_arguments(place, output))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main([*evaluate_arguments(place, one), "--cpu"]) == 0
    printed = capsys.readouterr().out
    done = evaluate_on_two(place, two)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed.replace(str(one), str(two))
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, two)]
    assert files[0] == files[1]
    assert read(two / "report.json")["scores"]["own"]["all"]["samples"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.long
def test_what_the_first_process_refuses_ends_the_others(place: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    done = evaluate_on_two(place, tmp_path)
    assert done.returncode == 1
    refused, other = ours(done.stderr)
    assert "holds 'notes', which no report has" in refused
    assert re.search("process 1 of 2.* another .*died or failed; nothing was written", other)


@pytest.mark.long
def test_evaluations_that_differ_are_refused_by_both(place: Path, tmp_path: Path) -> None:
    one = [sys.executable, "-m", "masksd", *evaluate_arguments(place, tmp_path / "new")]
    script = shlex.join(one) + " --eval-samples $((6 + RANK))"
    done = run(*TORCHRUN, "2", "--no-python", "bash", "-c", script)
    fix = "start every process with the same options"
    line = f"masksd: error: eval_samples is 6 on process 0 and 7 on process 1; {fix}"
    assert set(ours(done.stderr)) == {line}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.png", "it"],
        ["data", "shapes"],
        ["pretrain"],
        ["evaluate", "--compare", "a", "b"],
    ],
)
def test_commands_for_one_process_refuse_more(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(arguments) == 2
    [line] = ours(capsys.readouterr().err)
    assert line.startswith(f"masksd: error: masksd {arguments[0]}")
    assert line.endswith("runs in one process, but 2 were started; start it without torchrun")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ValueError, match=f"ACCELERATE_USE_{kind} is set.*examples/README.md"):
        start_processes(cpu=True)


def test_processes_that_would_be_jobs_of_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_processes(cpu=True)  # alone, as accelerate remembers
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"4 processes were started, but this one .* a job of 1"):
        start_processes(cpu=True)


def test_only_the_loss_of_a_process_is_renamed() -> None:
    class Two:
        process_index, num_processes = 0, 2

    before = signal.getsignal(signal.SIGTERM)
    job: Any = Two()
    with pytest.raises(RuntimeError, match="shapes"), watch_others(job, KEPT):
        raise RuntimeError("shapes timed out")
    with (
        pytest.raises(LostProcess, match=r"process 0 of 2: .* within 600 s"),
        watch_others(job, KEPT),
    ):
        raise torch.distributed.DistBackendError("NCCL watchdog timeout")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_told_to_stop_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Command:
        process_index, num_processes = 1, 2

        def run(self) -> None:
            job: Any = self
            with watch_others(job, KEPT):
                os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does when a process has died
                time.sleep(9)

    monkeypatch.setattr(cli, "_parse", lambda _: Command())
    assert cli.main(["train"]) == 2
    assert ours(capsys.readouterr().err) == [
        "masksd: error: process 1 of 2 was told to stop, as when another one died or failed; "
        "the last checkpoint is intact"
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
