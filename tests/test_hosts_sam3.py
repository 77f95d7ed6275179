"""transformers' SAM 3, tiny and random: recognised, trained, left as it was."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.hosts import sam3
from tests.test_hosts_replay import assert_same, untouched

wrap = CrossModalMaskedSelfDistill.wrap
CONFIG = DistillConfig(text=MaskingConfig(ratio=0.5, rounding="ceil"))


def tiny(kind: str = "Sam3Model", seed: int = 0, dropout: float = 0.0) -> Any:
    part = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    layers = {**part, "num_layers": 2, "dropout": dropout}
    patches = {"image_size": 64, "pretrain_image_size": 64, "patch_size": 8, "window_size": 4}
    words = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 0}
    backbone = {**part, **patches, "num_hidden_layers": 2, "global_attn_indexes": [1]}
    text = {"num_hidden_layers": 2, "max_position_embeddings": 32, "projection_dim": 32}
    config = getattr(transformers, kind.replace("Model", "Config"))(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {"model_type": "sam3_vit_model", **backbone},
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={**part, **words, **text},
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 4},
        mask_decoder_config=part,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, kind)(config)


def batch(samples: int = 2, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 3, 64, 64, generator=random)
    truth = torch.zeros(samples, 64, 64)
    ids = torch.randint(1, 98, (samples, 7), generator=random)
    ids[:, 0], ids[:, 5], ids[:, 6] = 98, 99, 0
    for sample in range(samples):
        side = 32 * (sample % 2)
        truth[sample, 16:48, side : side + 32] = 1
        ids[sample, 1] = 10 + sample % 2
    images = (images + 2 * truth[:, None]).to(dtype)
    inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": (ids > 0).long()}
    return inputs, truth.to(dtype)


def step(sd: Any, inputs: dict[str, Tensor], truth: Tensor) -> tuple[Any, dict[str, Tensor]]:
    sd.zero_grad()
    out = sd(**inputs, target=truth)
    out.loss.backward()
    return out, {name: p.grad for name, p in sd.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["Sam3Model", "Sam3LiteTextModel"])
def test_it_is_recognised_evaluates_as_itself_and_both_tokens_learn(kind: str) -> None:
    inputs, truth = batch()
    host = tiny(kind).eval()
    keys = list(host.state_dict())
    with torch.no_grad():
        wanted = host(**inputs)
    sd = wrap(host, CONFIG)
    assert "SAM 3, recognised by its parts" in sd.describe()
    with torch.no_grad():
        got = sd(**inputs)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted if wanted[name] is not None)
    out, gradients = step(sd.train(), inputs, truth)
    assert torch.equal(out.logits, out.host_output.semantic_seg)
    assert out.masks["lmvsd"].shape == (2, 64)
    assert out.masks["vmlsd"].int().tolist() == [[0, *row[1:5], 0, 0] for row in out.masks["vmlsd"]]
    for name in ("image", "text"):
        assert gradients[f"maskers.{name}.token"].norm() > 0
    assert list(host.state_dict()) == keys
    assert sd.unwrap() is host
    assert untouched(host)


def test_a_step_costs_two_and_the_share_behind_the_towers() -> None:
    inputs, _ = batch()
    sd = wrap(tiny(), CONFIG)
    calls: list[str] = []
    for name in ("vision_encoder", "text_encoder"):
        tower = sd.segmenter.wrapped.get_submodule(name)
        layer = next(m for m in tower.modules() if isinstance(m, nn.LayerNorm))
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    sd._checked = True
    sd(**inputs)
    assert calls == ["vision_encoder", "text_encoder", "text_encoder", "vision_encoder"]
    assert float(sd.describe(**inputs).split("a step costs ")[1].split()[0]) < 2.6


@pytest.mark.parametrize("union", [False, True])
def test_low_memory_gives_the_same_gradients(union: bool) -> None:
    inputs, truth = batch(dtype=torch.float64)
    again = wrap(tiny().double(), CONFIG).double()
    low = wrap(tiny().double(), dataclasses.replace(CONFIG, low_memory=True)).double()
    again.segmenter.union = low.segmenter.union = union
    (out, wanted), (got_out, got) = step(again, inputs, truth), step(low, inputs, truth)
    torch.testing.assert_close(got_out.losses, out.losses)
    assert ("union" in out.losses) is union
    assert_same(got, wanted, 1e-9)


def test_thirty_steps_on_eight_pictures_lower_every_loss() -> None:
    inputs, truth = batch(8)
    sd = wrap(tiny(dropout=0.1), CONFIG)
    sd.segmenter.union = True
    optimizer = torch.optim.AdamW(sd.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        out, _ = step(sd, inputs, truth)
        optimizer.step()
        losses.append({name: loss.item() for name, loss in out.losses.items()})
    assert set(losses[0]) == {"seg", "union", "lmvsd", "vmlsd"}
    assert all(losses[-1][name] < losses[0][name] for name in losses[0])
    fresh = tiny(seed=9)
    fresh.load_state_dict(sd.unwrap().state_dict(), strict=True)


def test_the_union_is_a_noisy_or_and_teaches_queries_and_scores() -> None:
    inputs, truth = batch()
    sd = wrap(tiny(), CONFIG)
    assert not any("mask_embedder" in name for name in step(sd, inputs, truth)[1])
    sd.segmenter.union = True
    out, gradients = step(sd, inputs, truth)
    host = out.host_output
    score = host.pred_logits.sigmoid() * host.presence_logits.sigmoid()
    none = torch.ones_like(host.semantic_seg[:, 0])
    for query in range(score.shape[1]):
        none = none * (1 - score[:, query, None, None] * host.pred_masks[:, query].sigmoid())
    torch.testing.assert_close(sam3.union(host)[:, 0].sigmoid(), 1 - none)
    for part in ("mask_embedder", "dot_product_scoring", "presence_head"):
        assert any(part in name and g.norm() > 0 for name, g in gradients.items()), part


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_the_union_is_finite_for_any_logits(size: float) -> None:
    masks = torch.full((1, 200, 2, 2), size, requires_grad=True)
    scores, presence = torch.full((1, 200), size), torch.full((1, 1), size)
    output = transformers.utils.ModelOutput(
        pred_masks=masks, pred_logits=scores, presence_logits=presence
    )
    logits = sam3.union(output)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert masks.grad is not None
    assert masks.grad.isfinite().all()
    assert ((logits > 0) == (size > 0)).all()


class Lora(nn.Module):
    """A low-rank adapter beside a frozen linear layer or embedding, as PEFT lays it out."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        table = isinstance(base_layer, nn.Embedding)
        rows, columns = base_layer.weight.shape if table else base_layer.weight.shape[::-1]
        self.down = nn.Embedding(rows, 2) if table else nn.Linear(rows, 2, bias=False)
        self.up = nn.Linear(2, columns, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def add_lora(host: nn.Module, *ends: str) -> None:
    """Freeze a host and put adapters on the modules whose paths end so."""
    host.requires_grad_(False)
    for path in [path for path, _ in host.named_modules() if path.endswith(ends)]:
        parent, _, name = path.rpartition(".")
        setattr(host.get_submodule(parent), name, Lora(host.get_submodule(path)))


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("when", ["before", "after", "before, on the words too"])
def test_lora_before_and_after_wrapping(when: str, low_memory: bool) -> None:
    inputs, truth = batch()
    host = tiny()
    ends = ["q_proj", "v_proj"] + (["token_embedding"] if "words" in when else [])
    config = dataclasses.replace(CONFIG, low_memory=low_memory)
    if when == "after":
        sd = wrap(host, config)
        add_lora(host, *ends)
    else:
        add_lora(host, *ends)
        sd = wrap(host, config)
    optimizer = torch.optim.AdamW((p for p in sd.parameters() if p.requires_grad), lr=1e-3)
    first = step(sd, inputs, truth)[0]
    optimizer.step()
    _, gradients = step(sd, inputs, truth)
    assert all("down" in name or "up" in name or "token" in name for name in gradients)
    for tower in ("vision_encoder", "text_encoder", "detr_encoder"):
        assert any(tower in name and g.norm() > 0 for name, g in gradients.items()), tower
    for _ in range(10):
        optimizer.step()
        out, _ = step(sd, inputs, truth)
    assert out.losses["seg"] < first.losses["seg"]
    assert sd.unwrap() is host
    assert untouched(host)


def test_lora_on_the_words_after_wrapping_is_refused() -> None:
    inputs, truth = batch()
    host = tiny()
    sd = wrap(host, CONFIG)
    add_lora(host, "token_embedding")
    with pytest.raises(RuntimeError, match="first, then wrap"):
        sd(**inputs, target=truth)


@pytest.mark.parametrize("token", ["shared", "zero"])
def test_frozen_towers_keep_no_activations_where_nothing_in_them_learns(token: str) -> None:
    inputs, truth = batch()
    host = tiny()
    host.vision_encoder.requires_grad_(False)
    host.text_encoder.requires_grad_(False)
    sd = wrap(host, dataclasses.replace(CONFIG, image=MaskingConfig(token=token)))
    sd(**inputs, target=truth)  # with its check
    kept: list[bool] = []
    host.vision_encoder.register_forward_hook(
        lambda module, args, output: kept.append(output.last_hidden_state.requires_grad)
    )
    _, gradients = step(sd, inputs, truth)
    # plain, replayed where words are masked, and with masked patches
    assert kept == [False, False, token == "shared"]
    assert not any("vision_encoder" in name or "text_encoder" in name for name in gradients)
    assert ("maskers.image.token" in gradients) is (token == "shared")
    assert gradients["maskers.text.token"].norm() > 0
    assert gradients["segmenter.wrapped.mask_decoder.semantic_projection.weight"].norm() > 0


def test_attention_needs_no_more_names() -> None:
    inputs, truth = batch()
    config = DistillConfig.preset("amlris")
    assert step(wrap(tiny(), config), inputs, truth)[0].masks


def test_boxes_go_along_and_what_cannot_be_masked_is_said() -> None:
    inputs, truth = batch()
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]).repeat(2, 1, 1)
    host = tiny()
    sd = wrap(host, CONFIG)
    assert step(sd, {**inputs, "input_boxes": boxes}, truth)[0].masks["vmlsd"].any()
    with torch.no_grad():
        seen = host.get_vision_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="this call brought no pixel_values"):
        sd(vision_embeds=seen, input_ids=inputs["input_ids"], target=truth)
    with pytest.raises(ValueError, match="leave text_encoder out"):
        wrap(tiny(), CONFIG, text_encoder=nn.Linear(2, 2))


def test_copies_train_alone() -> None:
    inputs, truth = batch()
    sd = wrap(tiny(), CONFIG)
    twin = copy.deepcopy(sd)
    assert_same(step(twin, inputs, truth)[1], step(sd, inputs, truth)[1], 1e-6)
    step(wrap(tiny(), dataclasses.replace(CONFIG, target="teacher")), inputs, truth)
