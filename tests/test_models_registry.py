from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from masksd.describe import multiply_adds
from masksd.models import create_model, list_models, register_model
from masksd.models.registry import _BUILDERS, REVISIONS, SHIPPED, hub_source

TOKENS = 17


def measure(name: str, size: int, device: str = "meta") -> tuple[float, float, torch.Size]:
    """Parameters in millions, multiply-adds in thousands of millions, shape of the logits."""
    with torch.device(device):
        model = create_model(name).eval()
        images = torch.zeros(1, 3, size, size)
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    with torch.no_grad():
        count, logits = multiply_adds(lambda: model(images, tokens))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters / 1e6, count / 1e9, logits.shape


def test_vit_b16_is_as_large_as_the_paper_says() -> None:
    parameters, multiply_adds, shape = measure("clip_cris_vit_b16", 480)
    assert parameters == pytest.approx(207, rel=0.10)
    assert multiply_adds == pytest.approx(165.96, rel=0.20)
    assert shape == (1, 1, 120, 120)


def test_tiny_is_tiny() -> None:
    parameters, multiply_adds, shape = measure("clip_cris_tiny", 64)
    assert parameters < 1.5
    assert multiply_adds < 0.060
    assert shape == (1, 1, 32, 32)


def test_counts_on_meta_are_those_of_the_cpu() -> None:
    assert measure("clip_cris_tiny", 64)[:2] == pytest.approx(
        measure("clip_cris_tiny", 64, "cpu")[:2]
    )


@pytest.mark.parametrize(
    ("name", "size", "logits"),
    [
        ("clip_cris_vit_s16", 224, 56),
        ("clip_cris_vit_b16", 576, 144),
        ("clip_cris_vit_l14", 532, 152),
    ],
)
def test_every_model_runs_at_its_size(name: str, size: int, logits: int) -> None:
    assert measure(name, size)[2] == (1, 1, logits, logits)


def test_names() -> None:
    assert list_models() == [
        "clip_cris_mini",
        "clip_cris_rn101",
        "clip_cris_rn50",
        "clip_cris_tiny",
        "clip_cris_vit_b16",
        "clip_cris_vit_l14",
        "clip_cris_vit_s16",
        "clip_lda_tiny",
        "clip_lda_vit_b16",
        "lavt_swin_b",
        "lavt_tiny",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"name": "clip_cris_tinny"},
            "unknown model 'clip_cris_tinny'; did you mean 'clip_cris_tiny'",
        ),
        ({"dropuot": 0.0}, "unknown model option 'dropuot'; did you mean 'dropout'"),
        ({"dropout": 2.0}, r"dropout must be a number in \[0, 1\], got 2.0"),
        ({"norm": "grop"}, "unknown norm 'grop'; did you mean 'group'"),
        ({"image_size": 65}, "image_size 65 must be a multiple of patch_size 8"),
        ({"vision_width": 98}, "vision_width 98 must be a multiple of vision_heads 4"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"vocab_size": 10.0}, r"vocab_size must be a whole number of at least 1, got 10\.0"),
        ({"vocab_size": 10, "end_token": 10}, "end_token 10 must be below vocab_size 10"),
        (
            {"pretrained": True},
            "no pretrained weights for 'clip_cris_tiny'; models that have them: clip_cris_rn101",
        ),
        ({"levels": 9}, r"levels must be in 1\.\.\.3"),
        ({"prior": 1}, "prior must lie strictly between 0 and 1, got 1"),
        ({"attention": "spda"}, "unknown attention 'spda'; did you mean 'sdpa'"),
    ],
)
def test_wrong_requests_name_the_fix(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_model(**{"name": "clip_cris_tiny", **arguments})


def test_overrides_replace_fields() -> None:
    config = create_model("clip_cris_tiny", vocab_size=40, dropout=0.3, image_size=96).config
    assert (config.vocab_size, config.dropout, config.image_size) == (40, 0.3, 96)
    assert config.end_token == 39
    assert create_model("clip_cris_tiny", vocab_size=40, end_token=7).config.end_token == 7


def test_a_builder_can_be_registered_once() -> None:
    def my_model(pretrained: bool = False, **overrides: Any) -> Any:
        return create_model("clip_cris_tiny", pretrained, **{"decoder_layers": 1, **overrides})

    register_model(my_model)
    try:
        assert "my_model" in list_models()
        assert len(create_model("my_model", dropout=0.0).decoder.layers) == 1
        with pytest.raises(ValueError, match="'my_model' is registered already"):
            register_model(my_model)
    finally:
        del _BUILDERS["my_model"]


@pytest.mark.slow
def test_names_of_models_do_not_load_transformers() -> None:
    code = (
        "import sys, masksd.models\n"
        "masksd.models.list_models()\n"
        "print('transformers' in sys.modules)\n"
        "masksd.models.ClipCrisConfig\n"
        "print('transformers' in sys.modules)\n"  # so the check above can fail
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True"]


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    import masksd.models

    with pytest.raises(AttributeError, match="no attribute 'ClipChris'"):
        _ = masksd.models.ClipChris


def test_every_repository_on_the_hub_is_pinned_but_one() -> None:
    names = {name for shipped in SHIPPED.values() for name in shipped.weights}
    open_ended = {name for name in names if hub_source(name)[1] == "main"}
    # archives are compared by SHA-256; of the Swin no commit could be confirmed
    assert open_ended == {"RN50.pt", "RN101.pt", "swin_base_patch4_window12_384.ms_in22k"}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in REVISIONS.values())
