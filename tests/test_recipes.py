"""The presets hold what the papers print, and can be run but for the data."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from masksd import DistillConfig
from masksd.kit.cli import _parse
from masksd.kit.cli.options import checked
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.layout import PUBLISHED
from masksd.kit.recipes import RECIPES, TOWERS, get_recipe
from masksd.kit.sources import build_model
from masksd.kit.training.trainer import train
from masksd.models import list_models

# what the papers and the published code say, read there and not in ours
STATED: dict[str, dict[str, Any]] = {
    "paper-refcoco-vit-b": {
        "model": "clip_cris_vit_b16",
        "optimizer": "adam",
        "batch_size": 32,
        "weight_decay": 5e-4,
        "epochs": 100,
        "warmup_epochs": 10,
        "lr": 1e-5,
        "schedule": "cosine",
        "image_size": 576,
        "max_length": 17,
        "threshold": 0.35,
        "train_items": "sentences",
    },
    "paper-refcoco-vit-l": {"model": "clip_cris_vit_l14", "image_size": 532, "lr": 1e-5},
    "paper-ablation-vit-b": {"model": "clip_cris_vit_b16", "image_size": 480, "epochs": 100},
    "cris-r50": {
        "model": "clip_cris_rn50",
        "optimizer": "adam",
        "lr": 1e-4,
        "backbone_lr": 0.1,
        "schedule": "multistep",
        "gamma": 0.1,
        "epochs": 50,
        "batch_size": 64,
        "weight_decay": 0.0,
        "clip_norm": math.inf,
        "image_size": 416,
        "max_length": 17,
        "dropout": 0.1,
        "fit": "letterbox",
        "train_items": "refs",
        "class_weights": None,
    },
    "lavt-swin-b": {
        "model": "lavt_swin_b",
        "optimizer": "adamw",
        "lr": 5e-5,
        "weight_decay": 1e-2,
        "schedule": "poly",
        "power": 0.9,
        "epochs": 40,
        "batch_size": 32,
        "image_size": 480,
        "max_length": 20,
        "class_weights": (0.9, 1.1),
        "fit": "squash",
        "train_items": "refs",
    },
}


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_has_what_its_paper_states(name: str) -> None:
    recipe = get_recipe(name)
    assert {field: getattr(recipe, field) for field in STATED[name]} == STATED[name]
    assert recipe.pretrained
    assert recipe.distill == DistillConfig()
    assert (recipe.data.name, recipe.data.split_by, recipe.data.data_root) == (
        "refcoco",
        "unc",
        None,
    )


def test_texts_are_those_of_the_hosts() -> None:
    assert get_recipe("lavt-swin-b").data.text == "raw"
    assert get_recipe("cris-r50").data.text == "sent"


def test_cris_drops_after_epoch_35() -> None:
    refs = PUBLISHED["refcoco", "unc"]["train"].refs
    epoch = refs // 64
    schedule = get_recipe("cris-r50").schedule_of(epoch)
    assert schedule.steps == 50 * epoch
    rates = [schedule.rate(number * epoch) for number in range(50)]  # at the start of each epoch
    assert rates[:35] == [1e-4] * 35
    assert rates[35:] == [pytest.approx(1e-5)] * 15


def test_all_recipes_are_tested() -> None:
    assert set(RECIPES) == {"cm-masksd", *STATED}
    assert {recipe.model for recipe in RECIPES.values()} <= set(list_models())


def test_the_default_run_differs_from_the_defaults_in_what_makes_it_short() -> None:
    recipe = get_recipe("cm-masksd")
    own = TrainConfig()
    changed = {
        field.name
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(own, field.name)
    }
    assert changed == {"encoder_weights", "data", "dropout", "steps", "warmup"}
    assert recipe.distill == DistillConfig()  # both branches
    assert recipe.data == DataConfig(pictures=recipe.data.pictures)


def test_the_towers_that_come_along_are_small_fit_and_are_what_their_report_says() -> None:
    assert TOWERS.stat().st_size < 500_000
    report = json.loads(TOWERS.with_suffix(".json").read_text())
    made = {name: report["config"][name] for name in ("steps", "lr", "model", "max_length")}
    assert made == {"steps": 1200, "lr": 1.5e-3, "model": "clip_cris_tiny", "max_length": 17}
    assert report["config"]["data"] == DataConfig().to_dict()
    recipe = get_recipe("cm-masksd")
    model = build_model(recipe).model
    with safe_open(TOWERS, framework="pt") as file:
        for name, weight in model.encoder.state_dict().items():
            assert weight.dtype == torch.float32
            assert torch.equal(weight, file.get_tensor(name).float())
    with pytest.raises(ValueError, match="has no encoder of two towers"):
        build_model(dataclasses.replace(recipe, model="lavt_tiny"))


def options(*arguments: str) -> Any:
    return checked(TrainConfig(), _parse(["train", *arguments]).settings)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--seed", "3", "--steps", "7"),
        ("--model", "clip_cris_tiny", "--tokenizer", "shapes"),
        ("--model", "clip_lda_tiny"),
        ("--data-root", "None", "--max_length=17"),
        ("--preset", "cm-masksd", "--no-pretrained"),
        ("--branches", "lmvsd", "--pictures", "9"),
    ],
)
def test_the_towers_are_kept_where_they_fit(arguments: tuple[str, ...]) -> None:
    found = options(*arguments)
    recipe = get_recipe("cm-masksd")
    assert (found.encoder_weights, found.dropout) == (TOWERS, recipe.dropout)
    assert found.steps == (7 if "7" in arguments else recipe.steps)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "lavt_tiny"),
        ("--model=clip_cris_vit_s16",),
        ("--data-root", "folder"),
        ("--level", "medium"),
        ("--variant", "+"),
        ("--max-length", "9"),
        ("--image_size", "32"),
        ("--tokenizer", "clip"),
        ("--pretrained",),
        ("--encoder-weights", "None"),
        ("--preset", "cm-masksd", "--model", "lavt_tiny"),
    ],
)
def test_a_run_that_the_towers_do_not_fit_starts_from_scratch(arguments: tuple[str, ...]) -> None:
    found, own = options(*arguments), TrainConfig()
    named = {argument.partition("=")[0].strip("-").replace("-", "_") for argument in arguments}
    for name in {"encoder_weights", "steps", "warmup", "dropout"} - named:
        assert getattr(found, name) == getattr(own, name)
    assert found.data.pictures is None


def test_towers_of_ones_own_take_their_place() -> None:
    found = options("--encoder-weights", "mine.safetensors")
    assert (found.encoder_weights, found.steps) == (
        Path("mine.safetensors"),
        get_recipe("cm-masksd").steps,
    )


def test_options_replace_values_of_a_recipe() -> None:
    changed = dataclasses.replace(get_recipe("cris-r50"), lr=0.5, steps=3, epochs=None)
    assert (changed.lr, changed.schedule_of(0).steps, changed.optimizer) == (0.5, 3, "adam")


def test_a_recipe_without_its_data_says_so_before_anything_else(tmp_path: Path) -> None:
    config = dataclasses.replace(get_recipe("cris-r50"), output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"'refcoco' is not generated; .* data_root \(--data-root"):
        train(config)


def test_unknown_recipes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown preset 'lavt'; did you mean 'lavt-swin-b'"):
        get_recipe("lavt")


def test_the_help_names_every_model_and_every_recipe() -> None:
    from masksd.kit.cli.train import _train

    assert all(name in (TrainConfig.__doc__ or "") for name in list_models())
    assert all(name in (_train.__doc__ or "") for name in RECIPES)
