"""The masked pass is the plain pass: what the check of the first step finds, and what it leaves."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd import (
    CrossModalMaskedSelfDistill,
    DistillConfig,
    MaskingConfig,
    Taps,
    TokenMask,
    Triple,
)
from masksd.tapping.tap import EmbeddingTap
from masksd.trials.check import tolerance
from tests.test_hosts_cris import batch, load_example
from tests.triples import make_batch, make_triple

wrap = CrossModalMaskedSelfDistill.wrap


def words(ids: Tensor) -> Tensor:
    return ids > 2


class Host(nn.Module):
    """A patch embedding, a word embedding, a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.words = nn.Embedding(50, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, img: Tensor, ids: Tensor) -> Tensor:
        return self.head(self.patch(img) * self.words(ids).mean(1)[..., None, None])


TAPS = Taps("patch", "words", images=0, tokens=1, valid=words)


def inputs(samples: int = 2, length: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(3, 50, (samples, length))
    ids[:, 0], ids[:, -1] = 1, 2
    return torch.randn(samples, 3, 64, 64), ids, torch.zeros(samples, 64, 64)


def triple(**options) -> CrossModalMaskedSelfDistill:
    return CrossModalMaskedSelfDistill(*make_triple(), DistillConfig(**options))


def test_a_sound_wrapper_passes_and_says_how_well():
    images, tokens, _ = make_batch()
    found = triple().check(images, tokens)
    assert set(found) == {
        f"{modality}: {name}"
        for modality in ("image", "text")
        for name in ("nothing masked", "other samples", "left over")
    }
    assert max(found.values()) == 0


def test_it_runs_once_before_the_first_step_and_leaves_nothing_behind():
    images, tokens, target = make_batch()
    sd, bare = triple(), CrossModalMaskedSelfDistill(*make_triple(), check=False)
    state, calls = torch.get_rng_state(), []
    sd.segmenter.encoder.register_forward_pre_hook(lambda *_: None)
    sd.segmenter.neck.register_forward_hook(lambda module, *_: calls.append(module.training))
    first = sd(images, tokens, target=target)
    assert calls.count(False) == 1 + 3 + 3  # the plain pass, three for each modality
    assert calls.count(True) == 3
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.loss, bare(images, tokens, target=target).loss)
    for name, buffer in bare.named_buffers():
        assert torch.equal(dict(sd.named_buffers())[name], buffer), name
    calls.clear()
    sd(images, tokens, target=target)
    assert calls == [True] * 3


def test_a_preview_checks_too():
    images, tokens, target = make_batch()
    sd = triple()
    sd.segmenter.__class__ = WrongReuse
    with pytest.raises(RuntimeError, match="does not give the plain logits"):
        sd.preview(images, tokens, target=target)
    assert int(sd.step) == 0


# Planted faults -------------------------------------------------------------------------------


class WrongReuse(Triple):
    """Decodes the masked image with the sentence of the sample before."""

    def masked(self, plain, image=None, text=None, **parts):
        if image is not None:
            rolled = plain.text._replace(pooled=plain.text.pooled.roll(1, 0))
            plain = plain._replace(text=rolled)
        return super().masked(plain, image, text, **parts)


class LeakOfOneCell(Triple):
    def masked(self, plain, image=None, text=None, **parts):
        if image is not None:
            mask = image.mask.clone()
            mask[:, 3] = False
            image = TokenMask(mask, image.token, image.grid)
        return super().masked(plain, image, text, **parts)


class Transposed(Triple):
    def masked(self, plain, image=None, text=None, **parts):
        if text is not None:
            text = TokenMask(text.mask.T.contiguous(), text.token)
        return super().masked(plain, image, text, **parts)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WrongReuse, "no patches masked does not give the plain logits: they differ by"),
        (LeakOfOneCell, "with all patches masked, the output of patch_embed still depends"),
        (Transposed, "masking all words of the first sample changes the others' logits"),
    ],
)
def test_planted_faults_are_found_before_anything_changes(fault, message):
    images, tokens, target = make_batch(batch=7)  # as long as a sentence
    sd = triple()
    sd.segmenter.__class__ = fault
    before = copy.deepcopy(sd.state_dict())
    with pytest.raises(RuntimeError, match=message):
        sd(images, tokens, target=target)
    for name, value in sd.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_can_be_switched_off():
    images, tokens, target = make_batch()
    sd = CrossModalMaskedSelfDistill(*make_triple(), check=False)
    sd.segmenter.__class__ = WrongReuse
    sd(images, tokens, target=target).loss.backward()


# Hosts that deceive ---------------------------------------------------------------------------


def bridged() -> nn.Module:
    """CRIS's parts by name, with a bridge that takes words into the maps and the other way."""

    class Bridged(load_example().StandIn):
        def __init__(self, width: int = 16) -> None:
            super().__init__(width)
            self.to_maps = nn.Linear(2 * width, 2 * width)
            self.to_words = nn.Linear(2 * width, 2 * width)

        def forward(self, img, word, mask=None):
            visual, backbone = self.backbone.visual, self.backbone
            x = img
            for n in (1, 2, 3):
                x = F.relu(getattr(visual, f"bn{n}")(getattr(visual, f"conv{n}")(x)))
            third = visual.layers[0](visual.avgpool(x))
            embedded = backbone.token_embedding(word)
            fused = third + self.to_maps(embedded.mean(1))[:, :, None, None]
            embedded = embedded + self.to_words(third.mean((2, 3)))[:, None]
            fourth = visual.layers[1](fused)
            maps = (fused, fourth, visual.attnpool(fourth))
            turned = embedded.transpose(0, 1)
            causal = nn.Transformer.generate_square_subsequent_mask(len(turned))
            turned = backbone.transformer(turned, causal).transpose(0, 1)
            end = turned[torch.arange(len(turned)), word.argmax(-1)]
            state = end @ backbone.text_projection
            fq = self.neck(maps, state)
            pred = self.proj(self.decoder(fq, turned, word == 0).reshape(fq.shape), state)
            if not self.training:
                return pred.detach()
            mask = F.interpolate(mask, pred.shape[-2:])
            return pred.detach(), mask, F.binary_cross_entropy_with_logits(pred, mask)

    torch.manual_seed(0)
    return Bridged()


def test_a_bridge_between_the_towers_is_refused_as_cris():
    sd = wrap(bridged())
    with pytest.raises(RuntimeError, match=r"CrisSegmenter reuses features.*taps=masksd\.Taps"):
        sd(*batch())


def test_a_bridge_that_starts_at_zero_is_refused_as_cris():
    host = bridged()
    for bridge in (host.to_maps, host.to_words):
        nn.init.zeros_(bridge.weight)
        nn.init.zeros_(bridge.bias)
    sd = wrap(host)
    with pytest.raises(
        RuntimeError, match=r"depend on to_maps, to_words, which no masked pass runs"
    ):
        sd(*batch())


def test_a_head_beside_the_way_to_the_logits_may_be_left_out():
    class Beside(load_example().StandIn):
        def __init__(self):
            super().__init__()
            self.beside = nn.Linear(1, 1)

        def forward(self, img, word, mask=None):
            self.beside(img.mean().reshape(1, 1))
            return super().forward(img, word, mask)

    sd = wrap(Beside())
    assert max(sd.check(*batch()).values()) < 1e-3


def test_a_bridge_between_the_towers_works_by_taps():
    taps = Taps(
        "backbone.visual.avgpool",
        "backbone.token_embedding",
        "proj",
        valid=words,
        target=2,
        loss=":2",
        image_width=16,
        channels_first=True,
    )
    sd = wrap(bridged(), taps=taps)
    sd.segmenter.wrapped.decoder.words.dropout = 0.0
    assert max(sd.check(*batch()).values()) < 1e-3
    sd(*batch()).loss.backward()
    assert sd.maskers["text"].token.grad.norm() > 0


class SequenceFirst(Host):
    def forward(self, img, ids):
        return self.head(self.patch(img) * self.words(ids.T).mean(0)[..., None, None])


def test_a_sequence_first_embedding_is_refused_where_it_would_fit():
    images, ids, target = inputs(samples=4, length=4)
    with pytest.raises(RuntimeError, match=r"the batch in its first dimension.*\(B, N, C\)"):
        wrap(SequenceFirst(), taps=TAPS)(images, ids, target=target)


class WithLora(nn.Module):
    """As PEFT replaces an embedding: the old one inside, and something added to what it gives."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Conv2d(3, 2, 8, 8), nn.Conv2d(2, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_an_adapter_on_a_tapped_embedding_is_refused_after_wrapping_and_works_before():
    images, ids, target = inputs()
    host = Host()
    sd = wrap(host, taps=TAPS)
    host.patch = WithLora(host.patch)
    with pytest.raises(RuntimeError, match=r"patch was a Conv2d .* is a WithLora now"):
        sd(images, ids, target=target)
    host = Host()
    host.patch = WithLora(host.patch)
    sd = wrap(host, taps=TAPS)  # the width is that of the base layer
    assert max(sd.check(images, ids).values()) < 1e-3


def test_a_peft_model_is_sent_to_its_base_model():
    class PeftModel(nn.Module):
        def __init__(self, host: nn.Module) -> None:
            super().__init__()
            self.base_model, self.peft_config = host, {}

        def get_base_model(self) -> nn.Module:
            return self.base_model

    with pytest.raises(ValueError, match=r"one level down: wrap\(model\.get_base_model\(\)\)"):
        wrap(PeftModel(Host()), taps=TAPS)


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda y: y.sigmoid(), "sigmoid"),
        (lambda y: F.interpolate(y.sigmoid(), scale_factor=2), "sigmoid"),
        (lambda y: torch.cat([-y, y], 1).softmax(1), "softmax"),
    ],
)
def test_probabilities_are_not_logits(made, kind):
    class Ends(Host):
        def forward(self, img, ids):
            return made(super().forward(img, ids))

    images, ids, target = inputs()
    with pytest.raises(ValueError, match=f"logits are the output of a {kind}: name the module"):
        wrap(Ends(), taps=TAPS)(images, ids, target=target)


def test_a_gated_output_is_still_logits():
    class Gated(Host):
        def forward(self, img, ids):
            y = super().forward(img, ids)
            return y * y.sigmoid()

    images, ids, target = inputs()
    wrap(Gated(), taps=TAPS)(images, ids, target=target).loss.backward()


# Hosts that are right ---------------------------------------------------------------------------


def test_a_host_that_draws_in_evaluation_is_right_by_taps():
    class Draws(Host):
        def forward(self, img, ids):
            x = F.dropout(self.patch(img), 0.5, training=True)
            shift = int(torch.randint(0, 8, ()))  # as a random crop
            return self.head(x.roll(shift, 3) * self.words(ids).mean(1)[..., None, None])

    images, ids, target = inputs()
    sd = wrap(Draws(), taps=TAPS)
    state = torch.get_rng_state()
    assert max(sd.check(images, ids).values()) == 0
    assert torch.equal(torch.get_rng_state(), state)
    sd(images, ids, target=target).loss.backward()


def test_a_host_that_cannot_be_judged_is_let_through_with_a_warning():
    class Counting(Host):
        calls = 0

        def forward(self, img, ids):
            self.calls += 1
            return super().forward(img, ids) * self.calls

    images, ids, target = inputs()
    sd = wrap(Counting(), taps=TAPS)
    with pytest.warns(UserWarning, match="gives other logits each time in evaluation"):
        sd(images, ids, target=target)
    sd(images, ids, target=target)


def test_buffers_that_move_in_evaluation_do_not_deceive():
    class Queue(Host):
        def __init__(self):
            super().__init__()
            self.register_buffer("queue", torch.zeros(()))

        def forward(self, img, ids):
            self.queue += 1
            return super().forward(img, ids) * self.queue

    images, ids, _ = inputs()
    sd = wrap(Queue(), taps=TAPS)
    assert max(sd.check(images, ids).values()) == 0
    assert int(sd.segmenter.wrapped.queue) == 0


def test_a_host_that_mixes_its_samples_is_not_taken_for_sequence_first():
    class Mixes(Host):
        def forward(self, img, ids):
            x = self.patch(img)
            return self.head((x - x.mean(0)) * self.words(ids).mean(1)[..., None, None])

    images, ids, target = inputs(samples=4)
    sd = wrap(Mixes(), taps=TAPS)
    assert set(sd.check(images, ids)) == {
        f"{modality}: {name}"
        for modality in ("image", "text")
        for name in ("nothing masked", "left over")
    } | {"text: other samples"}
    sd(images, ids, target=target)


@pytest.mark.parametrize(
    "evaluated",
    [lambda y: y, lambda y: y > 0, lambda y: (y > 0).long(), lambda y: y.sigmoid().tolist()],
)
def test_a_host_that_returns_something_else_in_evaluation_is_right(evaluated):
    class Two(Host):
        def forward(self, img, ids):
            y = super().forward(img, ids)
            return {"logits": y} if self.training else evaluated(y)

    images, ids, target = inputs()
    taps = Taps("patch", "words", ":logits", images=0, tokens=1, valid=words)
    sd = wrap(Two(), taps=taps)
    assert max(sd.check(images, ids).values()) == 0
    assert all(module.training for module in sd.modules())
    sd(images, ids, target=target).loss.backward()


def test_tokens_of_a_prefix_may_depend_on_the_image():
    class Prefixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            self.layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
            self.words = nn.Embedding(50, 16)
            self.head = nn.Conv2d(16, 1, 1)

        def forward(self, img, ids):
            x = self.embed(img).flatten(2).transpose(1, 2)
            x = self.layer(torch.cat([torch.zeros_like(x[:, :1]), x], 1))
            x = x[:, 1:] + x[:, :1]
            x = x.transpose(1, 2).unflatten(2, (8, 8))
            return self.head(x * self.words(ids).mean(1)[..., None, None])

    images, ids, target = inputs()
    taps = Taps("layer", "words", images=0, tokens=1, valid=words, image_width=16, prefix=1)
    sd = wrap(Prefixed(), taps=taps)
    assert max(sd.check(images, ids).values()) < 1e-3
    sd(images, ids, target=target).loss.backward()


def test_an_image_embedding_called_by_keyword_is_spied_on_too():
    class Keyword(Host):
        def forward(self, img, ids):
            return self.head(self.patch(input=img) * self.words(ids).mean(1)[..., None, None])

    images, ids, _ = inputs()
    sd = wrap(Keyword(), taps=TAPS)
    sd.segmenter.wrapped.patch.register_forward_hook(
        lambda module, args, kwargs, out: out + kwargs["input"].mean(), with_kwargs=True
    )
    with pytest.raises(RuntimeError, match="the output of patch still depends"):
        sd.check(images, ids)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_logits_that_are_no_numbers_or_nothing_are_not_blamed_on_the_mask(value):
    class Odd(Host):
        def forward(self, img, ids):
            y = super().forward(img, ids)
            return torch.cat([y[:, :, :4], torch.full_like(y[:, :, 4:], value)], 2) * (value != 0)

    images, ids, _ = inputs()
    assert max(wrap(Odd(), taps=TAPS).check(images, ids).values()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_passes(dtype):
    images, ids, target = inputs()
    sd = wrap(Host(), taps=TAPS).to(dtype)
    sd(images.to(dtype), ids, target=target).loss.backward()


def test_autocast_passes_though_logits_are_float32():
    class Wide(Host):
        def forward(self, img, ids):
            return super().forward(img, ids).float()

    images, ids, target = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        sd = wrap(Wide(), taps=TAPS)
        sd(images, ids, target=target).loss.backward()
        assert tolerance(sd.segmenter, torch.zeros(1)) == 0.05
    assert tolerance(sd.segmenter, torch.zeros(1)) == 1e-3


def test_a_batch_of_one_an_empty_sentence_and_a_fully_padded_row_pass():
    images, ids, target = inputs()
    ids[:] = 0
    sd = wrap(Host(), taps=TAPS)
    sd(images[:1], ids[:1], target=target[:1]).loss.backward()
    assert max(sd.check(images, ids).values()) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_above_the_embedding_passes(reentrant):
    class Checkpointed(Host):
        def forward(self, img, ids):
            x = self.patch(img) * self.words(ids).mean(1)[..., None, None]
            return torch.utils.checkpoint.checkpoint(self.head, x, use_reentrant=reentrant)

    images, ids, target = inputs()
    wrap(Checkpointed(), taps=TAPS)(images, ids, target=target).loss.backward()


def test_a_frozen_host_passes():
    images, ids, target = inputs()
    host = Host().requires_grad_(False)
    sd = wrap(host, taps=TAPS)
    sd(images, ids, target=target).loss.backward()
    assert all(p.grad is not None for p in sd.distill_parameters())


def test_part_of_a_batch_is_compared_with_that_part():
    images, tokens, target = make_batch()
    sd = triple(image=MaskingConfig(samples=0.5))
    seen = []
    masked = sd.segmenter.masked
    sd.segmenter.masked = lambda plain, *a, **k: (
        seen.append(len(plain.logits)) or masked(plain, *a, **k)
    )
    sd(images, tokens, target=target)
    whole = len(images)
    assert seen[:6] == [(whole + 1) // 2, whole, whole, whole, whole, whole]


def test_a_module_inside_a_wrapper_that_changes_nothing_is_still_tapped():
    class Around(nn.Module):  # as FSDP and checkpointing put around modules
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._checkpoint_wrapped_module = inner

        def forward(self, *args):
            return self._checkpoint_wrapped_module(*args)

    images, ids, _ = inputs()
    host = Host()
    sd = wrap(host, taps=TAPS)
    host.patch = Around(host.patch)
    assert max(sd.check(images, ids).values()) == 0
    del host.patch
    with pytest.raises(
        RuntimeError, match="patch was a Conv2d when it was wrapped and is gone now"
    ):
        sd.check(images, ids)


def test_the_check_is_skipped_while_compiling():
    images, ids, target = inputs()
    sd = wrap(Host(), taps=TAPS)
    calls = []
    compiled = torch.compile(sd, fullgraph=True, backend="eager")
    sd.segmenter.wrapped.head.register_forward_hook(lambda *_: calls.append(1))
    compiled(images, ids, target=target).loss.backward()
    assert not sd._checked
    sd.check(images, ids)
    compiled(images, ids, target=target).loss.backward()


@pytest.mark.parametrize("part", ["patch", "words", "head"])
def test_a_part_compiled_after_wrapping_is_masked_and_keeps_no_hook_of_the_check(part):
    images, ids, target = inputs()
    torch.manual_seed(1)
    bare, host = Host(), Host()
    host.load_state_dict(bare.state_dict())
    sd, other = wrap(host, taps=TAPS), wrap(bare, taps=TAPS)
    getattr(host, part).compile(backend="eager")
    for _ in range(2):
        found, wanted = sd(images, ids, target=target), other(images, ids, target=target)
        assert torch.equal(found.loss, wanted.loss)
    assert ("image: left over" in sd.check(images, ids)) == (part != "patch")
    sd.eval()
    assert torch.equal(sd(images, ids), bare.eval()(images, ids))


def test_a_check_or_preview_before_the_first_step_hides_and_invents_no_warning():
    images, ids, target = inputs()
    sd = wrap(Host(), taps=TAPS)
    sd.check(images, ids)
    sd.preview(images, ids, target=target)
    assert "no_grad" not in sd.describe()
    sd(images, ids, target=target)
    sd = wrap(NoGrad(), taps=TAPS)
    sd.check(images, ids)
    with pytest.warns(UserWarning, match="patch runs under no_grad"):
        sd(images, ids, target=target)


# The host's state -----------------------------------------------------------------------------


class Counts(Host):
    """A counter written in place, an average that is replaced, a table that never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(16))
        self.register_buffer("table", torch.randn(16))

    def forward(self, img, ids):
        x = self.patch(img)
        if self.training:
            self.calls += 1
            self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 2, 3))
        x = x * self.words(ids).mean(1)[..., None, None] * self.table[:, None, None]
        return self.head(x)


@pytest.mark.parametrize("low_memory", [False, True])
def test_buffers_are_what_one_plain_pass_leaves(low_memory):
    images, ids, target = inputs()
    torch.manual_seed(0)
    host = Counts()
    bare = copy.deepcopy(host)
    table = host.table
    sd = wrap(host, DistillConfig(low_memory=low_memory), taps=TAPS)
    for _ in range(3):
        sd(images, ids, target=target).loss.backward()
        bare(images, ids)
    sd.preview(images, ids, target=target)
    sd.check(images, ids)
    assert int(host.calls) == 3
    assert torch.equal(host.average, bare.average)
    assert host.table is table  # and not copied
    assert {name for _, name in sd.segmenter.moving} == {"calls", "average"}


def test_buffers_are_kept_in_compiled_steps_too():
    images, ids, target = inputs()
    host = Counts()
    sd = wrap(host, taps=TAPS)
    compiled = torch.compile(sd, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(images, ids, target=target).loss.backward()
    assert int(host.calls) == 2


# Construction ---------------------------------------------------------------------------------


def test_a_wrapper_takes_the_mode_of_its_host():
    images, ids, _ = inputs()
    sd = wrap(Host().eval(), taps=TAPS)
    assert not sd.training
    assert isinstance(sd(images, ids), Tensor)
    assert sd.train().training
    assert wrap(Host(), taps=TAPS).training


def test_a_wrapper_from_the_meta_device_has_its_weights():
    real = CrossModalMaskedSelfDistill(*make_triple())
    with torch.device("meta"):
        sd = CrossModalMaskedSelfDistill(*make_triple())
    sd.to_empty(device="cpu")
    for name, branch in sd.branches.items():
        assert torch.equal(branch.weight, real.branches[name].weight)
    for modality, masker in sd.maskers.items():
        assert torch.equal(masker.token, real.maskers[modality].token)


def test_a_deeper_layer_is_refused_where_it_would_be_ignored():
    config = DistillConfig(image=MaskingConfig(layer=1))
    with pytest.raises(ValueError, match=r"image\.layer=1 needs an encoder.*tap the module there"):
        wrap(Host(), config, taps=TAPS)


def test_batch_norm_states_its_width():
    class Normed(Host):
        def __init__(self):
            super().__init__()
            self.patch = nn.Sequential(self.patch, nn.BatchNorm2d(16))

    images, ids, target = inputs()
    taps = Taps("patch.1", "words", images=0, tokens=1, valid=words)
    sd = wrap(Normed(), taps=taps)
    assert sd.segmenter.taps["image"].width == 16
    sd(images, ids, target=target)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("layout", ["flat", "map"])
def test_flat_embeddings_are_masked_in_the_same_cells(layout, size):
    class Swin(Host):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, 4)
            self.flat = nn.LayerNorm(16)

        def forward(self, img, ids):
            x = self.patch(img)
            tokens = self.flat(x.flatten(2).transpose(1, 2))
            if layout == "map":
                x = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
            else:
                x = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
            return self.head(x * self.words(ids).mean(1)[..., None, None])

    torch.manual_seed(0)
    _, ids, _ = inputs()
    images, target = torch.randn(2, 3, *size), torch.zeros(2, *size)
    taps = Taps("flat" if layout == "flat" else "patch", "words", images=0, tokens=1, valid=words)
    config = DistillConfig(image=MaskingConfig(relevance="random"))
    sd = wrap(Swin(), config, taps=Taps(**{**vars(taps), "cell": 16}))
    seen = []
    inside = sd.segmenter.wrapped.flat if layout == "flat" else sd.segmenter.wrapped.patch
    inside.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    mask = sd(images, ids, target=target).masks["lmvsd"]
    assert mask.shape == (2, size[0] // 16 * size[1] // 16)
    plain, masked = [x for x in seen if len(x) == 2][-3], seen[-1]
    changed = (plain != masked).any(-1 if layout == "flat" else 1).reshape(2, size[0] // 4, -1)
    wanted = mask.reshape(2, size[0] // 16, -1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(changed, wanted)


# Tokens that cannot learn ---------------------------------------------------------------------


class NoGrad(Host):
    def forward(self, img, ids):
        with torch.no_grad():
            x = self.patch(img)
        return self.head(x * self.words(ids).mean(1)[..., None, None])


def test_a_tower_under_no_grad_is_said_once_and_described():
    images, ids, target = inputs()
    sd = wrap(NoGrad(), taps=TAPS)
    with pytest.warns(UserWarning, match="patch runs under no_grad, so the mask token of image"):
        sd(images, ids, target=target)
    sd(images, ids, target=target)  # warnings are errors here
    assert "patch runs under no_grad" in sd.describe()


def test_frozen_mask_tokens_are_said():
    images, ids, target = inputs()
    sd = wrap(Host(), taps=TAPS)
    for parameter in sd.parameters():  # as get_peft_model does
        parameter.requires_grad_(False)
    sd.segmenter.wrapped.head.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"mask token of (image|text) is frozen"):
        sd(images, ids, target=target)


class Enlarged(Host):
    """The head's logits, enlarged to the images."""

    def forward(self, img, ids):
        return nn.functional.interpolate(super().forward(img, ids), size=img.shape[2:])


def test_tapped_logits_smaller_than_the_output_are_said_once():
    images, ids, target = inputs()
    sd = wrap(Enlarged(), taps=dataclasses.replace(TAPS, logits="head"))
    sizes = "logits: (8, 8); the host's output: (64, 64); a target is resized to the logits"
    assert sizes in sd.describe(images, ids)
    with pytest.warns(UserWarning, match=r"logits are 8x8, .* 64x64: .*leave out Taps\(logits="):
        out = sd(images, ids, target=target)
    assert out.logits.shape[2:] == (8, 8)
    sd(images, ids, target=target)  # warnings are errors here


def test_logits_of_the_size_of_the_output_or_for_a_loss_of_ones_own_are_not_warned_of():
    images, ids, target = inputs()
    for host in (Host(), Enlarged()):
        wrap(host, taps=TAPS)(images, ids, target=target)
    wrap(Enlarged(), taps=dataclasses.replace(TAPS, logits="head"))(images, ids)
    assert "logits: (64, 64); the host's output: (64, 64)" in wrap(Enlarged(), taps=TAPS).describe(
        images, ids
    )


# Losses and targets ---------------------------------------------------------------------------


def test_a_missing_loss_says_what_to_do():
    images, ids, _ = inputs()
    out = wrap(Host(), taps=TAPS)(images, ids)
    assert not out.loss
    assert "call sd(..., target=masks), or add" in repr(out.loss)
    for use in (lambda: out.loss.backward(), lambda: out.loss + 1, lambda: 2 * out.loss):
        with pytest.raises(RuntimeError, match=r"sd\(\.\.\., target=masks\), or add"):
            use()
    out.distill_loss.backward()


def test_a_truth_by_position_is_told_its_name():
    images, ids, target = inputs()
    says = r"Host.forward takes img, ids, but this call has 3 .*: sd\(\.\.\., target=masks\)"
    with pytest.raises(ValueError, match=says):
        wrap(Host(), taps=TAPS)(images, ids, target)


def test_an_output_prints_numbers_and_shapes():
    images, ids, target = inputs()
    out = wrap(Host(), taps=TAPS)(images, ids, target=target)
    text = repr(out)
    assert text.startswith(f"DistillOutput(loss={out.loss.detach().item():.4g}, losses={{seg: ")
    assert "logits=(2, 1, 8, 8), masks={lmvsd: (2, 64), vmlsd: " in text
    assert "tensor" not in text
    assert "loss=MissingLoss," in repr(wrap(Host(), taps=TAPS)(images, ids))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.full((2, 64, 64), float("nan")), r"target must be in \[0, 1\], got NaN"),
        (torch.full((2, 64, 64), -1.0), "values down to -1.0: pixels to ignore"),
        (torch.zeros(2, 64, 64, dtype=torch.complex64), "got torch.complex64"),
        ([[0.0]], "must be a tensor .* got a list"),
        ({"masks": 1}, "must be a tensor .* got a dict"),
        (torch.zeros(2, 0, 64), r"got \(2, 0, 64\)"),
    ],
)
def test_a_wrong_target_is_one_clear_error(target, message):
    images, ids, _ = inputs()
    with pytest.raises(ValueError, match=message):
        wrap(Host(), taps=TAPS)(images, ids, target=target)


def test_a_dictionary_of_truths_by_taps_is_one_clear_error():
    class Takes(Host):
        def forward(self, img, ids, targets=None):
            return {"out": super().forward(img, ids), "loss": torch.zeros(())}

    images, ids, target = inputs()
    taps = Taps("patch", "words", ":out", images=0, tokens=1, valid=words, target=2, loss=":loss")
    with pytest.raises(ValueError, match=r"target must be a tensor .* got a dict"):
        wrap(Takes(), taps=taps)(images, ids, {"masks": target})


def test_the_parts_of_a_tuple_are_listed():
    class Pair(Host):
        def forward(self, img, ids):
            return super().forward(img, ids), None

    images, ids, target = inputs()
    with pytest.raises(ValueError, match=r"0: Tensor \(2, 1, 8, 8\), 1: NoneType"):
        wrap(Pair(), taps=TAPS)(images, ids, target=target)


def test_describe_says_where_things_come_from():
    images, ids, _ = inputs()
    text = wrap(Host(), taps=TAPS).describe(images, ids)
    assert "around a host by taps (TapSegmenter)" in text
    assert "words: words" in text
    assert "logits: what the host returns" in text
    assert "a grid of 8 x 8" in text
    assert "neck and decoder" not in text
    assert "neck and decoder: shared" in triple().describe()


def test_taps_are_inert_outside_of_passes():
    host = nn.Embedding(5, 4)
    tap = EmbeddingTap(host, "words")
    tap.attach(host)
    host(torch.zeros(1, 2, 3, dtype=torch.int64))  # of any shape: nobody looks
    assert tap.positions is None


def test_transformers_trainer_does_not_take_our_config_for_its_own(tmp_path):
    from transformers import Trainer, TrainingArguments

    sd = wrap(Host(), taps=TAPS)
    assert not hasattr(sd, "config")
    assert sd.distill_config == DistillConfig()
    Trainer(sd, TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))


class Padded(nn.Module):
    """Towers of torch's own layers, whose fast path gives nested tensors where there is padding."""

    def __init__(self):
        super().__init__()

        def layers():
            layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
            return nn.TransformerEncoder(layer, 2)

        self.patches, self.visual = nn.Conv2d(3, 16, 8, 8), layers()
        self.words, self.lang = nn.Embedding(30, 16), layers()
        self.head = nn.Linear(16, 1)

    def forward(self, images, ids):
        patches = self.visual(self.patches(images).flatten(2).mT)
        words = self.lang(self.words(ids), src_key_padding_mask=ids == 0)
        return self.head(patches * words[:, :1]).mT.unflatten(2, (4, 4))


def test_attention_that_gives_nested_tensors_in_evaluation_is_judged_and_described():
    taps = Taps("patches", "words", valid=lambda ids: ids > 0)
    inputs = torch.randn(2, 3, 32, 32), torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]])
    sd = CrossModalMaskedSelfDistill.wrap(Padded(), taps=taps)
    text = sd.describe(*inputs)
    assert "image_only=('visual',), text_only=('lang',)" in text
    named = dataclasses.replace(taps, image_only=("visual",), text_only=("lang",))
    sd = CrossModalMaskedSelfDistill.wrap(Padded(), taps=named)
    sd(*inputs, target=torch.zeros(2, 32, 32)).loss.backward()
    assert torch.backends.mha.get_fastpath_enabled()
    assert "could be replayed" not in sd.describe(*inputs)


def test_a_wrapper_is_not_wrapped_again():
    taps = Taps("patches", "words", valid=lambda ids: ids > 0)
    sd = CrossModalMaskedSelfDistill.wrap(Padded(), taps=taps)
    with pytest.raises(ValueError, match=r"wrapped already: call its unwrap\(\) first"):
        CrossModalMaskedSelfDistill.wrap(sd, taps=taps)
