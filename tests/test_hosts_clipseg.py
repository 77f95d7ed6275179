from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from masksd import CrossModalMaskedSelfDistill
from masksd.hosts.clipseg import clipseg_words, recognise
from masksd.models.clip_text import checkpoint_layers
from masksd.tapping.hooks import Recorder
from masksd.tapping.tap import EmbeddingTap

END = 99


def tiny(seed: int = 0, dropout: float = 0.0) -> Any:
    torch.manual_seed(seed)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "attention_dropout": dropout,
    }
    words = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": END, "pad_token_id": 0}
    words["max_position_embeddings"] = 12
    return CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config={**tower, **words},
            vision_config={**tower, "image_size": 64, "patch_size": 8},
            extract_layers=[0, 1, 2],
            reduce_dim=16,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            projection_dim=24,
        )
    ).train()


def batch(samples: int = 4) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 98, (samples, 9), generator=random)
    ids[:, 0], ids[:, 6], ids[:, 7:] = 98, END, 0
    truth = torch.zeros(samples, 64, 64)
    truth[:, 16:48, 8:40] = 1
    images = torch.randn(samples, 3, 64, 64, generator=random) + truth[:, None]
    return {"input_ids": ids, "pixel_values": images, "attention_mask": (ids != 0).long()}, truth


def wrap(host: nn.Module, train_encoder: bool = False, check: bool = True) -> Any:
    sd = CrossModalMaskedSelfDistill.wrap(host, check=check)
    sd.segmenter.train_encoder = train_encoder
    return sd


def our_hooks(host: nn.Module) -> int:
    hooks = [hook for module in host.modules() for hook in module._forward_hooks.values()]
    return sum(isinstance(hook, EmbeddingTap | Recorder) for hook in hooks)


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
@pytest.mark.parametrize("train_encoder", [False, True])
def test_evaluation_is_the_hosts_and_nothing_of_it_changes(train_encoder: bool) -> None:
    given, truth = batch()
    host = tiny().eval()
    before, want = copy.deepcopy(host.state_dict()), host(**given)
    sd = wrap(host, train_encoder)
    sd.train()(**given, target=truth)
    got = sd.eval()(**given)
    assert type(got) is type(want)
    assert torch.equal(got.logits, want.logits)
    assert list(host.state_dict()) == list(before)
    assert all(torch.equal(host.state_dict()[key], value) for key, value in before.items())
    assert sd.unwrap() is host
    assert our_hooks(host) == 0


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
@pytest.mark.parametrize("train_encoder", [False, True])
def test_training_gives_the_hosts_logits_and_loss(train_encoder: bool) -> None:
    given, truth = batch()
    bare = tiny(dropout=0.1)
    torch.manual_seed(3)
    want = bare(**given, labels=truth)
    sd = wrap(tiny(dropout=0.1), train_encoder)
    torch.manual_seed(3)
    out = sd(**given, labels=truth)
    assert torch.equal(out.logits[:, 0], want.logits)
    torch.testing.assert_close(out.losses["seg"], want.loss)


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
def test_the_hosts_own_way_teaches_the_decoder_alone_and_says_so() -> None:
    given, truth = batch()
    sd = wrap(host := tiny())
    assert "learn nothing" in sd.describe()
    assert "train_encoder = True" in sd.describe()
    sd(**given, target=truth).loss.backward()
    # Zero and not None: DDP asks that every parameter took part.
    assert all(token.grad is not None and not token.grad.any() for token in sd.distill_parameters())
    assert all(parameter.grad is None for parameter in host.clip.parameters())
    assert any(parameter.grad.any() for parameter in host.decoder.parameters())


def test_train_encoder_teaches_towers_and_tokens() -> None:
    given, truth = batch()
    sd = wrap(host := tiny(), True)
    assert "learn nothing" not in sd.describe()
    sd(**given, target=truth).loss.backward()
    assert all(token.grad.any() for token in sd.distill_parameters())
    for tower in (host.clip.vision_model, host.clip.text_model):
        assert any(parameter.grad is not None for parameter in tower.encoder.parameters())


def test_a_masked_pass_equals_the_host_on_embeddings_masked_by_hand() -> None:
    given, truth = batch()
    sd = wrap(host := tiny()).eval()
    out = sd.preview(**given, target=truth)
    embedding = host.clip.vision_model.embeddings.patch_embedding
    token = sd.maskers["image"].token
    hidden = out.masks["lmvsd"].unflatten(1, (8, 8))[:, None]
    hook = embedding.register_forward_hook(
        lambda module, args, output: torch.where(hidden, token[:, None, None], output)
    )
    want = host(**given).logits
    hook.remove()
    loss = nn.functional.binary_cross_entropy_with_logits(want, out.logits[:, 0].sigmoid())
    torch.testing.assert_close(out.losses["lmvsd"], loss)


def test_relevance_is_clips_own_dot_product() -> None:
    given, truth = batch()
    sd = wrap(host := tiny())
    assert sd.maskers["image"].relevance == sd.maskers["text"].relevance == "dot"
    out = sd.preview(**given, target=truth)
    host.eval()
    hidden = host.clip.vision_model(given["pixel_values"]).last_hidden_state[:, 1:]
    patches = host.clip.visual_projection(host.clip.vision_model.post_layernorm(hidden))
    sentence = host.get_conditional_embeddings(4, given["input_ids"], given["attention_mask"])
    torch.testing.assert_close(out.relevance["lmvsd"], (patches @ sentence[..., None])[..., 0])


def test_training_lowers_what_it_minimises_and_reloads_strictly() -> None:
    given, truth = batch(8)
    sd = wrap(host := tiny(), True)
    optimizer = torch.optim.AdamW([*host.parameters(), *sd.distill_parameters()], lr=2e-3)
    seg, total, excess = [], [], []
    for _ in range(30):
        out = sd(**given, target=truth)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        share = out.logits.detach().double().sigmoid()
        entropy = nn.functional.binary_cross_entropy(share, share)
        seg.append(out.losses["seg"].item())
        total.append(out.loss.item())
        # A random CLIPSeg starts sure and wrong: the target's entropy, which no masked branch can
        # undercut, first grows. What the branch adds to it must shrink.
        excess.append((out.losses["lmvsd"] - entropy).item())
    assert seg[-1] < seg[0]
    assert total[-1] < total[0]
    assert excess[-1] < excess[0]
    sd.unwrap()
    tiny(9).load_state_dict(host.state_dict(), strict=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_gradients(reentrant: bool) -> None:
    given, truth = batch()
    gradients, runs = [], []
    for checkpointed in (False, True):
        host, ran = tiny(dropout=0.1), []
        if checkpointed:
            checkpoint_layers(host, use_reentrant=reentrant)
        for layer in host.clip.vision_model.encoder.layers:  # inside, as in test_hosts_lavt
            layer.self_attn.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        sd = wrap(host, True, check=False)
        torch.manual_seed(5)
        sd(**given, target=truth).loss.backward()
        gradients.append({name: p.grad for name, p in sd.named_parameters() if p.grad is not None})
        runs.append(len(ran))
    assert runs[1] == 2 * runs[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_pickle_and_copy_stand_alone() -> None:
    given, truth = batch(2)
    sd = wrap(tiny(), True)  # not run yet: what transformers hooks in at a first call is no pickle
    for other in (pickle.loads(pickle.dumps(sd)), copy.deepcopy(sd)):
        other(**given, target=truth).loss.backward()
        assert all(parameter.grad is None for parameter in sd.parameters())


def test_prompts_that_cannot_be_masked_are_refused() -> None:
    given, _ = batch(2)
    sd = wrap(tiny())
    with pytest.raises(ValueError, match="brought no input_ids"):
        sd(pixel_values=given["pixel_values"], conditional_embeddings=torch.zeros(2, 24))
    with pytest.raises(ValueError, match="leave text_encoder out"):
        CrossModalMaskedSelfDistill.wrap(tiny(), text_encoder=nn.ReLU())


def test_words_end_where_clipseg_pools() -> None:
    ids = torch.tensor([[98, 4, 5, 99, 99], [98, 4, 5, 6, 7]])
    assert clipseg_words(ids, 99).tolist() == [[False, True, True, False, False], [False] * 5]
    assert clipseg_words(ids[:1], 2).tolist() == [[False, True, True, False, False]]


def test_recognised_by_its_parts() -> None:
    assert recognise(tiny())
    assert not recognise(tiny().clip)
