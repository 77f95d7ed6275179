from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.hosts import bert_words, lavt
from masksd.models import create_model
from masksd.models.clip_text import checkpoint_layers
from masksd.tapping.hooks import Recorder
from masksd.tapping.tap import EmbeddingTap


class External(nn.Module):
    """A LAVT that keeps BERT outside: the parts of lavt_tiny, called as LAVT calls them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        inside = tiny(seed)
        self.backbone, self.classifier = inside.backbone, inside.classifier

    def forward(self, x: Tensor, l_feats: Tensor, l_mask: Tensor) -> Tensor:
        maps = self.backbone(x, l_feats.permute(0, 2, 1), l_mask[..., 0] != 0)
        return F.interpolate(self.classifier(maps), x.shape[-2:], mode="bilinear")


def tiny(seed: int = 0, **overrides: Any) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("lavt_tiny", **overrides)


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    return External(seed), tiny(seed).text_encoder


def batch(samples: int = 4, height: int = 64, width: int = 64) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(104, 512, (samples, 8), generator=random)
    ids[:, 0], ids[:, 6], ids[:, 7] = 101, 102, 0
    truth = torch.zeros(samples, height, width)
    truth[:, 16:48, 8:40] = 1
    images = torch.randn(samples, 3, height, width, generator=random) + truth[:, None]
    return images, ids, (ids != 0).long(), truth


def by_hand(model: nn.Module, bert: nn.Module, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    words = bert(ids, attention_mask=mask)[0].permute(0, 2, 1)
    return model(images, words, mask.unsqueeze(-1))


def our_hooks(*modules: nn.Module) -> int:
    hooks = [h for root in modules for m in root.modules() for h in m._forward_hooks.values()]
    return sum(isinstance(hook, EmbeddingTap | Recorder) for hook in hooks)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_b" in k}


def test_one_evaluates_as_the_host_does() -> None:
    images, ids, mask, _ = batch()
    host = tiny().eval()
    before = copy.deepcopy(host.state_dict())
    want = host(images, ids, mask)
    sd = CrossModalMaskedSelfDistill.wrap(host).eval()
    assert torch.equal(sd(images, ids, mask), want)
    assert torch.equal(sd(images, ids, attention_mask=mask), want)
    assert list(host.state_dict()) == list(before)
    assert all(torch.equal(host.state_dict()[key], value) for key, value in before.items())
    assert sd.unwrap() is host
    assert our_hooks(host) == 0


def test_bert_outside_evaluates_as_by_hand_and_comes_back_as_two() -> None:
    images, ids, mask, _ = batch()
    model, bert = pair()
    keys = list(model.state_dict()), list(bert.state_dict())
    sd = CrossModalMaskedSelfDistill.wrap(model, text_encoder=bert).eval()
    want = by_hand(model, bert, images, ids, mask)
    assert torch.equal(sd(images, ids, mask), want)
    assert torch.equal(sd(images, ids, l_mask=mask), want)
    assert (list(model.state_dict()), list(bert.state_dict())) == keys
    back = sd.unwrap()
    assert back[0] is model
    assert back[1] is bert
    assert our_hooks(model, bert) == 0


@pytest.mark.parametrize("outside", [False, True])
def test_a_step_is_the_hosts_own_but_for_the_tokens(outside: bool) -> None:
    images, ids, mask, truth = batch()
    model, bert = pair() if outside else (tiny(), None)
    other, other_bert = pair() if outside else (tiny(), None)
    start = statistics(model)
    # Words by "nearest": a share of 10 % of so few words may be none in a step of four samples.
    config = DistillConfig(text=MaskingConfig(ratio=0.5))
    sd = CrossModalMaskedSelfDistill.wrap(model, config, text_encoder=bert)
    out = sd(images, ids, mask, target=truth)
    want = (
        other(images, ids, mask)
        if other_bert is None
        else by_hand(other, other_bert, images, ids, mask)
    )
    assert torch.equal(out.host_output, want)
    moved, want_moved = statistics(model), statistics(other)
    assert all(torch.equal(moved[key], value) for key, value in want_moved.items())
    assert any(not torch.equal(moved[key], value) for key, value in start.items())
    assert all(where.any() for where in out.masks.values())
    out.loss.backward()
    assert all(token.grad.abs().sum() > 0 for token in sd.distill_parameters())
    assert out.logits.shape == (4, 2, 16, 16)  # the classifier's own size
    assert out.masks["lmvsd"].shape == (4, 64)  # cells of an eighth of the picture
    assert not (out.masks["vmlsd"] & ((ids == 0) | (ids == 101) | (ids == 102))).any()


@pytest.mark.slow
@pytest.mark.parametrize("outside", [False, True])
def test_thirty_steps_lower_every_loss_and_reload_strictly(outside: bool) -> None:
    images, ids, mask, truth = batch(8)
    model, bert = pair() if outside else (tiny(), None)
    sd = CrossModalMaskedSelfDistill.wrap(model, text_encoder=bert)
    hosts = [host for host in (model, bert) if host is not None]
    optimizer = torch.optim.AdamW(
        [*(p for host in hosts for p in host.parameters()), *sd.distill_parameters()], lr=1e-3
    )
    losses, excess = [], []
    for _ in range(30):
        out = sd(images, ids, mask, target=truth)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        share = out.logits.softmax(1).detach()
        entropy = -(share * share.log()).sum(1).mean()
        losses.append(out.losses)
        excess.append(out.losses["lmvsd"] - entropy)  # what masking changes, entropy apart
    assert all(losses[-1][name] < losses[0][name] for name in ("seg", "lmvsd", "vmlsd"))
    assert excess[-1] < excess[0]
    sd.unwrap()
    fresh = pair(9) if outside else (tiny(9),)
    for new, trained in zip(fresh, hosts, strict=True):
        new.load_state_dict(trained.state_dict(), strict=True)


@pytest.mark.parametrize("outside", [False, True])
def test_pickles_and_copies_stand_alone(outside: bool) -> None:
    images, ids, mask, truth = batch(2)
    model, bert = pair() if outside else (tiny(), None)
    sd = CrossModalMaskedSelfDistill.wrap(model, text_encoder=bert)
    for other in (pickle.loads(pickle.dumps(sd)), copy.deepcopy(sd)):
        other(images, ids, mask, target=truth).loss.backward()
        assert all(parameter.grad is None for parameter in sd.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_gradients(reentrant: bool) -> None:
    images, ids, mask, truth = batch(2)
    gradients, runs = [], []
    for checkpointed in (False, True):
        # Attention runs inside the layer, whose own hooks stay outside the checkpoint.
        host, ran = tiny(dropout=0.1), []
        if checkpointed:
            checkpoint_layers(host.text_encoder, use_reentrant=reentrant)
        for layer in host.text_encoder.encoder.layer:
            layer.attention.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        sd = CrossModalMaskedSelfDistill.wrap(host, check=False)
        torch.manual_seed(5)
        sd(images, ids, mask, target=truth).loss.backward()
        gradients.append({name: p.grad for name, p in sd.named_parameters()})
        runs.append(len(ran))
    assert runs[1] == 2 * runs[0]  # recomputed indeed
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_picture_as_wide_as_the_embedding_is_not_ambiguous() -> None:
    host = tiny(embed_width=32)  # (B, 32, 32, 32) at 128 pixels
    sd = CrossModalMaskedSelfDistill.wrap(host, DistillConfig(text=None))
    images, ids, mask, truth = batch(2, 128, 128)
    out = sd(images, ids, mask, target=truth)
    assert out.masks["lmvsd"].shape == (2, 64)
    out.loss.backward()
    assert sd.distill_parameters()[0].grad.abs().sum() > 0


def test_pictures_need_not_be_square() -> None:
    images, ids, mask, truth = batch(2, 64, 96)
    out = CrossModalMaskedSelfDistill.wrap(tiny())(images, ids, mask, target=truth)
    assert out.masks["lmvsd"].shape == (2, 96)


def test_bert_missing_or_there_twice_is_said_and_nothing_touched() -> None:
    model, bert = pair()
    with pytest.raises(ValueError, match=r"External keeps its BERT outside.*text_encoder=bert"):
        CrossModalMaskedSelfDistill.wrap(model)
    inside = tiny()
    with pytest.raises(ValueError, match="has a text_encoder of its own"):
        CrossModalMaskedSelfDistill.wrap(inside, text_encoder=bert)
    with pytest.raises(ValueError, match="embeddings"):
        CrossModalMaskedSelfDistill.wrap(model, text_encoder=nn.Linear(2, 2))
    assert our_hooks(model, bert, inside) == 0


def test_berts_output_in_place_of_ids_is_refused() -> None:
    images, ids, mask, _ = batch(2)
    model, bert = pair()
    sd = CrossModalMaskedSelfDistill.wrap(model, text_encoder=bert).eval()
    with pytest.raises(ValueError, match=r"l_mask must be \(B, L\)"):
        sd(images, ids, mask.unsqueeze(-1))


def test_others_with_a_backbone_and_a_classifier_are_not_lavt() -> None:
    other = nn.Module()
    other.backbone, other.classifier = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    assert not lavt.recognise(other)
    assert lavt.recognise(External())


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 512,
}


@pytest.mark.parametrize(
    ("tower", "ids"),
    [
        (lambda: BertModel(BertConfig(**SIZES)), [101, 200, 300, 102, 0, 0, 0, 0]),
        (
            lambda: RobertaModel(RobertaConfig(pad_token_id=1, **SIZES)),
            [0, 200, 300, 2, 1, 1, 1, 1],
        ),
        (lambda: BertModel(BertConfig(**SIZES)), [2, 200, 102, 3, 0, 0, 0, 0]),  # PubMedBERT
        (lambda: BertModel(BertConfig(**SIZES)), [102, 200, 300, 103, 0, 0, 0, 0]),  # SciBERT
    ],
)
def test_special_tokens_of_every_vocabulary_are_no_words(tower, ids) -> None:
    wanted = [[0, 1, 1, 0, 0, 0, 0, 0]]
    tokens = torch.tensor([ids])
    assert bert_words(tokens).int().tolist() == wanted
    mask = (torch.arange(8) < 4).long()[None]
    model = create_model("lavt_tiny")
    model.text_encoder = tower()
    config = DistillConfig(text=MaskingConfig(top_k=1.0, ratio=1.0, rounding="ceil"))
    sd = CrossModalMaskedSelfDistill.wrap(model, config)
    images, target = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64)
    sd.segmenter.wrapped.eval()
    assert sd.segmenter.plain(images, tokens, mask).text.valid.int().tolist() == wanted
    assert sd.preview(images, tokens, mask, target=target).masks["vmlsd"].int().tolist() == wanted


def test_a_sentence_without_padding_or_without_an_end() -> None:
    assert bert_words(torch.tensor([[0, 200, 300, 2]])).int().tolist() == [[0, 1, 1, 0]]
    assert bert_words(torch.tensor([[101, 200, 300, 400]])).int().tolist() == [[0, 1, 1, 1]]
    full = torch.ones(1, 4)  # an attention mask settles what ids alone leave open
    assert bert_words(torch.tensor([[5, 7, 0, 0]]), full).int().tolist() == [[0, 1, 1, 0]]


def test_words_by_a_function_of_the_users() -> None:
    model = create_model("lavt_tiny")
    sd = CrossModalMaskedSelfDistill.wrap(model, valid=every_second)
    tokens = torch.tensor([[101, 200, 300, 102]])
    plain = sd.segmenter.plain(torch.randn(2, 3, 64, 64), tokens.repeat(2, 1), torch.ones(2, 4))
    assert plain.text.valid[0].tolist() == [False, True, False, True]
    assert "every_second" in sd.describe()
    with pytest.raises(ValueError, match=r"valid= is for recipes; with taps, name it in Taps"):
        CrossModalMaskedSelfDistill.wrap(tiny(), taps=lavt.taps(tiny()), valid=every_second)


def every_second(ids: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1]) % 2 == 1).expand(ids.shape)
