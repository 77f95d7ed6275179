"""Runs that start from the model of an earlier one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from masksd.kit.checkpoints import save_checkpoint
from masksd.kit.cli.options import given_options
from masksd.kit.cli.train import _start
from masksd.kit.config import TrainConfig
from masksd.kit.recipes import TOWERS
from masksd.kit.sources import build_model

EARLIER = TrainConfig(max_length=9)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    return save_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint", build_model(EARLIER))


def test_the_weights_are_the_earlier_models(earlier):
    torch.manual_seed(6)
    fresh = build_model(EARLIER).model.state_dict()
    torch.manual_seed(6)
    started = build_model(dataclasses.replace(EARLIER, start_from=earlier)).model.state_dict()
    torch.manual_seed(5)
    wanted = build_model(EARLIER).model.state_dict()
    assert any(not torch.equal(fresh[name], wanted[name]) for name in wanted)
    for name, value in wanted.items():
        assert torch.equal(started[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lavt_tiny"}, "is a clip_cris_tiny, but the run's model is lavt_tiny"),
        ({"max_length": 12}, "does not fit the run's model: .*use its --image-size"),
    ],
)
def test_another_model_is_refused(earlier, changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(dataclasses.replace(EARLIER, start_from=earlier, **changes))


def test_one_start_is_enough(earlier):
    with pytest.raises(ValueError, match=r"encoder_weights='a' and start_from='.*' both say where"):
        TrainConfig(encoder_weights=Path("a"), start_from=earlier)


def test_the_default_run_leaves_its_towers_out():
    assert _start(given_options(["--seed", "1"])).encoder_weights == TOWERS
    assert _start(given_options(["--start-from", "runs/one/checkpoint"])).encoder_weights is None
