"""Distillation from a teacher: the losses against loops, and the step around them."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masksd import (
    ChannelDistillConfig,
    CrossModalDistill,
    CrossModalMaskedSelfDistill,
    DistillConfig,
    MaskingConfig,
    Taps,
    Triple,
    segmentation_loss,
)
from masksd.knowledge.losses import (
    channel_attention,
    channel_loss,
    channel_wise_loss,
    logits_loss,
    relation_loss,
)
from tests.oracles import channel_kd as oracle
from tests.triples import END, make_batch, make_triple

BATCH, WORDS = 2, 4
GRIDS = [((2, 3), (2, 3)), ((4, 4), (2, 3)), ((2, 4), (5, 3))]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def features(grid: tuple[int, int], width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches and words."""
    return drawn(BATCH, grid[0] * grid[1], width, seed=seed), drawn(
        BATCH, WORDS, width, seed=seed + 1
    )


def agree(ours: Tensor, theirs: Tensor, learns: tuple[Tensor, ...]) -> None:
    """Losses and gradients are equal."""
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(ours, learns), torch.autograd.grad(theirs, learns), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


VALID = torch.tensor([[False, True, True, True], [False, True, False, False]])


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("grids", GRIDS)
def test_relations_equal_loops(grids, share) -> None:
    student, teacher = features(grids[0], 5, 1), features(grids[1], 8, 3)
    ours = relation_loss(student, teacher, VALID, grids, share)
    agree(ours, oracle.relation_loss(student, teacher, VALID, grids, share), student)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_channels_equal_loops(weighted, share) -> None:
    student, teacher = drawn(BATCH, 9, 6, seed=1), drawn(BATCH, 4, 6, seed=2)
    ours = channel_loss(student, teacher, share, weighted)
    agree(ours, oracle.channel_loss(student, teacher, share, weighted), (student,))


@pytest.mark.parametrize("grids", GRIDS)
def test_channel_wise_equals_loops(grids) -> None:
    student, teacher = features(grids[0], 5, 1)[0], features(grids[1], 5, 3)[0]
    ours = channel_wise_loss(student, teacher, grids, 3.0)
    agree(ours, oracle.channel_wise_loss(student, teacher, grids, 3.0), (student,))


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("channels", [(1, 1), (1, 2), (2, 1)])
def test_logits_equal_loops(grids, channels) -> None:
    student, teacher = (
        drawn(BATCH, count, *grid, seed=count) for count, grid in zip(channels, grids, strict=True)
    )
    ours = logits_loss(student, teacher, 2.5)
    agree(ours, oracle.logits_loss(student, teacher, 2.5), (student,))


@given(st.integers(0, 99), st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_teacher_that_is_the_student_asks_for_nothing(seed, share) -> None:
    patches, words = features((3, 3), 5, seed)
    grids = ((3, 3), (3, 3))
    same = relation_loss((patches, words), (patches, words), VALID, grids, share)
    assert same == 0
    assert channel_loss(patches, patches, share, weighted=True) == 0
    assert channel_wise_loss(patches, patches, grids).abs() < 1e-12


@given(st.permutations(range(5)), st.floats(0.1, 9.0))
@settings(max_examples=20, deadline=None)
def test_relations_know_neither_order_nor_scale_of_the_teachers_channels(order, scale) -> None:
    student, teacher = features((3, 3), 4, 1), features((2, 3), 5, 3)
    grids = ((3, 3), (2, 3))
    other = tuple(scale * each[..., order] for each in teacher)
    torch.testing.assert_close(
        relation_loss(student, other, VALID, grids), relation_loss(student, teacher, VALID, grids)
    )


def test_attention_has_a_mean_of_one_and_no_scale() -> None:
    local = drawn(2, 6, 5)
    torch.testing.assert_close(channel_attention(local), channel_attention(70 * local))
    torch.testing.assert_close(
        channel_attention(local).mean(-1), torch.ones(2, dtype=torch.float64)
    )


def test_a_smaller_share_leaves_the_student_free_elsewhere() -> None:
    student, teacher = (
        (patches, words[:, :2])
        for patches, words in (features((3, 3), 4, 1), features((3, 3), 5, 3))
    )
    held = []
    for share in (0.3, 1.0):
        loss = relation_loss(student, teacher, VALID[:, :2], ((3, 3), (3, 3)), share)
        gradient = torch.autograd.grad(loss, student[0])[0]
        held.append(int((gradient.abs().sum(-1) > 0).sum()))
    assert held[0] < held[1] == BATCH * 9


def test_a_sentence_without_real_words_has_no_relations() -> None:
    student, teacher = features((3, 3), 4, 1), features((3, 3), 5, 3)
    none = torch.zeros_like(VALID)
    loss = relation_loss(student, teacher, none, ((3, 3), (3, 3)))
    assert loss == 0
    assert torch.autograd.grad(loss, student[0])[0].isfinite().all()


def real_words(tokens: Tensor) -> Tensor:
    return (tokens > 1) & (tokens != END)


NO_BRANCH = DistillConfig(image=None, text=None)
TAPS = Taps(
    "patches", "words", logits="head", images="images", tokens="tokens", valid=real_words,
    patches="mix", words="describe",
)  # fmt: skip


class Host(nn.Module):
    """A model that only taps know; its patches and words share a space of any width."""

    def __init__(self, width: int, patch: int, seed: int = 7) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(3, 6, patch, patch)
            self.mix = nn.Conv2d(6, width, 1)
            self.words = nn.Embedding(20, 6)
            self.describe = nn.Linear(6, width)
            self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        words = self.describe(self.words(tokens)).mean(1)
        return self.head(self.mix(self.patches(images)) * words[:, :, None, None])


def by_taps(host: nn.Module, config: DistillConfig = NO_BRANCH) -> CrossModalMaskedSelfDistill:
    return CrossModalMaskedSelfDistill.wrap(host, config, taps=TAPS)


def make_student(**choices) -> CrossModalMaskedSelfDistill:
    choices = {"image": None, "text": None} | choices
    return CrossModalMaskedSelfDistill(
        *make_triple(batch_norm=False), DistillConfig(**choices)
    ).double()


def make_kd(kind: str = "cross-modal", **choices) -> CrossModalDistill:
    """A triple of 8 channels on 4 x 4 patches, taught by a host of 10 channels on 8 x 8."""
    images, tokens, _ = make_batch()
    return CrossModalDistill(
        make_student(**choices),
        by_taps(Host(10, 2).double()),
        ChannelDistillConfig(kind),
        example=(images.double(), tokens),
    ).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    images, tokens, target = make_batch()
    return images.double(), tokens, target


EXPECTED = {
    "cross-modal": {"seg", "relation", "channel"},
    "icd": {"seg", "channel"},
    "cwd": {"seg", "channel"},
    "logits": {"seg", "logits"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_step_equals_the_loops(kind) -> None:
    """Other widths, other grids, the teacher by taps: the whole loss and its gradients."""
    kd = make_kd(kind)
    images, tokens, target = batch()
    out = kd(images, tokens, target=target)
    assert set(out.losses) == EXPECTED[kind]
    learned = [*kd.sd.segmenter.parameters(), *kd.distill_parameters()]
    gradients = torch.autograd.grad(out.loss, learned, allow_unused=True)

    encoder, neck, decoder = make_triple(batch_norm=False)
    for part in (encoder, neck, decoder):
        part.double()
    teacher = Host(10, 2).double()
    image, text = encoder.encode_image(images), encoder.encode_text(tokens)
    logits = decoder(neck(image.maps, text.pooled), text.local, text.attention_mask)
    maps = teacher.mix(teacher.patches(images))
    theirs = maps.flatten(2).transpose(1, 2), teacher.describe(teacher.words(tokens))
    grids, (embedding,) = ((4, 4), (8, 8)), [*kd.distill_parameters(), None][:1]
    local = image.local if embedding is None else image.local @ embedding.T
    loss = segmentation_loss(logits, target)
    if kind == "cross-modal":
        ours = image.local, text.local
        loss = loss + oracle.relation_loss(ours, theirs, text.valid, grids, 0.5)
        loss = loss + oracle.channel_loss(local, theirs[0], 0.5, weighted=True)
    elif kind == "icd":
        loss = loss + oracle.channel_loss(local, theirs[0], 1.0, weighted=False)
    elif kind == "cwd":
        loss = loss + oracle.channel_wise_loss(local, theirs[0], grids, 4.0)
    else:
        loss = loss + oracle.logits_loss(logits, teacher(images, tokens), 4.0)
    plain = [p for part in (encoder, neck, decoder) for p in part.parameters()]
    plain += [] if embedding is None else [embedding]
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=1e-12)
    expected = torch.autograd.grad(loss, plain, allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def make_batch_on_meta() -> list[Tensor]:
    with torch.device("cpu"):
        made = make_batch()
    return [part.to("meta") for part in made]


def gradients_of(kd: CrossModalDistill, **flags) -> dict[str, Tensor]:
    images, tokens, target = batch()
    out = kd(images, tokens, target=target, **flags)
    out.loss.backward()
    return {name: p.grad for name, p in kd.named_parameters() if p.grad is not None}


BRANCHES = {"image": MaskingConfig(ratio=0.5), "text": MaskingConfig(ratio=0.5)}


def test_low_memory_gives_the_same_gradients() -> None:
    whole, parts = (gradients_of(make_kd(low_memory=low, **BRANCHES)) for low in (False, True))
    assert whole.keys() == parts.keys()
    assert "sd.knowledge.embedding" in whole
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


RANDOM = MaskingConfig(relevance="random")
ONCE = {"image": RANDOM, "text": RANDOM, "one_pass": True}


@pytest.mark.parametrize(
    "choices",
    [
        BRANCHES,
        BRANCHES | {"lambda_main": 0.0, "target": "ground_truth"},
        BRANCHES | {"target": "teacher"},
        ONCE | {"target": "ground_truth"},
        ONCE | {"target": "teacher"},
    ],
)
def test_every_parameter_takes_part(choices) -> None:
    """So DistributedDataParallel needs no search for unused ones."""
    kd = make_kd(**choices)
    found = gradients_of(kd)
    assert found.keys() == {name for name, p in kd.named_parameters() if p.requires_grad}


def test_it_composes_with_branches_and_unlabelled_samples() -> None:
    kd = make_kd(**BRANCHES)
    images, tokens, target = batch()
    labelled = torch.tensor([True, False, False])
    first = kd.sd.preview(images, tokens, target=target, labelled=labelled)
    other = kd.sd.preview(images, tokens, target=0 * target + target[:1], labelled=labelled)
    assert set(first.losses) == {"seg", "relation", "channel", "lmvsd", "vmlsd"}
    torch.testing.assert_close(first.losses, other.losses)
    weighed = {"relation": 1.0, "channel": 1.0, "lmvsd": 0.75, "vmlsd": 0.1}
    total = sum(weight * first.losses[name] for name, weight in weighed.items())
    torch.testing.assert_close(first.distill_loss, total)


def test_without_any_mask_it_learns_from_the_teacher_alone() -> None:
    kd = make_kd()
    images, tokens, _ = batch()
    out = kd(images, tokens)
    assert not out.loss
    out.distill_loss.backward()
    assert kd.sd.segmenter.encoder.words.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "branches"), [("cross-modal", {"image": BRANCHES["image"]}), ("cwd", {})]
)
def test_it_compiles_to_one_graph(kind, branches) -> None:
    torch._dynamo.reset()
    compiled_kd, eager = make_kd(kind, **branches), make_kd(kind, **branches)
    compiled = torch.compile(compiled_kd, fullgraph=True, backend="eager")
    images, tokens, target = batch()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            out, expected = (each(images, tokens, target=target) for each in (compiled, eager))
            torch.testing.assert_close(out.losses, expected.losses)
            out.loss.backward()
            expected.loss.backward()
    grads = [{n: p.grad for n, p in kd.named_parameters()} for kd in (compiled_kd, eager)]
    for name, gradient in grads[1].items():
        torch.testing.assert_close(grads[0][name], gradient)
    torch._dynamo.reset()


def test_inference_is_the_students_bit_for_bit() -> None:
    kd = make_kd()
    images, tokens, target = batch()
    kd(images, tokens, target=target).loss.backward()
    bare = Triple(*(part.double() for part in make_triple(batch_norm=False))).eval()
    expected = bare.host(images, tokens)
    kd.eval()
    with torch.no_grad():
        assert torch.equal(kd(images, tokens), expected)
        assert torch.equal(kd(images, tokens, target=target), expected)


def test_the_teacher_is_in_no_state_no_parameters_and_never_moves() -> None:
    host = Host(10, 2)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    kd = CrossModalDistill(
        CrossModalMaskedSelfDistill(*make_triple(), NO_BRANCH),
        by_taps(host.train()),
        example=make_batch()[:2],
    )
    assert not host.training
    assert not any(p.requires_grad for p in host.parameters())
    mine = {id(p) for p in host.parameters()}
    assert not mine & {id(p) for p in kd.parameters()}
    assert not any("describe" in name for name in kd.state_dict())
    images, tokens, target = make_batch()
    optimizer = torch.optim.AdamW(kd.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        kd.train()(images, tokens, target=target).loss.backward()
        optimizer.step()
    assert not host.training
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert all(p.grad is None for p in host.parameters())


def test_the_teacher_goes_along_to_another_dtype() -> None:
    host = Host(10, 2)
    kd = CrossModalDistill(make_student().float(), by_taps(host), example=make_batch()[:2])
    kd.double()
    assert host.head.weight.dtype == torch.float64
    images, tokens, target = batch()
    assert kd(images, tokens, target=target).loss.dtype == torch.float64


def test_the_student_comes_back_and_loads_into_a_fresh_one() -> None:
    parts, host = make_triple(), Host(10, 2)
    keys = [list(part.state_dict()) for part in parts]
    teacher = by_taps(host)
    kd = CrossModalDistill(parts, teacher, example=make_batch()[:2])
    images, tokens, target = make_batch()
    kd(images, tokens, target=target).loss.backward()
    assert [list(part.state_dict()) for part in parts] == keys
    back = kd.unwrap()
    assert all(one is other for one, other in zip(back, parts, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for p in parts for m in p.modules())
    for fresh, part in zip(make_triple(seed=5), parts, strict=True):
        fresh.load_state_dict(part.state_dict(), strict=True)
    assert teacher.unwrap() is host  # it came wrapped, so its hooks were its wrapper's


def test_a_teacher_that_came_bare_loses_its_hooks() -> None:
    teacher = make_triple(seed=4)
    kd = CrossModalDistill(make_triple(), teacher)
    assert any(m._forward_hooks for part in teacher for m in part.modules())
    kd.unwrap()
    assert not any(m._forward_hooks for part in teacher for m in part.modules())


def test_losses_are_in_full_precision_under_autocast() -> None:
    kd = make_kd().float()
    images, tokens, target = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kd(images, tokens, target=target)
    assert {loss.dtype for loss in out.losses.values()} == {torch.float32}
    out.loss.backward()


def test_a_step_reads_no_value_back_from_the_device() -> None:
    """On the meta device there are none: whatever asks for one fails."""
    with torch.device("meta"):
        images, tokens, target = make_batch_on_meta()
        kd = CrossModalDistill(make_triple(), make_triple(4), example=(images, tokens))
        kd(images, tokens, target=target).loss.backward()


def test_a_state_goes_on_where_it_was() -> None:
    kd, other = make_kd(**BRANCHES), make_kd(**BRANCHES)
    images, tokens, target = batch()
    kd(images, tokens, target=target)
    with torch.no_grad():
        kd.distill_parameters()[-1].mul_(2)
    other.load_state_dict(kd.state_dict(), strict=True)
    one, two = (each(images, tokens, target=target) for each in (kd, other))
    assert torch.equal(one.loss, two.loss)


def test_both_by_taps_and_a_copy_learn_alike() -> None:
    example = make_batch()[:2]
    kd = CrossModalDistill(by_taps(Host(5, 4)), by_taps(Host(10, 2)), example=example)
    copied = copy.deepcopy(kd)
    images, tokens, target = make_batch()
    one, two = (each(images, tokens, target=target) for each in (kd, copied))
    assert one.losses["relation"] > 0
    torch.testing.assert_close(one.losses, two.losses)
    assert copied.sd.knowledge.teacher is not kd.sd.knowledge.teacher


def test_building_leaves_the_random_state_and_the_seed_draws_the_embedding() -> None:
    state = torch.get_rng_state()
    (one,), (two,) = make_kd().distill_parameters(), make_kd().distill_parameters()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    assert one.shape == (10, 8)


def test_it_says_what_is_added_and_what_that_costs() -> None:
    images, tokens, _ = batch()
    kd = make_kd()
    text = kd.describe(images, tokens)
    assert "learns from a teacher (cross-modal): 'relation' with weight 1" in text
    assert "on a share of 0.5; an embedding takes the student's 8 channels to 10" in text
    size = sum(p.numel() for p in Host(10, 2).parameters())
    assert f"a host by taps, {size:,} parameters, frozen and in no state" in text
    assert "80 added in training, 0 in inference" in text
    # by hand, of a batch of three: patches, words and channels of each model
    host, compared, taught, total = (
        float(re.search(pattern, text)[1].replace(",", ""))
        for pattern in (
            r"host ([\d,]+) multiply-adds",
            r"added comparing with it ([\d.]+)",
            r"the larger teacher ([\d.]+) without backward",
            r"a step costs ([\d.]+) host steps",
        )
    )
    words = tokens.shape[1]
    relations = words * (16 * 8 + 64 * 10)
    channels = 16 * 8 * 10 + 10 * 10 * (16 + 64)
    assert compared == pytest.approx(3 * (relations + channels) / host, abs=6e-4)
    teacher = 64 * (6 * 3 * 4 + 10 * 6 + 10) + words * 6 * 10
    assert taught == pytest.approx(3 * teacher / host, abs=6e-4)
    assert total == pytest.approx(1 + compared + taught / 3, abs=2e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelDistillConfig("icdk"), "unknown kind 'icdk'; did you mean 'icd'"),
        (lambda: ChannelDistillConfig(share=0), "share must be above 0"),
        (lambda: ChannelDistillConfig(share=1.5), r"share must be a number in \[0, 1\], got 1.5"),
        (lambda: ChannelDistillConfig(temperature=0), "temperature must be above 0"),
        (lambda: ChannelDistillConfig(seed=1.0), "seed must be an integer"),
        (lambda: ChannelDistillConfig(lambda_relation=-1), "lambda_relation must be a finite"),
        (lambda: ChannelDistillConfig("icd", lambda_channel=0), "'icd' has no loss with lambda_ch"),
        (lambda: ChannelDistillConfig.from_json('{"shar": 1}'), "did you mean 'share'"),
        (lambda: ChannelDistillConfig.from_json("{"), "is not JSON"),
        (
            lambda: CrossModalDistill(make_triple(), make_triple(4), DistillConfig()),
            "config must be a ChannelDistillConfig, got DistillConfig",
        ),
        (lambda: CrossModalDistill(make_triple()[:2], make_triple(4)), "got a tuple of 2"),
    ],
)
def test_wrong_choices_say_so(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_config_comes_back_from_json(kind) -> None:
    config = ChannelDistillConfig(kind, lambda_channel=0.5, lambda_logits=2, share=0.25, seed=3)
    assert ChannelDistillConfig.from_json(config.to_json()) == config


def test_a_teacher_that_is_the_student_is_refused() -> None:
    parts = make_triple()
    with pytest.raises(ValueError, match=r"share \d+ parameters .* copy.deepcopy"):
        CrossModalDistill(parts, parts)
    assert all(p.requires_grad for part in parts for p in part.parameters())


def test_a_wrapper_learns_from_one_teacher() -> None:
    student = make_student()
    CrossModalDistill(student, make_triple(4), ChannelDistillConfig("logits"))
    second = make_triple(5)
    with pytest.raises(ValueError, match="learns from a teacher already"):
        CrossModalDistill(student, second, ChannelDistillConfig("logits"))
    assert all(p.requires_grad for part in second for p in part.parameters())


def test_a_failure_leaves_no_hook() -> None:
    student, teacher = make_triple(), make_triple(4)
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="triple takes images and tokens"):
        CrossModalDistill(student, teacher, example=(images, images, images))
    for part in (*student, *teacher):
        assert not any(m._forward_hooks for m in part.modules())
        assert all(p.requires_grad for p in part.parameters())


BARE = dataclasses.replace(TAPS, patches=None, words=None)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (BARE, r"the teacher names no features of patches .*Taps\(patches=..., words=..., ...\)"),
        (dataclasses.replace(TAPS, words=None), "the teacher names no features of words"),
        (dataclasses.replace(TAPS, words="words"), "have 10 channels and its words 6, which have"),
        (dataclasses.replace(TAPS, valid=None), r"marks 0 as real or not: .*Taps\(valid=...\)"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_it_is_frozen(taps, message) -> None:
    host = Host(10, 2)
    teacher = CrossModalMaskedSelfDistill.wrap(host, NO_BRANCH, taps=taps)
    student = CrossModalMaskedSelfDistill(*make_triple(), NO_BRANCH)
    with pytest.raises(ValueError, match=message):
        CrossModalDistill(student, teacher, example=make_batch()[:2])
    assert all(p.requires_grad for p in host.parameters())
    assert host.training
    assert student.knowledge is None
    if taps is BARE:  # the mask alone needs no features
        images, tokens, target = make_batch()
        kd = CrossModalDistill(student, teacher, ChannelDistillConfig("logits"))
        assert kd(images, tokens, target=target).losses["logits"] > 0


def test_other_widths_without_an_example_say_what_is_missing() -> None:
    kd = CrossModalDistill(make_student().float(), by_taps(Host(10, 2)))
    images, tokens, target = make_batch()
    with pytest.raises(ValueError, match=r"has 8 and the teacher 10: give .*example="):
        kd(images, tokens, target=target)


def test_a_student_whose_features_carry_no_gradient_is_refused() -> None:
    host = Host(10, 4)
    for part in (host.patches, host.mix):
        part.requires_grad_(False)
    kd = CrossModalDistill(by_taps(host), by_taps(Host(10, 2)))
    images, tokens, target = make_batch()
    with pytest.raises(ValueError, match="the student's patches carry no gradient"):
        kd(images, tokens, target=target)
