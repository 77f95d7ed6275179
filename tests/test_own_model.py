"""Registered models of one's own in the kit: what it asks of them, and how it says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from masksd import Taps
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.costs import fits
from masksd.kit.costs.budget import measure_budget
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.sources import WordsBeforeEnd
from masksd.kit.training.trainer import train
from masksd.models import register_model, registry


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 64
    max_length: int = 32
    end_token: int = 63
    image_size: int = 64


class Own(nn.Module):
    """Reads a value in its forward, as ``pack_padded_sequence`` does, and may return a dict."""

    takes_attention_mask = False

    def __init__(self, config: Config, wrapped: bool = False) -> None:
        super().__init__()
        self.config, self.wrapped = config, wrapped
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.words = nn.Embedding(config.vocab_size, 8)
        logits = ":logits" if wrapped else ""
        valid = WordsBeforeEnd(config.end_token)
        self.taps = Taps("patches", "words", valid=valid, logits=logits)

    def forward(self, images: Tensor, tokens: Tensor) -> Any:
        assert int(tokens.max()) < self.config.vocab_size
        sentence = self.words(tokens).mean(1)[:, :, None, None]
        logits = (self.patches(images) * sentence).sum(1, keepdim=True)
        return {"logits": logits} if self.wrapped else logits


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register_model
    def own(pretrained: bool = False, **options: Any) -> Own:
        return Own(Config(**options))

    @register_model
    def own_dict(pretrained: bool = False, **options: Any) -> Own:
        return Own(Config(**options), wrapped=True)

    shapes = ShapesConfig(train=8, val=4, size=64)
    folder = build_shapes(tmp_path / "data/shapes", shapes, progress=False)
    data = DataConfig(data_root=folder)
    return TrainConfig(
        model="own", data=data, steps=2, warmup=1, batch_size=4, cpu=True, progress=False,
        eval_samples=4, output=tmp_path / "run",
    )  # fmt: skip


def test_a_model_that_reads_values_trains_without_an_estimate(
    settings: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "LARGE", 1)  # so that the batch counts as a large one
    with pytest.warns(UserWarning, match="without an estimate of the memory: the cost of own can"):
        fits.check_fits(settings)
    with pytest.raises(ValueError, match="its step fails on tensors without values"):
        measure_budget(settings)
    assert train(settings).checkpoint.is_dir()


def test_a_model_that_returns_a_dict_is_refused_before_the_first_step(
    settings: TrainConfig,
) -> None:
    config = dataclasses.replace(settings, model="own_dict")
    with pytest.raises(ValueError, match=r"must return logits .* a tensor; got a dict"):
        train(config)
    assert not config.output_folder().exists()
