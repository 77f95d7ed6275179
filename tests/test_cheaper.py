"""Steps that cost less: one joint pass, every n-th step, part of the batch, a deeper layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.models import create_model
from tests.oracles.three_pass import one_pass
from tests.triples import make_batch, make_triple

IMAGE = MaskingConfig(ratio=0.5)
TEXT = MaskingConfig(ratio=0.5, rounding="ceil")


def wrapped(config):
    return CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config).double()


def double_batch(batch=4):
    images, tokens, truth = make_batch(batch)
    return (images.double(), tokens), {"target": truth.double()}


def consistency(masked, plain):
    return F.binary_cross_entropy_with_logits(masked, plain.detach().sigmoid())


def test_a_joint_branch_is_one_pass_with_both_masks():
    (images, tokens), kwargs = double_batch()
    sd = wrapped(DistillConfig(image=IMAGE, text=TEXT, joint=True, lambda_image=0.5))
    encoder, neck, decoder = copy.deepcopy(sd).unwrap()
    out = sd(images, tokens, **kwargs)
    assert list(out.losses) == ["seg", "joint"]
    assert out.masks.keys() == {"lmvsd", "vmlsd"}
    logits = one_pass(
        encoder,
        neck,
        decoder,
        images,
        tokens,
        image=(out.masks["lmvsd"], sd.maskers["image"].token),
        text=(out.masks["vmlsd"], sd.maskers["text"].token),
    )
    torch.testing.assert_close(out.losses["joint"], consistency(logits, out.logits))
    torch.testing.assert_close(out.distill_loss, (0.5 + 0.1) * out.losses["joint"])
    out.loss.backward()
    assert all(masker.token.grad.norm() > 0 for masker in sd.maskers.values())


def test_a_joint_branch_draws_what_two_would():
    args, kwargs = double_batch()
    masks = [
        wrapped(DistillConfig(image=IMAGE, text=TEXT, joint=joint))(*args, **kwargs).masks
        for joint in (False, True)
    ]
    for name in ("lmvsd", "vmlsd"):
        assert torch.equal(masks[0][name], masks[1][name])


def test_a_branch_of_every_third_step_and_its_token_in_the_others():
    args, kwargs = double_batch()
    seldom = MaskingConfig(ratio=0.5, every=3)
    sd = wrapped(DistillConfig(image=seldom, text=TEXT))
    seen = []
    for _ in range(7):
        sd.zero_grad()
        out = sd(*args, **kwargs)
        out.loss.backward()
        seen.append("lmvsd" in out.losses)
        token = sd.maskers["image"].token.grad  # never None: every process reduces it
        assert (token.norm() > 0) == seen[-1]
        assert ("lmvsd" in out.masks) == seen[-1]
        assert "vmlsd" in out.losses
    assert seen == [True, False, False, True, False, False, True]


def test_a_run_that_resumes_wakes_the_branch_when_it_would_have():
    args, kwargs = double_batch()
    config = DistillConfig(image=MaskingConfig(every=3), text=None)
    sd, resumed = wrapped(config), wrapped(config)
    for _ in range(2):
        sd(*args, **kwargs)
    resumed.load_state_dict(sd.state_dict())
    for _ in range(4):
        a, b = sd(*args, **kwargs), resumed(*args, **kwargs)
        assert a.losses.keys() == b.losses.keys()
        assert torch.equal(a.loss, b.loss)


def test_unshared_parts_of_a_sleeping_branch_take_part_too():
    args, kwargs = double_batch()
    sd = wrapped(DistillConfig(image=MaskingConfig(every=2), text=TEXT, share_weights=False))
    for _ in range(2):
        sd.zero_grad()
        sd(*args, **kwargs).loss.backward()
        for name, parameter in sd.named_parameters():
            assert parameter.grad is not None, name


@pytest.mark.parametrize(("samples", "rows"), [(0.5, 2), (0.01, 1), (0.6, 3), (1.0, 4)])
def test_part_of_a_batch_is_its_first_samples(samples, rows):
    (images, tokens), kwargs = double_batch()
    masking = MaskingConfig(ratio=0.5, samples=samples)
    out = wrapped(DistillConfig(image=masking, text=None))(images, tokens, **kwargs)
    assert out.masks["lmvsd"].shape == (rows, 16)
    first = wrapped(DistillConfig(image=IMAGE, text=None))(
        images[:rows], tokens[:rows], target=kwargs["target"][:rows]
    )
    assert torch.equal(out.masks["lmvsd"], first.masks["lmvsd"])
    torch.testing.assert_close(out.losses["lmvsd"], first.losses["lmvsd"])


def test_a_deeper_layer_equals_a_hook_on_that_layer_and_costs_less():
    torch.manual_seed(0)
    model = create_model("clip_cris_tiny", dropout=0.0).double()
    parts = model.encoder, model.neck, model.decoder
    images = torch.randn(2, 3, 64, 64).double()
    tokens = torch.tensor([[510, 3, 7, 511, 0], [510, 4, 511, 0, 0]])
    for layer in (1, 2, 3):
        config = DistillConfig(image=MaskingConfig(layer=layer), text=None)
        sd = CrossModalMaskedSelfDistill(*parts, config, check=False)
        assert f"the output of layer {layer} of the image tower" in sd.describe()
        calls = []
        counter = model.encoder.vision.encoder.layers[0].register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        out = sd(images, tokens, target=torch.ones(2, 64, 64))
        counter.remove()
        assert len(calls) == 1  # of the plain pass alone
        out.losses["lmvsd"].backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        token_gradient = sd.maskers["image"].token.grad.clone()
        token, mask = sd.maskers["image"].token, out.masks["lmvsd"]
        sd.unwrap()
        model.zero_grad(set_to_none=True)
        token.grad = None

        def replace(module, args, output, mask=mask, token=token):
            patches = torch.where(mask[..., None], token, output[:, 1:])
            return torch.cat([output[:, :1], patches], dim=1)

        hook = model.encoder.vision.encoder.layers[layer - 1].register_forward_hook(replace)
        masked = model(images, tokens)
        hook.remove()
        loss = consistency(masked, out.logits)
        torch.testing.assert_close(out.losses["lmvsd"], loss)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(token_gradient, token.grad, rtol=1e-9, atol=1e-12)
        model.zero_grad(set_to_none=True)


def test_every_mode_says_what_it_costs():
    args, _ = double_batch()
    full = total(wrapped(DistillConfig(image=IMAGE, text=TEXT)), args)
    joint = total(wrapped(DistillConfig(image=IMAGE, text=TEXT, joint=True)), args)
    assert joint == pytest.approx(2.0, abs=5e-3)  # and the correlations
    seldom = MaskingConfig(every=2), MaskingConfig(every=2)
    assert total(wrapped(DistillConfig(*seldom)), args) - 1 == pytest.approx((full - 1) / 2, 1e-3)
    half = MaskingConfig(samples=0.5), MaskingConfig(samples=0.5)
    assert total(wrapped(DistillConfig(*half)), args) - 1 == pytest.approx((full - 1) / 2, 1e-3)


def total(sd, args):
    return float(sd.describe(*args).split("a step costs ")[1].split()[0])


def test_whole_numbers_among_the_features_are_no_samples():
    """Sizes of two levels, in a batch of two: half of it must not halve them."""
    encoder, neck, decoder = make_triple(batch_norm=False)
    encode, fuse = encoder.encode_image, neck.forward
    sizes = torch.tensor([[4, 4], [2, 2]])

    def with_sizes(images):
        found = encode(images)
        return found._replace(maps=(found.maps, sizes))

    seen = []
    encoder.encode_image = with_sizes
    neck.forward = lambda maps, sentence: seen.append(maps[1]) or fuse(maps[0], sentence)
    config = DistillConfig(image=None, text=MaskingConfig(ratio=0.5, samples=0.5))
    sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, config, check=False)
    images, tokens, truth = make_batch(2)
    sd(images, tokens, target=truth)
    assert len(seen) == 2
    assert torch.equal(seen[1], sizes)


def test_part_of_a_batch_of_a_host_that_is_not_known_is_refused():
    host = create_model("lavt_tiny")
    config = DistillConfig(image=MaskingConfig(samples=0.5), text=None)
    with pytest.raises(ValueError, match=r"samples=0\.5 runs a branch on part of a batch"):
        CrossModalMaskedSelfDistill.wrap(host, config)
    assert not any(module._forward_hooks for module in host.modules())


def test_a_layer_whose_tokens_are_not_the_patches_is_refused():
    model = create_model("clip_cris_tiny")
    model.encoder.image_prefix = 3
    config = DistillConfig(image=MaskingConfig(layer=1), text=None)
    sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)
    tokens = torch.tensor([[510, 3, 511]])
    with pytest.raises(ValueError, match=r"image\.layer=1 masks tokens \(B, 67, 96\)"):
        sd(torch.zeros(1, 3, 64, 64), tokens, target=torch.zeros(1, 64, 64))


def test_a_layer_whose_output_is_written_into_is_refused():
    model = create_model("clip_cris_tiny", dropout=0.0)
    layers = model.encoder.vision.encoder.layers
    layers[1].register_forward_pre_hook(lambda module, args: (args[0].add_(0.0), *args[1:]))
    config = DistillConfig(image=MaskingConfig(layer=1), text=None)
    sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)
    with pytest.raises(ValueError, match=r"layers\.0 was modified in place"):
        sd(torch.zeros(1, 3, 64, 64), torch.tensor([[510, 3, 511]]), target=torch.zeros(1, 64, 64))


def test_preview_shows_the_step_that_comes_though_the_last_was_compiled():
    images, tokens, truth = make_batch(4)
    config = DistillConfig(image=MaskingConfig(every=2), text=TEXT)
    sd = CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config)
    compiled = torch.compile(sd, fullgraph=True, backend="eager")
    sd.set_step(0)
    assert "lmvsd" in compiled(images, tokens, target=truth).losses
    assert "lmvsd" not in sd.preview(images, tokens, target=truth).losses
    torch._dynamo.reset()


def test_modes_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="image and text must be on"):
        DistillConfig(text=None, joint=True)
    with pytest.raises(ValueError, match="every and samples of image and text must agree"):
        DistillConfig(image=MaskingConfig(every=2), joint=True)
    with pytest.raises(ValueError, match="only patches go deeper"):
        DistillConfig(text=MaskingConfig(layer=1))
    with pytest.raises(ValueError, match="samples must be above 0"):
        MaskingConfig(samples=0.0)
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        MaskingConfig(every=0)
    with pytest.raises(ValueError, match="TwoTowers has no image_layers and resume_image"):
        wrapped(DistillConfig(image=MaskingConfig(layer=1)))
    model = create_model("clip_cris_tiny")
    config = DistillConfig(image=MaskingConfig(layer=4))
    with pytest.raises(ValueError, match=r"image\.layer must be at most 3"):
        CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)


@pytest.mark.slow
def test_a_compiled_wrapper_compiles_each_of_two_graphs_once():
    images, tokens, truth = make_batch(4)
    config = DistillConfig(image=MaskingConfig(every=3), text=TEXT)
    sd = CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config)
    plain = copy.deepcopy(sd)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(sd, fullgraph=True, backend=count)
    for number in range(8):
        sd.set_step(number)
        got, wanted = compiled(images, tokens, target=truth), plain(images, tokens, target=truth)
        assert got.losses.keys() == wanted.losses.keys()
        torch.testing.assert_close(got.loss, wanted.loss)
    assert len(graphs) == 2
    with pytest.raises(Exception, match="must be told the step"):
        compiled(images, tokens, target=truth)
    torch._dynamo.reset()
