"""Towers are pretrained, measured, saved and taken over, and nothing else of a run changes."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from masksd.kit.cli import main
from masksd.kit.config import DataConfig, PretrainConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data.views import ObjectViews, draw_cut, equal_sentences
from masksd.kit.encoder_weights import encoder_bytes, load_encoder
from masksd.kit.evaluation.alignment import area_under_curve, dot_relevance
from masksd.kit.sources import build_model, open_split
from masksd.kit.training.pretrain import contrastive_loss, pretrain


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    shapes = ShapesConfig(train=12, val=8, test_a=1, test_b=1)
    return DataConfig(
        data_root=build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)
    )


@pytest.fixture(scope="module")
def config(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    return PretrainConfig(
        data=data,
        steps=30,
        warmup=5,
        batch_size=8,
        log_every=10,
        eval_samples=16,
        cpu=True,
        output=tmp_path_factory.mktemp("towers") / "towers.safetensors",
        progress=False,
    )


@pytest.fixture(scope="module")
def report(config: PretrainConfig) -> dict[str, Any]:
    return pretrain(config)


def test_the_loss_falls_and_the_report_tells(
    config: PretrainConfig, report: dict[str, Any]
) -> None:
    assert json.loads(config.output.with_suffix(".json").read_text()) == report
    assert [point["step"] for point in report["curve"]] == [10, 20, 30]
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"]
    assert report["retrieval"]["chance"] == 1 / 16
    assert report["relevance"].keys() == report["untrained"]["relevance"].keys()
    assert report["relevance"] != report["untrained"]["relevance"]
    assert report["config"]["steps"] == 30


def test_pretraining_repeats_bit_for_bit(
    config: PretrainConfig, report: dict[str, Any], tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    again = dataclasses.replace(config, output=tmp_path / "again.safetensors")
    pretrain(again)
    assert again.output.read_bytes() == config.output.read_bytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_starts_from_the_towers_and_its_own_neck(
    config: PretrainConfig, report: dict[str, Any]
) -> None:
    models = []
    for weights in (None, config.output):
        torch.manual_seed(5)
        run = dataclasses.replace(config.run_config(), encoder_weights=weights)
        models.append(build_model(run).model.state_dict())
    for key, value in models[0].items():
        assert key.startswith("encoder.") or torch.equal(models[1][key], value)
    weight = "encoder.visual_projection.weight"
    assert not torch.equal(models[0][weight], models[1][weight])


@pytest.mark.parametrize(("bits", "most"), [(32, 0.0), (16, 2.0**-11), (8, 2.0**-4)])
def test_fewer_bits_make_smaller_files_that_load_alike(
    config: PretrainConfig, bits: int, most: float, tmp_path: Path
) -> None:
    first, second = (build_model(config.run_config()).model for _ in range(2))
    file = tmp_path / "towers.safetensors"
    file.write_bytes(encoder_bytes(first.encoder, "shapes", bits))
    load_encoder(second, file, "shapes")
    count = sum(weight.numel() for weight in first.encoder.state_dict().values())
    assert file.stat().st_size < count * bits / 8 * 1.05
    for name, weight in first.encoder.state_dict().items():
        loaded = second.encoder.state_dict()[name]
        # relative, and half the step between the smallest numbers
        assert torch.allclose(loaded, weight, rtol=most, atol=2.0**-10 if bits == 8 else 1e-7)
        assert bits < 32 or torch.equal(loaded, weight)


def test_weights_that_do_not_fit_are_refused(
    config: PretrainConfig, report: dict[str, Any], tmp_path: Path
) -> None:
    run = dataclasses.replace(config.run_config(), encoder_weights=config.output)
    cut, strange = tmp_path / "cut.safetensors", tmp_path / "strange.safetensors"
    cut.write_bytes(config.output.read_bytes()[:5000])
    save_file({"a": torch.zeros(2)}, strange)
    for change, text in (
        ({"encoder_weights": tmp_path / "none"}, "no file"),
        ({"encoder_weights": cut}, "not a complete safetensors file"),
        ({"encoder_weights": strange}, "was not written by `masksd pretrain`"),
        ({"max_length": 9}, "1 tensors do not fit this model's encoder"),
        ({"image_size": 32}, "pretrain with the same model, image_size"),
        ({"model": "lavt_tiny"}, "has no encoder of two towers"),
    ):
        with pytest.raises(ValueError, match=text):
            build_model(dataclasses.replace(run, **change))
    model = build_model(config.run_config()).model
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(encoder_bytes(model.encoder, "clip"))
    with pytest.raises(ValueError, match="trained with tokenizer 'clip', but the run has 'shapes'"):
        load_encoder(model, foreign, "shapes")
    with pytest.raises(ValueError, match="both say where the weights come from"):
        TrainConfig(pretrained=True, encoder_weights=config.output)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "lavt_tiny"}, "does not have two towers"),
        ({"batch_size": 500}, "one step takes 500"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(
    config: PretrainConfig, change: Any, text: str, tmp_path: Path
) -> None:
    output = tmp_path / "towers.safetensors"
    with pytest.raises(ValueError, match=text):
        pretrain(dataclasses.replace(config, output=output, **change))
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "steps must be"),
        ({"batch_size": 1}, "batch_size must be"),
        ({"context": (3.0, 2.0)}, "context must be two finite numbers"),
        ({"patches": -1.0}, "patches must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"output": Path("towers.pt")}, "must end in .safetensors"),
    ],
)
def test_fields_out_of_range_are_named(change: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PretrainConfig(**change)


@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    corner=st.tuples(st.integers(0, 29), st.integers(0, 29)),
    sides=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    context=st.floats(1, 9),
    seed=st.integers(0, 99),
)
def test_a_cut_holds_the_object_and_stays_in_the_picture(
    height: int,
    width: int,
    corner: tuple[int, int],
    sides: tuple[int, int],
    context: float,
    seed: int,
) -> None:
    truth = np.zeros((height, width), dtype=np.uint8)
    y, x = corner[0] % height, corner[1] % width
    truth[y : y + sides[0], x : x + sides[1]] = 1
    left, top, right, bottom = draw_cut(truth, (1.0, context), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert truth[top:bottom, left:right].sum() == truth.sum()


def test_a_truth_without_pixels_takes_the_whole_picture() -> None:
    truth = np.zeros((4, 6), dtype=np.uint8)
    assert draw_cut(truth, (1.0, 2.0), np.random.default_rng(0)) == (0, 0, 6, 4)


def test_an_older_file_is_not_replaced_unasked(
    config: PretrainConfig, report: dict[str, Any]
) -> None:
    before = config.output.read_bytes()
    with pytest.raises(ValueError, match="pass --overwrite"):
        pretrain(config)
    with pytest.raises(ValueError, match="exists; choose another"):
        pretrain(dataclasses.replace(config, output=make_folder(config), overwrite=True))
    assert config.output.read_bytes() == before


def make_folder(config: PretrainConfig) -> Path:
    folder = config.output.parent / "folder.safetensors"
    folder.mkdir()
    return folder


def test_views_are_keyed_by_seed_epoch_and_index(data: DataConfig) -> None:
    dataset = open_split(data, "train", load_tokenizer("shapes", 17), 64, train_items="refs")
    views, other = (ObjectViews(dataset, (1.2, 4.0), seed) for seed in (0, 1))
    first = views[3]["image"]
    assert torch.equal(views[3]["image"], first)
    assert not torch.equal(other[3]["image"], first)
    dataset.set_epoch(1)
    assert not torch.equal(views[3]["image"], first)


def test_the_loss_is_two_cross_entropies_without_equal_sentences() -> None:
    torch.manual_seed(0)
    cosines, scale = torch.randn(4, 4), torch.tensor(3.0)
    equal = equal_sentences(torch.tensor([[1, 2], [1, 3], [1, 2], [1, 4]]))
    total = 0.0
    for own in range(4):
        others = [i for i in range(4) if i == own or {i, own} != {0, 2}]
        for line in (cosines[own], cosines[:, own]):
            weights = [math.exp(3 * float(line[i])) for i in others]
            total -= math.log(math.exp(3 * float(line[own])) / sum(weights)) / 8
    assert float(contrastive_loss(cosines, scale, equal)) == pytest.approx(total, rel=1e-5)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_the_area_is_the_share_of_right_pairs(inside: list[int], outside: list[int]) -> None:
    right = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    found = area_under_curve(torch.tensor(inside).float(), torch.tensor(outside).float())
    assert found == pytest.approx(right / len(inside) / len(outside))
    assert area_under_curve(torch.tensor(inside), torch.zeros(0)) is None


def test_relevance_that_is_the_truth_has_area_one(data: DataConfig) -> None:
    """An encoder whose first channel is what the sentence asks for, painted by hand."""
    checkpoint = build_model(TrainConfig(data=data))
    dataset = open_split(data, "val", checkpoint.tokenizer, 64)
    before = dot_relevance(checkpoint, dataset, limit=4)["own"]
    truths = iter([dataset[index]["target"] for index in range(len(dataset))])
    encoder: Any = checkpoint.model.encoder
    encode_image, encode_text = encoder.encode_image, encoder.encode_text

    def painted(images: torch.Tensor) -> Any:
        image = encode_image(images)
        cover = torch.stack([next(truths).float() for _ in images])[:, None]
        cover = torch.nn.functional.adaptive_avg_pool2d(cover, image.grid).flatten(1)
        local = torch.zeros_like(image.local)
        local[..., 0] = cover
        return image._replace(local=local)

    def asked(tokens: torch.Tensor) -> Any:
        text = encode_text(tokens)
        return text._replace(pooled=torch.ones_like(text.pooled))

    encoder.encode_image, encoder.encode_text = painted, asked
    assert before < 1
    with pytest.MonkeyPatch.context() as patch:
        # no sample has another sentence: the second pass would ask for the truths again
        patch.setattr(dataset, "other_sentence", lambda _: None)
        found = dot_relevance(checkpoint, dataset)
    assert found["own"] == 1
    assert "other" not in found


def test_the_command_pretrains_and_training_takes_it_over(
    data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    towers, root = str(tmp_path / "towers.safetensors"), str(data.data_root)
    short = ("--data-root", root, "--steps", "2", "--warmup", "1", "--eval-samples", "4", "--cpu")
    options = (*short, "--batch-size", "4", "--no-progress")
    assert main(["pretrain", *options, "--output", towers]) == 0
    said = capsys.readouterr().out
    assert "relevance finds the object: area" in said
    start = shlex.split(said.splitlines()[-1].removeprefix("next: masksd "))
    run = ("--output", str(tmp_path / "run"), "--ramp", "0.5", "1", "--sheet-rows", "1")
    assert main([*start, *options[2:], *run]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["encoder_weights"], config["ramp"]) == (towers, [0.5, 1.0])
    assert main(["pretrain", *options, "--context", "0.5", "1"]) == 2
    assert "context must be two finite numbers of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_towers_that_are_not_finite_are_neither_written_nor_taken(
    tmp_path: Path, bits: int
) -> None:
    model = build_model(TrainConfig()).model
    name = next(iter(model.encoder.state_dict()))
    tensors = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    tensors[name].view(-1)[0] = math.nan
    metadata = {"masksd encoder 1": json.dumps({"tokenizer": "shapes"})}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match=f"a.safetensors: weight '{name}' is not finite"):
        load_encoder(model, tmp_path / "a.safetensors", "shapes")
    model.encoder.load_state_dict(tensors)
    with pytest.raises(ValueError, match=f"weights of {bits} bits: weight '{name}' is not finite"):
        encoder_bytes(model.encoder, "shapes", bits)
