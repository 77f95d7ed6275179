"""A run that was interrupted goes on bit for bit; one that cannot go on says why."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from masksd import DistillConfig, MaskingConfig
from masksd.kit.checkpoints import load_checkpoint, load_training_state, save_checkpoint
from masksd.kit.cli import main
from masksd.kit.config import DataConfig, TrainConfig, TrainingError, TrainingStopped
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.sources import build_model
from masksd.kit.training.run import Run
from masksd.kit.training.saving import keep_best
from masksd.kit.training.signals import StopRequest
from masksd.kit.training.trainer import RunResult, train

EPOCH = 6  # batches


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    shapes = ShapesConfig(train=5, val=2, test_a=1, test_b=1)
    root = build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)
    return DataConfig(data_root=root)


def settings(data: DataConfig, output: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=data,
        steps=8,
        batch_size=2,  # of 13 objects
        warmup=2,
        dropout=0.1,
        log_every=3,
        eval_samples=2,
        sheet_rows=1,
        output=output,
        progress=False,
        cpu=True,
    )
    return dataclasses.replace(config, **changes)


def everything(run: RunResult) -> dict[str, Tensor]:
    """Return all that a run leaves as tensors: weights, statistics, moments, tokens, counters."""
    weights = load_checkpoint(run.checkpoint).model.state_dict()
    return {**weights, **load_training_state(run.checkpoint)}


def log(run: RunResult) -> list[dict[str, Any]]:
    return read_log(run.folder)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the log without its timings."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "pictures_per_second": None} for line in lines]


def assert_equal_runs(one: RunResult, other: RunResult) -> None:
    a, b = everything(one), everything(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert log(one) == log(other)
    assert one.scores == other.scores


def signal_in_step(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Run.take_step

    def signalled(run: Run, batches: Any) -> Any:
        terms = take_step(run, batches)
        if run.done + 1 == step:
            signal.raise_signal(number)
        return terms

    monkeypatch.setattr(Run, "take_step", signalled)


def interrupted(config: TrainConfig, step: int) -> RunResult:
    """Train, stopped in a step by SIGTERM, and go on."""
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(step, signal.SIGTERM, patch)
        with pytest.raises(TrainingStopped, match=f"stopped by SIGTERM after step {step} of"):
            train(config)
    assert load_checkpoint(config.output_folder() / "checkpoint").config.step == step
    return train(config, resume=True)


SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "all at once": {
        "schedule": "multistep",
        "milestones": (0.5,),
        "accumulate": 2,
        "ramp": (0.2, 0.9),
        "workers": 1,
        "distill": DistillConfig(image=MaskingConfig(every=2), target="teacher"),
    },
    "poly": {"schedule": "poly", "train_items": "sentences"},
    "lavt": {"model": "lavt_tiny", "optimizer": "adam"},
    "unshared": {"distill": DistillConfig(share_weights=False)},
    "low memory": {"distill": DistillConfig(low_memory=True)},
    "workers": {"workers": 2, "evaluate_every": 4},
    "accumulate": {"accumulate": 4},
    "unlabelled": {
        "labels": 5,
        "unlabelled": "shapes",
        "unlabelled_batch": 3,
        "class_weights": (0.9, 1.1),
        "distill": DistillConfig(target="teacher"),
    },
    "epochs": {"steps": None, "epochs": 1, "warmup": None, "warmup_epochs": 0},
}


@pytest.mark.parametrize(("name", "step"), [("cosine", 4), ("cosine", 6), ("all at once", 3)])
def test_resumed_is_the_same_run_bit_for_bit(
    data: DataConfig, tmp_path: Path, name: str, step: int
) -> None:
    config = settings(data, tmp_path / "cut", **SETTINGS[name])
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    assert_equal_runs(interrupted(config, step), whole)


@pytest.mark.long
@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_at_every_batch_of_an_epoch(data: DataConfig, tmp_path: Path, name: str) -> None:
    config = settings(data, tmp_path / "whole", **SETTINGS[name])
    whole = train(config)
    for step in range(1, EPOCH + 1):
        cut = dataclasses.replace(config, output=tmp_path / str(step))
        assert_equal_runs(interrupted(cut, step), whole)


def test_a_checkpoint_by_the_clock_is_resumed_after_a_kill(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of the log that came after it are written again."""
    config = settings(data, tmp_path / "cut", save_minutes=0, keep=3, log_every=1, steps=6)
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    save = Run.save

    def until_four(run: Run) -> None:
        if run.done <= 4:
            save(run)

    def killed(run: Run, *_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", until_four)
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    folder = config.output_folder()
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
    assert load_checkpoint(folder / "checkpoint").config.step == 4
    kept = {
        path.name: load_checkpoint(path).config.step for path in (folder / "checkpoints").iterdir()
    }
    assert kept == {"step-2": 2, "step-3": 3}  # three with the latest
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by the kill
    assert_equal_runs(train(config, resume=True), whole)


def scored(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluations on the way, and then the last one, find these mIoU."""
    found = iter(values)

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"mIoU": next(found), "samples": 2.0}

    monkeypatch.setattr("masksd.kit.training.lifecycle.evaluate", evaluate)
    monkeypatch.setattr(
        "masksd.kit.training.lifecycle.evaluate_all",
        lambda *_, **__: {"own": evaluate(), "none": {"mIoU": 0.0}},
    )


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_through_kills_and_longer_runs(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data, tmp_path / "one", steps=4, evaluate_every=1)
    best = tmp_path / "one" / "best"

    def kept() -> int:
        return load_checkpoint(best).config.step

    with monkeypatch.context() as patch:

        def killed(folder: Path, score: float) -> None:
            if score == 0.5:
                raise KeyboardInterrupt
            keep_best(folder, score)

        scored([0.2, 0.5], patch)
        patch.setattr("masksd.kit.training.lifecycle.keep_best", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
        assert kept() == 1
    scored([0.3, 0.4], monkeypatch)  # of steps 3 and 4
    train(config, resume=True)
    assert kept() == 2
    scored([0.3, 0.45, 0.6], monkeypatch)  # of steps 4 to 6; it was 4's last before
    train(dataclasses.replace(config, steps=6), resume=True, allow=["steps"])
    assert kept() == 6


def test_a_signal_before_the_first_checkpoint_keeps_the_older_run(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = train(settings(data, tmp_path / "one", steps=3))
    before = everything(old)
    signal_in_step(1, signal.SIGTERM, monkeypatch)
    with pytest.raises(TrainingStopped, match=r"first checkpoint; the older run in .*one"):
        train(settings(data, tmp_path / "one", overwrite=True))
    assert all(torch.equal(value, before[name]) for name, value in everything(old).items())
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_longer_run_that_was_stopped_at_its_last_step_finishes(
    data: DataConfig, tmp_path: Path
) -> None:
    config = settings(data, tmp_path / "one", steps=3)
    train(config)
    longer = dataclasses.replace(config, steps=5)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(5, signal.SIGTERM, patch)
        with pytest.raises(TrainingStopped):
            train(longer, resume=True, allow=["steps"])
    run = train(longer, resume=True)
    assert [record["step"] for record in log(run) if "scores" in record] == [3, 5]
    with pytest.raises(ValueError, match="is complete: it took all its 5 steps"):
        train(longer, resume=True)


def test_what_other_runs_need_is_not_lost(data: DataConfig, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "one", steps=3, keep=2, save_minutes=0)
    run = train(config)
    run.checkpoint.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="holds a run already"):
        train(config)
    with pytest.raises(ValueError, match="to go on from; move one of best and checkpoints"):
        train(config, resume=True)
    (run.folder / "checkpoints" / "step-2").rename(run.checkpoint)
    again = train(config, resume=True)
    assert [record["step"] for record in log(again)] == [3, 3]
    (run.folder / "export").mkdir()
    with pytest.raises(ValueError, match="holds an export, which would be lost with the run; move"):
        train(dataclasses.replace(config, overwrite=True))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code(
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    signal_in_step(2, number, monkeypatch)
    # a shell that runs the tests in the background has its jobs ignore Ctrl-C
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    output = tmp_path / "one"
    options = f"--data-root {data.data_root} --steps 4 --warmup 1 --batch-size 2 --eval-samples 2"
    command = f"train {options} --output {output} --no-progress --cpu --sheet-rows 1".split()
    assert main(command) == code
    said = capsys.readouterr().err
    assert f"after step 2 of 4; go on with: masksd train --resume {output}\n" in said
    monkeypatch.undo()
    resume = ["train", "--resume", str(output)]
    assert main([*resume, "--lr", "0.5"]) == 2
    assert "lr of the run is 0.0015, now 0.5; leave it as it was, or pass --allow lr" in (
        capsys.readouterr().err
    )
    assert main([*resume, "--preset", "cris-r50"]) == 2
    assert "leave --preset out" in capsys.readouterr().err
    assert main([*resume, "--allow", "stepz"]) == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err
    assert main([*resume, "--steps", "3", "--allow", "steps"]) == 0
    assert "3 steps in" in capsys.readouterr().out
    assert load_checkpoint(output / "checkpoint").config.step == 3
    assert main(resume) == 2
    error = capsys.readouterr().err
    assert "is complete: it took all its 3 steps; to train longer: masksd train " in error
    assert main(shlex.split(error.rpartition("masksd ")[2])) == 0
    assert load_checkpoint(output / "checkpoint").config.step == 6


def test_a_second_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    clock = itertools.chain([10.0, 11.0], itertools.repeat(20.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # a second later: torchrun passing it on
            assert stop.number == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def overflow(run: Run) -> Iterator[None]:
    """Let the first convolution of the host give infinities."""
    host: Any = run.checkpoint.model
    first = next(part for part in host.modules() if isinstance(part, torch.nn.Conv2d))
    hook = first.register_forward_hook(lambda _, __, out: out * math.inf)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny"])
def test_one_overflow_leaves_no_trace(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Neither in weights nor in the statistics of a BatchNorm behind it."""
    take_step = Run.take_step
    buffers: list[list[Tensor]] = []

    def overflowing(run: Run, batches: Any) -> Any:
        if run.done != 2:
            return take_step(run, batches)
        buffers.append([each.clone() for each in run.buffers()])
        with overflow(run):
            terms = take_step(run, batches)
        buffers.append([each.clone() for each in run.buffers()])
        return terms

    monkeypatch.setattr(Run, "take_step", overflowing)
    run = train(settings(data, tmp_path / "one", model=model, steps=4, log_every=1))
    assert run.skipped == 1
    before, after = buffers
    assert all(map(torch.equal, before, after))
    assert model != "lavt_tiny" or any("running_var" in name for name in everything(run))
    assert all(value.isfinite().all() for value in everything(run).values())


def test_accumulated_batches_are_one_step(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of 2 give the gradient of one of 4, where no BatchNorm sees them."""
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        norm = clip(*args, **kwargs)
        norms.append(norm.item())
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    build = build_model

    def without_statistics(config: TrainConfig) -> Any:
        checkpoint = build(config)
        for part in checkpoint.model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.forward = lambda x: x  # type: ignore[method-assign]
        return checkpoint

    monkeypatch.setattr("masksd.kit.training.trainer.build_model", without_statistics)
    alone = DistillConfig(image=None, text=None)
    for number, (batch, accumulate) in enumerate([(4, 1), (2, 2), (1, 4)]):
        changes = {"batch_size": batch, "accumulate": accumulate, "dropout": 0.0}
        train(settings(data, tmp_path / str(number), steps=1, warmup=0, distill=alone, **changes))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint = build_model(TrainConfig())
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write checkpoint .*one; the one before it is"):
            save_checkpoint(folder, checkpoint, {"step": torch.ones(1)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    load_checkpoint(folder)
    with pytest.raises(ValueError, match=r"has no training\.safetensors"):
        load_training_state(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_training_onto_a_full_disk_is_one_line(
    data: DataConfig, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = small_disk / "fill"
    options = f"--data-root {data.data_root} --steps 6 --warmup 1 --batch-size 2 --save-minutes 0"
    command = f"train {options} --output {small_disk / 'one'} --no-progress --cpu".split()
    fill.write_bytes(bytes(3_000_000))
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"masksd: error: cannot write checkpoint {small_disk / 'one'}")
    assert "No space left" in error
    fill.unlink()


@pytest.mark.slow
def test_a_killed_data_process_is_named(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Run.take_step

    def killing(run: Run, batches: Any) -> Any:
        if run.done == 2:
            for child in multiprocessing.active_children():
                child.kill()
                child.join()
        return take_step(run, batches)

    monkeypatch.setattr(Run, "take_step", killing)
    config = settings(data, tmp_path / "one", workers=1, save_minutes=0)
    with (
        pytest.raises(TrainingError, match=r"a process that reads data died .*lower --workers"),
        pytest.warns(UserWarning, match=r"ended early; it is saved as it was after step \d+: "),
    ):
        train(config)
    monkeypatch.undo()
    config = dataclasses.replace(config, workers=0)  # which changes nothing
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    assert_equal_runs(train(config, resume=True), whole)


def test_runs_that_cannot_go_on_say_why(data: DataConfig, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "one", steps=2, warmup=1)
    with pytest.raises(ValueError, match=r"no run at .*one; `masksd runs` lists"):
        train(config, resume=True)
    run = train(config)
    with pytest.raises(ValueError, match=r"did you mean .*one\?"):
        train(dataclasses.replace(config, output=run.checkpoint), resume=True)
    longer = dataclasses.replace(config, steps=4)
    with pytest.raises(ValueError, match=r"steps of the run is 2, now 4; .*--allow steps"):
        train(longer, resume=True)
    with pytest.raises(ValueError, match=r"dropout of the run is 0\.1, now 0\.5; it is built into"):
        train(dataclasses.replace(config, dropout=0.5), resume=True, allow=["dropout"])
    other = ShapesConfig(train=4, val=2, test_a=1, test_b=1)
    root = build_shapes(tmp_path / "other", other, progress=False)
    moved = dataclasses.replace(longer, data=DataConfig(data_root=root))
    with pytest.raises(ValueError, match=r"split 'train' has \d+ items, it had 13 when the run"):
        train(moved, resume=True, allow=["steps", "data_root"])
    state = load_training_state(run.checkpoint)
    checkpoint = load_checkpoint(run.checkpoint)
    for wrong, says in (
        ({"skipped": torch.zeros(3)}, "was not written by a run that can be resumed"),
        ({"optimizer.maskers.text.token.exp_avg": torch.zeros(2, 2)}, r"has the shape \(2, 2\)"),
        ({"images": torch.tensor(5)}, "has other images than when the run was saved"),
    ):
        save_checkpoint(run.checkpoint, checkpoint, {**state, **wrong})
        with pytest.raises(ValueError, match=says):
            train(longer, resume=True, allow=["steps"])
    save_checkpoint(run.checkpoint, checkpoint, state)
    (run.folder / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: line 1 is not a record"):
        train(longer, resume=True, allow=["steps"])
    (run.folder / "config.json").write_text('{"stepz": 1}')
    with pytest.raises(ValueError, match=r"config\.json is damaged: .*did you mean 'steps'"):
        train(config, resume=True)


@pytest.mark.slow
def test_a_loss_scaler_is_saved(data: DataConfig, tmp_path: Path) -> None:
    """A GPU has one with fp16; on a CPU it is put in by hand."""
    with pytest.MonkeyPatch.context() as patch:
        start = Run.__init__

        def scaled(run: Run, *args: Any) -> None:
            args[1].scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
            start(run, *args)

        patch.setattr(Run, "__init__", scaled)
        config = settings(data, tmp_path / "cut", steps=5)
        whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
        cut = interrupted(config, 4)
    assert_equal_runs(cut, whole)
    assert float(everything(cut)["scaler.scale"]) == 16.0


def test_a_tracker_gets_the_log_and_the_sheet(data: DataConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(settings(data, tmp_path / "one", steps=6, log_with="tensorboard"))
    events = EventAccumulator(str(tmp_path / "trackers" / "one")).Reload()
    written = [record for record in log(run) if "loss" in record]
    tracked = [(event.step, event.value) for event in events.Scalars("losses/vmlsd")]
    assert tracked == [
        (record["step"], pytest.approx(record["losses"]["vmlsd"])) for record in written
    ]
    assert events.Scalars("scores/own/mIoU")[0].value == pytest.approx(run.scores["own"]["mIoU"])
    [image] = events.Images("sheet")
    with Image.open(run.folder / "sheet.png") as sheet:
        assert (image.width, image.height) == sheet.size


@pytest.mark.filterwarnings("ignore:.*no supported trackers")  # accelerate's, before our error
def test_a_tracker_that_is_not_installed_is_named(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log_with 'swanlab' is not installed.* pip install swan"):
        train(settings(data, tmp_path / "one", log_with="swanlab"))
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        settings(data, tmp_path / "one", log_with="tensorbord")
    assert list(tmp_path.iterdir()) == []
