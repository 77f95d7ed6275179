from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masksd.models.cris import (
    Attention,
    Decoder,
    Fused,
    Neck,
    sine_positions,
    with_coordinates,
)
from masksd.models.text_to_pixel import TextToPixelHead, dynamic_convolution


def make_neck(norm: str = "group", levels: int = 3) -> Neck:
    torch.manual_seed(0)
    channels = [8, 10, 14, 6][-levels:]
    return Neck(inputs=channels, sentence=6, hidden=16, outputs=12, norm=norm)


def make_maps(batch: int, levels: int = 3) -> list[Tensor]:
    return [torch.randn(batch, channels, 4, 5) for channels in [8, 10, 14, 6][-levels:]]


def make_decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    values = {"layers": 2, "heads": 2, "head_width": 4, "norm": "group", **options}
    return Decoder(width=12, words=6, **values)


def make_fused(batch: int = 3, grid: tuple[int, int] = (4, 5)) -> Fused:
    torch.manual_seed(1)
    return Fused(torch.randn(batch, 12, *grid), torch.randn(batch, 6))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_neck_uses_every_level_and_the_sentence(norm: str, levels: int) -> None:
    neck = make_neck(norm, levels)
    maps = [level.requires_grad_() for level in make_maps(2, levels)]
    sentence = torch.randn(2, 6, requires_grad=True)
    fused = neck(maps, sentence)
    assert fused.features.shape == (2, 12, 4, 5)
    assert fused.sentence is sentence
    (fused.features * torch.randn(2, 12, 4, 5)).sum().backward()
    for tensor in [*maps, sentence, *neck.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_neck_names_what_does_not_fit() -> None:
    maps = make_maps(2)
    with pytest.raises(ValueError, match="takes 3 levels, got 2"):
        make_neck()(maps[:2], torch.zeros(2, 6))
    with pytest.raises(ValueError, match="got 2 images and 1 sentences"):
        make_neck()(maps, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="unknown norm 'grup'; did you mean 'group'"):
        make_neck("grup")


def test_group_norm_leaves_no_batch_norm_and_samples_apart() -> None:
    neck, decoder = make_neck("group").train(), make_decoder(dropout=0.0).train()
    for part in (neck, decoder):
        assert not any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in part.modules()
        )
    maps = make_maps(3)
    sentence, words = torch.randn(3, 6), torch.randn(3, 7, 6)
    valid = torch.ones(3, 7, dtype=torch.bool)
    together = decoder(neck(maps, sentence), words, valid)
    for i in range(3):
        one = slice(i, i + 1)
        alone = decoder(neck([m[one] for m in maps], sentence[one]), words[one], valid[one])
        assert torch.allclose(alone, together[one], atol=1e-5)


def test_batch_norm_can_train_on_one_image() -> None:
    neck = make_neck("batch").train()
    fused = neck(make_maps(1), torch.randn(1, 6))
    assert fused.features.isfinite().all()


def test_coordinates_run_from_minus_one_to_one() -> None:
    out = with_coordinates(torch.zeros(2, 3, 4, 5, dtype=torch.float64))
    assert out.shape == (2, 5, 4, 5)
    assert out[1, 3, 2].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert torch.allclose(out[0, 4, :, 1], torch.linspace(-1, 1, 4, dtype=torch.float64))


def test_sine_positions_are_the_formula() -> None:
    table = sine_positions(3, 4, 8, torch.zeros(1, dtype=torch.float64))
    for y in range(3):
        for x in range(4):
            row = table[4 * y + x].tolist()
            for k, frequency in enumerate([1.0, 0.01]):  # 10000 ** (-k / 2)
                assert row[k] == pytest.approx(math.sin(y * frequency), abs=1e-6)
                assert row[2 + k] == pytest.approx(math.cos(y * frequency), abs=1e-6)
                assert row[4 + k] == pytest.approx(math.sin(x * frequency), abs=1e-6)
                assert row[6 + k] == pytest.approx(math.cos(x * frequency), abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2, dropout=0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]).bool() if masked else None
    expected, _ = theirs(query, key, value, key_padding_mask=None if mask is None else ~mask)
    assert torch.allclose(ours(query, key, value, mask), expected, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_rows_without_a_valid_word_stay_finite_and_alone(train: bool) -> None:
    decoder = make_decoder(dropout=0.0).train(train)
    fused, words = make_fused(), torch.randn(3, 7, 6, requires_grad=True)
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1] = False
    logits = decoder(fused, words, valid)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert words.grad is not None
    assert words.grad.isfinite().all()
    everything = decoder(fused, words, torch.ones(3, 7, dtype=torch.bool))
    assert torch.allclose(logits, everything, atol=1e-6)


def test_words_that_are_not_valid_change_nothing() -> None:
    decoder, fused = make_decoder().eval(), make_fused()
    words, valid = torch.randn(3, 7, 6), torch.rand(3, 7) < 0.5
    valid[:, 0] = True
    other = torch.where(valid[:, :, None], words, torch.randn(3, 7, 6) * 100)
    assert torch.equal(decoder(fused, words, valid), decoder(fused, other, valid))
    assert not torch.allclose(decoder(fused, words, valid), decoder(fused, words + 1, valid))


def test_dropout_acts_in_training_only() -> None:
    fused, words, valid = make_fused(), torch.randn(3, 7, 6), torch.ones(3, 7, dtype=torch.bool)
    dropping, plain = make_decoder(dropout=0.5), make_decoder(dropout=0.0)
    assert not torch.equal(dropping(fused, words, valid), dropping(fused, words, valid))
    assert torch.equal(plain(fused, words, valid), plain(fused, words, valid))
    assert torch.equal(dropping.eval()(fused, words, valid), plain(fused, words, valid))


def test_decoder_refuses_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="width 12 must be a multiple of 4 and of heads 8"):
        make_decoder(heads=8)
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\], got 1.5"):
        make_decoder(dropout=1.5)
    with pytest.raises(ValueError, match=r"prior must lie strictly between 0 and 1, got 0\.0"):
        make_decoder(prior=0.0)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 6),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    seed=st.integers(0, 2**16),
)
def test_dynamic_convolution_is_one_convolution_an_image(
    batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, height, width)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    kernel = torch.randn(batch, 9 * channels + 1, generator=generator, dtype=torch.float64)
    out = dynamic_convolution(features, kernel)
    assert out.shape == (batch, 1, height, width)
    for i in range(batch):
        weight, bias = kernel[i, :-1].reshape(1, channels, 3, 3), kernel[i, -1:]
        expected = F.conv2d(features[i : i + 1], weight, bias, padding=1)
        assert torch.allclose(out[i : i + 1], expected, atol=1e-10)


@pytest.mark.parametrize("prior", [0.02, 0.1, 0.5])
def test_untrained_head_predicts_the_prior_and_small_logits(prior: float) -> None:
    torch.manual_seed(0)
    head = TextToPixelHead(inputs=32, hidden=16, sentence=48, norm="batch", prior=prior)
    logits = head(torch.randn(16, 32, 6, 6), torch.randn(16, 48))
    assert logits.shape == (16, 1, 24, 24)
    assert logits.mean().item() == pytest.approx(math.log(prior / (1 - prior)), abs=0.3)
    assert logits.std() < 2
