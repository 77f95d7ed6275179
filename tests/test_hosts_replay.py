"""Modules that see one modality run once a step, and everything is as if they ran in every pass."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

import masksd
from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Taps
from masksd.describe import multiply_adds
from masksd.models import create_model
from masksd.tapping.modules import evaluating
from masksd.tapping.replay import Replay
from masksd.trials.towers import replayable

C, LENGTH = 10, 6
wrap = CrossModalMaskedSelfDistill.wrap
CONFIG = DistillConfig(
    image=MaskingConfig(ratio=0.5), text=MaskingConfig(ratio=0.5, rounding="ceil"), seed=2
)
PLAIN = Taps("stem", "words", "head", valid="mask", cell=8)
REPLAYED_ONLY = {"image_only": ("vision", "deep"), "text_only": ("text",)}
REPLAYED = dataclasses.replace(PLAIN, **REPLAYED_ONLY)


def as_it_is(maps):
    return maps


class TwoTowers(nn.Module):
    """Two towers, then what mixes them; the image tower has two parts.

    With a bridge the towers exchange features: ``"early"``, before the image tower, or ``"late"``,
    between its two parts and in both directions, as in ETRIS.
    """

    def __init__(self, tree=as_it_is, bridge=None, dropout=0.0):
        super().__init__()
        self.tree = tree
        self.stem = nn.Conv2d(3, C, 8, 8)
        self.vision = Vision(tree)
        self.deep = nn.Conv2d(C, C, 3, padding=1)
        self.words = nn.Embedding(30, C)
        self.text = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Dropout(dropout))
        self.where = bridge
        self.bridge = nn.Linear(C, C) if bridge else None
        self.norm = nn.BatchNorm2d(C)
        self.head = nn.Conv2d(C, 1, 1)

    def forward(self, images, ids, mask):
        return self.mix(self.stem(images), self.words(ids), mask)

    def mix(self, patches, words, mask):
        """Go on from the embeddings: the oracle masks these by hand."""
        sentence = (self.text(words) * mask[..., None]).mean(1)[:, :, None, None]
        if self.where == "early":
            patches = patches + self.bridge(sentence[..., 0, 0])[:, :, None, None]
        maps = first(self.vision(patches))
        if self.where == "late":
            seen = self.bridge(maps.mean((2, 3)))[:, :, None, None]
            maps, sentence = maps + self.bridge(sentence[..., 0, 0])[:, :, None, None], seen
        return self.head(self.norm(maps + self.deep(maps) * sentence).relu())


class Vision(nn.Module):
    def __init__(self, tree):
        super().__init__()
        self.tree = tree
        self.layers = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.Tanh())

    def forward(self, patches):
        return self.tree(self.layers(patches))


@dataclasses.dataclass
class Maps(ModelOutput):
    maps: torch.Tensor | None = None


Pair = namedtuple("Pair", ["maps", "size"])

TREES = {
    "tensor": as_it_is,
    "list": lambda x: [x, (x * 2,)],
    "dictionary": lambda x: {"maps": x, "size": x.shape},
    "named tuple": lambda x: Pair(x, 3),
    "model output": Maps,
    "object": lambda x: SimpleNamespace(maps=x),
}


def first(maps):
    """Take the maps out of any of these, and spoil the container they came in."""
    if isinstance(maps, dict):
        found = maps["maps"]
        if type(maps) is dict:
            del maps["maps"]
        return found
    return maps.pop(0) if isinstance(maps, list) else getattr(maps, "maps", maps)


def make(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoTowers(**options)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 48, generator=generator).to(dtype)
    ids = torch.randint(1, 30, (2, LENGTH), generator=generator)
    mask = torch.ones(2, LENGTH, dtype=dtype)
    mask[0, 4:] = 0
    target = (torch.rand(2, 32, 48, generator=generator) > 0.5).to(dtype)
    return (images, ids, mask), target


def step(sd, inputs, target):
    sd.zero_grad()
    out = sd(*inputs, target=target)
    out.loss.backward()
    return out, {name: p.grad for name, p in sd.named_parameters() if p.grad is not None}


def assert_same(got, wanted, tolerance=1e-12):
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-15, name


def oracle(sd, host, inputs, target, masks):
    """Three plain passes of a copy without a hook, masks put in by hand."""
    images, ids, mask = inputs
    tokens = {name: m.token.detach().clone().requires_grad_() for name, m in sd.maskers.items()}
    patches, words = host.stem(images), host.words(ids)
    covered = masks["lmvsd"].unflatten(1, patches.shape[-2:])[:, None]
    hidden = masks["vmlsd"][..., None]
    masked_patches = torch.where(covered, tokens["image"][:, None, None], patches)
    masked_words = torch.where(hidden, tokens["text"], words)
    main = host.mix(patches, words, mask)
    truth = nn.functional.interpolate(target[:, None], main.shape[-2:], mode="nearest-exact")
    bce = nn.functional.binary_cross_entropy_with_logits
    passes = {
        "lmvsd": (masked_patches, words),
        "vmlsd": (patches, masked_words),
        "joint": (masked_patches, masked_words),
    }
    loss = bce(main, truth)
    for name, branch in sd.branches.items():
        wanted = main.detach().sigmoid()
        loss = loss + branch.weight * bce(host.mix(*passes[name], mask), wanted)
    loss.backward()
    found = {f"segmenter.wrapped.{name}": p.grad for name, p in host.named_parameters()}
    found |= {f"maskers.{name}.token": token.grad for name, token in tokens.items()}
    return loss, found


ETRIS = {"image_only": ("stem", "vision"), "text_only": ("text",)}
ONLY = [
    ETRIS,
    {},
    {"image_only": ("vision",)},
    {"image_only": ("deep",)},
    {"text_only": ("text",)},
    {"image_only": ("stem", "vision", "deep"), "text_only": ("words", "text")},
    {"image_only": ("vision.layers.0", "vision.layers.2", "deep"), "text_only": ("text.0",)},
]


@pytest.mark.parametrize("only", ONLY, ids=str)
@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_loss_and_every_gradient_equal_three_plain_passes(only, low_memory, joint):
    inputs, target = batch(torch.float64)
    etris = only == ETRIS
    host = make(bridge="late" if etris else None).double()
    config = dataclasses.replace(CONFIG, low_memory=low_memory, joint=joint)
    sd = wrap(host, config, taps=dataclasses.replace(PLAIN, **only)).double()
    bare = masksd.release(copy.deepcopy(host))
    if low_memory and only.get("image_only") == ("deep",):
        with pytest.raises(RuntimeError, match="name the modules before it as well"):
            step(sd, inputs, target)
        return
    out, got = step(sd, inputs, target)
    loss, wanted = oracle(sd, bare, inputs, target, out.masks)
    torch.testing.assert_close(out.loss, loss, rtol=1e-12, atol=0)
    assert_same(got, wanted)
    assert all(got[f"maskers.{name}.token"].norm() > 0 for name in ("image", "text"))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("low_memory", [False, True])
def test_outputs_of_every_kind_are_replayed(tree, low_memory):
    inputs, target = batch(torch.float64)
    config = dataclasses.replace(CONFIG, low_memory=low_memory)
    again, once = (
        wrap(make(tree=TREES[tree]).double(), c, taps=taps).double()
        for c, taps in ((CONFIG, PLAIN), (config, REPLAYED))
    )
    if low_memory and tree == "object":
        with pytest.raises(ValueError, match="a SimpleNamespace hides some"):
            step(once, inputs, target)
        return
    assert_same(step(once, inputs, target)[1], step(again, inputs, target)[1])


def test_statistics_move_as_in_one_plain_pass_and_other_targets_work():
    inputs, target = batch()
    host, bare = make(), make()
    sd = wrap(host, dataclasses.replace(CONFIG, target="teacher"), taps=REPLAYED)
    step(sd, inputs, target)
    bare(*inputs)
    for name, buffer in bare.named_buffers():
        assert torch.equal(host.get_buffer(name), buffer), name
    step(wrap(make(), DistillConfig.preset("augment"), taps=REPLAYED), inputs, target)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("low_memory", [False, True])
def test_checkpointed_towers_give_the_same_gradients(reentrant, around, low_memory):
    class Checkpointed(TwoTowers):
        def mix(self, patches, words, mask):
            self.vision.layers.forward = checkpointed
            return super().mix(patches, words, mask)

    def checkpointed(patches):
        layers = nn.Sequential.forward
        return checkpoint(layers, vision.layers, patches, use_reentrant=reentrant)

    inputs, target = batch(torch.float64)
    host = make().double()
    vision = host.vision
    vision.layers[1] = nn.Identity()  # checkpointing moves its statistics twice
    sds = [wrap(copy.deepcopy(host), CONFIG, taps=PLAIN).double()]
    host.__class__ = Checkpointed
    only = ("vision.layers.0",) if around else ("vision",)  # the region is vision.layers
    taps = dataclasses.replace(PLAIN, image_only=only)
    sds.append(wrap(host, dataclasses.replace(CONFIG, low_memory=low_memory), taps=taps).double())
    if reentrant and low_memory:
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            step(sds[1], inputs, target)
        return
    if around:
        with pytest.raises(RuntimeError, match="name the module around the region"):
            step(sds[1], inputs, target)
        return
    wanted, got = (step(sd, inputs, target)[1] for sd in sds)
    assert_same(got, wanted)


def test_dropout_is_that_of_the_plain_pass():
    inputs, target = batch()
    host = make(dropout=0.5)
    sd = wrap(host, CONFIG, taps=REPLAYED)
    seen = []
    host.text.register_forward_hook(lambda m, args, output: seen.append(output))
    sd(*inputs, target=target)
    main, words, image = seen[-3:]
    assert torch.equal(image, main)
    assert not torch.equal(words, main)


# Cost


def counted(host, taps, *inputs, config=CONFIG):
    sd = wrap(host, config, taps=taps)
    return float(sd.describe(*inputs).split("a step costs ")[1].split()[0])


def share(host, parts, inputs):
    """The share of these parts in the multiply-adds of the host, counted one by one."""
    calls = []
    handles = [
        host.get_submodule(part).register_forward_hook(lambda m, args, out: calls.append((m, args)))
        for part in parts
    ]
    with torch.no_grad():
        total = multiply_adds(lambda: host.eval()(*inputs))[0]
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        return sum(multiply_adds(lambda m=m, a=a: m(*a))[0] for m, a in calls) / total


def test_a_two_tower_host_costs_two_and_the_share_of_the_rest():
    inputs, _ = batch()
    rest = 1 - share(make(), ["stem", "vision", "deep", "text"], inputs)
    taps = dataclasses.replace(REPLAYED, image_only=("stem", "vision", "deep"))
    assert 0.001 < rest < 0.1
    assert counted(make(), PLAIN, *inputs) == 3.0
    assert counted(make(), taps, *inputs) == pytest.approx(2 + rest, abs=1e-3)


def test_an_etris_like_host_reruns_what_comes_after_the_bridge():
    inputs, target = batch()
    rest = 1 - share(make(), ["stem", "vision", "text"], inputs)
    taps = dataclasses.replace(PLAIN, **ETRIS)
    assert counted(make(bridge="late"), PLAIN, *inputs) == 3.0
    assert counted(make(bridge="late"), taps, *inputs) == pytest.approx(2 + rest, abs=5e-3)
    too_much = dataclasses.replace(PLAIN, image_only=("vision", "deep"))
    with pytest.raises(RuntimeError, match="image_only: deep sees the words"):
        wrap(make(bridge="late"), CONFIG, taps=too_much)(*inputs, target=target)


def lavt(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_model("lavt_tiny")


def lavt_batch():
    ids = torch.tensor([[101, 200, 300, 102], [101, 400, 102, 0]])
    return torch.randn(2, 3, 64, 64), ids, (ids > 0).long()


def test_lavt_runs_bert_in_the_plain_pass_and_where_words_are_masked():
    inputs = lavt_batch()
    host = lavt()
    sd = wrap(host, CONFIG)
    assert "replays text_encoder" in sd.describe()
    runs = []
    layer = next(m for n, m in host.text_encoder.named_modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(lambda *_: runs.append(1))
    sd(*inputs, target=torch.zeros(2, 64, 64))
    del runs[:]  # the check's own
    sd(*inputs, target=torch.zeros(2, 64, 64))
    assert len(runs) == 2
    bert = share(lavt(), ["text_encoder"], inputs)
    assert bert > 0.002
    assert counted(lavt(), None, *inputs) == pytest.approx(3 - bert, abs=6e-4)


@pytest.mark.filterwarnings("ignore:logits are 16x16:UserWarning")
@pytest.mark.parametrize("low_memory", [False, True])
def test_gradients_of_lavt_are_those_of_three_whole_passes(low_memory):
    images, ids, mask = lavt_batch()
    inputs, target = (images.double(), ids, mask), torch.zeros(2, 64, 64).double()
    recipe = wrap(lavt().double(), dataclasses.replace(CONFIG, low_memory=low_memory)).double()
    taps = dataclasses.replace(recipe.segmenter.where, text_only=())
    whole = wrap(lavt().double(), CONFIG, taps=taps).double()
    assert_same(step(recipe, inputs, target)[1], step(whole, inputs, target)[1])


# Guards


def test_a_module_that_sees_the_other_modality_is_refused_by_name():
    inputs, target = batch()
    for start_at_zero in (False, True):
        host = make(bridge="early")
        if start_at_zero:
            nn.init.zeros_(host.bridge.weight)
            nn.init.zeros_(host.bridge.bias)
        sd = wrap(host, CONFIG, taps=dataclasses.replace(PLAIN, image_only=("vision",)))
        with pytest.raises(RuntimeError, match="image_only: vision sees the words"):
            sd(*inputs, target=target)
        assert all(p.grad is None for p in sd.parameters())
        assert int(sd.step) == 0
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(PLAIN, text_only=("norm",)))
    with pytest.raises(RuntimeError, match="text_only: norm sees the patches"):
        sd(*inputs, target=target)
    found = wrap(make(), CONFIG, taps=REPLAYED).check(*inputs)
    assert found["text: replayed vision"] == found["image: replayed text"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_only": "vision"}, r"image_only must be a tuple of module paths, got 'vision'"),
        ({"image_only": ("visoin",)}, "did you mean 'vision'"),
        ({"text_only": (3,)}, "text_only must be a dotted module path, got int"),
        ({"image_only": ("vision",), "text_only": ("vision",)}, "vision, which image_only names"),
        ({"image_only": ("vision", "vision.layers")}, "vision.layers is, holds or lies inside"),
        ({"image_only": ("vision.layers", "vision")}, "vision is, holds or lies inside"),
        ({"image_only": ("words",)}, "words is or holds the module of text_embedding"),
        ({"text_only": ("stem",)}, "stem is or holds the module of image_embedding"),
        ({"text_only": ("head",)}, "head is or holds the module of logits"),
        (
            {"image_embedding": "vision", "image_width": C, "image_only": ("vision.layers",)},
            "vision.layers lies inside the module of image_embedding",
        ),
        ({"text_only": ("vision",), "image_embedding": "vision.layers.0"}, "is or holds"),
    ],
)
def test_a_wrong_name_leaves_the_host_untouched(changes, message):
    host = make()
    with pytest.raises(ValueError, match=message):
        wrap(host, CONFIG, taps=dataclasses.replace(PLAIN, **changes))
    assert untouched(host)


def untouched(host):
    return not any(m._forward_hooks or "forward" in m.__dict__ for m in host.modules())


class Odd(TwoTowers):
    def mix(self, patches, words, mask):
        words = self.text(words)
        if self.tree is None:
            words += 1
        if self.tree == "twice":
            words = self.text(words)
        return self.head(self.deep(patches) * words.mean(1)[:, :, None, None])


@pytest.mark.parametrize(
    ("tree", "path", "message"),
    [
        (None, "text", "the output of text was modified in place after it ran"),
        ("twice", "text", "text ran twice in one pass"),
        ("", "bridge", "bridge exists, but did not run in this pass"),
    ],
)
def test_what_cannot_be_replayed_is_said(tree, path, message):
    inputs, target = batch()
    host = Odd(tree, bridge="early")
    sd = wrap(host, CONFIG, taps=dataclasses.replace(PLAIN, text_only=(path,)))
    with pytest.raises((ValueError, RuntimeError), match=message):
        sd(*inputs, target=target)


# Proposals


def proposed(sd, inputs):
    with evaluating(sd.segmenter), torch.no_grad():
        return replayable(sd.segmenter, ("image", "text"), inputs, {})


def test_what_sees_one_modality_is_found():
    inputs, _ = batch()

    def found(host, **changes):
        sd = wrap(host, CONFIG, taps=dataclasses.replace(PLAIN, **changes))
        return proposed(sd, inputs)

    assert found(make()) == {"image": ["vision", "deep"], "text": ["text"]}
    assert found(make(), **REPLAYED_ONLY) == {"image": [], "text": []}
    assert found(make(), image_only=("vision",)) == {"image": ["deep"], "text": ["text"]}
    # The bridge makes all of the image tower see words, also while it is zero.
    bridged = make(bridge="early")
    assert found(bridged) == {"image": [], "text": ["text", "bridge"]}
    nn.init.zeros_(bridged.bridge.weight)
    nn.init.zeros_(bridged.bridge.bias)
    assert found(copy.deepcopy(bridged)) == {"image": [], "text": ["text", "bridge"]}


def test_what_sees_neither_modality_is_not_proposed():
    class Positions(TwoTowers):
        def __init__(self):
            super().__init__()
            self.text = nn.ModuleDict(
                {"mix": nn.Linear(C, C), "positions": nn.Embedding(LENGTH, C)}
            )
            self.early = nn.Conv2d(3, 3, 1)

        def forward(self, images, ids, mask):
            places = self.text["positions"](torch.arange(LENGTH))
            sentence = (self.text["mix"](self.words(ids)) + places).mean(1)[:, :, None, None]
            maps = self.vision(self.stem(self.early(images)))
            return self.head(self.norm(maps + self.deep(maps) * sentence).relu())

    inputs, _ = batch()
    sd = wrap(Positions(), CONFIG, taps=PLAIN)
    assert proposed(sd, inputs) == {"image": ["vision", "deep"], "text": ["text.mix"]}


def test_describe_proposes_what_is_dear_and_takes_its_own_advice():
    inputs, _ = batch()
    text = wrap(make(), CONFIG, taps=PLAIN).describe(*inputs)
    advice = "could be replayed too, 48% of a forward: image_only=('vision', 'deep')"
    assert advice in text
    taps = dataclasses.replace(PLAIN, image_only=("vision", "deep"))
    assert "could be replayed" not in wrap(make(), CONFIG, taps=taps).describe(*inputs)
    assert "could be replayed" not in wrap(lavt(), CONFIG).describe(*lavt_batch())


# The rest of the house


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__.startswith("2.7."), reason="torch 2.7 does not compile tapped models"
)
def test_it_compiles_to_one_graph():
    inputs, target = batch()
    torch._dynamo.reset()
    eager, sd = (wrap(make(), CONFIG, taps=REPLAYED) for _ in range(2))
    compiled = torch.compile(sd, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            sd.zero_grad()
            out = compiled(*inputs, target=target)
            out.loss.backward()
            got = {name: p.grad for name, p in sd.named_parameters() if p.grad is not None}
            wanted_out, wanted = step(eager, inputs, target)
            torch.testing.assert_close(out.losses, wanted_out.losses)
            torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(compiled.eval()(*inputs), eager.eval()(*inputs))
    torch._dynamo.reset()


def test_a_tower_compiled_after_wrapping_is_replayed():
    inputs, target = batch()
    eager, sd = (wrap(make(), CONFIG, taps=REPLAYED) for _ in range(2))
    sd.segmenter.wrapped.vision.compile(backend="eager")
    for _ in range(2):
        assert_same(step(sd, inputs, target)[1], step(eager, inputs, target)[1], 1e-5)
    torch._dynamo.reset()


def test_other_threads_run_the_towers():
    inputs, target = batch()
    host = make().eval()
    others = batch()[0][0].flip(0), *inputs[1:]
    sd = wrap(host.train(), CONFIG, taps=REPLAYED)
    sd(*inputs, target=target)
    host.eval()  # the wrapper stays in training
    found, inside = [], []

    def infer():
        with torch.no_grad():
            found.append(host(*others))

    def meanwhile(*_):
        if not inside:
            inside.append(1)
            thread = threading.Thread(target=infer)
            thread.start()
            thread.join()
            inside.clear()

    host.head.register_forward_pre_hook(meanwhile)
    with torch.no_grad():
        wanted = host(*others)
        sd(*inputs, target=target)
    del found[0]  # while wanted was made
    assert len(found) == 3  # once in each pass
    assert all(torch.equal(each, wanted) for each in found)


def test_copies_and_pickles_are_independent_and_unwrapping_leaves_nothing():
    inputs, target = batch()
    host = make(dropout=0.0)
    sd = wrap(host, CONFIG, taps=REPLAYED)
    wanted = step(sd, inputs, target)[1]
    sd.set_step(0)
    alone = copy.deepcopy(host)
    twins = [copy.deepcopy(sd), pickle.loads(pickle.dumps(sd)), copy.deepcopy([host, sd])[1]]
    for twin in twins:
        with torch.no_grad():
            for p in twin.segmenter.wrapped.parameters():
                p.zero_()  # a twin that ran the towers of the original would still see them
        assert step(twin, inputs, target)[0].logits.abs().max() == 0
        assert untouched(twin.unwrap())
    assert_same(step(sd, inputs, target)[1], wanted, 1e-6)
    with torch.no_grad():
        for p in alone.vision.parameters():
            p.zero_()
    assert alone.vision(torch.ones(1, C, 4, 4)).abs().max() == 0
    assert untouched(masksd.release(copy.deepcopy(alone)))
    again = wrap(alone, CONFIG, taps=REPLAYED)
    step(again, inputs, target)
    assert again.unwrap() is alone
    assert untouched(alone)
    assert sd.unwrap() is host
    assert untouched(host)
    assert masksd.release(pickle.loads(pickle.dumps(host))) is not None


def test_a_forward_of_the_modules_own_comes_back():
    inputs, target = batch()
    host = make()
    own = host.text.forward
    host.text.forward = lambda words: own(words) * 2  # as accelerate's hooks do
    kept = host.text.forward
    want = host.eval()(*inputs)
    sd = wrap(host.train(), CONFIG, taps=REPLAYED)
    step(sd, inputs, target)
    assert isinstance(host.text.forward, Replay)
    assert not torch.equal(sd.eval()(*inputs), want)  # the statistics have moved
    assert sd.unwrap().text.forward is kept


def test_evaluation_is_the_bare_host_and_keeps_no_activation():
    inputs, target = batch()
    host = make()
    sd = wrap(host, CONFIG, taps=REPLAYED)
    step(sd, inputs, target)
    bare = masksd.release(copy.deepcopy(host)).eval()
    with torch.no_grad():
        assert torch.equal(sd.eval()(*inputs), bare(*inputs))
    for hook, _ in sd.segmenter.replayed():
        assert hook._calls == []
        assert hook._replayed is None


def test_a_second_wrapper_is_refused():
    host = make()
    sd = wrap(host, CONFIG, taps=REPLAYED)
    taps = dataclasses.replace(REPLAYED, image_embedding="deep", cell=None)
    with pytest.raises(ValueError, match="vision is replayed already"):
        wrap(host, dataclasses.replace(CONFIG, text=None), taps=taps)
    assert sd.unwrap() is host
    assert untouched(host)
