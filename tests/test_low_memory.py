"""Low memory: the same step, pass by pass, with the activations of one host pass."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Taps
from masksd.kit.costs.kept import kept_activations
from masksd.models import create_model
from tests.processes import leave
from tests.test_hosts_clipseg import batch as clipseg_batch
from tests.test_hosts_clipseg import tiny as tiny_clipseg
from tests.test_hosts_cris import batch as cris_batch
from tests.test_hosts_cris import new_host as new_cris
from tests.triples import make_batch, make_triple

IMAGE = MaskingConfig(ratio=0.5)
TEXT = MaskingConfig(ratio=0.5, rounding="ceil")
PRODUCT = [
    options
    for options in itertools.product(
        [(IMAGE, TEXT), (IMAGE, None), (None, TEXT), (None, None)],
        [True, False],  # shared neck and decoder
        ["main", "ground_truth"],
        [False, True],  # one joint pass
        [1.0, 0.5],  # share of the batch
    )
    if options[0] == (IMAGE, TEXT) or not options[3]
]


def step(sd, args, kwargs, scale=1.0):
    """One training step: the output, every gradient and buffer."""
    sd.zero_grad(set_to_none=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)  # of dropout
        out = sd(*args, **kwargs)
    (out.loss * scale).backward()
    gradients = {n: None if p.grad is None else p.grad for n, p in sd.named_parameters()}
    return out, gradients, dict(sd.named_buffers())


def pair(wrap, config):
    """The same wrapper with and without low memory."""
    return wrap(config), wrap(dataclasses.replace(config, low_memory=True))


def assert_equal_steps(plain, low, args, kwargs, tolerance=1e-10):
    for _ in range(2):
        out, wanted, buffers = step(plain, args, kwargs)
        got_out, got, got_buffers = step(low, args, kwargs)
        torch.testing.assert_close(got_out.loss, out.loss, rtol=tolerance, atol=0)
        assert got_out.losses.keys() == out.losses.keys()
        assert not got_out.logits.requires_grad
        for name, mask in out.masks.items():
            assert torch.equal(got_out.masks[name], mask)
        assert any(gradient is not None and gradient.norm() > 0 for gradient in wanted.values())
        for name, gradient in wanted.items():
            if gradient is None:
                assert got[name] is None, name
            else:
                close = (got[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-14
                assert close, name
        for name, buffer in buffers.items():
            torch.testing.assert_close(got_buffers[name], buffer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", PRODUCT, ids=str)
def test_every_gradient_is_that_of_the_whole_graph(options):
    (image, text), share, target, joint, samples = options
    image, text = (m and dataclasses.replace(m, samples=samples) for m in (image, text))
    config = DistillConfig(
        image=image, text=text, share_weights=share, target=target, joint=joint, seed=3
    )

    def wrap(config):
        return CrossModalMaskedSelfDistill(*make_triple(dropout=0.3), config).double()

    images, tokens, truth = make_batch()
    args = (images.double(), tokens)
    assert_equal_steps(*pair(wrap, config), args, {"target": truth.double()})


def test_the_tiny_model_with_dropout():
    tokens = torch.tensor([[510, 3, 7, 511, 0], [510, 4, 511, 0, 0]])
    args, kwargs = (torch.randn(2, 3, 64, 64).double(), tokens), {"target": torch.ones(2, 64, 64)}

    def wrap(config):
        torch.manual_seed(0)
        model = create_model("clip_cris_tiny", dropout=0.2)
        parts = model.encoder, model.neck, model.decoder
        return CrossModalMaskedSelfDistill(*parts, config).double()

    assert_equal_steps(*pair(wrap, DistillConfig(dice_weight=0.5)), args, kwargs)


def test_a_learned_projection_is_trained_all_the_same():
    images, tokens, truth = make_batch()
    kind = MaskingConfig(relevance="projection")

    def wrap(config):
        torch.manual_seed(0)
        parts = make_triple()
        return CrossModalMaskedSelfDistill(*parts, config, example=(images, tokens)).double()

    plain, low = pair(wrap, DistillConfig(image=kind, text=kind))
    assert_equal_steps(plain, low, (images.double(), tokens), {"target": truth.double()})


def test_cris_cuts_where_its_features_come_in():
    host = new_cris().double()
    args = tuple(x.double() if x.is_floating_point() else x for x in cris_batch())

    def wrap(config):
        return CrossModalMaskedSelfDistill.wrap(copy.deepcopy(host), config)

    assert_equal_steps(*pair(wrap, DistillConfig(image=IMAGE, text=TEXT)), args, {})


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
@pytest.mark.parametrize("train_encoder", [False, True])
def test_clipseg_cuts_at_its_decoder(train_encoder):
    host = tiny_clipseg().double()
    kwargs, truth = clipseg_batch(2)
    kwargs = {k: v.double() if v.is_floating_point() else v for k, v in kwargs.items()}
    kwargs["target"] = truth.double()

    def wrap(config):
        sd = CrossModalMaskedSelfDistill.wrap(copy.deepcopy(host), config)
        sd.segmenter.train_encoder = train_encoder
        return sd

    assert_equal_steps(*pair(wrap, DistillConfig(image=IMAGE, text=TEXT)), (), kwargs)


def test_a_host_that_is_run_again_whole():
    model = create_model("lavt_tiny").double()
    tokens = torch.tensor([[101, 200, 300, 102], [101, 400, 102, 0]])
    args = (torch.randn(2, 3, 64, 64).double(), tokens, (tokens > 0).long())

    def wrap(config):
        return CrossModalMaskedSelfDistill.wrap(copy.deepcopy(model), config)

    kwargs = {"target": torch.ones(2, 64, 64).double()}
    assert_equal_steps(*pair(wrap, DistillConfig(image=IMAGE, text=TEXT)), args, kwargs)


def make_low(**options):
    config = DistillConfig(image=IMAGE, text=TEXT, low_memory=True, **options)
    return CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config)


def test_the_scale_that_comes_in_goes_through():
    images, tokens, truth = make_batch()
    low = make_low().double()
    args, kwargs = (images.double(), tokens), {"target": truth.double()}
    _, once, _ = step(low, args, kwargs)
    low.set_step(0)
    low.loss_scale = 1024.0
    _, scaled, _ = step(low, args, kwargs, scale=1024.0)
    for name, gradient in once.items():
        torch.testing.assert_close(scaled[name], gradient * 1024.0, rtol=1e-12, atol=1e-12)


def test_gradients_accumulate_over_steps():
    images, tokens, truth = make_batch()
    low = make_low().double()
    args, kwargs = (images.double(), tokens), {"target": truth.double()}
    singles = [step(low, args, kwargs)[1] for _ in range(2)]
    low.set_step(0)
    low.zero_grad(set_to_none=True)
    for _ in range(2):
        low(*args, **kwargs).loss.backward()
    for name, parameter in low.named_parameters():
        wanted = singles[0][name] + singles[1][name]
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-12, atol=1e-14)


def test_backward_comes_once_and_only_the_loss_has_one():
    images, tokens, truth = make_batch()
    out = make_low()(images, tokens, target=truth)
    assert not any(loss.requires_grad for loss in [*out.losses.values(), out.distill_loss])
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be run backward once"):
        out.loss.backward()


def test_autocast_runs_back_in_the_dtype_it_ran_in():
    images, tokens, truth = make_batch()
    plain = make_low()
    gradients = []
    for low in (False, True):
        sd = CrossModalMaskedSelfDistill(
            *make_triple(batch_norm=False),
            dataclasses.replace(plain.distill_config, low_memory=low),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = sd(images, tokens, target=truth)
        out.loss.backward()
        gradients.append({name: p.grad for name, p in sd.named_parameters()})
    for name, gradient in gradients[0].items():
        error = (gradients[1][name] - gradient).norm()
        assert error <= 0.03 * gradient.norm() + 1e-6, name  # both round to bfloat16


def peak(run, module):
    with kept_activations(module.parameters()) as count:
        run().backward()
    return count.peak


def test_activations_are_those_of_little_more_than_one_host_pass():
    model = create_model("clip_cris_tiny")
    parts = model.encoder, model.neck, model.decoder
    tokens = torch.tensor([[510, 3, 7, 511, 0]] * 2)
    images, truth = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64)
    host = peak(lambda: model(images, tokens).square().mean(), model)
    peaks = {}
    for low in (False, True):
        sd = CrossModalMaskedSelfDistill(*parts, DistillConfig(low_memory=low))
        peaks[low] = peak(lambda sd=sd: sd(images, tokens, target=truth).loss, model)
        sd.unwrap()
    assert peaks[False] > 2 * host
    assert peaks[True] < 1.2 * host


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    sd = make_low().double()
    images, tokens, truth = (part[rank * 2 : rank * 2 + 2] for part in make_batch(batch=4))
    module = DistributedDataParallel(sd)  # find_unused_parameters=False
    for _ in range(2):
        sd.zero_grad()
        module(images.double(), tokens, target=truth.double()).loss.backward()
    torch.save({name: p.grad for name, p in sd.named_parameters()}, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_processes_equal_one_without_low_memory(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    config = dataclasses.replace(make_low().distill_config, low_memory=False)
    sd = CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config).double()
    images, tokens, truth = make_batch(batch=4)
    for _ in range(2):
        sd.zero_grad()
        sd(images.double(), tokens, target=truth.double()).loss.backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in sd.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_hooks_of_parameters_run_once_and_see_the_whole_gradient():
    images, tokens, truth = make_batch()
    found = []
    for low in (False, True):
        config = dataclasses.replace(make_low().distill_config, low_memory=low)
        sd = CrossModalMaskedSelfDistill(*make_triple(batch_norm=False), config).double()
        seen = []
        weight = sd.segmenter.neck.conv.weight
        weight.register_hook(lambda g, seen=seen: seen.append(g.clone()) or g.clamp(-1e-3, 1e-3))
        for _ in range(2):  # the hook is there again after a step
            sd.zero_grad()
            sd(images.double(), tokens, target=truth.double()).loss.backward()
        assert len(seen) == 2
        found.append((seen[-1], weight.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-14)


def test_reentrant_checkpoints_are_named():
    class Neck(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, maps, sentence):
            return checkpoint(self.inner, maps, sentence, use_reentrant=True)

    images, tokens, truth = make_batch()
    encoder, neck, decoder = make_triple(batch_norm=False)
    sd = CrossModalMaskedSelfDistill(encoder, Neck(neck), decoder, make_low().distill_config)
    with pytest.raises(RuntimeError, match="checkpoint with use_reentrant=False"):
        sd(images, tokens, target=truth)


def test_features_that_cannot_be_looked_into_are_refused():
    @dataclasses.dataclass
    class Maps:
        last: torch.Tensor

    encoder, neck, decoder = make_triple()
    encode, fuse = encoder.encode_image, neck.forward

    def hidden(images):
        found = encode(images)
        return found._replace(maps=Maps(found.maps))

    encoder.encode_image = hidden
    neck.forward = lambda maps, sentence: fuse(maps.last, sentence)
    images, tokens, truth = make_batch()
    for config, option in (
        (make_low().distill_config, "low_memory=True"),
        (DistillConfig(image=MaskingConfig(samples=0.5)), "samples"),
    ):
        sd = CrossModalMaskedSelfDistill(encoder, neck, decoder, config)
        with pytest.raises(ValueError, match=f"{option} has to find every tensor.*a Maps hides"):
            sd(images, tokens, target=truth)
        sd.unwrap()


def test_what_does_not_go_is_said():
    images, tokens, truth = make_batch()
    with pytest.raises(ValueError, match="needs the whole loss"):
        make_low()(images, tokens)
    with pytest.raises(ValueError, match="an input of the host requires one"):
        make_low()(images.requires_grad_(), tokens, target=truth)
    with pytest.raises(ValueError, match="needs detach_target=True"):
        DistillConfig(low_memory=True, detach_target=False)
    with pytest.raises(ValueError, match=r"does not work with image\.layer=1"):
        DistillConfig(low_memory=True, image=MaskingConfig(layer=1))


def test_without_gradients_it_is_an_ordinary_step():
    images, tokens, truth = make_batch()
    low = make_low()
    with torch.no_grad():
        assert not low(images, tokens, target=truth).loss.requires_grad
    assert low.step == 1


def test_a_tapped_host_without_parts():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 8, 4, 4)
            self.words = nn.Embedding(20, 8)
            self.head = nn.Conv2d(8, 1, 1)

        def forward(self, images, ids, mask):
            sentence = (self.words(ids) * mask[..., None]).mean(1)
            return self.head(self.patch_embed(images) * sentence[..., None, None])

    taps = Taps(image_embedding="patch_embed", text_embedding="words", valid="mask")
    images, tokens, truth = make_batch()
    host = Host().double()

    def wrap(config):
        return CrossModalMaskedSelfDistill.wrap(copy.deepcopy(host), config, taps=taps)

    args = (images.double(), tokens, (tokens > 0).long())
    config = DistillConfig(image=IMAGE, text=TEXT)
    assert_equal_steps(*pair(wrap, config), args, {"target": truth.double()})
