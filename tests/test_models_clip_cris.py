from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from masksd.models import ClipCris, ClipCrisConfig, create_model

VOCABULARY, END = 30, 29


def make_model(seed: int = 0, **overrides: Any) -> ClipCris:
    torch.manual_seed(seed)
    return create_model("clip_cris_tiny", vocab_size=VOCABULARY, **overrides)


def make_batch(batch: int = 2, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.tensor([[28, 3, 4, 5, END, 0, 0], [28, 6, END, 0, 0, 0, 0]])
    return torch.randn(batch, 3, *size), tokens.repeat(batch // 2 + 1, 1)[:batch]


def test_forward_is_the_composition_of_the_parts() -> None:
    model, (images, tokens) = make_model().eval(), make_batch()
    image, text = model.encoder.encode_image(images), model.encoder.encode_text(tokens)
    fused = model.neck(image.maps, text.pooled)
    expected = model.decoder(fused, text.local, text.attention_mask)
    assert torch.equal(model(images, tokens), expected)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 5), (1, 2)])
def test_any_size_that_the_patches_divide(patch: int, grid: tuple[int, int]) -> None:
    model = make_model(patch_size=patch, image_size=4 * patch).eval()
    images, tokens = make_batch(2, (grid[0] * patch, grid[1] * patch))
    logits = model(images, tokens)
    assert logits.shape == (2, 1, 4 * grid[0], 4 * grid[1])
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "size", "logits"),
    [
        ("clip_cris_vit_b16", (480, 480), (120, 120)),
        ("clip_cris_vit_b16", (576, 576), (144, 144)),
        ("clip_cris_vit_b16", (320, 480), (80, 120)),
        ("clip_cris_vit_l14", (532, 532), (152, 152)),
        ("clip_cris_vit_l14", (336, 280), (96, 80)),
    ],
)
def test_sizes_of_the_large_models(
    name: str, size: tuple[int, int], logits: tuple[int, int]
) -> None:
    with torch.device("meta"):
        model = create_model(name, vision_layers=3, text_layers=1).eval()
        out = model(torch.zeros(2, 3, *size), torch.zeros(2, 22, dtype=torch.int64))
    assert out.shape == (2, 1, *logits)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_padding_changes_nothing(norm: str) -> None:
    model, (images, tokens) = make_model(norm=norm).double().eval(), make_batch()
    images = images.double()
    other = torch.cat([tokens, torch.full((2, 4), 11)], dim=1)
    other[1, 3:] = END
    assert torch.allclose(model(images, other), model(images, tokens), rtol=0, atol=1e-12)
    changed = tokens.clone()
    changed[:, 1] = 9
    assert not torch.allclose(model(images, changed), model(images, tokens))


def test_without_dropout_training_repeats() -> None:
    model, batch = make_model(dropout=0.0).train(), make_batch()
    assert torch.equal(model(*batch), model(*batch))
    assert torch.equal(model.eval()(*batch), model.train()(*batch))  # group norm: no statistics
    dropping = make_model(dropout=0.1).train()
    assert not torch.equal(dropping(*batch), dropping(*batch))


@pytest.mark.parametrize(("norm", "counted"), [("batch", True), ("group", False)])
def test_norm_says_whether_there_are_batch_statistics(norm: str, counted: bool) -> None:
    model = make_model(norm=norm)
    assert counted is any("running_mean" in name for name, _ in model.named_buffers())


def test_every_parameter_takes_part() -> None:
    model, batch = make_model().train(), make_batch()
    (model(*batch) * torch.randn(2, 1, 32, 32)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []  # DistributedDataParallel refuses idle ones


def test_low_precision_and_double_run_and_agree() -> None:
    model, (images, tokens) = make_model().eval(), make_batch()
    plain = model(images, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, tokens)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), plain, atol=0.1)
    double = copy.deepcopy(model).double()(images.double(), tokens)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), plain, atol=1e-4)


def test_eager_attention_equals_sdpa() -> None:
    batch, logits = make_batch(), []
    for attention in ("eager", "sdpa"):
        model = make_model(attention=attention).eval()
        for tower in (model.encoder.vision, model.encoder.text):
            assert tower.config._attn_implementation == attention
        logits.append(model(*batch))
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    batch, gradients = make_batch(), []
    for checkpointing in (False, True):
        model = make_model(dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(*batch).square().mean().backward()
        gradients.append(model.encoder.vision.embeddings.patch_embedding.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_it_learns_to_tell_two_sentences_apart() -> None:
    model = make_model(dropout=0.0, vision_layers=2).train()
    images, tokens = make_batch(2)
    images = images[:1].expand(2, -1, -1, -1)
    target = torch.zeros(2, 1, 32, 32)
    target[0, :, :16], target[1, :, 16:] = 1, 1
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images, tokens), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (((model(images, tokens) > 0) == target.bool()).float().mean() > 0.95).item()


def make_small(**overrides: Any) -> ClipCris:
    """One layer of each kind: compiling takes seconds a layer."""
    return make_model(vision_layers=1, levels=1, text_layers=1, decoder_layers=1, **overrides)


@pytest.mark.slow
def test_training_compiles_to_one_graph_with_the_same_gradients() -> None:
    model, batch = make_small(norm="batch", dropout=0.0).train(), make_batch()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for logits in (compiled(*batch), plain(*batch)):
        logits.square().mean().backward()
    assert torch.allclose(compiled(*batch), plain(*batch), atol=1e-5)
    recomputed = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(recomputed[name].grad, parameter.grad, rtol=1e-4, atol=1e-5), name


def test_dropout_does_not_break_the_graph() -> None:
    model, batch = make_small(dropout=0.1).train(), make_batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert not torch.equal(compiled(*batch), compiled(*batch))


def test_hub_round_trip(tmp_path: Path) -> None:
    model, batch = make_model(norm="batch", dropout=0.2), make_batch()
    model.train()(*batch)  # running statistics are saved too
    model.save_pretrained(tmp_path / "model")
    loaded = ClipCris.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(*batch), model.eval()(*batch))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == asdict(model.config)


def test_copies_and_pickles_are_whole() -> None:
    model, batch = make_model().eval(), make_batch()
    expected = model(*batch)
    assert torch.equal(copy.deepcopy(model)(*batch), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(*batch), expected)


def test_config_round_trips_through_json() -> None:
    config = ClipCrisConfig(vocab_size=77, norm="group", dropout=0.25)
    assert ClipCrisConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    with pytest.raises(ValueError, match="unknown model option 'witdh'; did you mean 'width'"):
        ClipCrisConfig.from_dict({"witdh": 3})


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model at .*config.json and model.safetensors"):
        ClipCris.from_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "head_width": values["head_width"] + 8}))
    with pytest.raises(ValueError, match="does not hold the weights that its config"):
        ClipCris.from_pretrained(tmp_path)
    for damaged in ("[]", "[" * 100_000, "\xff"):
        config.write_bytes(damaged.encode("latin-1"))
        with pytest.raises(
            ValueError, match=r"config\.json of .* (is not JSON|must hold an object)"
        ):
            ClipCris.from_pretrained(tmp_path)
    config.write_text(json.dumps({**values, "decoder_layers": 10**6}))
    with pytest.raises(ValueError, match=r"asks for more than twice the \d+ tensors"):
        ClipCris.from_pretrained(tmp_path)
    config.write_text(json.dumps({**values, "decoder_layers": values["decoder_layers"] + 1}))
    with pytest.raises(ValueError, match="does not hold the weights that its config"):
        ClipCris.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json .* is not JSON"):
        ClipCris.from_pretrained(tmp_path)
    config.write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        ClipCris.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model at"):
        ClipCris.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["masksd/not-there", "/no/such/folder"])
def test_a_model_that_cannot_be_had_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"^no model at '{name}'") as raised:
        ClipCris.from_pretrained(name)
    assert f"`hf download {name}`" in str(raised.value)


def test_each_image_needs_one_sentence() -> None:
    images, tokens = make_batch()
    with pytest.raises(ValueError, match="got 2 images and 1 sentences"):
        make_model()(images, tokens[:1])
