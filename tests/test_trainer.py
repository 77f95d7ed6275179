"""Training from files to files: repeats bit for bit, skips bad steps, refuses before writing."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.kit.checkpoints import load_checkpoint, load_training_state
from masksd.kit.config import DataConfig, TrainConfig, TrainingError, cache_folder
from masksd.kit.data.records import DataError
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.evaluation.report_folder import evaluate_checkpoint
from masksd.kit.evaluation.scoring import evaluate_all
from masksd.kit.evaluation.settings import EvaluateConfig
from masksd.kit.feeding import model_inputs
from masksd.kit.prediction.predictor import Predictor
from masksd.kit.randomness import EpochSampler, keyed_seed
from masksd.kit.schedules import Schedule
from masksd.kit.sources import build_model, open_split, wrap_model
from masksd.kit.storage.places import StagedFolder
from masksd.kit.training.checks import check_output
from masksd.kit.training.run import Run
from masksd.kit.training.trainer import RunResult, train
from tests.refer_folders import annotation, image, ref, write_refer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    shapes = ShapesConfig(train=12, val=4, test_a=1, test_b=1)
    root = build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)
    return DataConfig(data_root=root)


def settings(data: DataConfig, output: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        data=data,
        steps=10,
        batch_size=4,
        warmup=2,
        log_every=5,
        eval_samples=6,
        sheet_rows=2,
        output=output,
        progress=False,
        cpu=True,
    )
    return dataclasses.replace(config, **changes)


def lines(run: RunResult) -> list[dict[str, Any]]:
    """Read metrics.jsonl without its timings."""
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in one.items() if k != "pictures_per_second"} for one in records]


@pytest.fixture(scope="module")
def run(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(settings(data, tmp_path_factory.mktemp("runs") / "one"))


def test_run_writes_everything(run: RunResult) -> None:
    names = {path.name for path in run.folder.iterdir()}
    written = {"config.json", "metrics.jsonl", "curves.png", "sheet.png", "checkpoint", "best"}
    assert names == written
    assert json.loads((run.folder / "config.json").read_text())["distill"]["lambda_image"] == 0.75
    first, second, last = lines(run)
    assert [first["step"], second["step"], last["step"]] == [5, 10, 10]
    weighted = first["losses"]["seg"] + 0.75 * first["losses"]["lmvsd"]
    assert first["loss"] == pytest.approx(weighted + 0.1 * first["losses"]["vmlsd"], rel=1e-5)
    assert last["scores"] == run.scores
    assert run.scores.keys() == {"own", "other", "none"}
    for path in (run.folder / "curves.png", run.folder / "sheet.png"):
        with Image.open(path) as picture:
            picture.load()


def test_checkpoint_holds_the_host_and_what_resuming_needs(run: RunResult) -> None:
    checkpoint = load_checkpoint(run.checkpoint)
    assert checkpoint.config.step == 10
    assert checkpoint.config.distill == dataclasses.asdict(DistillConfig())
    state = load_training_state(run.checkpoint)
    assert int(state["distill.step"]) == 10
    assert int(state["skipped"]) == 0
    tokens = [key for key in state if key.startswith("distill.") and key.endswith(".token")]
    assert sorted(tokens) == ["distill.maskers.image.token", "distill.maskers.text.token"]
    moments = [key for key in state if key.endswith(".exp_avg")]
    trained = len(list(checkpoint.model.parameters())) + len(tokens)
    assert len(moments) == trained
    for modality in ("image", "text"):  # the optimiser has them
        assert f"optimizer.maskers.{modality}.token.exp_avg" in moments


def test_run_repeats_bit_for_bit_and_leaves_the_global_stream(
    data: DataConfig, run: RunResult, tmp_path: Path
) -> None:
    torch.manual_seed(123)  # must not matter, and must not be moved
    before = torch.get_rng_state()
    again = train(settings(data, tmp_path / "two"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert lines(again) == lines(run)
    files = [path.relative_to(run.checkpoint) for path in run.checkpoint.rglob("*.*")]
    assert len(files) >= 5
    for name in files:
        assert (again.checkpoint / name).read_bytes() == (run.checkpoint / name).read_bytes(), name
    assert (again.folder / "sheet.png").read_bytes() == (run.folder / "sheet.png").read_bytes()


def test_another_seed_is_another_run(data: DataConfig, run: RunResult, tmp_path: Path) -> None:
    other = train(settings(data, tmp_path / "two", seed=1, steps=5))
    assert lines(other)[0]["loss"] != lines(run)[0]["loss"]


def test_plain_training_has_no_branch_and_evaluates_on_the_way(
    data: DataConfig, tmp_path: Path
) -> None:
    plain = DistillConfig(image=None, text=None)
    run = train(settings(data, tmp_path / "two", steps=4, evaluate_every=2, distill=plain))
    records = lines(run)
    assert [record["step"] for record in records] == [2, 4, 4]
    assert records[0]["scores"].keys() == {"own"}
    assert records[1]["losses"].keys() == {"seg"}
    assert not any(key.endswith(".token") for key in load_training_state(run.checkpoint))


def test_steps_without_a_finite_gradient_are_skipped(data: DataConfig, tmp_path: Path) -> None:
    """A first step of 1e30 breaks the weights; all later gradients are not finite."""
    broken = settings(data, tmp_path / "two", lr=1e30, warmup=0, log_every=1, steps=5)
    run = train(broken)
    records = [record for record in lines(run) if "loss" in record]
    assert run.skipped == records[-1]["skipped"] >= 3
    assert records[-1]["loss"] is None  # JSON has no NaN
    rates = {record["lr"] for record in records[-3:]}
    assert len(rates) == 1  # the schedule stands still, too
    moments = load_training_state(run.checkpoint)
    taken = {int(value) for key, value in moments.items() if key.endswith(".step")}
    assert broken.steps - run.skipped in taken


def test_too_many_bad_steps_stop_the_run_and_name_the_items(
    data: DataConfig, tmp_path: Path
) -> None:
    config = settings(data, tmp_path / "two", lr=1e30, warmup=0, max_bad_steps=2)
    with pytest.raises(TrainingError, match=r"2 steps in a row.*items \[\d+, \d+, \d+, \d+\]"):
        train(config)
    # its log stays; it has no checkpoint, so the next run may take the place
    assert {path.name for path in config.output_folder().iterdir()} == {
        "config.json",
        "metrics.jsonl",
    }
    train(settings(data, tmp_path / "two", steps=1, warmup=0))
    assert (tmp_path / "two" / "checkpoint").is_dir()


def test_existing_output_is_kept_unless_overwritten(
    data: DataConfig, run: RunResult, tmp_path: Path
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.folder.rglob("*"))
    with pytest.raises(ValueError, match="holds a run already; choose another --output or pass"):
        train(settings(data, run.folder))
    assert sorted((path, path.stat().st_mtime_ns) for path in run.folder.rglob("*")) == before
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', which no run writes"):
        train(settings(data, tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").exists()


def test_overwrite_replaces_a_run(data: DataConfig, tmp_path: Path) -> None:
    output = tmp_path / "two"
    train(settings(data, output, steps=2, warmup=0))
    train(settings(data, output, steps=1, warmup=0, overwrite=True))
    assert json.loads((output / "config.json").read_text())["steps"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Data whose last training picture is cut off; the first step does not meet it."""
    shapes = ShapesConfig(train=12, val=1, test_a=1, test_b=1)
    root = build_shapes(tmp_path_factory.mktemp("damaged") / "shapes", shapes, progress=False)
    picture = root / "images" / "shapes_train_000011.jpg"
    picture.write_bytes(picture.read_bytes()[:400])
    return DataConfig(data_root=root)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["picture", "worker", "gradient", "config", "exception"])
def test_failing_overwrite_keeps_the_old_run(
    data: DataConfig,
    damaged: DataConfig,
    run: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run.folder, old)
    expected: type[BaseException] = ValueError
    changes: dict[str, Any] = {}
    if failure in ("picture", "worker"):
        expected, data = DataError, damaged
        changes = {"steps": 30, "workers": int(failure == "worker")}
    elif failure == "gradient":
        expected, changes = TrainingError, {"lr": 1e30, "warmup": 0, "max_bad_steps": 2}
    elif failure == "config":
        changes = {"distill": DistillConfig(text=MaskingConfig(token="position", positions=7))}
    else:
        expected = KeyError
        fail_at(2, KeyError("anything"), monkeypatch)
    for output, overwrite in ((old, True), (tmp_path / "new", False)):
        with pytest.raises(expected) as caught:
            train(settings(data, output, overwrite=overwrite, **changes))
        if expected is DataError:
            assert re.fullmatch(r"image 12: \S+: cannot be decoded: .*", str(caught.value))
        left = {"old"} if overwrite or failure == "config" else {"old", "new"}
        assert {path.name for path in tmp_path.iterdir()} == left
        assert contents(old) == contents(run.folder)


def fail_at(updates: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Schedule.rate

    def failing(schedule: Schedule, done: int) -> float:
        if done == updates:
            raise error
        return rate(schedule, done)

    monkeypatch.setattr(Schedule, "rate", failing)


def test_what_fails_after_a_checkpoint_leaves_it_and_says_how_to_go_on(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data, tmp_path / "two", steps=4, evaluate_every=2)
    fail_at(3, RuntimeError("anything"), monkeypatch)
    with (
        pytest.raises(RuntimeError, match="anything"),
        pytest.warns(
            UserWarning, match=r"saved as it was after step 2: masksd train --resume \S*two"
        ),
    ):
        train(config)
    assert load_checkpoint(tmp_path / "two" / "checkpoint").config.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_an_empty_folder_is_used_and_one_filled_meanwhile_is_not_removed(tmp_path: Path) -> None:
    place = tmp_path / "one"

    def check() -> None:
        check_output(place, overwrite=False)

    place.mkdir()
    with StagedFolder(place, check) as first:
        (first.path / "checkpoint").mkdir()
        first.publish()
    assert [path.name for path in place.iterdir()] == ["checkpoint"]
    (place / "checkpoint").rmdir()
    with StagedFolder(place, check) as second:
        (place / "checkpoint").mkdir()  # of somebody quicker, without a lock
        with pytest.raises(ValueError, match="holds a run already"):
            second.publish()
    assert [path.name for path in place.iterdir()] == ["checkpoint"]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    for name in (".sheet.png.tmp", ".checkpoint.previous", ".best.lock"):  # of killed processes
        (place / name).mkdir()
    check_output(place, overwrite=True)


def test_a_run_that_is_under_way_is_not_overwritten(
    data: DataConfig, run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(*_: Any) -> None:
        with pytest.raises(ValueError, match="is being written by another run"):
            train(settings(data, tmp_path / "one", steps=1, warmup=0, overwrite=True))
        raise KeyError("enough")

    monkeypatch.setattr(Run, "finish", second)
    with pytest.raises(KeyError, match="enough"):
        train(settings(data, tmp_path / "one", steps=1, warmup=0))


def test_speed_is_that_of_training_alone(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = 0.0

    def slow(*_: Any, **__: Any) -> dict[str, float]:
        nonlocal slept
        start = time.perf_counter()
        time.sleep(0.5)
        slept += time.perf_counter() - start
        return {"mIoU": 0.5}

    monkeypatch.setattr("masksd.kit.training.lifecycle.evaluate", slow)
    start = time.perf_counter()
    run = train(settings(data, tmp_path / "two", steps=4, log_every=2, evaluate_every=1))
    elapsed = time.perf_counter() - start
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    speeds = [json.loads(line).get("pictures_per_second") for line in text.splitlines()]
    [first, second] = [speed for speed in speeds if speed is not None]
    assert slept > 1
    assert 8 / first + 8 / second <= elapsed - slept  # 8 pictures in each


def test_config_is_json(data: DataConfig, tmp_path: Path) -> None:
    text = settings(data, tmp_path, clip_norm=math.inf).to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["clip_norm"] is None


def test_cache_folder_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MASKSD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry
    with pytest.raises(ValueError, match=r"no home folder .* set MASKSD_CACHE"):
        cache_folder()


def test_data_config_comes_back_from_its_dict(data: DataConfig) -> None:
    assert DataConfig.from_dict(json.loads(json.dumps(data.to_dict()))) == data
    assert DataConfig.from_dict({}) == DataConfig()
    assert DataConfig().to_dict()["split_by"] is None
    assert DataConfig.from_dict({"split_by": "masksd"}).split_by == "masksd"  # older checkpoints
    assert DataConfig.from_dict({"skip_bad": True}).skip_bad
    with pytest.raises(ValueError, match="field 'skip_bad' of the data must be true or false"):
        DataConfig.from_dict({"skip_bad": "yes"})
    with pytest.raises(ValueError, match="did you mean 'level'"):
        DataConfig.from_dict({"levle": "easy"})
    with pytest.raises(ValueError, match="field 'name' of the data must be a string, got 5"):
        DataConfig.from_dict({"name": 5})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "clip_cris_tny"}, "did you mean 'clip_cris_tiny'"),
        ({"train_split": "trian"}, "did you mean 'train'"),
        ({"batch_size": 1000}, r"has \d+ items, one step takes 1000; lower --batch-size"),
        ({"image_size": 60}, "60 must be a multiple of"),
        (
            {"model": "clip_cris_vit_b16", "pretrained": True, "tokenizer": "shapes"},
            "pretrained weights know 49408 tokens, tokenizer 'shapes' has .* use --tokenizer clip",
        ),
        (
            {"model": "lavt_swin_b", "pretrained": True, "tokenizer": "shapes"},
            "pretrained weights know 30522 tokens, tokenizer 'shapes' has .* use --tokenizer bert",
        ),
        (
            {"distill": DistillConfig(image=MaskingConfig(token="position", positions=7))},
            "positions",
        ),
        ({"tokenizer": "shape"}, "did you mean 'shapes'"),
        ({"frozen": ("bert.",)}, r"no parameter's name begins with 'bert\.'"),
    ],
)
def test_wrong_runs_write_nothing(
    data: DataConfig, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        train(settings(data, tmp_path / "two", **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"lr": math.inf}, "lr must be a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number, 0 or more"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"threshold": 1.5}, r"threshold must be a number in \[0, 1\]"),
        ({"mixed_precision": "fp15"}, "did you mean 'fp16'"),
        ({"train_items": "ref"}, "did you mean 'refs'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"schedule": "pol"}, "did you mean 'poly'"),
        ({"fit": "letterbx"}, "did you mean 'letterbox'"),
        ({"epochs": 3}, "exactly one of steps and epochs .* got steps=1000 and epochs=3"),
        ({"warmup": None}, "exactly one of warmup and warmup_epochs"),
        ({"steps": None, "epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"schedule": "multistep"}, "schedule 'multistep' needs milestones and no other"),
        ({"milestones": (0.5,)}, "schedule 'multistep' needs milestones and no other"),
        ({"schedule": "multistep", "milestones": (35,)}, r"shares of the run, in \(0, 1\), got"),
        ({"backbone_lr": 2.0}, r"backbone_lr must be a number in \[0, 1\]"),
        ({"gamma": -1.0}, "gamma must be a number"),
        ({"power": 0.0}, "power must be a finite number above 0"),
        ({"class_weights": (0.9, 0.0)}, "class_weights must be two finite numbers above 0"),
        (
            {"class_weights": (0.9, 1.1), "distill": DistillConfig(dice_weight=1.0)},
            "class_weights replace the segmentation loss",
        ),
        (
            {"class_weights": (0.9, 1.1), "distill": DistillConfig(low_memory=True)},
            "class_weights put the loss outside the wrapper",
        ),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TrainConfig(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [3, 20])
def test_a_warmup_that_takes_the_whole_run_is_a_warning(
    data: DataConfig, tmp_path: Path, warmup: int
) -> None:
    expected = rf"warmup {warmup} is not below steps 3: the learning rate only rises, to [\d.]+ of"
    with pytest.warns(UserWarning, match=expected) as caught:
        run = train(settings(data, tmp_path / "two", steps=3, warmup=warmup, log_every=1))
    assert len(caught) == 1
    reached = [line["lr"] for line in lines(run) if "lr" in line][-1]
    assert f"to {reached:g} of lr 0.0015" in str(caught[0].message)


def test_a_batch_that_batch_norm_cannot_normalise_is_refused(
    data: DataConfig, tmp_path: Path
) -> None:
    config = settings(
        data, tmp_path / "two", model="clip_cris_rn50", image_size=32, batch_size=1, steps=3
    )
    with pytest.raises(ValueError, match="batch_size 1 leaves BatchNorm layer"):
        train(config)
    assert list(tmp_path.iterdir()) == []


def test_a_branch_that_sees_one_sample_is_refused_with_batch_norm(
    data: DataConfig, tmp_path: Path
) -> None:
    part = MaskingConfig(samples=0.5)
    config = settings(
        data, tmp_path / "two", model="clip_cris_rn50", image_size=32, batch_size=2, steps=3,
        distill=DistillConfig(image=part, text=part),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"batch_size 2 leaves BatchNorm .*larger samples"):
        train(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch", "samples"), [(1, 1.0), (2, 0.5)])
def test_batch_norm_with_one_value_says_so_in_a_step(batch: int, samples: float) -> None:
    checkpoint = build_model(TrainConfig(model="clip_cris_rn50", image_size=32, max_length=9))
    part = MaskingConfig(samples=samples)
    sd = wrap_model(checkpoint.model, DistillConfig(image=part, text=part)).train()
    tokens = torch.stack([checkpoint.tokenizer.encode("the red circle")] * batch)
    says = r"a BatchNorm got one value per channel.*drop_last.*to a branch more samples"
    with pytest.raises(ValueError, match=says):
        sd(torch.rand(batch, 3, 32, 32), tokens, target=torch.zeros(batch, 32, 32))


@pytest.fixture
def single(tmp_path: Path) -> DataConfig:
    """Twelve images with one referred object each, in train, val and test."""
    images = [image(number) for number in range(12)]
    annotations = [annotation(number, number) for number in range(12)]
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    refs = [ref(number, number, number, split=split) for number, split in enumerate(splits)]
    return DataConfig(
        data_root=write_refer(tmp_path / "data", images, annotations, refs), name="mine"
    )


def test_a_set_with_one_object_an_image_is_trained_on_and_scored(
    single: DataConfig, tmp_path: Path
) -> None:
    says = "scores with another object's sentence are left out: no image to score has two"
    with pytest.warns(UserWarning, match=says) as caught:
        result = train(settings(single, tmp_path / "run", tokenizer="shapes", evaluate_every=5))
    assert len(caught) == 1
    assert result.scores.keys() == {"own", "none"}
    assert lines(result)[-1]["scores"] == result.scores
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "curves.png", "sheet.png", "checkpoint", "best")
    }
    config = EvaluateConfig(
        result.checkpoint, protocol="lavt", output=tmp_path / "report", progress=False
    )
    with pytest.warns(UserWarning, match=says) as caught:
        found = evaluate_checkpoint(config, single, title="mine")
    assert len(caught) == 1
    assert found.results.keys() == {"own", "none"}
    assert (tmp_path / "report" / "samples-none.jsonl").is_file()
    assert not (tmp_path / "report" / "samples-other.jsonl").exists()
    alone = dataclasses.replace(config, sentences="other", output=None)
    with pytest.raises(ValueError, match="no sample was scored with another object's sentence: no"):
        evaluate_checkpoint(alone, single, title="mine")


@pytest.mark.filterwarnings("default:scores with another")
def test_scoring_images_that_were_trained_on_is_a_warning(
    single: DataConfig, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "mine" / "refs(unc).p"
    refs = [*pickle.loads(path.read_bytes()), ref(20, 3, 3, split="val")]
    path.write_bytes(pickle.dumps(refs))
    with pytest.warns(UserWarning, match=r"'train' are in other splits, too \(val 1\)"):
        train(settings(single, tmp_path / "run", tokenizer="shapes", steps=1, warmup=0))


def test_data_that_are_not_generated_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'refcoco' is not generated; name the folder"):
        train(TrainConfig(data=DataConfig(name="refcoco"), output=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(50, seed)
        sampler.epoch = epoch
        orders[seed, epoch] = list(sampler)
        assert list(sampler) == orders[seed, epoch]
        assert sorted(orders[seed, epoch]) == list(range(50))
    assert len({tuple(order) for order in orders.values()}) == 3


def test_lavt_trains_and_its_checkpoint_is_scored_and_predicts(
    data: DataConfig, tmp_path: Path
) -> None:
    """Two channels, an attention mask, its own loss with weights, and pictures in a letterbox."""
    config = settings(
        data,
        tmp_path / "lavt",
        model="lavt_tiny",
        steps=3,
        class_weights=(0.9, 1.1),
        fit="letterbox",
        frozen=("text_encoder.embeddings.",),
        optimizer="adam",
        schedule="poly",
        backbone_lr=0.5,
    )
    run = train(config)
    assert lines(run)[0]["losses"].keys() == {"seg", "lmvsd", "vmlsd"}
    checkpoint = load_checkpoint(run.checkpoint)
    assert checkpoint.config.fit == "letterbox"
    assert checkpoint.config.mean == (0.485, 0.456, 0.406)
    state = load_training_state(run.checkpoint)
    assert not any(".embeddings." in key for key in state if key.startswith("optimizer."))
    # the word token is learned although the embeddings below it are frozen
    assert state["optimizer.maskers.text.token.exp_avg"].abs().sum() > 0
    dataset = open_split(data, "val", checkpoint.tokenizer, 64, fit="letterbox")
    again = evaluate_all(checkpoint, dataset, limit=config.eval_samples)
    assert again == run.scores
    predictor = Predictor(checkpoint)
    predictor.set_image(dataset.image(0))
    assert predictor.predict(dataset.sentence(0)).mask.shape == dataset.truth(0).shape


def test_words_are_masked_and_nothing_else_whatever_the_tokenizer(data: DataConfig) -> None:
    """Ids of the words of shapes mean other things to BERT: 0 and 100 to 103 are special there."""
    checkpoint = build_model(TrainConfig(model="lavt_tiny", data=data))
    sd = wrap_model(checkpoint.model, DistillConfig(), checkpoint.tokenizer)
    tokens = checkpoint.tokenizer.encode("the red circle on the left")[None]
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    words = int((tokens == checkpoint.tokenizer.end_token).long().argmax()) - 1
    plain = sd.segmenter.plain(*model_inputs(checkpoint, images, tokens))
    assert plain.text.valid.tolist() == [[0 < place <= words for place in range(17)]]


def test_the_towers_learn_at_their_own_rate(data: DataConfig, tmp_path: Path) -> None:
    """With a factor of 0 they stay as they were drawn; their positions do not."""
    config = settings(data, tmp_path / "one", steps=2, warmup=1, backbone_lr=0.0, weight_decay=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(keyed_seed(config.seed, "weights"))
        before = build_model(config).model.state_dict()
    after = load_checkpoint(train(config).checkpoint).model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert any(key.startswith("decoder.") for key in moved)
    assert {key for key in moved if key.startswith("encoder.")} == {
        "encoder.vision.embeddings.position_embedding.weight",
        "encoder.text.embeddings.position_embedding.weight",
    }


def test_epochs_are_passes_over_the_items(data: DataConfig, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "one", steps=None, epochs=2, warmup=None, warmup_epochs=1)
    with torch.random.fork_rng():
        items = len(open_split(data, "train", build_model(config).tokenizer, 8, train_items="refs"))
    run = train(config)
    assert run.steps == 2 * (items // 4)
    assert load_checkpoint(run.checkpoint).config.step == run.steps


@pytest.mark.slow
def test_workers_that_stay_read_the_same_items(data: DataConfig, tmp_path: Path) -> None:
    """Several epochs: each draws other sentences, also in a worker that lives on."""
    alone = train(settings(data, tmp_path / "one", steps=25, log_every=1))
    helped = train(settings(data, tmp_path / "two", steps=25, log_every=1, workers=2))
    assert lines(helped) == lines(alone)


@pytest.mark.parametrize("pretrained", ["clip_cris_tiny", "lavt_tiny"])
def test_weights_that_do_not_exist_are_refused_at_once(
    pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("nothing must be loaded")

    monkeypatch.setattr("masksd.kit.sources.load_tokenizer", fail)
    with pytest.raises(ValueError, match=f"no pretrained weights for '{pretrained}'"):
        build_model(TrainConfig(model=pretrained, pretrained=True))


@pytest.mark.slow
def test_low_memory_takes_the_same_steps(data: DataConfig, tmp_path: Path) -> None:
    runs = {
        low: train(
            settings(
                data,
                tmp_path / str(low),
                distill=DistillConfig(low_memory=low),
                dropout=0.1,
                log_every=1,
            )
        )
        for low in (False, True)
    }
    plain, low = (lines(runs[mode]) for mode in (False, True))
    for record, other in zip(plain[:3], low[:3], strict=True):  # Adam lets rounding grow
        assert other["losses"] == pytest.approx(record["losses"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-3)


def test_a_ramp_raises_the_weights_of_the_branches(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    forward = CrossModalMaskedSelfDistill.forward

    def watched(sd: CrossModalMaskedSelfDistill, *args: Any, **kwargs: Any) -> Any:
        out = forward(sd, *args, **kwargs)
        weights = {name: float(branch.weight) for name, branch in sd.branches.items()}
        parts = {name: loss.item() for name, loss in out.losses.items()}
        total = parts["seg"] + sum(weights[name] * parts[name] for name in weights)
        assert out.loss.item() == pytest.approx(total, rel=1e-5)
        seen.append(weights)
        return out

    monkeypatch.setattr(CrossModalMaskedSelfDistill, "forward", watched)
    train(settings(data, tmp_path / "run", ramp=(0.2, 0.6)))
    shares = [step["lmvsd"] / 0.75 for step in seen]
    assert shares == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1], abs=1e-6)
    assert [step["vmlsd"] / 0.1 for step in seen] == pytest.approx(shares, abs=1e-6)


def test_a_branch_on_part_of_a_batch_is_drawn_where_it_ran(
    data: DataConfig, tmp_path: Path
) -> None:
    distill = DistillConfig(image=MaskingConfig(samples=0.5), text=MaskingConfig(samples=0.5))
    result = train(settings(data, tmp_path / "part", distill=distill, sheet_rows=4))
    assert list(result.folder.glob("*.png"))


def test_a_ramp_without_length_is_a_late_start() -> None:
    config = TrainConfig(ramp=(0.5, 0.5))
    assert [config.ramp_at(done) for done in (0.0, 0.4, 0.5, 1.0)] == [0.0, 0.0, 1.0, 1.0]


def test_a_ramp_out_of_order_is_refused(data: DataConfig, tmp_path: Path) -> None:
    for ramp in ((0.5, 0.2), (0.5, 1.2), (0.5,)):
        with pytest.raises(ValueError, match="ramp must be"):
            settings(data, tmp_path, ramp=ramp)


def test_a_branch_that_rests_in_some_steps_is_logged_by_those_it_ran_in(
    data: DataConfig, tmp_path: Path
) -> None:
    distill = DistillConfig(image=MaskingConfig(every=3))
    run = train(settings(data, tmp_path / "run", distill=distill, steps=6, log_every=1))
    assert ["lmvsd" in record["losses"] for record in lines(run)[:6]] == [
        step % 3 == 0 for step in range(6)
    ]
    together = train(settings(data, tmp_path / "two", distill=distill, steps=6, log_every=6))
    mean = sum(lines(run)[step]["losses"]["lmvsd"] for step in (0, 3)) / 2
    assert lines(together)[0]["losses"]["lmvsd"] == pytest.approx(mean, rel=1e-5)
