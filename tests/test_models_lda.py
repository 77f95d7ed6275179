"""Language-driven attention: the neck, the models that have it, and patches ranked by it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, ImageFeatures, MaskingConfig, Pass
from masksd.kit.checkpoints import load_checkpoint, save_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.recipes import TOWERS
from masksd.kit.sources import build_model
from masksd.models import ClipLda, ClipLdaConfig, create_model
from masksd.models.cris import Fused
from masksd.models.lda import LdaNeck
from masksd.relevance import rank_tokens
from tests.oracles import lda as oracle
from tests.test_hosts_taps import TAPS
from tests.test_hosts_taps import make as make_host
from tests.triples import make_triple

VOCABULARY, END = 30, 29
RATES = (1, 2)
BY_NECK = DistillConfig(image=MaskingConfig(relevance="neck"), text=None)


def make_neck(norm: str = "group", levels: int = 3) -> LdaNeck:
    torch.manual_seed(0)
    return LdaNeck(
        inputs=[3, 5, 4, 6][-levels:], sentence=6, hidden=9, outputs=7, rates=RATES, norm=norm
    )


def make_maps(batch: int, levels: int = 3) -> list[Tensor]:
    return [torch.randn(batch, channels, 4, 5) for channels in [3, 5, 4, 6][-levels:]]


def make_model(**overrides: Any) -> ClipLda:
    torch.manual_seed(0)
    return create_model("clip_lda_tiny", vocab_size=VOCABULARY, **overrides)


def make_batch(batch: int = 2, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.tensor([[28, 3, 4, 5, END, 0, 0], [28, 6, END, 0, 0, 0, 0]])
    return torch.randn(batch, 3, *size), tokens.repeat(batch // 2 + 1, 1)[:batch]


def wrapped(config: DistillConfig, **overrides: Any) -> CrossModalMaskedSelfDistill:
    model = make_model(**overrides)
    return CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)


# The neck


@pytest.mark.parametrize("sizes", [[(2, 3), (2, 3)], [(4, 6), (2, 3)], [(1, 2)]])
def test_outputs_and_gradients_are_those_of_loops(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    inputs = [2, 3][: len(sizes)]
    neck = LdaNeck(inputs=inputs, sentence=3, hidden=4, outputs=2, rates=RATES, norm="group")
    neck = neck.double()
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.normal_()
    maps = [
        torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        for channels, size in zip(inputs, sizes, strict=True)
    ]
    sentence = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    fused = neck(maps, sentence)
    expected = oracle.neck(dict(neck.named_parameters()), maps, sentence, RATES)
    found = (fused.features, fused.spatial_attention)
    learners = [*maps, sentence, *neck.parameters()]
    weights = [torch.randn_like(each) for each in expected]
    gradients = [
        torch.autograd.grad(
            sum((each * w).sum() for each, w in zip(outputs, weights, strict=True)), learners
        )
        for outputs in (found, expected)
    ]
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert all(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_every_level_the_sentence_and_all_weights_learn(norm: str, levels: int) -> None:
    neck = make_neck(norm, levels)
    maps = [level.requires_grad_() for level in make_maps(2, levels)]
    sentence = torch.randn(2, 6, requires_grad=True)
    fused = neck(maps, sentence)
    assert fused.features.shape == (2, 7, 4, 5)
    assert fused.sentence is sentence
    assert fused.spatial_attention.shape == (2, 1, 4, 5)
    assert ((fused.spatial_attention > 0) & (fused.spatial_attention < 1)).all()
    (fused.features * torch.randn(2, 7, 4, 5)).sum().backward()
    for tensor in [*maps, sentence, *neck.parameters()]:
        assert tensor.grad.abs().sum() > 0


def test_attention_depends_on_the_sentence_and_samples_stay_apart() -> None:
    neck, maps, sentence = make_neck(), make_maps(3), torch.randn(3, 6)
    together = neck(maps, sentence)
    for i in range(3):
        alone = neck([level[i : i + 1] for level in maps], sentence[i : i + 1])
        for one, all_of_them in ((0, 0), (2, 2)):
            torch.testing.assert_close(alone[one], together[all_of_them][i : i + 1])
    other = neck(maps, sentence.flip(0))
    assert not torch.allclose(other.spatial_attention, together.spatial_attention)


def test_what_does_not_fit_is_named() -> None:
    neck, maps = make_neck(), make_maps(2)
    with pytest.raises(ValueError, match="takes 3 levels, got 2"):
        neck(maps[:2], torch.zeros(2, 6))
    with pytest.raises(ValueError, match="got 2 images and 1 sentences"):
        neck(maps, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="unknown norm 'grup'; did you mean 'group'"):
        make_neck("grup")


def test_batch_norm_can_train_on_one_image() -> None:
    assert make_neck("batch").train()(make_maps(1), torch.randn(1, 6)).features.isfinite().all()


# The models


@pytest.mark.parametrize("name", ["tiny", "vit_b16"])
def test_only_the_neck_differs_from_cris_and_has_about_its_size(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = (create_model(f"clip_{kind}_{name}") for kind in ("lda", "cris"))
    count = [sum(p.numel() for p in model.neck.parameters()) for model in (ours, theirs)]
    assert count[0] == pytest.approx(count[1], rel=0.1)
    other = {
        name: value.shape
        for name, value in theirs.state_dict().items()
        if not name.startswith("neck.")
    }
    assert other == {
        name: value.shape
        for name, value in ours.state_dict().items()
        if not name.startswith("neck.")
    }


@pytest.mark.parametrize("size", [(480, 480), (320, 480)])
def test_the_large_model_runs_on_meta(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = create_model("clip_lda_vit_b16", vision_layers=3, text_layers=1).eval()
        out = model(torch.zeros(2, 3, *size), torch.zeros(2, 22, dtype=torch.int64))
    assert out.shape == (2, 1, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 2)])
def test_maps_need_not_be_square(grid: tuple[int, int]) -> None:
    images, tokens = make_batch(2, (8 * grid[0], 8 * grid[1]))
    logits = make_model().eval()(images, tokens)
    assert logits.shape == (2, 1, 4 * grid[0], 4 * grid[1])
    assert logits.isfinite().all()


def test_every_parameter_takes_part() -> None:
    model, batch = make_model().train(), make_batch()
    (model(*batch) * torch.randn(2, 1, 32, 32)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []  # DistributedDataParallel refuses idle ones


def test_low_precision_agrees() -> None:
    model, batch = make_model().eval(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(*batch)
    torch.testing.assert_close(low.float(), model(*batch), rtol=0, atol=0.1)


def test_hub_round_trip_is_exact_and_strict(tmp_path: Path) -> None:
    model, batch = make_model(rates=[1, 3]).eval(), make_batch()
    model.save_pretrained(tmp_path)
    loaded = ClipLda.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.config.rates == (1, 3)
    assert torch.equal(loaded(*batch), model(*batch))
    values = json.loads((tmp_path / "config.json").read_text())
    for change in ({"neck_width": 56}, {"rates": [1, 2, 3]}, {"rates": [1]}):
        (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match="does not hold the weights that its config"):
            ClipLda.from_pretrained(tmp_path)


def test_a_checkpoint_is_the_model(tmp_path: Path) -> None:
    checkpoint = build_model(TrainConfig(model="clip_lda_tiny", encoder_weights=TOWERS))
    batch = make_batch()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "one", checkpoint)).model
    assert isinstance(loaded, ClipLda)
    assert loaded.config == checkpoint.model.config
    assert torch.equal(loaded(*batch), checkpoint.model.eval()(*batch))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rates": ()}, r"rates must be whole numbers, at least one, got \(\)"),
        ({"rates": 3}, "rates must be whole numbers, at least one, got 3"),
        ({"rates": (1, 0)}, r"rates must be whole numbers of at least 1, got \(1, 0\)"),
        ({"rate": (1,)}, "unknown model option 'rate'; did you mean 'rates'"),
        ({"name": "clip_lda_tinny"}, "did you mean 'clip_lda_tiny'"),
        ({"norm": "grop"}, "unknown norm 'grop'; did you mean 'group'"),
        ({"levels": 9}, r"levels must be in 1\.\.\.3"),
        ({"pretrained": True}, "no pretrained weights for 'clip_lda_tiny'; .*clip_lda_vit_b16"),
    ],
)
def test_wrong_requests_name_the_fix(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_model(**{"name": "clip_lda_tiny", **options})


def test_config_round_trips_through_json() -> None:
    config = ClipLdaConfig(vocab_size=77, rates=(2, 4))
    assert ClipLdaConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_compiles_to_one_graph() -> None:
    model, batch = make_model(dropout=0.0).train(), make_batch()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for logits in (compiled(*batch), plain(*batch)):
        logits.square().mean().backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


# With masks


@pytest.mark.parametrize("preset", ["cm-masksd", "augment"])
def test_presets_run_and_evaluation_is_the_model(preset: str) -> None:
    sd, batch = wrapped(DistillConfig.preset(preset)), make_batch()
    out = sd(*batch, target=torch.ones(2, 64, 64))
    out.loss.backward()
    assert all(p.grad is not None for p in sd.parameters())
    model = make_model().eval()
    model.load_state_dict({**model.state_dict(), **sd.segmenter.state_dict()})
    assert torch.equal(sd.eval()(*batch), model(*batch))


def attention(sd: CrossModalMaskedSelfDistill, images: Tensor, tokens: Tensor) -> Tensor:
    encoder = sd.segmenter.encoder
    image, text = encoder.encode_image(images), encoder.encode_text(tokens)
    return sd.segmenter.neck(image.maps, text.pooled).spatial_attention.detach()


@pytest.mark.parametrize(
    "options",
    [{}, {"low_memory": True}, {"share_weights": False}, {"detach_target": False}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_the_neck_of_the_plain_pass_ranks(options: dict[str, Any]) -> None:
    images, tokens = make_batch(3, (32, 48))
    sd = wrapped(dataclasses.replace(BY_NECK, **options), dropout=0.0)
    expected = attention(sd, images, tokens).flatten(1)
    out = sd(images, tokens, target=torch.ones(3, 32, 48))
    out.loss.backward()
    torch.testing.assert_close(out.relevance["lmvsd"], expected)
    least = expected.sort(descending=True).values[:, expected.shape[1] // 2 - 1]
    masked = out.masks["lmvsd"]
    assert (masked.sum(1) == 3).all()  # a quarter of half of 24
    assert (expected >= least[:, None])[masked].all()
    again = sd.preview(images.flip(0), tokens.flip(0)).relevance["lmvsd"]
    torch.testing.assert_close(again, expected.flip(0))  # nothing is kept from call to call


def test_some_samples_and_cells_of_another_size() -> None:
    masking = MaskingConfig(relevance="neck", cell=16, token="zero", samples=0.5)
    images, tokens = make_batch(4, (128, 192))
    sd = wrapped(dataclasses.replace(BY_NECK, image=masking))
    expected = F.avg_pool2d(attention(sd, images, tokens)[:2], 2).flatten(1)
    out = sd(images, tokens, target=torch.ones(4, 32, 32))
    torch.testing.assert_close(out.relevance["lmvsd"], expected)


@pytest.mark.slow
def test_ranking_by_the_neck_compiles_to_one_graph() -> None:
    batch = make_batch()
    sd, eager = (wrapped(BY_NECK, dropout=0.0) for _ in range(2))
    compiled = torch.compile(sd, fullgraph=True, backend="eager")
    out, expected = (each(*batch, target=torch.ones(2, 64, 64)) for each in (compiled, eager))
    torch.testing.assert_close(out.loss, expected.loss)
    assert torch.equal(out.masks["lmvsd"], expected.masks["lmvsd"])


def test_places_are_averaged_over_patches_in_full_precision() -> None:
    plain = Pass(torch.zeros(2, 1, 8, 8), ImageFeatures(None, (2, 3)), None, None, ())
    places = torch.rand(2, 1, 4, 6).bfloat16()
    scores = rank_tokens("neck", "image", plain._replace(neck=places), None, lambda: None)
    expected = [
        places.float()[:, 0, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2))
        for r in range(2)
        for c in range(3)
    ]
    torch.testing.assert_close(scores, torch.stack(expected, 1))
    assert scores.dtype == torch.float32


class Flat(nn.Module):
    """A neck that gives its attention as a vector."""

    def forward(self, maps: list[Tensor], sentence: Tensor) -> Fused:
        features = maps[-1] * sentence[:, :, None, None]
        return Fused(features, sentence, features.mean(1).flatten(1))


def test_hosts_whose_neck_does_not_say_are_refused() -> None:
    batch, target = make_batch(), torch.ones(2, 64, 64)
    cris = create_model("clip_cris_tiny", vocab_size=VOCABULARY)
    sd = CrossModalMaskedSelfDistill(cris.encoder, cris.neck, cris.decoder, BY_NECK)
    words = r"'neck' needs a neck whose result has spatial_attention \(B, 1, h, w\), .* got {}.*"
    with pytest.raises(ValueError, match=words.format("nothing") + "'prediction', 'random'"):
        sd(*batch, target=target)
    sd = CrossModalMaskedSelfDistill(sd.unwrap()[0], Flat(), cris.decoder, BY_NECK)
    with pytest.raises(ValueError, match=words.format(r"shape \(2, 64\)")):
        sd(*batch, target=target)
    encoder, neck, decoder = make_triple()  # whose neck gives a tensor
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, BY_NECK)
    with pytest.raises(ValueError, match=words.format("nothing")):
        sd(torch.zeros(2, 3, 16, 16), torch.zeros(2, 7, dtype=torch.int64), target=target)
    with pytest.raises(ValueError, match="a whole host does not name one: pass CrossModal"):
        CrossModalMaskedSelfDistill.wrap(make_host(), BY_NECK, taps=TAPS)
    with pytest.raises(ValueError, match="relevance 'neck' cannot rank the tokens of text"):
        DistillConfig(text=MaskingConfig(relevance="neck"))
