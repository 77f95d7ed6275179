"""Batches of which some samples have no mask, and teachers: against plain passes, in float64."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.kit.sources import wrap_model
from masksd.losses import confidence_weight, consistency_loss
from masksd.models import create_model
from masksd.passes.branches import NAMES
from tests.oracles.three_pass import three_pass_loss
from tests.test_oracle import gradients
from tests.triples import make_batch, make_triple

FLAGS = {
    "some": [True, False, True, True],
    "one": [False, False, True, False],
    "none": [False] * 4,
    "all": [True] * 4,
}


def make(target="main", teacher=None, **changes) -> CrossModalMaskedSelfDistill:
    config = DistillConfig(
        image=MaskingConfig(ratio=0.4),
        text=MaskingConfig(ratio=0.5, rounding="ceil"),
        lambda_text=0.3,
        target=target,
        seed=3,
    )
    config = dataclasses.replace(config, **changes)
    return CrossModalMaskedSelfDistill(*make_triple(), config, teacher=teacher).double()


def batch():
    images, tokens, target = make_batch(batch=4)
    return images.double(), tokens, target.double()


def other_model():
    """Another model of the same kind, as a teacher."""
    parts = copy.deepcopy(make_triple())
    torch.manual_seed(9)
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return parts


@pytest.mark.parametrize(
    ("flags", "target", "dice", "low_memory"),
    list(itertools.product(FLAGS, ["main", "ground_truth", "teacher"], [0.0, 0.7], [False, True])),
)
def test_loss_and_gradients_equal_plain_passes(flags, target, dice, low_memory):
    teacher = other_model() if target == "teacher" else None
    sd = make(target, teacher, dice_weight=dice, low_memory=low_memory)
    bare = copy.deepcopy(sd)
    images, tokens, masks = batch()
    labelled = torch.tensor(FLAGS[flags])
    masks[~labelled] = 0.0
    out = sd(images, tokens, target=masks, labelled=labelled)
    out.loss.backward()
    encoder, neck, decoder = bare.segmenter.release()
    wanted = three_pass_loss(
        encoder,
        dict.fromkeys(("main", "lmvsd", "vmlsd"), neck),
        dict.fromkeys(("main", "lmvsd", "vmlsd"), decoder),
        {NAMES[modality]: masker.token for modality, masker in bare.maskers.items()},
        images,
        tokens,
        masks,
        out.masks,
        {name: branch.weight for name, branch in bare.branches.items()},
        target=target,
        detach_target=True,
        dice_weight=dice,
        labelled=[i for i, known in enumerate(FLAGS[flags]) if known],
        teacher=None if teacher is None else [part.double().eval() for part in teacher],
    )
    wanted.backward()
    assert abs(out.loss - wanted) <= 1e-10 * abs(wanted)
    expected = gradients(bare)
    for name, got in gradients(sd).items():
        assert (got - expected[name]).norm() <= 1e-10 * expected[name].norm() + 1e-14, name


@pytest.mark.parametrize("model", ["lavt_tiny", "clip_cris_tiny"])
def test_a_host_learns_the_truth_of_labelled_samples_alone(model):
    """Masks of the others change nothing; the loss is that of the labelled rows."""
    torch.manual_seed(0)
    host = create_model(model)
    sd = wrap_model(host, DistillConfig(text=None)).double()
    images, ids = torch.randn(3, 3, 64, 64).double(), torch.tensor([[101, 7, 8, 102]] * 3)
    args = (images, ids, torch.ones_like(ids)) if model == "lavt_tiny" else (images, ids)
    labelled, masks = torch.tensor([True, False, True]), (torch.rand(3, 64, 64) > 0.5).double()
    out = sd(*args, target=masks, labelled=labelled)
    (out.loss - out.distill_loss).backward(retain_graph=True)
    found = {name: p.grad.clone() for name, p in host.named_parameters() if p.grad is not None}
    sd.zero_grad()
    from masksd.losses import segmentation_loss

    segmentation_loss(out.logits[labelled], masks[labelled]).backward()
    for name, parameter in host.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-14)
    assert found


def test_masks_of_unlabelled_samples_are_not_looked_at():
    images, tokens, masks = batch()
    labelled = torch.tensor(FLAGS["some"])
    other = masks.clone()
    other[~labelled] = 1.0 - other[~labelled]
    losses = [make()(images, tokens, target=m, labelled=labelled).loss for m in (masks, other)]
    assert torch.equal(*losses)


def average(sd, steps):
    """Train and return the weights before each step."""
    images, tokens, masks = batch()
    optimizer = torch.optim.SGD([p for p in sd.parameters() if p.requires_grad], lr=0.5)
    seen = []
    for _ in range(steps):
        seen.append({k: v.clone() for k, v in sd.segmenter.state_dict().items()})
        optimizer.zero_grad()
        sd(images, tokens, target=masks).loss.backward()
        optimizer.step()
    return seen


def test_the_teacher_is_the_average_of_the_weights():
    sd = make("teacher", teacher_decay=0.5)
    seen = average(sd, 20)
    wanted = dict(seen[0])
    for step, weights in enumerate(seen):
        decay = min(0.5, step / (9 + step))
        for name, value in weights.items():
            moves = value.is_floating_point()
            wanted[name] = decay * wanted[name] + (1 - decay) * value if moves else value
    for name, value in sd.teaching.segmenter.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-12, atol=1e-14)
    assert not torch.equal(
        sd.teaching.segmenter.neck.norm.running_var, seen[-1]["neck.norm.running_var"]
    )


def test_a_teacher_is_saved_and_goes_on():
    whole, cut = make("teacher", teacher_decay=0.9), make("teacher", teacher_decay=0.9)
    average(whole, 6)
    average(cut, 3)
    resumed = make("teacher", teacher_decay=0.9)
    resumed.load_state_dict(cut.state_dict())
    average(resumed, 3)
    state = resumed.state_dict()
    assert any(name.startswith("teaching.") for name in state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_teacher_comes_back_as_a_plain_model():
    sd = make("teacher")
    average(sd, 3)
    images, tokens, _ = batch()
    encoder, neck, decoder = sd.teacher
    modules = [module for part in (encoder, neck, decoder) for module in part.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert not any(module.training for module in modules)
    assert all(parameter.requires_grad for module in modules for parameter in module.parameters())
    for part in (encoder, neck, decoder):  # torch multiplies in another order where it is True
        part.requires_grad_(False)
    with torch.no_grad():
        image, text = encoder.encode_image(images), encoder.encode_text(tokens)
        logits = decoder(neck(image.maps, text.pooled), text.local, text.attention_mask)
    assert torch.equal(logits, sd.teaching.logits((images, tokens), {}))


def test_the_teacher_is_no_part_of_the_host():
    host = create_model("lavt_tiny")
    names = set(host.state_dict())
    sd = CrossModalMaskedSelfDistill.wrap(host, DistillConfig(target="teacher"))
    assert set(host.state_dict()) == names
    assert not any(p.requires_grad for p in sd.teaching.parameters())
    assert sd.train().teaching.training is False
    teacher = sd.teacher
    assert type(teacher) is type(host)
    assert all(map(torch.equal, teacher.state_dict().values(), host.state_dict().values()))
    assert sd.unwrap() is host


def test_a_given_teacher_stays_as_it_is():
    teacher = create_model("lavt_tiny")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    host = create_model("lavt_tiny")
    config = DistillConfig(target="teacher")
    sd = CrossModalMaskedSelfDistill.wrap(host, config, teacher=teacher)
    ids = torch.tensor([[101, 7, 8, 102]] * 2)
    args = torch.randn(2, 3, 64, 64), ids, torch.ones_like(ids)
    optimizer = torch.optim.SGD(sd.parameters(), lr=0.1)
    for _ in range(2):
        sd(*args, target=torch.zeros(2, 64, 64)).loss.backward()
        optimizer.step()
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["none", "threshold", "soft"])
def test_confidence_weighs_pixels(kind):
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64) * 3
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = 1 / (1 + 2.718281828459045**-t), 1 / (1 + 2.718281828459045**-x)
        weight = {
            "none": 1.0,
            "threshold": float(max(p, 1 - p) >= 0.7),
            "soft": 1.3 - 2.718281828459045 ** (-((p - 0.5) ** 2) / 0.02),
        }[kind]
        log = torch.tensor([q, 1 - q], dtype=torch.float64).log()
        total -= weight * float(p * log[0] + (1 - p) * log[1])
    found = consistency_loss(logits, teacher, confidence=kind)
    assert float(found) == pytest.approx(total / logits.numel(), rel=1e-10)
    if kind == "soft":
        sure = confidence_weight(torch.tensor([0.5, 1.0]), "soft")
        torch.testing.assert_close(sure, torch.tensor([0.3, 1.3]), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_labels_and_a_teacher_compile_to_one_graph(backend):
    eager, sd = make("teacher"), make("teacher")
    compiled = torch.compile(sd, fullgraph=True, backend=backend)
    images, tokens, masks = batch()
    for flags in ("some", "none"):
        labelled = torch.tensor(FLAGS[flags])
        with torch._dynamo.config.patch(error_on_recompile=True):
            out = compiled(images, tokens, target=masks, labelled=labelled)
        expected = eager(images, tokens, target=masks, labelled=labelled)
        torch.testing.assert_close(out.losses, expected.losses)
        for each, module in ((out, sd), (expected, eager)):
            each.loss.backward()
            with torch.no_grad():
                for parameter in module.segmenter.parameters():
                    parameter -= 0.1 * parameter.grad
            module.zero_grad()
    torch.testing.assert_close(dict(sd.state_dict()), dict(eager.state_dict()))


def test_what_does_not_go_together_is_named():
    images, tokens, masks = batch()
    labelled = torch.tensor(FLAGS["some"])
    with pytest.raises(ValueError, match=r"must be a bool tensor \(B,\) with B=4, got a list"):
        make()(images, tokens, target=masks, labelled=FLAGS["some"])
    with pytest.raises(ValueError, match=r"with B=4, got torch.int64 \(4,\)"):
        make()(images, tokens, target=masks, labelled=labelled.long())
    with pytest.raises(ValueError, match=r"call sd\(..., target=masks, labelled=flags\)"):
        make()(images, tokens, labelled=labelled)
    by_truth = MaskingConfig(relevance="ground_truth")
    with pytest.raises(ValueError, match="ranks by masks that unlabelled samples do not have"):
        make(image=by_truth)(images, tokens, target=masks, labelled=labelled)
    with pytest.raises(ValueError, match=r"no teacher: DistillConfig\(target='teacher'\) has one"):
        _ = make().teacher
    with pytest.raises(ValueError, match="a teacher was given, but the branches' target is 'main'"):
        make(teacher=other_model())
    with pytest.raises(ValueError, match="teacher_decay must be below 1"):
        DistillConfig(target="teacher", teacher_decay=1.0)
    with pytest.raises(ValueError, match="weighs a predicted mask"):
        DistillConfig(target="ground_truth", confidence="soft")


class Lossy(nn.Module):
    """A host that computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 1, 1)

    def forward(self, images, masks):
        logits = self.head(self.patches(images))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, masks)
        return {"logits": logits, "loss": loss}


def test_a_host_with_a_loss_of_its_own_says_what_to_do():
    from masksd import Taps

    taps = Taps("patches", images=0, tokens=0, logits=":logits", loss=":loss")
    sd = CrossModalMaskedSelfDistill.wrap(Lossy(), DistillConfig(text=None), taps=taps)
    images, masks = torch.randn(2, 3, 32, 32), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="computes its own loss, over every sample: name the log"):
        sd(images, masks, target=masks, labelled=torch.tensor([True, False]))


def test_a_teacher_is_counted():
    sd = make("teacher")
    images, tokens, _ = batch()
    text = sd.describe(images, tokens)
    assert "the teacher 1.000 without backward" in text


def test_a_resting_teacher_stays_as_it_is():
    """Of an accumulated step's calls, only the first moves the average."""
    sd = make("teacher", teacher_decay=0.5)
    images, tokens, masks = batch()
    for step in range(2):
        for part in range(3):
            sd.teacher_rests = part > 0
            before = copy.deepcopy(sd.teaching.state_dict())
            sd(images, tokens, target=masks).loss.backward()
            after = sd.teaching.state_dict()
            moved = any(not torch.equal(before[name], after[name]) for name in before)
            assert moved == (step > 0 and part == 0)
        with torch.no_grad():
            for parameter in sd.segmenter.parameters():
                parameter.add_(0.1)


def test_a_model_that_never_sees_the_truth_is_refused():
    with pytest.raises(ValueError, match="lambda_main=0 leaves nothing that learns from the truth"):
        DistillConfig(lambda_main=0.0)
