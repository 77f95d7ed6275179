"""Folders under a lock: one writer at a time, and nothing lost whenever a writer is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.storage import locks, places
from masksd.kit.storage.files import verify_folder, write_folder
from masksd.kit.storage.places import HeldFolder, StagedFolder, find_folder, read_unchanged


def forked(work: Callable[[], int]) -> int:
    """Run work in a process of its own and return that process; its result is the exit status."""
    process = os.fork()
    if process == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return process


@pytest.mark.parametrize("published", [False, True])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, published: bool) -> None:
    """Whatever its machine is called and its process number is, and though its children live."""
    place = tmp_path / "one"
    told, tell = os.pipe()

    def hold() -> int:
        os.setsid()
        with StagedFolder(place, lambda: None) as staged:
            (staged.path / "half").touch()
            if published:
                staged.publish()
            forked(lambda: time.sleep(60) or 0)  # as a process that reads data
            os.write(tell, b"held")
            time.sleep(60)
        return 0

    holder = forked(hold)
    try:
        assert os.read(told, 4) == b"held"
        with pytest.raises(ValueError, match="one is being written by another run; wait"):
            StagedFolder(place, lambda: None).__enter__()
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with StagedFolder(place, lambda: None) as staged:
            assert list(staged.path.iterdir()) == []  # what was left half written is gone
            staged.publish()
        assert [path.name for path in tmp_path.iterdir()] == ["one"]
    finally:
        os.killpg(holder, signal.SIGKILL)  # its child lives on
        os.close(told)
        os.close(tell)


def test_two_holders_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with HeldFolder(tmp_path / "one"):
        with pytest.raises(ValueError, match="is being written"), HeldFolder(tmp_path / "one"):
            pass
        with HeldFolder(tmp_path / "two"):
            pass
    with HeldFolder(tmp_path / "one"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_processes_that_race_for_a_lock_never_hold_it_together(tmp_path: Path) -> None:
    """Though each removes the lock's file when it leaves."""
    place, inside = tmp_path / "one", tmp_path / "inside"

    def race() -> int:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                with HeldFolder(place):
                    inside.mkdir()  # fails if another one is inside
                    inside.rmdir()
            except ValueError:
                pass
        return 0

    racers = [forked(race) for _ in range(4)]
    assert [os.waitpid(racer, 0)[1] for racer in racers] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_reading_starts_again_when_the_folder_is_replaced_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "one"
    save(place, "old")
    seen = []

    def read() -> str:
        seen.append((verify_folder(place) / "a").read_text())
        if len(seen) == 1:
            save(place, "new")
            raise ValueError("the files do not fit each other")
        return seen[-1]

    assert read_unchanged(place, read) == "new"
    with pytest.raises(ValueError, match="always"):
        read_unchanged(place, lambda: fail("always"))


def fail(message: str) -> None:
    raise ValueError(message)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    with (
        pytest.warns(UserWarning, match="has no locks .*nothing stops a second run"),
        HeldFolder(tmp_path / "one"),
    ):
        pass


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_between_two_renames_is_found_and_put_back(tmp_path: Path, inside: bool) -> None:
    """Also one inside, as a checkpoint is in a run."""
    folder = write_folder(tmp_path / "one" / "checkpoint", lambda path: (path / "a").touch())
    moved = folder if inside else folder.parent
    previous = moved.rename(moved.parent / f".{moved.name}.previous")
    with pytest.warns(UserWarning, match="was interrupted; the one before it is read, at"):
        found = verify_folder(folder)
    assert found == (previous if inside else previous / "checkpoint")
    with HeldFolder(moved), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify_folder(folder) == folder
    assert find_folder(tmp_path / "nowhere") == tmp_path / "nowhere"


CHANGING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "fcntl.lockf", "os.link"}


def save_and_die(place: Path, at: int, *, swaps: bool) -> int:
    """Save once more, killed before operation ``at`` on files; return how many there were."""
    count, watching = 0, True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if watching and (event in CHANGING or writes or event == "ctypes.dlsym"):
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    if not swaps:  # as on NFS
        places._exchange = lambda first, second: False
    sys.addaudithook(watch)
    save(place, "new")
    watching = False
    return count


def save(place: Path, text: str) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text(text)

    write_folder(place, fill)


@pytest.mark.slow
@pytest.mark.parametrize("swaps", [True, False])
def test_killed_before_any_operation_of_a_save_a_whole_folder_is_there(
    tmp_path: Path, swaps: bool
) -> None:
    def killed(at: int) -> tuple[Path, int]:
        place = tmp_path / str(at) / "one"
        save(place, "old")
        _, status = os.waitpid(forked(lambda: save_and_die(place, at, swaps=swaps)), 0)
        return place, status

    operations = os.waitstatus_to_exitcode(killed(-1)[1])
    assert 12 < operations < 99
    texts = []
    for at in range(operations):
        place, status = killed(at)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        with warnings.catch_warnings():
            # where names cannot be swapped, the older one has another name for a moment
            warnings.simplefilter("error" if swaps else "ignore")
            texts.append((verify_folder(place) / "a").read_text())
        save(place, "next")
        assert (verify_folder(place) / "a").read_text() == "next"
        assert [path.name for path in place.parent.iterdir()] == ["one"]
    assert texts == sorted(texts, reverse=True)  # old, ..., old, new, ..., new
    assert set(texts) == {"old", "new"}


KILLED_RUNS = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from masksd.kit.checkpoints import load_checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.training.trainer import train

torch.set_num_threads(1)
warnings.simplefilter("ignore")
root, place = Path(sys.argv[1]), Path(sys.argv[2])
draw = random.Random(0)
seen = []
for number in range(int(sys.argv[3])):
    config = TrainConfig(
        data=DataConfig(data_root=root), steps=400, batch_size=2, warmup=2, output=place,
        save_minutes=0, keep=2, progress=False, cpu=True, overwrite=number % 3 == 0,
    )
    child = os.fork()
    if child == 0:
        train(config, resume=number % 3 != 0)
        os._exit(1)
    while number == 0 and not (place / "checkpoint").exists():
        time.sleep(0.05)
    time.sleep(draw.uniform(0.0, 4.0))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    step = load_checkpoint(place / "checkpoint").config.step
    assert number % 3 == 0 or step >= seen[-1], "it began anew"
    seen.append(step)
    for folder in (place / "checkpoints").glob("step-*"):
        load_checkpoint(folder)
print(len(seen), "kills, steps", seen)
"""


@pytest.mark.long
def test_after_random_kills_of_runs_the_newest_whole_checkpoint_loads(tmp_path: Path) -> None:
    """Of runs that start, go on and replace an older one."""
    shapes = ShapesConfig(train=5, val=2, test_a=1, test_b=1)
    root = build_shapes(tmp_path / "shapes", shapes, progress=False)
    command = [sys.executable, "-c", KILLED_RUNS, str(root), str(tmp_path / "run"), "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("50 kills")
    print(done.stdout)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"shapes", "run", ".run.lock", ".run.partial"}  # of the last one killed
