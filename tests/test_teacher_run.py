"""Training a student from the checkpoint of a larger model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from benchmarks.study.plan import multiply_adds
from masksd import ChannelDistillConfig, CrossModalDistill, DistillConfig
from masksd.kit.checkpoints import load_checkpoint, save_checkpoint
from masksd.kit.cli.options import checked
from masksd.kit.cli.train import train_command
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.costs.budget import measure_budget
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.feeding import model_inputs
from masksd.kit.randomness import keyed_randomness, keyed_seed
from masksd.kit.sources import build_model, open_training, wrap_model
from masksd.kit.training.loop import Batches
from masksd.kit.training.optimizers import build_optimizer
from masksd.kit.training.trainer import train
from masksd.models import create_model
from tests.test_resume import assert_equal_runs, interrupted, settings

ALONE = DistillConfig(image=None, text=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    shapes = ShapesConfig(train=5, val=2, test_a=1, test_b=1)
    root = build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)
    return DataConfig(data_root=root)


def saved(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(7)
    return save_checkpoint(folder, build_model(TrainConfig(**changes)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "checkpoint")


def student(data: DataConfig, output: Path, teacher: Path, **changes: Any) -> TrainConfig:
    chosen: dict[str, Any] = {"model": "clip_cris_mini", "teacher": teacher, "distill": ALONE}
    return settings(data, output, **{**chosen, **changes})


def test_a_run_is_a_plain_loop(data: DataConfig, teacher: Path, tmp_path: Path) -> None:
    knowledge = ChannelDistillConfig(share=0.25, lambda_channel=2.0)
    config = student(data, tmp_path / "run", teacher, knowledge=knowledge, steps=3, log_every=1)
    before = (teacher / "model.safetensors").read_bytes()
    result = train(config)
    logged = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text().splitlines()]

    torch.manual_seed(keyed_seed(config.seed, "weights"))
    checkpoint = build_model(config)
    model: Any = checkpoint.model
    sd = wrap_model(model.train(), ALONE)
    training, _ = open_training(config, checkpoint.tokenizer, 64)
    batches = Batches(training, batch_size=config.batch_size, seed=config.seed, workers=0)

    def inputs(batch: Any) -> tuple[torch.Tensor, ...]:
        return model_inputs(checkpoint, batch["image"], batch["tokens"])

    with keyed_randomness(torch.device("cpu")):
        large: Any = load_checkpoint(teacher).model
        whole = (large.encoder, large.neck, large.decoder)
        kd = CrossModalDistill(sd, whole, knowledge, example=inputs(batches.first()))
        optimizer = build_optimizer(sd, model, config)
        schedule = config.schedule_of(len(batches))
        for step, batch in zip(range(3), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step) * group["scale"]
            torch.manual_seed(keyed_seed(config.seed, "dropout", step + 1, 0))
            out = kd(*inputs(batch), target=batch["target"].float())
            losses = {name: loss.item() for name, loss in out.losses.items()}
            assert losses == pytest.approx(logged[step]["losses"], abs=1e-6)
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(sd.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    assert sorted(losses) == ["channel", "relation", "seg"]
    kd.unwrap()
    trained = load_checkpoint(result.checkpoint).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-6)
    assert (teacher / "model.safetensors").read_bytes() == before
    create_model("clip_cris_mini", **dataclasses.asdict(model.config)).load_state_dict(trained)


def test_a_resumed_run_is_the_same_and_wants_its_teacher(
    data: DataConfig, teacher: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(teacher, tmp_path / "teacher")
    config = student(data, tmp_path / "cut", own, steps=5)  # with an embedding to restore
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    assert_equal_runs(interrupted(config, 3), whole)
    longer = dataclasses.replace(config, steps=6)
    other = dataclasses.replace(longer, knowledge=ChannelDistillConfig(share=0.25))
    with pytest.raises(ValueError, match=r"knowledge\.share of the run is 0\.5, now 0\.25"):
        train(other, resume=True, allow=["steps"])
    moved = own.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no checkpoint at .*teacher"):
        train(longer, resume=True, allow=["steps"])
    torch.manual_seed(8)
    save_checkpoint(own, build_model(TrainConfig()))
    with pytest.raises(ValueError, match="teacher is another checkpoint than when the run was"):
        train(longer, resume=True, allow=["steps"])
    elsewhere = dataclasses.replace(longer, teacher=moved)
    assert train(elsewhere, resume=True, allow=["steps", "teacher"]).steps == 6


def test_what_has_no_mask_teaches_too(data: DataConfig, teacher: Path, tmp_path: Path) -> None:
    both: dict[str, Any] = {"labels": 5, "unlabelled": "shapes", "unlabelled_batch": 3}
    kept = student(data, tmp_path / "with", teacher, **both, steps=2, warmup=0)
    weights = []
    for config in (kept, student(data, tmp_path / "without", teacher, labels=5, steps=2, warmup=0)):
        weights.append(load_checkpoint(train(config).checkpoint).model.state_dict())
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(ValueError, match=r"nothing would learn from it: .* name a teacher"):
        dataclasses.replace(kept, teacher=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 9}, "has max_length 9, but the run has 17; use --max-length 9"),
        ({"fit": "letterbox"}, "was trained with fit 'letterbox', .*use --fit letterbox"),
        ({"image_size": 32}, "has image_size 32, but the run has 64; use --image-size 32"),
        ({"model": "lavt_tiny"}, "is a lavt_tiny, which takes other inputs than .*clip_cris_mini"),
    ],
)
def test_a_teacher_that_reads_in_another_way_is_refused(
    data: DataConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = saved(tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=f"teacher .*other {message}"):
        train(student(data, tmp_path / "run", other))
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_replace_its_teacher(data: DataConfig, tmp_path: Path) -> None:
    teacher = saved(tmp_path / "run/checkpoint")
    with pytest.raises(ValueError, match=r"teacher .* lies in .*run, which this run would replace"):
        train(student(data, tmp_path / "run", teacher, overwrite=True))
    assert teacher.is_dir()


def test_other_ids_are_refused(data: DataConfig, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = build_model(TrainConfig())
    other.tokenizer.save(tmp_path / "words")
    file = tmp_path / "words/tokenizer.json"
    stored = json.loads(file.read_text())
    ids = stored["model"]["vocab"]
    ids["red"], ids["circle"] = ids["circle"], ids["red"]
    file.write_text(json.dumps(stored))
    swapped = other._replace(tokenizer=load_tokenizer(tmp_path / "words"))
    saved_there = save_checkpoint(tmp_path / "other", swapped)
    with pytest.raises(ValueError, match="same kind and size whose tokens have other ids"):
        train(student(data, tmp_path / "run", saved_there))


def test_knowledge_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match=r"but there is none; name its checkpoint .*--teacher"):
        TrainConfig(knowledge=ChannelDistillConfig("cwd"))


def test_options(teacher: Path) -> None:
    arguments = ["--teacher", str(teacher), "--knowledge.kind", "cwd", "--distill.low-memory"]
    options = tyro.cli(train_command(arguments), args=arguments)
    config = checked(TrainConfig(), options.settings)
    assert (config.teacher, config.knowledge.kind) == (teacher, "cwd")
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.slow
def test_the_cost_counts_the_teacher(teacher: Path) -> None:
    with_teacher = TrainConfig(model="clip_cris_mini", distill=ALONE, batch_size=2, teacher=teacher)
    alone, taught = (
        measure_budget(each)
        for each in (dataclasses.replace(with_teacher, teacher=None), with_teacher)
    )
    large = measure_budget(TrainConfig(batch_size=2, distill=ALONE))
    assert taught.plain == alone.plain
    assert taught.forward > alone.forward + large.plain
    assert taught.forward < 1.05 * (alone.forward + large.plain)
    assert taught.weights - alone.weights == pytest.approx(large.weights, rel=0.02)
    ratio = multiply_adds(with_teacher) / multiply_adds(
        dataclasses.replace(with_teacher, teacher=None)
    )
    assert ratio == pytest.approx(taught.step / alone.step)
    assert taught.added == 64 * 32  # the embedding of the student's channels
