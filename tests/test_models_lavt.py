from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from masksd.models import Lavt, LavtConfig, create_model, list_models
from masksd.models.base import check_describes
from masksd.models.lavt import PixelWordAttention


def tiny(**overrides: Any) -> Lavt:
    torch.manual_seed(0)
    return create_model("lavt_tiny", **overrides).eval()


def batch(height: int = 64, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(104, 512, (2, 7), generator=random)
    ids[:, 0], ids[:, 5], ids[:, 6] = 101, 102, 0
    return torch.randn(2, 3, height, width, generator=random), ids, ids != 0


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    assert tiny()(*batch(*size)).shape == (2, 2, *size)


def test_attention_is_the_papers_written_out() -> None:
    torch.manual_seed(0)
    layer = PixelWordAttention(8, 6)
    pixels, words = torch.randn(1, 8, 3, 4), torch.randn(1, 5, 6)
    valid = torch.tensor([[True, True, True, False, False]])
    query, weights = layer.query(pixels).flatten(2)[0].T, []
    for pixel in query:  # every pixel by itself, over the words that there are
        weights.append((layer.key(words[0, :3]) @ pixel / math.sqrt(8)).softmax(0))
    gathered = torch.stack(weights) @ layer.value(words[0, :3])
    gathered = layer.gathered(gathered.T.reshape(1, 8, 3, 4))
    want = layer.fused(layer.pixels(pixels) * gathered)
    torch.testing.assert_close(layer(pixels, words, valid), want)


def test_what_is_padding_changes_nothing() -> None:
    model, (images, ids, mask) = tiny(), batch()
    other = ids.clone()
    other[:, 6] = 333
    assert torch.equal(model(images, ids, mask), model(images, other, mask))
    assert not torch.equal(model(images, ids, mask), model(images, other, torch.ones_like(mask)))


@pytest.mark.parametrize("training", [False, True])
def test_a_sentence_without_words_gives_numbers(training: bool) -> None:
    images, ids, mask = batch()
    assert tiny().train(training)(images, ids, mask & False).isfinite().all()


def test_words_reach_every_stage() -> None:
    images, _, mask = batch()
    model = tiny()
    words = [torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    first, second = (model.backbone(images, word, mask) for word in words)
    assert [tuple(m.shape[1:]) for m in first] == [
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (128, 2, 2),
    ]
    assert all(not torch.allclose(a, b) for a, b in zip(first, second, strict=True))


def test_every_parameter_learns() -> None:
    model = tiny().train()
    model(*batch()).square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused


def test_swin_b_has_the_papers_sizes_and_takes_timms_weights() -> None:
    import timm

    with torch.device("meta"):
        model = create_model("lavt_swin_b")
        swin = timm.create_model("swin_base_patch4_window12_384", num_classes=0, img_size=480)
    assert model.backbone.widths == [128, 256, 512, 1024]
    assert model.config.image_size == 480
    shapes = {key: value.shape for key, value in swin.layers.state_dict().items()}
    assert shapes == {k: v.shape for k, v in model.backbone.stages.state_dict().items()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"windw": 3}, r"unknown model option 'windw'; did you mean 'window'\?"),
        ({"depths": (1, 1)}, "depths and heads must have one number a stage"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"heads": (1, 2, 0, 8)}, r"heads must be whole numbers of at least 1, got \(1, 2, 0, 8\)"),
        ({"dropout": 2.0}, r"dropout must be a number in \[0, 1\]"),
        ({"text_heads": 3}, "text_width 32 must be a multiple of text_heads 3"),
    ],
)
def test_impossible_sizes_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("lavt_tiny", **overrides)


def test_lists_of_json_are_taken() -> None:
    assert LavtConfig.from_dict({"depths": [1, 1], "heads": [1, 2]}).depths == (1, 1)


@pytest.mark.parametrize("size", [(32, 32), (64, 72)])
def test_an_impossible_image_size_is_named(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be multiples of 32 of at least 64"):
        tiny()(*batch(*size))


def test_weights_that_are_not_there_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not in the cache and could not be downloaded"):
        tiny().load_towers("swin_base_patch4_window12_384.ms_in22k", "no/such-bert")
    swin, commit = "swin_tiny_patch4_window7_224.ms_in1k", "a" * 40
    pins = f"hf download timm/{swin} --revision {commit}` and `hf download b/c --revision 2"
    with pytest.raises(ValueError, match=pins):
        tiny().load_towers(f"{swin}@{commit}", "b/c@2")
    with pytest.raises(ValueError, match="no pretrained weights for 'lavt_tiny'"):
        create_model("lavt_tiny", pretrained=True)


def test_both_are_listed() -> None:
    assert {"lavt_tiny", "lavt_swin_b"} <= set(list_models())


def test_tables_that_no_file_holds_are_bounded(tmp_path: Path) -> None:
    """A window of 200 has 160,000 biases in the file, and 1.6 thousand million places in memory."""

    def build() -> Lavt:
        return tiny(image_size=1600, window=200, depths=(1, 1), heads=(1, 2))

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build().state_dict().items()}
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"tables of \d{11} bytes, at most 1073741824"):
        check_describes(build, tmp_path / "a")
