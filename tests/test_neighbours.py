"""Other people's recipes: each preset against a plain transcription of its formulas."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Taps
from masksd.masking import keyed_noise
from masksd.models import create_model
from tests import test_hosts_clipseg, test_hosts_cris, test_hosts_lavt
from tests.oracles import neighbours as oracle
from tests.test_oracle import gradients
from tests.triples import Decoder, Neck, TwoTowers, make_batch, make_triple

SELECT, WORDS, CHOICE, MAP = 0, 1, 6, 7  # streams of the noise
SEED = 3


def preset(name: str, **changes) -> DistillConfig:
    return dataclasses.replace(DistillConfig.preset(name), seed=SEED, **changes)


def drawn(mask, stream, step=0):
    return keyed_noise(*mask.shape, seed=SEED, step=step, stream=stream)


class Case:
    """A wrapped host, its batch and what an oracle needs; a copy of it has no hooks."""

    def __init__(self, host, wrapped, images, ids, extra, truth, embedding):
        self.sd, self.truth = wrapped.double(), truth.double()
        self.images, self.ids, self.extra = images.double(), ids, extra
        self.host, self.embedding = host, embedding

    def step(self):
        return self.sd(*self.call(self.images), target=self.truth)

    def call(self, images):
        return (images, self.ids, *self.extra)

    def bare(self):
        """A copy of wrapper and host, whose gradients the oracle fills: ``(sd, run)``."""
        sd = copy.deepcopy(self.sd)
        segmenter = sd.segmenter
        segmenter.release()
        return sd, lambda images: segmenter.host(*self.call(images))

    def words(self, sd, picked):
        """Mask words inside, on the copy."""
        path, _, name = self.embedding.rpartition(".")
        parent = sd.segmenter.root.get_submodule(path)
        token = sd.maskers["text"].token
        return oracle.MaskedWords(parent, name, picked, drawn(picked, CHOICE), token)


def triple_case(config, batch=6):
    torch.manual_seed(0)
    parts = TwoTowers(256), Neck(), Decoder()  # cells of 8 pixels are 2 x 2 patches
    images = torch.randn(batch, 3, 64, 64)
    _, tokens, target = make_batch(batch)
    sd = CrossModalMaskedSelfDistill(*parts, config)
    return Case(parts, sd, images, tokens, (), target.repeat(1, 2, 2), "words")


def lavt_case(config):
    host = test_hosts_lavt.tiny(dropout=0.0, drop_path=0.0)
    images, ids, mask, truth = test_hosts_lavt.batch(3)
    sd = CrossModalMaskedSelfDistill.wrap(host, config)
    path = "text_encoder.embeddings.word_embeddings"
    case = Case(host, sd, images, ids, (mask,), truth, path)
    classifier = []
    case.bare = lambda: classified(sd, case, classifier)  # logits before the host enlarges them
    return case


def classified(sd, case, kept):
    copied = copy.deepcopy(sd)
    host = copied.segmenter.wrapped
    copied.segmenter.release()
    host.classifier.register_forward_hook(lambda _, __, output: kept.append(output))

    def run(images):
        host(*case.call(images))
        return kept.pop()

    return copied, run


def clipseg_case(config):
    host = test_hosts_clipseg.tiny()
    given, truth = test_hosts_clipseg.batch()
    sd = CrossModalMaskedSelfDistill.wrap(host, config)
    sd.segmenter.train_encoder = True
    path = "clip.text_model.embeddings.token_embedding"
    case = Case(host, sd, given["pixel_values"], given["input_ids"], (), truth, path)
    case.call = lambda images: (case.ids, images, given["attention_mask"])

    def bare():
        copied = copy.deepcopy(case.sd)
        segmenter = copied.segmenter
        segmenter.release()

        def run(images):
            call = {"pixel_values": images, "input_ids": case.ids}
            call["attention_mask"] = given["attention_mask"]
            return segmenter._with_gradient(call).logits[:, None]

        return copied, run

    case.bare = bare
    return case


CASES = {"triple": triple_case, "lavt": lavt_case, "clipseg": clipseg_case}


def same(sd, out, bare, wanted):
    assert abs(out.loss - wanted) <= 1e-10 * abs(wanted)
    expected = gradients(bare)
    for name, got in gradients(sd).items():
        assert (got - expected[name]).norm() <= 1e-9 * expected[name].norm() + 1e-13, name


@pytest.mark.parametrize("kind", list(CASES))
def test_maskris_equals_its_formulas(kind):
    case = CASES[kind](preset("maskris"))
    bare, run = case.bare()
    out = case.step()
    out.loss.backward()
    cells, words = out.masks["lmvsd"], out.masks["vmlsd"]
    assert torch.equal(cells, oracle.maskris_picked(drawn(cells, SELECT)))
    assert (cells.sum(1) == 48).all()
    valid = bare.segmenter.given(*case.call(case.images)).valid()
    assert torch.equal(words, oracle.maskris_words(drawn(words, WORDS), valid))
    masked = case.words(bare, words)
    wanted = oracle.maskris_loss(run, masked, case.images, case.truth, cells, (8, 8))
    wanted.backward()
    same(case.sd, out, bare, wanted)


@pytest.mark.parametrize("kind", list(CASES))
@pytest.mark.parametrize("name", ["amlris", "amlris-paper"])
def test_amlris_equals_its_formulas(kind, name):
    case = CASES[kind](preset(name))
    bare, run = case.bare()
    out = case.step()
    out.loss.backward()
    cells, relevance = out.masks["lmvsd"], out.relevance["lmvsd"]
    assert torch.equal(cells, oracle.amlris_picked(relevance, drawn(cells, SELECT)))
    assert cells.any()
    weights = (0.5, 0.5) if name == "amlris" else (0.0, 1.0)
    wanted = oracle.amlris_loss(run, case.images, case.truth, cells, (8, 8), *weights)
    wanted.backward()
    same(case.sd, out, bare, wanted)
    assert list(case.sd.maskers.parameters()) == []
    # DistributedDataParallel needs each to take part, whatever the plain pass weighs.
    parameters = dict(case.sd.named_parameters())
    if kind == "clipseg":  # which never uses CLIP's projection of images, nor its temperature
        parameters = {n: p for n, p in parameters.items() if ".decoder." in n}
    assert all(p.grad is not None for p in parameters.values())


def test_a_wrong_formula_is_found():
    """The comparison above sees a weight, a target and a cell that are not as they should be."""
    case = triple_case(preset("amlris"))
    bare, run = case.bare()
    out = case.step()
    out.loss.backward()
    cells = out.masks["lmvsd"]
    for mask, weights in [(cells, (0.5, 0.5001)), (cells.roll(1, 1), (0.5, 0.5))]:
        bare.zero_grad()
        wanted = oracle.amlris_loss(run, case.images, case.truth, mask, (8, 8), *weights)
        wanted.backward()
        with pytest.raises(AssertionError):
            same(case.sd, out, bare, wanted)


def test_words_of_the_vocabulary_take_part():
    """So many words that each of BERT's three outcomes is there."""
    text = dataclasses.replace(DistillConfig.preset("maskris").text, ratio=1.0)
    case = triple_case(preset("maskris", text=text), batch=16)
    bare, run = case.bare()
    out = case.step()
    out.loss.backward()
    words = out.masks["vmlsd"]
    assert torch.equal(words, bare.segmenter.encoder.real_words(case.ids))
    choice = drawn(words, CHOICE)[words]
    assert (choice < 0.8).any()
    assert ((choice >= 0.8) & (choice < 0.9)).any()
    assert (choice >= 0.9).any()
    masked = case.words(bare, words)
    cells = out.masks["lmvsd"]
    wanted = oracle.maskris_loss(run, masked, case.images, case.truth, cells, (8, 8))
    wanted.backward()
    same(case.sd, out, bare, wanted)


def linear(words, patches):
    uniform = keyed_noise(patches, words + 1, seed=SEED, step=0, stream=MAP).double()
    weights = (2 * uniform - 1) / words**0.5
    return weights[:, :-1], weights[:, -1]


def test_relevance_of_a_shared_space_needs_no_map():
    case = triple_case(preset("amlris"))
    bare, _ = case.bare()
    encoder = bare.segmenter.encoder
    image, text = encoder.encode_image(case.images), encoder.encode_text(case.ids)
    maps = image.local.transpose(1, 2).unflatten(2, image.grid)
    cells = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(2).transpose(1, 2)
    wanted = oracle.amlris_relevance(cells, text.local)
    found = case.step().relevance["lmvsd"]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    assert found.lt(0.4).any()


def test_relevance_of_other_spaces_maps_the_words():
    case = lavt_case(preset("amlris"))
    kept = {}
    host = case.sd.segmenter.wrapped
    host.backbone.register_forward_hook(lambda _, __, out: kept.update(maps=out[-1]))
    host.text_encoder.register_forward_hook(lambda _, __, out: kept.update(words=out[0]))
    with torch.no_grad():
        host.eval()(*case.call(case.images))
    features = dict(kept)
    found = case.sd.preview(*case.call(case.images), target=case.truth).relevance["lmvsd"]
    # 64 pixels: the last stage has 2 x 2 places for 8 x 8 cells
    cells = (
        features["maps"].repeat_interleave(4, 2).repeat_interleave(4, 3).flatten(2).transpose(1, 2)
    )
    words = features["words"]
    mapping = linear(words.shape[-1], cells.shape[-1])
    wanted = oracle.amlris_relevance(cells, words, mapping)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_weight_0_of_the_plain_pass_runs_no_backward_through_it():
    case = triple_case(preset("amlris-paper"))
    out = case.step()
    out.loss.backward()
    assert torch.equal(out.loss, out.losses["lmvsd"])
    grown = []
    out.logits.register_hook(grown.append)
    case.sd.zero_grad()
    again = case.step()
    again.logits.register_hook(grown.append)
    again.loss.backward()
    assert grown == []
    assert "a step costs 1." in case.sd.describe(*case.call(case.images))


def test_weight_0_is_kept_where_the_host_computes_its_own_loss():
    sd = CrossModalMaskedSelfDistill.wrap(test_hosts_cris.new_host(), preset("amlris-paper"))
    images, tokens, masks = test_hosts_cris.batch()
    out = sd(images, tokens, masks)
    grown = []
    out.losses["seg"].register_hook(grown.append)
    out.loss.backward()
    assert [gradient.item() for gradient in grown] == [0.0]
    assert "a step costs 1.9" in sd.describe(images, tokens)


def test_weight_0_is_kept_where_the_plain_pass_alone_would_use_a_parameter():
    for changes in ({"share_weights": False}, {"image": MaskingConfig(every=2), "text": None}):
        config = DistillConfig(lambda_main=0.0, target="ground_truth", **changes)
        sd = CrossModalMaskedSelfDistill(*make_triple(), config)
        images, tokens, target = make_batch()
        for _ in range(2):
            sd.zero_grad(set_to_none=True)
            sd(images, tokens, target=target).loss.backward()
            assert all(p.grad is not None for p in sd.parameters()), changes


@pytest.mark.parametrize("name", ["maskris", "amlris", "amlris-paper"])
def test_low_memory_gives_the_same(name):
    found = []
    for low_memory in (False, True):
        case = triple_case(preset(name, low_memory=low_memory))
        out = case.step()
        out.loss.backward()
        found.append((out.loss.detach(), gradients(case.sd)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("maskris", "triple"),
        ("amlris-paper", "triple"),
        pytest.param("maskris", "lavt", marks=pytest.mark.long),
        pytest.param("amlris", "lavt", marks=pytest.mark.long),
    ],
)
def test_compiles_full_graph(name, kind):
    case, other = (CASES[kind](preset(name)) for _ in range(2))
    torch._dynamo.reset()
    compiled = torch.compile(other.sd, fullgraph=True, backend="eager")
    for _ in range(2):
        out = case.step()
        found = compiled(*other.call(other.images), target=other.truth)
        torch.testing.assert_close(found.loss, out.loss, rtol=1e-10, atol=0)
        for mask, wanted in zip(found.masks.values(), out.masks.values(), strict=True):
            assert torch.equal(mask, wanted)


@pytest.mark.parametrize("name", ["maskris", "amlris", "amlris-paper"])
def test_check_preview_describe_and_copies(name):
    case = triple_case(preset(name))
    call = case.call(case.images)
    assert max(case.sd.check(*call).values()) < 1e-9
    seen = case.sd.preview(*call, target=case.truth).masks
    step = copy.deepcopy(case.sd)(*call, target=case.truth)
    assert seen.keys() == step.masks.keys()
    text = case.sd.describe(*call)
    assert "cells of 32 pixels" in text
    assert "enters at patch_embed, where what it is given is set to 0" in text
    assert ("10 % by another word" in text) == (name == "maskris")
    assert ("below 0.4" in text) == (name != "maskris")
    keys = [key for key in case.sd.state_dict() if key.startswith("maskers")]
    assert keys == (["maskers.text.token"] if name == "maskris" else [])


@pytest.mark.parametrize("name", ["maskris", "amlris", "amlris-paper"])
def test_cris_zeroes_its_stem(name):
    host = test_hosts_cris.new_host()
    sd = CrossModalMaskedSelfDistill.wrap(host, preset(name))
    images, tokens, masks = test_hosts_cris.batch()
    kept = []
    host.backbone.visual.avgpool.register_forward_hook(lambda _, __, out: kept.append(out))
    out = sd(images, tokens, masks)
    out.loss.backward()
    assert out.masks["lmvsd"].shape == (4, 64)  # cells of 16 pixels
    plain, masked = kept[-2:]  # the stem is halved before: 4 x 4 places a cell
    where = out.masks["lmvsd"].view(4, 8, 8).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (masked.movedim(1, -1)[where] == 0).all()
    assert torch.equal(masked.movedim(1, -1)[~where], plain.movedim(1, -1)[~where])
    if name == "maskris":
        assert where.any()
    assert all(p.grad is not None for p in sd.distill_parameters())


def test_one_pass_takes_cells_zeros_and_the_vocabulary():
    config = preset("maskris", joint=False, one_pass=True, target="ground_truth", lambda_main=1.0)
    case = triple_case(config)
    bare, run = case.bare()
    out = case.step()
    out.loss.backward()
    cells, words = out.masks["lmvsd"], out.masks["vmlsd"]
    two_passes = triple_case(preset("maskris")).step()
    assert torch.equal(cells, two_passes.masks["lmvsd"])
    assert torch.equal(words, two_passes.masks["vmlsd"])
    with case.words(bare, words):
        logits = run(oracle.zero_cells(case.images, cells, (8, 8)))
    wanted = oracle.cross_entropy(logits, oracle.at_logits(case.truth, logits))
    wanted.backward()
    same(case.sd, out, bare, wanted)


def test_cells_carry_a_token_of_each_position_and_any_relevance():
    for relevance in ("dot", "prediction", "ground_truth", "random"):
        image = MaskingConfig(relevance=relevance, cell=8, token="position", positions=64)
        case = triple_case(DistillConfig(image=image, text=None))
        out = case.step()
        out.loss.backward()
        assert out.masks["lmvsd"].shape == (6, 64)
        assert case.sd.maskers["image"].token.grad.abs().sum() > 0
        assert max(case.sd.check(*case.call(case.images)).values()) < 1e-9


def test_a_threshold_lets_only_lower_relevance_be_masked():
    image = MaskingConfig(top_k=1.0, ratio=1.0, relevance="prediction", threshold=0.5)
    out = triple_case(DistillConfig(image=image, text=None)).step()
    assert torch.equal(out.masks["lmvsd"], out.relevance["lmvsd"] < 0.5)
    assert out.masks["lmvsd"].any()


class Stem(nn.Module):
    """An embedding with statistics."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(first, nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images):
        return self.head(self.stem(images))


ZERO = MaskingConfig(top_k=1.0, relevance="random", token="zero")
STEM = Taps("stem", images=0, tokens=0, image_width=4, channels_first=True)


def test_the_second_embedding_moves_no_statistics():
    images, target = torch.randn(2, 3, 32, 32), torch.zeros(2, 4, 4)
    host = Stem(nn.Conv2d(3, 4, 8, 8))
    twin = copy.deepcopy(host)
    config = DistillConfig(image=ZERO, text=None, one_pass=True, target="ground_truth")
    CrossModalMaskedSelfDistill.wrap(host, config, taps=STEM)(images, target=target)
    twin(images)
    for name, buffer in host.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_zeroing_asks_for_a_map():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, images):
            rows = self.rows(images.flatten(2).transpose(1, 2))
            return self.head(rows).transpose(1, 2).unflatten(2, images.shape[2:])

    config = DistillConfig(image=ZERO, text=None)
    sd = CrossModalMaskedSelfDistill.wrap(Rows(), config, taps=Taps("rows", images=0, tokens=0))
    with pytest.raises(ValueError, match=r"zeroes cells of a map .* rows is given \(1, 64, 3\)"):
        sd(torch.randn(1, 3, 8, 8), target=torch.zeros(1, 8, 8))


def test_the_vocabulary_asks_for_an_embedding():
    encoder, neck, decoder = make_triple()
    encoder.text_blocks.insert(0, nn.LayerNorm(12))
    text = MaskingConfig(token="vocabulary", relevance="random")
    sd = CrossModalMaskedSelfDistill(
        *(encoder, neck, decoder),
        DistillConfig(image=None, text=text),
        text_embedding="text_blocks.0",
    )
    images, tokens, target = make_batch()
    with pytest.raises(ValueError, match=r"text_blocks.0 must be an nn.Embedding .* a LayerNorm"):
        sd(images, tokens, target=target)


def test_attention_says_what_it_lacks_and_auto_stays_as_it_was():
    amlris = preset("amlris")
    host = Stem(nn.Conv2d(3, 4, 8, 8))
    sd = CrossModalMaskedSelfDistill.wrap(host, amlris, taps=STEM)
    with pytest.raises(ValueError, match=r"Taps\(patches=\.\.\., words=\.\.\.\)"):
        sd(torch.randn(2, 3, 32, 32), target=torch.zeros(2, 4, 4))
    sd = CrossModalMaskedSelfDistill.wrap(test_hosts_lavt.tiny())
    assert {name: masker.relevance for name, masker in sd.maskers.items()} == {
        "image": "prediction",
        "text": "random",
    }
    assert "patches" not in sd.segmenter._recorders


def test_a_fork_of_lavt_with_other_outputs_is_told_what_to_name():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.patch_embed = inner, inner.patch_embed

        def forward(self, *args):
            return dict(enumerate(self.inner(*args)))

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            inside = test_hosts_lavt.tiny()
            self.backbone, self.classifier = Named(inside.backbone), inside.classifier
            self.text_encoder = inside.text_encoder

        def forward(self, x, text, l_mask):
            words = self.text_encoder(text, attention_mask=l_mask)[0]
            return self.classifier(list(self.backbone(x, words, l_mask != 0).values()))

    images, ids, mask, truth = test_hosts_lavt.batch(2)
    CrossModalMaskedSelfDistill.wrap(Fork(), preset("maskris"))(images, ids, mask, target=truth)
    sd = CrossModalMaskedSelfDistill.wrap(Fork(), preset("amlris"))
    with pytest.raises(ValueError, match=r"patches: no part '-1' in a dict .*Taps\(patches='..."):
        sd(images, ids, mask, target=truth)
    model, bert = test_hosts_lavt.pair()
    sd = CrossModalMaskedSelfDistill.wrap(model, preset("amlris"), text_encoder=bert)
    assert sd(images, ids, mask, target=truth).masks["lmvsd"].any()


def test_a_segmenter_of_ones_own_must_tell_the_size_for_cells():
    case = triple_case(preset("maskris"))
    plain = case.sd.segmenter.plain(*case.call(case.images))
    assert plain.size == (64, 64)
    with pytest.raises(ValueError, match=r"return masksd.Pass\(\.\.\., size=\(H, W\)\)"):
        case.sd.maskers["image"].grid(plain._replace(size=None))


@pytest.mark.parametrize("name", ["maskris", "amlris", "amlris-paper"])
def test_a_model_of_ours_takes_them(name):
    torch.manual_seed(0)
    host = create_model("clip_cris_tiny")
    sd = CrossModalMaskedSelfDistill(host.encoder, host.neck, host.decoder, preset(name))
    ids = torch.tensor([[1, 7, 8, 9, host.config.end_token]] * 2)
    out = sd(torch.randn(2, 3, 64, 64), ids, target=torch.ones(2, 64, 64))
    out.loss.backward()
    assert out.masks["lmvsd"].shape == (2, 64)
    assert all(p.grad is not None for p in sd.distill_parameters())
