"""Who ranks the tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from masksd import (
    CrossModalMaskedSelfDistill,
    DistillConfig,
    ImageFeatures,
    MaskingConfig,
    Pass,
    Taps,
    TextFeatures,
)
from masksd.relevance import Projection, rank_tokens
from tests.test_hosts_taps import CONFIG, TAPS, C, batch, hooks, learns, make, wrap
from tests.triples import make_batch, make_triple

FEATURES = dataclasses.replace(TAPS, patches="norm", words="mix", sentence="vector")


def a_pass(channels=1):
    generator = torch.Generator().manual_seed(3)
    return Pass(
        torch.randn(2, channels, 8, 12, generator=generator),
        ImageFeatures(
            torch.randn(2, 6, 5, generator=generator),
            (2, 3),
            torch.randn(2, 5, generator=generator),
        ),
        TextFeatures(
            torch.randn(2, 4, 5, generator=generator),
            torch.randn(2, 5, generator=generator),
            torch.ones(2, 4, dtype=torch.bool),
        ),
        None,
        (),
    )


def no_noise():
    raise AssertionError("nothing was to be drawn")


@pytest.mark.parametrize("channels", [1, 2])
def test_prediction_is_the_probability_of_the_foreground_in_each_cell(channels):
    plain = a_pass(channels)
    scores = rank_tokens("prediction", "image", plain, None, no_noise)
    share = plain.logits.sigmoid() if channels == 1 else plain.logits.softmax(1)
    share = share[:, -1]
    expected = [share[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((1, 2)) for r, c in GRID]
    torch.testing.assert_close(scores, torch.stack(expected, 1))


GRID = [(r, c) for r in range(2) for c in range(3)]


def test_prediction_is_ranked_in_full_precision():
    plain = a_pass()
    half = plain._replace(logits=plain.logits.bfloat16())
    scores = rank_tokens("prediction", "image", half, None, no_noise)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("modality", ["image", "text"])
def test_dot_is_the_product_with_the_other_modality(modality):
    plain = a_pass()
    local, other = {
        "image": (plain.image.local, plain.text.pooled),
        "text": (plain.text.local, plain.image.pooled),
    }[modality]
    expected = torch.stack([tokens @ vector for tokens, vector in zip(local, other, strict=True)])
    torch.testing.assert_close(rank_tokens("dot", modality, plain, None, no_noise), expected)
    noise = torch.rand(2, 4)
    assert rank_tokens("random", modality, plain, None, lambda: noise) is noise


@pytest.mark.parametrize(
    ("shared", "expected"), [(True, ("dot", "dot")), (False, ("prediction", "random"))]
)
def test_auto_goes_by_the_space(shared, expected):
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, shared_space=shared))
    assert tuple(masker.relevance for masker in sd.maskers.values()) == expected
    triple = CrossModalMaskedSelfDistill(*make_triple())
    assert {masker.relevance for masker in triple.maskers.values()} == {"dot"}
    if not shared:
        inputs, target = batch()
        learns(sd, sd(*inputs, target=target))
        assert "'prediction' relevance" in sd.describe()


def test_dot_by_taps_takes_the_named_features():
    taps = dataclasses.replace(FEATURES, image_vector="vector", shared_space=True)
    sd = wrap(make(), CONFIG, taps=taps)
    inputs, target = batch()
    out = sd(*inputs, target=target)
    host = sd.segmenter.wrapped
    words = host.mix(host.words(inputs[1]))
    vector = host.vector((words.tanh() * inputs[2][..., None]).mean(1))
    expected = (words @ vector[..., None])[..., 0].detach()
    torch.testing.assert_close(out.relevance["vmlsd"], expected)


def test_what_a_host_does_not_offer_says_what_is_possible():
    config = dataclasses.replace(CONFIG, image=MaskingConfig(relevance="dot"))
    sd = wrap(make(), config, taps=TAPS)
    with pytest.raises(ValueError, match=r"'dot' of image .*got nothing and nothing.*'prediction'"):
        sd(*batch()[0])
    with pytest.raises(ValueError, match="relevance 'prediction' cannot rank the tokens of text"):
        DistillConfig(text=MaskingConfig(relevance="prediction"))


PROJECTION = DistillConfig(
    image=MaskingConfig(ratio=0.5, relevance="projection"),
    text=MaskingConfig(ratio=0.5, rounding="ceil", relevance="projection"),
)


def test_projection_asks_for_an_example_features_and_a_target():
    inputs, _ = batch()
    host = make()
    with pytest.raises(ValueError, match=r"'projection' needs example=\(…\), to see the widths"):
        wrap(host, PROJECTION, taps=FEATURES)
    assert hooks(host) == []
    with pytest.raises(ValueError, match=r"name them with Taps\(patches=…, sentence=…\)"):
        wrap(host, PROJECTION, taps=TAPS, example=inputs)
    assert hooks(host) == []
    sd = wrap(host, PROJECTION, taps=FEATURES, example=inputs)
    with pytest.raises(ValueError, match=r"'projection' needs a target: call sd\(..., target=mask"):
        sd(*inputs)
    narrow = make()
    narrow.vector = nn.Sequential(nn.Linear(C, 3), nn.Linear(3, C))
    taps = dataclasses.replace(FEATURES, sentence="vector.0")
    narrow = wrap(narrow, PROJECTION, taps=taps, example=inputs)
    with pytest.raises(ValueError, match="words as wide as the sentence, 3, got 10"):
        narrow(*inputs, target=batch()[1])


def test_projection_learns_by_alignment_and_the_host_never_feels_it():
    inputs, target = batch()
    sd = wrap(make(), PROJECTION, taps=FEATURES, example=inputs)
    assert len(sd.distill_parameters()) == 2 + 4
    host = sd.segmenter.wrapped
    out = sd(*inputs, target=target)
    assert set(out.losses) == {"seg", "align", "lmvsd", "vmlsd"}
    weighted = 0.75 * out.losses["lmvsd"] + 0.1 * out.losses["vmlsd"] + out.losses["align"]
    torch.testing.assert_close(out.distill_loss, weighted)
    out.losses["align"].backward()
    assert all(p.grad is None for p in host.parameters())
    assert all(masker.token.grad is None for masker in sd.maskers.values())
    assert all(p.grad.norm() > 0 for p in sd.projection.parameters())
    expected = sd.projection.patches.weight.grad.clone()
    sd.zero_grad()
    sd.step.zero_()
    again = sd(*inputs, target=target)
    again.loss.backward()
    torch.testing.assert_close(sd.projection.patches.weight.grad, expected)  # by alignment alone

    # The host's gradient is that of the same masks without the alignment term.
    gradients = {name: p.grad.clone() for name, p in host.named_parameters() if p.grad is not None}
    sd.zero_grad()
    sd.step.zero_()
    third = sd(*inputs, target=target)
    (third.loss - third.losses["align"]).backward()
    assert gradients.keys() == {n for n, p in host.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        assert torch.equal(host.get_parameter(name).grad, gradient), name


def test_projection_learns_to_rank():
    inputs, target = batch(64, 64, size=4)
    target = torch.zeros_like(target)
    target[:, :32, 32:] = 1
    inputs[0][:, :, :32, 32:] += 3.0
    sd = wrap(make(), PROJECTION, taps=FEATURES, example=inputs)
    optimizer = torch.optim.Adam(sd.projection.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        out = sd(*inputs, target=target)
        out.losses["align"].backward()
        optimizer.step()
    scores = out.relevance["lmvsd"].unflatten(1, (8, 8))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:4, 4:] = True
    assert scores[:, inside].mean() > 0
    assert scores[:, ~inside].mean() < 0


def test_projection_of_a_triple_and_of_a_host_of_another_dtype():
    images, tokens, target = make_batch()
    parts = make_triple()
    sd = CrossModalMaskedSelfDistill(*parts, PROJECTION, example=(images, tokens))
    out = sd(images, tokens, target=target)
    assert out.losses["align"].requires_grad
    inputs, target = batch()
    inputs = (inputs[0].double(), *inputs[1:])
    sd = wrap(make().double(), PROJECTION, taps=FEATURES, example=inputs)
    learns(sd, sd(*inputs, target=target))


def test_a_pass_that_was_not_projected_is_refused():
    bare = a_pass()._replace(image=ImageFeatures(None, (2, 3)))
    with pytest.raises(ValueError, match="needs features of patches and of the sentence"):
        Projection(5, 5)(bare)
    with pytest.raises(ValueError, match="the pass was not projected"):
        Projection(5, 5).loss(bare, torch.zeros(2, 4, 4))


def test_vectors_of_another_shape_are_refused():
    inputs, _ = batch()
    for field, shape in (("sentence", r"\(B, C\)"), ("image_vector", r"\(B, C\)")):
        sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, **{field: "mix"}))
        with pytest.raises(ValueError, match=rf"{field} must be {shape}, got \(2, 6, 10\)"):
            sd(*inputs)
    sd = wrap(make(), CONFIG, taps=Taps("patch_embed", "words", valid="mask", words="norm"))
    with pytest.raises(ValueError, match=r"words must be \(B, L, C\), got \(2, 10, 4, 4\)"):
        sd(*inputs)


def test_attention_by_taps_needs_no_branch_of_words():
    config = DistillConfig(image=MaskingConfig(relevance="attention"), text=None)
    inputs, target = batch()
    out = wrap(make(), config, taps=FEATURES)(*inputs, target=target)
    scores = out.relevance["lmvsd"]
    assert ((scores > 1 / inputs[1].shape[1]) & (scores <= 1)).all()
    assert scores.unique().numel() > 1
    for lacking in ("patches", "words"):
        sd = wrap(make(), config, taps=dataclasses.replace(FEATURES, **{lacking: None}))
        with pytest.raises(ValueError, match="relevance 'attention' needs features of patches and"):
            sd(*inputs, target=target)
