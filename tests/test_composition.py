"""The wrapper with torch.compile, gradient checkpointing, DDP and FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Taps
from masksd.models import create_model
from masksd.passes.branches import NAMES
from tests.oracles.three_pass import three_pass_loss
from tests.processes import leave
from tests.triples import Block, make_batch, make_triple

CONFIG = DistillConfig(
    image=MaskingConfig(ratio=0.5), text=MaskingConfig(ratio=0.5, rounding="ceil"), seed=4
)
TAPS = Taps("patch_embed", "words", valid="valid")
WIDTH, WORLD = 12, 2


class Tower(nn.Module):
    """Embeddings and layers of pictures and words, any of which may be checkpointed."""

    def __init__(self, kind: bool | None = None, embedding_too: bool = False) -> None:
        super().__init__()
        self.kind, self.embedding_too = kind, embedding_too
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.words = nn.Embedding(20, WIDTH)
        self.layers = nn.Sequential(Block(WIDTH), Block(WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def embed(self, images):
        return self.patch_embed(images).flatten(2).mT

    def run(self, function, x):
        return (
            function(x) if self.kind is None else checkpoint(function, x, use_reentrant=self.kind)
        )

    def forward(self, images, ids, valid):
        if self.embedding_too:  # the reentrant kind wants an input with a gradient
            patches = self.run(self.embed, images.requires_grad_())
        else:
            patches = self.embed(images)
        x = torch.cat([patches, self.words(ids)], 1)
        x = self.run(self.layers, x)[:, : patches.shape[1]]
        grid = images.shape[2] // 4, images.shape[3] // 4
        return self.head(x).mT.unflatten(2, grid)


def tower(*args) -> Tower:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Tower(*args)


def tower_batch(batch: int = 4):
    images, tokens, target = make_batch(batch)
    return images, tokens, (tokens > 0), target


def wrapped(*args) -> CrossModalMaskedSelfDistill:
    return CrossModalMaskedSelfDistill.wrap(tower(*args), CONFIG, taps=TAPS)


def step(module, sd, *batch):
    *inputs, target = batch
    sd.zero_grad()
    out = module(*inputs, target=target)
    out.loss.backward()
    return out


def gradients(sd):
    return {name: p.grad for name, p in sd.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_tapped_host_compiles_to_one_graph_and_never_again(backend):
    eager, sd = wrapped(), wrapped()
    compiled = torch.compile(sd, fullgraph=True, backend=backend)
    batch = tower_batch()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            out, expected = step(compiled, sd, *batch), step(eager, eager, *batch)
            assert torch.equal(out.masks["lmvsd"], expected.masks["lmvsd"])
            assert torch.equal(out.masks["vmlsd"], expected.masks["vmlsd"])
            torch.testing.assert_close(out.losses, expected.losses)
            torch.testing.assert_close(gradients(sd), gradients(eager))
    assert int(sd.step) == 3
    torch.testing.assert_close(compiled.eval()(*batch[:3]), eager.eval()(*batch[:3]))
    torch._dynamo.reset()


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_step_never_reads_a_value_back_from_the_device(low_memory):
    """On the meta device there are none: whatever asks for one, or for a shape by one, fails."""
    with torch.device("meta"):
        model = create_model("clip_cris_tiny")
        images, target = torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64)
        tokens = torch.zeros(2, 9, dtype=torch.int64)
    config = DistillConfig(
        image=MaskingConfig(relevance="prediction"), dice_weight=1.0, low_memory=low_memory
    )
    sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder, config)
    for _ in range(2):
        out = sd(images, tokens, target=target)
        out.loss.backward()
    assert out.loss.is_meta
    assert all(p.grad is not None for p in sd.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_after_the_embedding_may_be_checkpointed(reentrant):
    plain, sd = wrapped(), wrapped(reentrant)
    out, expected = step(sd, sd, *tower_batch()), step(plain, plain, *tower_batch())
    assert torch.equal(out.loss, expected.loss)
    assert gradients(sd).keys() == gradients(plain).keys()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(sd)[name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.* runs under no_grad:UserWarning")  # as it is told to
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_embedding_is_an_error_not_a_wrong_gradient(reentrant):
    sd = wrapped(reentrant, True)
    with pytest.raises(RuntimeError, match=r"patch_embed ran during backward.*the layers after it"):
        step(sd, sd, *tower_batch())


@pytest.mark.parametrize("reentrant", [True, False])
def test_tapped_logits_in_a_checkpointed_region_teach_or_are_refused(reentrant):
    """The reentrant kind cuts the gradient of all that a hook sees inside."""
    host = tower(reentrant)
    host.layers.append(nn.Linear(WIDTH, WIDTH))
    host.register_module("inner", nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Identity()))
    host.layers.append(host.inner[0])
    host.layers.append(host.inner[1])
    host.layers.append(nn.Flatten(1, 2))
    taps = Taps("patch_embed", "words", "inner.1", valid="valid")
    sd = CrossModalMaskedSelfDistill.wrap(host, CONFIG, taps=taps)
    batch = tower_batch()
    if reentrant:
        with pytest.raises(
            ValueError, match=r"carries no gradient.*outside a reentrant checkpoint"
        ):
            step(sd, sd, *batch)
    else:
        step(sd, sd, *batch)
        assert sd.maskers["image"].token.grad.norm() > 0


# Two processes


class Oracle(nn.Module):
    """Three plain passes over copies of a wrapper's weights, given its masks."""

    def __init__(self, sd: CrossModalMaskedSelfDistill) -> None:
        super().__init__()
        sd = copy.deepcopy(sd)
        self.tokens = nn.ParameterDict({NAMES[m]: masker.token for m, masker in sd.maskers.items()})
        self.weights = {name: b.weight for name, b in sd.branches.items()}
        self.encoder, self.neck, self.decoder = sd.unwrap()

    def forward(self, images, tokens, target, masks):
        return three_pass_loss(
            self.encoder,
            dict.fromkeys(("main", "lmvsd", "vmlsd"), self.neck),
            dict.fromkeys(("main", "lmvsd", "vmlsd"), self.decoder),
            dict(self.tokens.items()),
            images,
            tokens,
            target,
            masks,
            weights=self.weights,
            target=CONFIG.target,
            detach_target=CONFIG.detach_target,
            dice_weight=0.0,
        )


def triple(batch_norm: bool) -> CrossModalMaskedSelfDistill:
    return CrossModalMaskedSelfDistill(*make_triple(batch_norm=batch_norm), CONFIG).double()


def double(batch):
    return [part.double() if part.is_floating_point() else part for part in batch]


def ddp_and_its_oracle(batch):
    """Gradients and buffers of three steps of a BatchNorm host, and of the oracle's."""
    sd = triple(batch_norm=True)
    oracle = Oracle(sd)
    module = DistributedDataParallel(sd)  # find_unused_parameters=False
    plain = DistributedDataParallel(oracle)
    images, tokens, target = batch
    for _ in range(3):
        out = step(module, sd, *batch)
        oracle.zero_grad()
        loss = plain(images, tokens, target, out.masks)
        loss.backward()
    encoder = sd.segmenter.encoder
    pairs = {"loss": (out.loss.detach(), loss.detach())}
    for ours, theirs in (
        (encoder, oracle.encoder),
        (sd.segmenter.neck, oracle.neck),
        (sd.segmenter.decoder, oracle.decoder),
    ):
        for name, parameter in ours.named_parameters():
            pairs[f"{type(ours).__name__}.{name}"] = (
                parameter.grad,
                theirs.get_parameter(name).grad,
            )
        for name, buffer in ours.named_buffers():
            pairs[f"{type(ours).__name__}.{name}"] = (buffer, theirs.get_buffer(name))
    for modality, masker in sd.maskers.items():
        assert masker.token.grad.norm() > 0
        pairs[modality] = (masker.token.grad, oracle.tokens[NAMES[modality]].grad)
    return pairs


def sharded_triple():
    """The two lines that FSDP2 needs for an encoder that is called by its methods."""
    sd = triple(batch_norm=False)
    mesh = init_device_mesh("cpu", (WORLD,))
    encoder = fully_shard(sd.segmenter.encoder, mesh=mesh)
    for method in ("encode_image", "encode_text"):
        register_fsdp_forward_method(encoder, method)
    for part in (sd.segmenter.neck, sd.segmenter.decoder):
        fully_shard(part, mesh=mesh)
    return fully_shard(sd, mesh=mesh)


def sharded_host():
    sd = wrapped().double()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in sd.segmenter.wrapped.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(sd, mesh=mesh)


def two_updates(sd, batch):
    optimizer = torch.optim.SGD(sd.parameters(), lr=0.1)
    for _ in range(2):
        out = step(sd, sd, *batch)
        optimizer.step()
    parameters = {
        name: p.full_tensor() if hasattr(p, "full_tensor") else p
        for name, p in sd.named_parameters()
    }
    return {"masks": out.masks, "parameters": {k: p.detach() for k, p in parameters.items()}}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    half = slice(rank * 2, rank * 2 + 2)
    pair = double(part[half] for part in make_batch(4))
    four = double(part[half] for part in tower_batch(4))
    found = {
        "ddp": ddp_and_its_oracle(pair),
        "fsdp_triple": two_updates(sharded_triple(), pair),
        "fsdp_host": two_updates(sharded_host(), four),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_ddp_of_a_batch_norm_host_is_ddp_of_the_oracle(ranks):
    for found in ranks:
        assert len(found["ddp"]) > 30
        for name, (ours, theirs) in found["ddp"].items():
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14, msg=name)
    for name, (gradient, _) in ranks[0]["ddp"].items():  # gradients are those of both processes
        if "running" not in name and name != "loss":
            assert torch.equal(gradient, ranks[1]["ddp"][name][0])


@pytest.mark.parametrize("kind", ["fsdp_triple", "fsdp_host"])
def test_fsdp2_on_two_processes_equals_one(ranks, kind):
    if kind == "fsdp_triple":
        one = two_updates(triple(batch_norm=False), double(make_batch(4)))
    else:
        one = two_updates(wrapped().double(), double(tower_batch(4)))
    for name in ("lmvsd", "vmlsd"):
        both = torch.cat([found[kind]["masks"][name] for found in ranks])
        assert torch.equal(both, one["masks"][name])
    for found in ranks:
        assert found[kind]["parameters"].keys() == one["parameters"].keys()
        for name, parameter in one["parameters"].items():
            torch.testing.assert_close(
                found[kind]["parameters"][name], parameter, rtol=1e-9, atol=1e-13, msg=name
            )
