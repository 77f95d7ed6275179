"""Who is trained, with which decay and at which rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from masksd import DistillConfig
from masksd.kit.config import TrainConfig
from masksd.kit.recipes import RECIPES
from masksd.kit.sources import wrap_model
from masksd.kit.training.optimizers import build_optimizer, freeze, parameter_groups
from masksd.models import create_model


def groups_of(
    model: Any, weight_decay: float, backbone_lr: float
) -> dict[str, tuple[float, float]]:
    """Return (weight decay, scale) of every trained parameter, by its name in the wrapper."""
    sd = wrap_model(model, DistillConfig())
    names = {id(p): name for name, p in sd.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(sd, model, weight_decay, backbone_lr):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["weight_decay"], group["scale"])
    trained = {name for name, p in sd.named_parameters() if p.requires_grad}
    assert found.keys() == trained
    return found


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    module[1].weight.requires_grad_(False)
    decayed, plain = parameter_groups(module, module, 0.1, 1.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_towers_have_a_rate_of_their_own_and_their_positions_have_not() -> None:
    found = groups_of(create_model("clip_cris_tiny"), 0.1, 0.25)
    for name, (decay, scale) in found.items():
        tower = name.startswith("segmenter.encoder.") and "position_embedding" not in name
        assert scale == (0.25 if tower else 1.0), name
        assert decay in (0.0, 0.1)
    assert found["segmenter.encoder.vision.embeddings.position_embedding.weight"] == (0.1, 1.0)
    assert found["maskers.image.token"] == (0.0, 1.0)
    assert {scale for _, scale in found.values()} == {0.25, 1.0}


def test_lavts_towers_and_tables_are_found() -> None:
    found = groups_of(create_model("lavt_tiny"), 0.1, 0.25)
    for name, (decay, scale) in found.items():
        tower = ".backbone." in name or ".text_encoder." in name
        assert scale == (0.25 if tower else 1.0), name
        if "relative_position_bias_table" in name or "norm" in name:
            assert decay == 0.0, name
    assert any("relative_position_bias_table" in name for name in found)
    assert found["segmenter.wrapped.classifier.classes.weight"] == (0.1, 1.0)


def test_frozen_parameters_are_not_trained() -> None:
    model = create_model("lavt_tiny")
    freeze(model, ["text_encoder.embeddings.", "text_encoder.encoder.layer.1."])
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("embeddings" in name or ".layer.1." in name for name in frozen)
    assert not any(name.endswith(tuple(frozen)) for name in groups_of(model, 0.1, 1.0))


def test_a_beginning_that_fits_nothing_is_an_error_before_anything_is_frozen() -> None:
    model = create_model("lavt_tiny")
    with pytest.raises(ValueError, match=r"begins with 'bert\.'; the model's parts are backbone, "):
        freeze(model, ["backbone.", "bert."])
    assert all(p.requires_grad for p in model.parameters())


def test_lavts_recipe_freezes_what_its_optimiser_leaves_out() -> None:
    with torch.device("meta"):
        model = create_model("lavt_swin_b")
    freeze(model, RECIPES["lavt-swin-b"].frozen)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    layers = {name.split(".")[3] for name in frozen if ".layer." in name}
    assert layers == {"10", "11"}
    assert "text_encoder.embeddings.word_embeddings.weight" in frozen
    assert len({name.split(".")[0] for name in frozen}) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimiser_is_the_one_that_is_asked_for(name: Any, kind: type) -> None:
    host = torch.nn.Linear(2, 3)
    optimizer = build_optimizer(host, host, TrainConfig(optimizer=name, lr=0.5))
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
