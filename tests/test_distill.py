"""The wrapper's promises: the host untouched, the draws keyed, one graph, honest errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Triple
from masksd.tapping.modules import frozen_statistics
from tests.triples import WIDTH, make_batch, make_triple

IMAGE = MaskingConfig(ratio=0.5)
TEXT = MaskingConfig(ratio=0.5, rounding="ceil")
BOTH = DistillConfig(image=IMAGE, text=TEXT)


def wrapped(config=BOTH, **triple):
    return CrossModalMaskedSelfDistill(*make_triple(**triple), config)


def hooks(module):
    return [hook for part in module.modules() for hook in part._forward_hooks.values()]


# The host is untouched


def test_evaluation_is_the_bare_triple_bit_for_bit():
    parts = make_triple(dropout=0.5)
    images, tokens, target = make_batch()
    bare = Triple(*copy.deepcopy(parts)).eval()
    sd = CrossModalMaskedSelfDistill(*parts, BOTH)
    sd(images, tokens, target=target)
    bare.load_state_dict(sd.segmenter.state_dict())
    encoder, neck, decoder = bare.release()
    picture, sentence = encoder.encode_image(images), encoder.encode_text(tokens)
    expected = decoder(neck(picture.maps, sentence.pooled), sentence.local, sentence.attention_mask)
    sd.eval()
    assert torch.equal(sd(images, tokens), expected)
    assert torch.equal(sd(images, tokens, target=target), expected)


def test_unwrap_returns_the_same_objects_without_a_hook():
    parts = make_triple()
    keys = [list(part.state_dict()) for part in parts]
    sd = CrossModalMaskedSelfDistill(*parts, BOTH)
    assert [list(part.state_dict()) for part in parts] == keys
    assert len(hooks(parts[0])) == 2
    for part, came in zip(parts, sd.unwrap(), strict=True):
        assert part is came
        assert hooks(part) == []
    with pytest.raises(ValueError, match="this wrapper was unwrapped: wrap the model again"):
        sd(*make_batch()[:2])
    CrossModalMaskedSelfDistill(*parts)  # and it can be wrapped again


def test_what_is_learned_in_addition_lives_outside_the_host():
    sd = wrapped()
    host = {id(p) for part in make_and_list(sd) for p in part.parameters()}
    own = sd.distill_parameters()
    assert [tuple(p.shape) for p in own] == [(WIDTH,), (WIDTH,)]
    assert not host & {id(p) for p in own}
    assert host | {id(p) for p in own} == {id(p) for p in sd.parameters()}


def make_and_list(sd):
    return sd.segmenter.encoder, sd.segmenter.neck, sd.segmenter.decoder


def test_running_statistics_move_as_in_one_plain_pass_in_every_mode():
    images, tokens, target = make_batch()
    for frozen in (False, True):
        parts, twins = make_triple(), make_triple()
        sd = CrossModalMaskedSelfDistill(*parts, BOTH).train()
        encoder, neck, decoder = twins
        if frozen:
            parts[1].norm.eval()
            neck.norm.eval()
        sd(images, tokens, target=target)
        picture, sentence = encoder.encode_image(images), encoder.encode_text(tokens)
        decoder(neck(picture.maps, sentence.pooled), sentence.local, sentence.attention_mask)
        for got, expected in zip(parts[1].norm.buffers(), neck.norm.buffers(), strict=True):
            assert torch.equal(got, expected)
        assert parts[1].norm.track_running_stats


def test_running_statistics_are_restored_when_the_pass_fails():
    norm = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="expected 2D or 3D input"), frozen_statistics(norm):
        norm(torch.zeros(2))
    assert norm.track_running_stats


def test_our_draws_do_not_touch_the_random_stream():
    images, tokens, target = make_batch()
    before = torch.get_rng_state()
    sd = CrossModalMaskedSelfDistill(
        *make_triple(),
        DistillConfig(
            image=MaskingConfig(relevance="random"), text=MaskingConfig(relevance="random")
        ),
    )
    sd(images, tokens, target=target)
    assert torch.equal(before, torch.get_rng_state())


# What a step returns


def test_the_loss_is_the_weighted_sum_of_its_terms():
    images, tokens, target = make_batch()
    out = wrapped()(images, tokens, target=target)
    assert out[0] is out.loss
    distill = 0.75 * out.losses["lmvsd"] + 0.10 * out.losses["vmlsd"]
    torch.testing.assert_close(out.distill_loss, distill)
    torch.testing.assert_close(out.loss, out.losses["seg"] + distill)
    assert out.host_output is out.logits
    assert out.logits.shape == (3, 1, 8, 8)
    assert out.masks["lmvsd"].sum(1).tolist() == [4, 4, 4]  # half of half of 16 patches
    assert out.masks["vmlsd"].sum(1).tolist() == [1, 1, 1]  # ceil of half of ceil(half of words)
    assert out.relevance["lmvsd"].shape == (3, 16)


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_logits_of_the_masked_passes_give_the_losses_of_the_branches(low_memory):
    images, tokens, target = make_batch()
    out = wrapped(dataclasses.replace(BOTH, low_memory=low_memory))(images, tokens, target=target)
    assert set(out.masked_logits) == {"lmvsd", "vmlsd"}
    for name, logits in out.masked_logits.items():
        assert not logits.requires_grad
        loss = nn.functional.binary_cross_entropy_with_logits(logits, out.logits.sigmoid())
        torch.testing.assert_close(out.losses[name], loss)
    assert wrapped(DistillConfig(image=None, text=None))(*make_batch()[:2]).masked_logits == {}


def test_without_a_target_the_distillation_loss_stands_alone():
    out = wrapped()(*make_batch()[:2])
    assert not out.loss
    assert set(out.losses) == {"lmvsd", "vmlsd"}
    out.distill_loss.backward()


def test_no_branch_is_the_plain_loss():
    images, tokens, target = make_batch()
    sd = wrapped(DistillConfig(image=None, text=None))
    out = sd(images, tokens, target=target)
    assert torch.equal(out.loss, out.losses["seg"])
    assert out.distill_loss == 0
    assert sd.distill_parameters() == []


def test_only_real_words_are_masked():
    config = DistillConfig(image=None, text=MaskingConfig(top_k=1.0, ratio=1.0))
    images, tokens, target = make_batch(batch=5)
    out = wrapped(config)(images, tokens, target=target)
    assert torch.equal(out.masks["vmlsd"], (tokens > 1) & (tokens < 19))


def test_relevance_is_what_it_says():
    images, tokens, _ = make_batch()
    target = torch.zeros(3, 16, 16)
    target[:, :4, 4:8] = 1  # patch 1 of the 4 x 4
    target[:, 4:6, :4] = 1  # half of patch 4
    truth = DistillConfig(image=MaskingConfig(relevance="ground_truth"), text=None)
    scores = wrapped(truth)(images, tokens, target=target).relevance["lmvsd"]
    assert scores.nonzero()[:, 1].tolist() == [1, 4] * 3
    assert scores[0, 1] == 1.0
    assert scores[0, 4] == 0.5
    sd = wrapped()
    scores = sd(images, tokens).relevance
    picture, sentence = (
        sd.segmenter.encoder.encode_image(images),
        sd.segmenter.encoder.encode_text(tokens),
    )
    for i in range(16):
        dot = (picture.local[:, i] * sentence.pooled).sum(-1)
        torch.testing.assert_close(scores["lmvsd"][:, i], dot)
    for i in range(7):
        dot = (sentence.local[:, i] * picture.pooled).sum(-1)
        torch.testing.assert_close(scores["vmlsd"][:, i], dot)


def test_the_weights_can_be_ramped():
    images, tokens, target = make_batch()
    sd = wrapped()
    sd.branches["lmvsd"].weight.fill_(0.0)
    out = sd(images, tokens, target=target)
    torch.testing.assert_close(out.distill_loss, 0.10 * out.losses["vmlsd"])


def test_every_token_takes_part_when_nothing_is_masked():
    none = MaskingConfig(ratio=0.0)
    images, tokens, target = make_batch()
    sd = wrapped(DistillConfig(image=none, text=none))
    out = sd(images, tokens, target=target)
    assert not out.masks["lmvsd"].any()
    out.loss.backward()
    for token in sd.distill_parameters():
        assert token.grad is not None
        assert not token.grad.any()


def test_an_unmasked_branch_with_a_detached_target_has_no_gradient():
    none = MaskingConfig(ratio=0.0)
    images, tokens, target = make_batch()
    gradients = {}
    for branches in (none, None):
        sd = wrapped(DistillConfig(image=branches, text=branches)).double()
        sd(images.double(), tokens, target=target.double()).loss.backward()
        gradients[branches] = {n: p.grad for n, p in sd.segmenter.named_parameters()}
    for name, gradient in gradients[None].items():
        torch.testing.assert_close(gradients[none][name], gradient, rtol=1e-9, atol=1e-12)


def test_the_branches_follow_selection_and_count():
    images, tokens, target = make_batch(batch=5)
    for selection in ("top", "bottom"):
        image = MaskingConfig(top_k=0.25, ratio=1.0, selection=selection)
        out = wrapped(DistillConfig(image=image, text=None))(images, tokens, target=target)
        order = out.relevance["lmvsd"].argsort(1, descending=selection == "top")
        expected = torch.zeros(5, 16, dtype=torch.bool).scatter(1, order[:, :4], True)
        assert torch.equal(out.masks["lmvsd"], expected)
    for count, masked in (("words", [1, 1, 2, 2, 3]), ("sequence", [1, 2, 3, 4, 4])):
        text = MaskingConfig(top_k=0.5, ratio=1.0, count=count)  # of 1 to 5 words, or of 7
        out = wrapped(DistillConfig(image=None, text=text))(images, tokens, target=target)
        assert out.masks["vmlsd"].sum(1).tolist() == masked


def test_the_first_tokens_are_small_and_differ():
    image, text = wrapped().distill_parameters()
    for token in (image, text):
        assert 0.01 < token.std() < 0.03
    assert not torch.equal(image, text)


def test_a_decoder_without_attention_mask_attends_to_real_words():
    encoder, neck, decoder = make_triple()
    images, tokens, target = make_batch()
    encode = encoder.encode_text
    encoder.encode_text = lambda tokens: encode(tokens)._replace(attention_mask=None)
    given = []
    decoder.register_forward_pre_hook(lambda module, args: given.append(args[2]))
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, BOTH, check=False)
    sd(images, tokens, target=target)
    for mask in given:
        assert torch.equal(mask, (tokens > 1) & (tokens < 19))
    assert len(given) == 3


# Keyed draws


def test_no_two_draws_of_a_step_repeat_each_other():
    images, tokens, _ = make_batch()
    random = MaskingConfig(relevance="random", top_k=1.0)
    sd = wrapped(DistillConfig(image=random, text=random))
    plain, seen = sd.segmenter.plain(images, tokens), []
    for modality, masker in sd.maskers.items():
        mask, relevance = masker.draw(plain, None, sd.step, 0)
        seen.append(relevance[:, :7])
        if modality == "image":  # the selection's noise is not the ranking's
            lowest = relevance.argsort(1).argsort(1) < mask.sum(1, keepdim=True)
            assert not torch.equal(mask, lowest)
    assert not torch.equal(*seen)


def masks_of(sd, batch, steps=3):
    return [sd(*batch[:2], target=batch[2]).masks["lmvsd"] for _ in range(steps)]


def test_a_neck_that_puts_other_maps_into_the_list_is_refused():
    encoder, neck, decoder = make_triple()
    encode, fuse = encoder.encode_image, neck.forward

    def in_a_list(images):
        found = encode(images)
        return found._replace(maps=[found.maps])

    def replacing(maps, sentence):
        maps[0] = maps[0].tanh()
        return fuse(maps[0], sentence)

    encoder.encode_image, neck.forward = in_a_list, replacing
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder)
    images, tokens, target = make_batch()
    with pytest.raises(ValueError, match=r"put others into their list.*list\(maps\)"):
        sd(images, tokens, target=target)


def test_runs_repeat_and_steps_and_seeds_differ():
    batch = make_batch()
    first, again = masks_of(wrapped(), batch), masks_of(wrapped(), batch)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], first[1])
    other = masks_of(wrapped(DistillConfig(image=IMAGE, text=TEXT, seed=1)), batch)
    assert not torch.equal(first[0], other[0])


def test_a_run_resumes_from_its_state():
    batch = make_batch()
    sd, resumed = wrapped(), wrapped()
    masks_of(sd, batch, steps=2)
    resumed.load_state_dict(sd.state_dict())
    assert resumed.step == 2
    assert torch.equal(masks_of(sd, batch, 1)[0], masks_of(resumed, batch, 1)[0])


def test_preview_shows_the_next_step_and_changes_nothing():
    images, tokens, target = make_batch()
    sd = wrapped(batch_norm=False, dropout=0.5)
    sd.segmenter.decoder.dropout.eval()  # a part that the user keeps in evaluation
    before, modes = copy.deepcopy(sd.state_dict()), [m.training for m in sd.modules()]
    preview = sd.preview(images, tokens, target=target)
    assert not preview.loss.requires_grad
    assert [m.training for m in sd.modules()] == modes
    for key, value in sd.state_dict().items():
        assert torch.equal(value, before[key])
    out = sd(images, tokens, target=target)
    assert torch.equal(preview.masks["lmvsd"], out.masks["lmvsd"])
    torch.testing.assert_close(preview.loss, out.loss)


def test_preview_is_in_evaluation():
    images, tokens, target = make_batch()
    sd = wrapped(dropout=0.5)  # with BatchNorm
    first, second = (sd.preview(images, tokens, target=target) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.logits, sd.eval()(images, tokens))


def test_preview_of_unshared_parts_knows_their_statistics():
    none = MaskingConfig(ratio=0.0)
    images, tokens, target = make_batch()
    sd = wrapped(DistillConfig(image=none, text=none, share_weights=False))
    for _ in range(50):
        sd(images, tokens, target=target)
    branch, host = sd.branches["lmvsd"].parts["neck"].norm, sd.segmenter.neck.norm
    torch.testing.assert_close(branch.running_mean, host.running_mean)
    assert host.running_mean.abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
def test_tokens_of_an_encoder_without_gradients_still_take_part():
    images, tokens, target = make_batch()
    encoder, neck, decoder = make_triple()
    encoder.encode_image = torch.no_grad()(encoder.encode_image)
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, BOTH)
    sd(images, tokens, target=target).loss.backward()
    image, text = sd.distill_parameters()
    assert not image.grad.any()
    assert text.grad.any()


# It composes


@pytest.mark.slow
@pytest.mark.parametrize(("share", "backend"), [(True, "inductor"), (False, "aot_eager")])
def test_compiles_to_one_graph_and_never_again(share, backend):
    torch._dynamo.reset()  # graphs of other tests' models are not ours to count
    config = DistillConfig(image=IMAGE, text=TEXT, share_weights=share)
    sd, eager = wrapped(config), wrapped(config)
    compiled = torch.compile(sd, fullgraph=True, backend=backend)
    images, tokens, target = make_batch()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            out, expected = (m(images, tokens, target=target) for m in (compiled, eager))
            assert torch.equal(out.masks["lmvsd"], expected.masks["lmvsd"])
            torch.testing.assert_close(out.loss, expected.loss)
            out.loss.backward()
            expected.loss.backward()
    assert sd.step == 3
    for (name, a), b in zip(sd.named_parameters(), eager.parameters(), strict=True):
        if b.grad is None:  # what only ranks, or belongs to the neck that a branch replaced
            assert a.grad is None, name
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(sd.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    sd.eval()
    eager.eval()
    torch.testing.assert_close(compiled(images, tokens), eager(images, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    images, tokens, target = make_batch()
    sd = wrapped()
    with torch.autocast("cpu", dtype=dtype):
        out = sd(images, tokens, target=target)
    assert out.logits.dtype == dtype
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(token.grad.isfinite().all() for token in sd.distill_parameters())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda sd: pickle.loads(pickle.dumps(sd))])
def test_copies_are_independent(twin):
    images, tokens, target = make_batch()
    sd = wrapped()
    copied = twin(sd)
    out, expected = (m(images, tokens, target=target) for m in (copied, sd))
    torch.testing.assert_close(out.loss, expected.loss)
    copied.unwrap()
    assert len(hooks(sd.segmenter.encoder)) == 2
    sd(images, tokens, target=target)


def test_a_host_in_float64_on_its_own_device_needs_nothing_else():
    images, tokens, target = make_batch()
    parts = [part.double() for part in make_triple()]
    out = CrossModalMaskedSelfDistill(*parts, BOTH)(images.double(), tokens, target=target)
    assert out.loss.dtype == torch.float64


# describe()


def test_attention_of_torchs_own_layers_is_counted():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder, neck, decoder = make_triple()
    finish = encoder.finish_image

    def with_layer(embedded, grid):
        image = finish(embedded, grid)
        local = layer(image.local)
        return image._replace(local=local, maps=local.transpose(1, 2).unflatten(2, grid))

    encoder.finish_image, encoder.layer = with_layer, layer
    images, tokens, _ = make_batch()
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, BOTH)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sd.segmenter.host(images, tokens)  # in training mode, where torch takes no short cut
    total = counter.get_total_flops() // 2
    assert f"host {total:,} multiply-adds" in sd.describe(images, tokens)


def test_describe_on_the_meta_device():
    with torch.device("meta"):
        parts = [part.to("meta") for part in make_triple()]
        sd = CrossModalMaskedSelfDistill(*parts, BOTH)
        images, tokens = torch.zeros(2, 3, 16, 16), torch.zeros(2, 7, dtype=torch.long)
    assert sd.step.is_meta
    assert "a step costs 2." in sd.describe(images, tokens)


def test_describe_says_what_is_done_and_counts_what_it_costs():
    sd = wrapped()
    text = sd.describe(*make_batch()[:2])
    for line in (
        "LMVSD: masks 50% of the top 50% of patches by 'dot' relevance, weight 0.75",
        "enters at patch_embed (width 12)",
        "runs encode_image, neck and decoder again; reuses the sentence's features",
        "VMLSD: masks 50% of the top 50% of words by 'dot' relevance, weight 0.1",
        "target: the main branch's mask, detached",
        "24 added in training, 0 in inference",
    ):
        assert line in text
    assert sd.training
    assert sd.step == 0
    assert "no branch is on" in wrapped(DistillConfig(image=None, text=None)).describe()


def test_a_step_costs_two_plus_the_share_of_neck_and_decoder():
    sd = wrapped()
    images, tokens, _ = make_batch()

    def count(run):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops()

    encoder = sd.segmenter.encoder
    towers = count(lambda: (encoder.encode_image(images), encoder.encode_text(tokens)))
    host = count(lambda: sd.segmenter.host(images, tokens))
    share = 1 - towers / host
    sd.check(images, tokens)  # which only the first step pays for
    step = count(lambda: sd.preview(images, tokens))
    ranking = 2 * 3 * 8 * (16 + 7)  # the two correlations
    assert (step - ranking) / host == pytest.approx(2 + share, rel=1e-12)
    assert f"a step costs {step / host:.3f} host steps" in sd.describe(images, tokens)


# Errors, before anything is touched


class NoText(nn.Module):
    def encode_image(self, images):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": NoText()}, "encoder NoText has no method encode_text; give it one that"),
        ({"neck": len}, "neck must be an nn.Module, got builtin_function_or_method"),
        ({"config": {"seed": 1}}, "config must be a DistillConfig, got dict"),
        ({"image_embedding": "patch_embd"}, "has no 'patch_embd'; did you mean 'patch_embed'"),
        ({"text_embedding": "word"}, "has no 'word'; did you mean 'words'"),
        ({"text_embedding": "text_blocks.0"}, "is a Block, whose width and layout are not known"),
    ],
)
def test_a_misfit_is_refused_with_the_host_untouched(change, message):
    encoder, neck, decoder = make_triple()
    arguments = {"encoder": encoder, "neck": neck, "decoder": decoder} | change
    with pytest.raises(ValueError, match=message):
        CrossModalMaskedSelfDistill(**arguments)
    assert hooks(encoder) == []


def test_an_encoder_that_names_no_embedding_is_asked_to():
    encoder, neck, decoder = make_triple()
    encoder.text_embedding = None
    with pytest.raises(ValueError, match="text_embedding is not known: pass the dotted path"):
        CrossModalMaskedSelfDistill(encoder, neck, decoder)
    CrossModalMaskedSelfDistill(encoder, neck, decoder, text_embedding="words")


@pytest.mark.parametrize("part", ["encoder", "neck", "decoder"])
def test_compiled_and_distributed_parts_are_refused_with_the_order(part):
    parts = dict(zip(("encoder", "neck", "decoder"), make_triple(), strict=True))
    compiled = parts | {part: torch.compile(parts[part])}
    with pytest.raises(ValueError, match=f"{part} is compiled, .* then torch.compile"):
        CrossModalMaskedSelfDistill(**compiled)
    threaded = parts | {part: nn.DataParallel(parts[part])}
    with pytest.raises(ValueError, match=f"{part} is a DataParallel: wrap the bare model first"):
        CrossModalMaskedSelfDistill(**threaded)
    assert hooks(parts["encoder"]) == []


def test_replicas_in_threads_are_refused():
    images, tokens, target = make_batch()
    replica = wrapped()
    replica._is_replica = True  # as torch marks them
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        replica(images, tokens, target=target)


class WritesIntoMaps(nn.Module):
    def forward(self, maps, sentence):
        maps += sentence[:, :, None, None]
        return maps


class WritesIntoMask(nn.Module):
    def forward(self, fused, words, attention_mask):
        attention_mask[:, 0] = True
        return fused.sum(1, keepdim=True)


@pytest.mark.parametrize("change", [{"neck": WritesIntoMaps()}, {"decoder": WritesIntoMask()}])
def test_writing_into_the_features_is_refused(change):
    images, tokens, _ = make_batch()
    parts = dict(zip(("encoder", "neck", "decoder"), make_triple(), strict=True)) | change
    sd = CrossModalMaskedSelfDistill(**parts)
    with pytest.raises(ValueError, match="neck or decoder wrote into the encoder's features"):
        sd(images, tokens)


def test_a_grid_that_is_not_that_of_the_patches():
    images, tokens, _ = make_batch()
    encoder, neck, decoder = make_triple()
    encode = encoder.encode_image
    encoder.encode_image = lambda images: encode(images)._replace(grid=(3, 5))
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder)
    with pytest.raises(ValueError, match=r"a grid of \(3, 5\) for 16 patches"):
        sd(images, tokens)


def test_a_positional_target_is_told_its_name():
    images, tokens, target = make_batch()
    for sd in (wrapped(), wrapped().eval()):
        with pytest.raises(ValueError, match="the truth goes by name"):
            sd(images, tokens, target)


def test_wrapping_twice_is_refused():
    parts = make_triple()
    CrossModalMaskedSelfDistill(*parts)
    with pytest.raises(ValueError, match="patch_embed is tapped already: unwrap"):
        CrossModalMaskedSelfDistill(*parts)
    assert len(hooks(parts[0])) == 2


def test_a_target_that_is_needed_or_does_not_fit():
    images, tokens, target = make_batch()
    truth = wrapped(DistillConfig(target="ground_truth"))
    with pytest.raises(ValueError, match="target='ground_truth' needs the truth"):
        truth(images, tokens)
    ranked = wrapped(DistillConfig(image=MaskingConfig(relevance="ground_truth")))
    with pytest.raises(ValueError, match="relevance 'ground_truth' needs a target"):
        ranked(images, tokens)
    with pytest.raises(ValueError, match=r"target must be .* with B=3, got \(2, 32, 32\)"):
        wrapped()(images, tokens, target=target[:2])


def test_a_space_that_is_not_shared_says_what_is_possible():
    images, tokens, _ = make_batch()
    encoder, neck, decoder = make_triple()
    narrow = encoder.encode_text

    def without_pooled(tokens):
        return narrow(tokens)._replace(pooled=None)

    encoder.encode_text = without_pooled
    neck.forward = lambda maps, sentence: maps
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder)
    with pytest.raises(
        ValueError, match=r"'dot' of image .* Possible here: 'prediction', 'random'"
    ):
        sd(images, tokens)


def test_positions_that_do_not_match_the_model():
    images, tokens, _ = make_batch()
    config = DistillConfig(image=MaskingConfig(token="position", positions=9))
    with pytest.raises(ValueError, match=r"config.image.positions is 9, but the model has 16"):
        wrapped(config)(images, tokens)
    config = DistillConfig(image=MaskingConfig(token="position", positions=20))
    with pytest.raises(ValueError, match=r"config.image.positions is 20, but the model has 16"):
        wrapped(config)(images, tokens)  # a prefix of patches would be other places
    config = DistillConfig(
        text=MaskingConfig(token="position", positions=20, rounding="ceil"), image=None
    )
    wrapped(config)(images, tokens)  # a longer sentence may come


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("with_target", [True, False])
def test_an_empty_batch_is_refused_by_name(low_memory, with_target):
    sd = wrapped(DistillConfig(image=IMAGE, text=TEXT, low_memory=low_memory))
    images, tokens, target = (each[:0] for each in make_batch())
    before = {key: value.clone() for key, value in sd.state_dict().items()}
    for step in (sd, sd.preview):
        with pytest.raises(ValueError, match=r"the batch is empty: every tensor .* has 0 samples"):
            step(images, tokens, target=target if with_target else None)
    with pytest.raises(ValueError, match="the batch is empty"):
        sd(*make_batch()[:2], target=target)
    assert all(torch.equal(before[key], value) for key, value in sd.state_dict().items())
    sd(*make_batch()[:2], target=make_batch()[2])  # and goes on
