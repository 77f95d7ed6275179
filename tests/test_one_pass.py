"""One pass a step: equal to a plain implementation in float64, on triples and on hosts."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Segmenter, Taps
from masksd.kit.sources import wrap_model
from masksd.models import create_model
from tests.oracles.three_pass import cross_entropy, dice, log_probabilities, one_pass, truth_at
from tests.test_oracle import gradients
from tests.triples import make_batch, make_triple

AUGMENT = DistillConfig.preset("augment")


def make(**changes) -> CrossModalMaskedSelfDistill:
    config = dataclasses.replace(AUGMENT, seed=3, **changes)
    return CrossModalMaskedSelfDistill(*make_triple(), config).double()


def batch():
    images, tokens, target = make_batch(batch=4)
    return images.double(), tokens, target.double()


@pytest.mark.parametrize(
    ("target", "masked", "dice_weight", "labelled"),
    list(
        itertools.product(
            ["ground_truth", "teacher"],
            [("image", "text"), ("image",), ("text",)],
            [0.0, 0.7],
            [None, [True, False, True, False], [False] * 4],
        )
    ),
)
def test_loss_and_gradients_equal_one_plain_pass(target, masked, dice_weight, labelled):
    off = {each: None for each in ("image", "text") if each not in masked}
    sd = make(target=target, dice_weight=dice_weight, lambda_image=0.5, lambda_text=0.25, **off)
    bare = copy.deepcopy(sd)
    images, tokens, masks = batch()
    flags = None if labelled is None else torch.tensor(labelled)
    out = sd(images, tokens, target=masks, labelled=flags)
    out.loss.backward()

    names = {"lmvsd": "image", "vmlsd": "text"}
    encoder, neck, decoder = bare.segmenter.release()
    still = [copy.deepcopy(part).eval() for part in (encoder, neck, decoder)]
    hidden = {names[n]: (m, bare.maskers[names[n]].token) for n, m in out.masks.items()}
    assert set(hidden) == set(masked)
    logits = one_pass(encoder, neck, decoder, images, tokens, **hidden)
    known = [i for i in range(4) if labelled is None or labelled[i]]
    wanted = 0.0 * logits.sum()
    if known:
        truth = truth_at(masks, logits)[known]
        wanted = wanted + cross_entropy(logits[known], truth)
        wanted = wanted + dice_weight * dice(logits[known], truth)
    if target == "teacher":  # in its first step it is the host
        with torch.no_grad():
            soft = log_probabilities(one_pass(*still, images, tokens))[0]
        weight = 0.5 * ("image" in masked) + 0.25 * ("text" in masked)
        wanted = wanted + weight * cross_entropy(logits, soft.exp())
    wanted.backward()
    assert abs(out.loss - wanted) <= 1e-10 * abs(wanted)
    torch.testing.assert_close(out.logits, logits, rtol=1e-10, atol=1e-12)
    expected = gradients(bare)
    for name, got in gradients(sd).items():
        assert (got - expected[name]).norm() <= 1e-10 * expected[name].norm() + 1e-14, name


def test_counts_are_those_of_the_config_and_draws_repeat():
    images, tokens, masks = batch()
    drawn = [make()(images, tokens, target=masks).masks for _ in range(2)]
    assert torch.equal(drawn[0]["lmvsd"], drawn[1]["lmvsd"])
    assert (drawn[0]["lmvsd"].sum(1) == drawn[0]["lmvsd"].shape[1] // 8).all()
    sd = make()
    first = sd(images, tokens, target=masks).masks["lmvsd"]
    assert not torch.equal(first, sd(images, tokens, target=masks).masks["lmvsd"])


def test_the_masks_are_those_that_two_passes_draw():
    """With random relevance, one pass or three, a step masks the same tokens."""
    images, tokens, masks = batch()
    three = dataclasses.replace(AUGMENT, one_pass=False, seed=3)
    found = CrossModalMaskedSelfDistill(*make_triple(), three).double()(
        images, tokens, target=masks
    )
    once = make()(images, tokens, target=masks)
    for name, mask in once.masks.items():
        assert torch.equal(mask, found.masks[name]), name


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny", "clip_cris_rn50"])
def test_hosts_of_every_kind_take_one_pass(model):
    torch.manual_seed(0)
    host = create_model(model)
    sd = wrap_model(host, AUGMENT)
    ids = torch.tensor([[101, 7, 8, 102]] * 2)
    args = (torch.randn(2, 3, 64, 64), ids)
    args = (*args, torch.ones_like(ids)) if model == "lavt_tiny" else args
    out = sd(*args, target=torch.ones(2, 64, 64))
    out.loss.backward()
    assert sd.maskers["image"].token.grad.abs().sum() > 0
    assert "added nothing; a step costs 1.000 host steps" in sd.describe(*args)
    assert sd.unwrap() is not None


def test_a_flat_embedding_with_a_prefix_is_masked_on_its_grid():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = Embed()
            self.words = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, images, ids):
            x = self.embed(images) + self.words(ids).mean(1, keepdim=True)
            self.seen = x[:, 1:]
            return self.head(x[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))

    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)

        def forward(self, images):
            x = self.conv(images).flatten(2).transpose(1, 2)
            return torch.cat([x[:, :1], x], dim=1)

    taps = Taps("embed", "words", valid=lambda ids: ids > 0, image_width=4, prefix=1)
    host = Host()
    sd = CrossModalMaskedSelfDistill.wrap(host, AUGMENT, taps=taps)
    with torch.no_grad():
        host.words.weight.zero_()
        sd.maskers["text"].token.zero_()
    out = sd(
        torch.randn(2, 3, 32, 32), torch.ones(2, 3, dtype=torch.int64), target=torch.zeros(2, 4, 4)
    )
    is_token = (host.seen == sd.maskers["image"].token).all(-1)
    assert torch.equal(is_token, out.masks["lmvsd"])


def test_evaluation_is_the_host_and_preview_changes_nothing():
    sd = make()
    images, tokens, masks = batch()
    before = {name: value.clone() for name, value in sd.state_dict().items()}
    sd.preview(images, tokens, target=masks)
    for name, value in sd.state_dict().items():
        assert torch.equal(value, before[name]), name
    encoder, neck, decoder = copy.deepcopy(sd).eval().segmenter.release()
    assert torch.equal(sd.eval()(images, tokens), one_pass(encoder, neck, decoder, images, tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "main"}, "no plain pass to learn from, got target='main'"),
        ({"lambda_main": 0.0}, "lambda_main=0 leaves nothing that learns from the truth"),
        ({"joint": True}, "leave joint at False"),
        ({"low_memory": True}, "leave low_memory at False"),
        ({"share_weights": False}, "leave share_weights at True"),
        ({"image": None, "text": None}, "image or text must be on"),
        ({"image": MaskingConfig(relevance="dot")}, "image.relevance='dot'; leave it at 'auto'"),
        ({"text": MaskingConfig(every=2)}, "text.every=2; leave it at 1"),
    ],
)
def test_what_needs_a_plain_pass_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(AUGMENT, **changes)


def test_auto_relevance_is_random_in_one_pass():
    config = dataclasses.replace(AUGMENT, image=MaskingConfig())
    sd = CrossModalMaskedSelfDistill(*make_triple(), config)
    assert sd.maskers["image"].relevance == "random"


def test_an_encoder_that_cannot_tell_words_is_told_what_to_do():
    class Silent(nn.Module):
        image_embedding, text_embedding = "towers.patch_embed", "towers.words"

        def __init__(self, towers):
            super().__init__()
            self.towers = towers
            self.encode_image, self.encode_text = towers.encode_image, towers.encode_text

    encoder, neck, decoder = make_triple()
    sd = CrossModalMaskedSelfDistill(Silent(encoder), neck, decoder, AUGMENT)
    images, tokens, masks = make_batch(batch=2)
    with pytest.raises(ValueError, match="has no method real_words; give it one"):
        sd(images, tokens, target=masks)
    sd.unwrap()
    patches = dataclasses.replace(AUGMENT, text=None)  # as the error proposes
    sd = CrossModalMaskedSelfDistill(Silent(encoder), neck, decoder, patches)
    assert sd(images, tokens, target=masks).masks["lmvsd"].any()


def test_a_segmenter_of_ones_own_must_say_what_a_call_brings():
    with pytest.raises(ValueError, match="cannot say what a call brings: give it a method given"):
        Segmenter().given()
