"""The wrapper against a plain three-pass implementation: loss and every gradient, in float64."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Triple
from masksd.passes.branches import NAMES
from tests.oracles.three_pass import three_pass_loss
from tests.triples import LENGTH, make_batch, make_triple

PRODUCT = list(
    itertools.product(
        ["both", "image", "text", "none"],
        [True, False],  # shared neck and decoder
        [("main", True), ("main", False), ("ground_truth", True)],
        [("dot", "dot"), ("random", "random"), ("ground_truth", "dot")],
        ["shared", "position"],
        [0.0, 0.7],  # Dice
    )
)


def wrap(branches, share, target, relevance, token, dice):
    image = MaskingConfig(
        relevance=relevance[0],
        ratio=0.4,
        token=token,
        positions=16 if token == "position" else None,
    )
    text = MaskingConfig(
        relevance=relevance[1],
        ratio=0.5,
        rounding="ceil",
        token=token,
        positions=LENGTH if token == "position" else None,
    )
    config = DistillConfig(
        image=image if branches in ("both", "image") else None,
        text=text if branches in ("both", "text") else None,
        target=target[0],
        detach_target=target[1],
        share_weights=share,
        dice_weight=dice,
        seed=3,
    )
    return CrossModalMaskedSelfDistill(*make_triple(), config).double()


def library_gradients(sd, batch):
    """One training step: the loss, every gradient by name, the masks and the buffers after it."""
    images, tokens, target = batch
    sd.zero_grad(set_to_none=True)
    out = sd(images, tokens, target=target)
    out.loss.backward()
    return out.loss.detach(), gradients(sd), out.masks


def oracle_gradients(sd, batch, masks, **wrong):
    """The same step by the oracle, on a copy of the weights without any hook."""
    images, tokens, target = batch
    sd = copy.deepcopy(sd)
    sd.zero_grad(set_to_none=True)
    encoder, neck, decoder = sd.segmenter.release()
    own = {name: dict(branch.parts) for name, branch in sd.branches.items()}
    settings = {
        "target": sd.distill_config.target,
        "detach_target": sd.distill_config.detach_target,
        "dice_weight": sd.distill_config.dice_weight,
        "weights": {name: branch.weight for name, branch in sd.branches.items()},
    } | wrong
    loss = three_pass_loss(
        encoder,
        {"main": neck} | {name: parts.get("neck", neck) for name, parts in own.items()},
        {"main": decoder} | {name: parts.get("decoder", decoder) for name, parts in own.items()},
        {NAMES[modality]: masker.token for modality, masker in sd.maskers.items()},
        images,
        tokens,
        target,
        masks,
        **settings,
    )
    loss.backward()
    return loss.detach(), gradients(sd), dict(sd.named_buffers())


def gradients(module):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters()
    }


def differences(sd, batch, **wrong):
    """Names of tensors that disagree: the loss, gradients and, after the step, buffers."""
    before = copy.deepcopy(sd)
    loss, grads, masks = library_gradients(sd, batch)
    oracle_loss, oracle_grads, oracle_buffers = oracle_gradients(before, batch, masks, **wrong)
    wanted = {"loss": oracle_loss} | oracle_grads
    different = [
        name
        for name, got in ({"loss": loss} | grads).items()
        if (got - wanted[name]).norm() > 1e-10 * wanted[name].norm() + 1e-14
    ]
    for name, buffer in sd.named_buffers():
        if name == "step":
            continue
        if not torch.allclose(buffer, oracle_buffers[name], rtol=1e-12, atol=0):
            different.append(name)
    return different


def double_batch():
    images, tokens, target = make_batch()
    return images.double(), tokens, target.double()


@pytest.mark.parametrize("options", PRODUCT, ids=lambda o: "-".join(map(str, o)))
def test_loss_and_every_gradient_equal_the_oracle(options):
    sd = wrap(*options)
    assert differences(sd, double_batch()) == []
    for modality, masker in sd.maskers.items():  # the comparison saw what it should see
        assert masker.token.grad.norm() > 0, modality


@pytest.mark.parametrize("target", [("main", True), ("main", False), ("ground_truth", True)])
@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_two_channels_equal_the_oracle(target, dice):
    sd = wrap("both", True, target, ("prediction", "dot"), "shared", dice)
    sd.segmenter.decoder.head = torch.nn.ConvTranspose2d(8, 2, 2, stride=2).double()
    assert differences(sd, double_batch()) == []


DEFAULT = ("both", True, ("main", True), ("dot", "dot"), "shared", 0.0)


def test_a_wrong_weight_is_found():
    weights = {"lmvsd": torch.tensor(0.75 + 1e-6), "vmlsd": torch.tensor(0.10)}
    assert "loss" in differences(wrap(*DEFAULT), double_batch(), weights=weights)


@pytest.mark.parametrize("wrong", [{"target": "ground_truth"}, {"detach_target": False}])
def test_a_wrong_target_is_found(wrong):
    assert "segmenter.decoder.head.weight" in differences(wrap(*DEFAULT), double_batch(), **wrong)


class ReusesTooMuch(Triple):
    """The fault of forgetting to encode the masked picture again."""

    def masked(self, plain, image=None, text=None, **parts):
        return super().masked(plain, None, text, **parts)


class ReusesTooLittle(Triple):
    """The fault of masking the words in the visual branch as well."""

    def masked(self, plain, image=None, text=None, **parts):
        if image is not None:
            text = type(image)(plain.text.valid, torch.zeros(12, dtype=torch.float64))
        return super().masked(plain, image, text, **parts)


class DetachesReused(Triple):
    """The fault of reusing features without their gradient."""

    def masked(self, plain, image=None, text=None, **parts):
        text_features = plain.text._replace(local=plain.text.local.detach())
        return super().masked(plain._replace(text=text_features), image, text, **parts)


@pytest.mark.parametrize("fault", [ReusesTooMuch, ReusesTooLittle, DetachesReused])
def test_a_wrong_reuse_is_found(fault):
    sd = wrap(*DEFAULT)
    sd._checked = True  # the check finds some of these by itself
    sd.segmenter.__class__ = fault
    assert differences(sd, double_batch())


def test_moving_batch_statistics_is_found(monkeypatch):
    import contextlib

    monkeypatch.setattr(
        "masksd.passes.branches.frozen_statistics", lambda *m: contextlib.nullcontext()
    )
    assert "segmenter.neck.norm.running_mean" in differences(wrap(*DEFAULT), double_batch())
