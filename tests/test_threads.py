"""The program's threads wait as the machine and the user want it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from masksd.kit.cli import threads
from masksd.kit.cli.threads import core_times, cpu_quota, settle_threads, spinning_hurts


@pytest.mark.parametrize(
    ("taken", "cores", "busy", "hurts"),
    [
        (2, 2, 0.0, False),
        (2, 2, 0.4, False),
        (2, 2, 0.6, True),
        (2, 2, 2.0, True),
        (1, 2, 2.0, False),  # nobody to wait for
        (4, 16, 8.0, False),  # the others have room
        (16, 16, 1.0, True),
    ],
)
def test_threads_sleep_where_others_need_the_cores(
    taken: int, cores: int, busy: float, hurts: bool
) -> None:
    assert spinning_hurts(taken, cores, busy, {}) is hurts


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_user_decides(name: str) -> None:
    assert not spinning_hurts(2, 2, 2.0, {name: "1"})


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_share_of_a_container_is_read(
    files: dict[str, str], cores: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestOnLinux:
    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two cores, both busy, two threads, and a program that only says that it starts again."""
        self.started: list[list[str]] = []
        self.threads: list[int] = []
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "RANK"):
            monkeypatch.delenv(name, raising=False)
        readings = iter([{0: (0, 0), 1: (0, 0)}, {0: (20, 0), 1: (20, 0)}])
        monkeypatch.setattr(threads, "core_times", lambda _: next(readings))
        monkeypatch.setattr(threads, "cpu_quota", lambda: None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setattr(os, "execv", lambda _, arguments: self.started.append(arguments))
        monkeypatch.setattr(os, "environ", dict(os.environ))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "masksd", "train"])
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(torch, "set_num_threads", self.threads.append)

    def test_a_busy_machine_has_the_program_start_again(self) -> None:
        settle_threads(["train"])
        assert self.started == [[sys.executable, "-X", "dev", "masksd", "train"]]
        assert os.environ["OMP_WAIT_POLICY"] == "passive"

    @pytest.mark.parametrize(
        ("variable", "arguments"),
        [
            ("OMP_WAIT_POLICY", ["train"]),
            ("RANK", ["train"]),
            ("X", ["train", "--help"]),
            ("X", ["train", "--dry-run"]),
            ("X", ["predict", "train"]),
            ("X", []),
        ],
    )
    def test_nothing_is_changed_otherwise(self, variable: str, arguments: list[str]) -> None:
        os.environ[variable] = "0"
        settle_threads(arguments)
        assert not self.started
        assert not self.threads

    def test_a_container_takes_no_more_threads_than_its_share(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads, "cpu_quota", lambda: 1.5)
        settle_threads(["train"])
        assert self.threads == [1]
        os.environ["OMP_NUM_THREADS"] = "2"
        settle_threads(["predict"])
        assert self.threads == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_times_of_cores_grow() -> None:
    cores = os.sched_getaffinity(0)
    before = core_times(cores)
    assert before.keys() == cores
    after = core_times(cores)
    assert all(sum(after[core]) >= sum(before[core]) for core in cores)
