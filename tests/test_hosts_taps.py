"""Hosts that nobody here wrote, wrapped by module paths alone."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from masksd import (
    CrossModalMaskedSelfDistill,
    DistillConfig,
    MaskingConfig,
    Taps,
    segmentation_loss,
)
from masksd.passes.branches import NAMES

C, VOCABULARY, LENGTH, END = 10, 30, 6, 29
wrap = CrossModalMaskedSelfDistill.wrap

TAPS = Taps("patch_embed", "words", "head", valid="mask")
CONFIG = DistillConfig(
    image=MaskingConfig(ratio=0.5), text=MaskingConfig(ratio=0.5, rounding="ceil"), seed=2
)


class ToMap(nn.Module):
    """A convolution whose output is laid out as (B, h, w, C), or as (B, prefix + h * w, C)."""

    def __init__(self, layout: str, stride: int) -> None:
        super().__init__()
        self.layout = layout
        self.proj = nn.Conv2d(3, C, stride, stride)
        self.cls = nn.Parameter(torch.randn(1, 2, C)) if layout == "prefixed" else None

    def forward(self, images):
        x = self.proj(images).permute(0, 2, 3, 1)
        if self.layout == "nhwc":
            return x
        x = x.flatten(1, 2)
        return x if self.cls is None else torch.cat([self.cls.expand(len(x), -1, -1), x], 1)


class Host(nn.Module):
    """Pictures and words are mixed, BatchNorm and dropout included; the output is ``returns``."""

    def __init__(self, layout="nchw", stride=8, channels=1, returns="logits", dropout=0.0):
        super().__init__()
        self.layout, self.stride, self.returns = layout, stride, returns
        conv = nn.Conv2d(3, C, stride, stride)
        self.patch_embed = conv if layout == "nchw" else ToMap(layout, stride)
        self.words = nn.Embedding(VOCABULARY, C)
        self.mix = nn.Linear(C, C)
        self.vector = nn.Linear(C, C)
        self.norm = nn.BatchNorm2d(C)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(C, channels, 1)
        self.unused = nn.Linear(C, C)

    def forward(self, images, ids, mask=None, truth=None):
        x = self.patch_embed(images)
        if x.ndim == 3:
            grid = images.shape[2] // self.stride, images.shape[3] // self.stride
            x = x[:, -grid[0] * grid[1] :].unflatten(1, grid)
        x = x if self.layout == "nchw" else x.permute(0, 3, 1, 2)
        words = self.mix(self.words(ids)).tanh()
        if mask is not None:
            words = words * (mask.flatten(1) != 0)[..., None]
        x = self.dropout(self.norm(x * self.vector(words.mean(1))[:, :, None, None]).relu() + x)
        return OUTPUTS[self.returns](self.head(x), truth)


def own_loss(logits, truth):
    if truth is None:
        return None
    small = nn.functional.adaptive_avg_pool2d(truth[:, None], logits.shape[-2:])
    return nn.functional.mse_loss(logits[:, -1:], small)


@dataclasses.dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


Pair = namedtuple("Pair", ["loss", "logits"])

OUTPUTS = {
    "logits": lambda y, t: y,
    "flat": lambda y, t: y[:, 0],
    "detached": lambda y, t: (y.detach(), own_loss(y, t)),
    "tuple": lambda y, t: (y, own_loss(y, t)),
    "list": lambda y, t: [y * 2, y],
    "dict": lambda y, t: {"out": y, "loss": own_loss(y, t)},
    "nested": lambda y, t: {"out": [y * 2, y]},
    "model_output": lambda y, t: Output(own_loss(y, t), y),
    "named": lambda y, t: Pair(own_loss(y, t), y),
}


def make(**kwargs) -> Host:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Host(**kwargs)


def batch(height=32, width=32, size=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, height, width, generator=generator)
    ids = torch.randint(1, END, (size, LENGTH), generator=generator)
    mask = torch.ones(size, LENGTH, dtype=torch.long)
    mask[0, 4:] = 0
    target = (torch.rand(size, height, width, generator=generator) > 0.5).float()
    return (images, ids, mask), target


def hooks(module):
    return [hook for part in module.modules() for hook in part._forward_hooks.values()]


def learns(sd, out):
    """Both tokens, and the host, take part in the distillation."""
    sd.zero_grad()
    out.distill_loss.backward()
    for modality, masker in sd.maskers.items():
        assert out.masks[NAMES[modality]].any()
        assert masker.token.grad.norm() > 0, modality
    assert sd.segmenter.wrapped.head.weight.grad.norm() > 0


# Layouts


@pytest.mark.parametrize(
    ("layout", "path", "options"),
    [
        ("nchw", "patch_embed", {}),
        ("nhwc", "patch_embed", {"image_width": C}),
        ("nhwc", "patch_embed.proj", {}),
        ("nhwc", "patch_embed", {"image_width": C, "channels_first": False}),
        ("tokens", "patch_embed", {"image_width": C}),
        ("prefixed", "patch_embed", {"image_width": C, "prefix": 2}),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 32)])
def test_embeddings_of_any_layout_and_pictures_of_any_form(layout, path, options, size):
    sd = wrap(
        make(layout=layout), CONFIG, taps=dataclasses.replace(TAPS, image_embedding=path, **options)
    )
    inputs, target = batch(*size)
    out = sd(*inputs, target=target)
    patches = size[0] * size[1] // 64
    assert out.masks["lmvsd"].shape == (2, patches)
    assert out.masks["lmvsd"].sum(1).tolist() == [patches // 4] * 2  # half of the upper half
    assert (out.masks["vmlsd"] <= (inputs[2] != 0)).all()
    learns(sd, out)


@pytest.mark.parametrize(
    ("cell", "grid"), [(None, (8, 12)), (32, (2, 3)), (16, (4, 6)), (4, (16, 24))]
)
def test_a_stem_is_masked_in_cells(cell, grid):
    taps = dataclasses.replace(TAPS, cell=cell)
    sd = wrap(make(stride=4), CONFIG, taps=taps, check=False)
    inputs, target = batch(64, 96)
    seen = []
    sd.segmenter.wrapped.norm.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    out = sd(*inputs, target=target)
    assert out.masks["lmvsd"].shape == (2, grid[0] * grid[1])
    plain, _, masked = seen  # pictures are masked last
    side = 64 // grid[0] // 4
    cells = out.masks["lmvsd"].unflatten(1, grid)
    wide = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)
    assert torch.equal((plain != masked).all(1), wide)
    assert torch.equal((plain == masked).all(1), ~wide)


def test_a_host_with_an_argument_called_target_gets_it():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 8, 8, 8)
            self.words = nn.Embedding(50, 8)
            self.head = nn.Conv2d(8, 1, 1)

        def forward(self, images, ids, mask, target=None):
            sentence = (self.words(ids) * mask[..., None]).mean(1)
            logits = self.head(self.patch_embed(images) * sentence[..., None, None])
            loss = None if target is None else logits.mean() * 0 + 7.0
            return {"out": logits, "loss": loss}

    taps = Taps("patch_embed", "words", ":out", valid="mask", target="target", loss=":loss")
    inputs, target = batch(32, 32)
    host = Host()
    sd = CrossModalMaskedSelfDistill.wrap(host, DistillConfig(), taps=taps)
    assert sd(*inputs, target=target).losses["seg"] == 7.0
    assert sd.preview(*inputs, target=target).logits.shape == (2, 1, 4, 4)
    assert sd.eval()(*inputs, target=target)["loss"] == host(*inputs, target=target)["loss"] == 7.0


def test_logits_that_are_written_into_after_they_were_made_are_refused():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 8, 8, 8)
            self.head = nn.Conv2d(8, 1, 1)

        def forward(self, images):
            return self.head(self.patch_embed(images)).sigmoid_()

    taps = Taps("patch_embed", images="images", tokens="images", logits="head")
    sd = CrossModalMaskedSelfDistill.wrap(Host(), DistillConfig(text=None), taps=taps)
    with pytest.raises(ValueError, match="the output of head was modified in place"):
        sd(torch.randn(1, 3, 32, 32), target=torch.zeros(1, 32, 32))


def test_widths_and_layout_are_found_by_an_example():
    inputs, target = batch(32, 48)
    for layout, options in (("nhwc", {}), ("tokens", {}), ("prefixed", {"prefix": 2})):
        host = make(layout=layout, dropout=0.5)
        taps = dataclasses.replace(TAPS, **options)
        modes = [part.training for part in host.modules()]
        state, random = copy.deepcopy(host.state_dict()), torch.get_rng_state()
        sd = wrap(host, CONFIG, taps=taps, example=inputs)
        assert sd.segmenter.taps["image"].width == C
        assert torch.equal(torch.get_rng_state(), random)
        assert [part.training for part in host.modules()] == modes
        assert all(torch.equal(state[k], v) for k, v in host.state_dict().items())
        learns(sd, sd(*inputs, target=target))
        assert len(hooks(sd.unwrap())) == 0


def test_an_ambiguous_layout_asks():
    host = make(layout="nhwc")
    with pytest.raises(
        ValueError, match=r"may be \(B, C, h, w\) or \(B, h, w, C\).*channels_first"
    ):
        wrap(host, CONFIG, taps=TAPS, example=batch(80, 80)[0])  # 10 x 10 x 10
    assert hooks(host) == []
    sd = wrap(host, CONFIG, taps=dataclasses.replace(TAPS, image_width=C))
    with pytest.raises(ValueError, match="10 channels fit two dimensions; state width"):
        sd(*batch(80, 80)[0])
    stated = dataclasses.replace(TAPS, channels_first=False)
    other = wrap(make(layout="nhwc"), CONFIG, taps=stated, example=batch(80, 80)[0])
    learns(other, other(*batch(80, 80)[0]))


def test_a_layer_norm_of_maps_is_no_layer_norm_of_tokens():
    from timm.layers import LayerNorm2d

    host = make()
    host.patch_embed = nn.Sequential(nn.Conv2d(3, C, 8, 8), LayerNorm2d(C))
    sd = wrap(host, CONFIG, taps=dataclasses.replace(TAPS, image_embedding="patch_embed.1"))
    inputs, _ = batch(32, 48)
    learns(sd, sd(*inputs))
    with pytest.raises(ValueError, match="10 channels fit two dimensions"):
        sd(*batch(32, 80)[0])


def test_a_prefix_belongs_to_tokens():
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, prefix=1))
    with pytest.raises(ValueError, match="has no tokens before its patches; leave prefix=1 out"):
        sd(*batch()[0])


# What a host returns


@pytest.mark.parametrize(
    ("returns", "logits", "loss"),
    [
        ("logits", "", None),
        ("logits", "head", None),
        ("flat", "", None),
        ("detached", "head", ":1"),
        ("tuple", ":0", ":1"),
        ("tuple", ":-2", ":-1"),
        ("list", ":1", None),
        ("dict", ":out", ":loss"),
        ("nested", ":out:1", None),
        ("model_output", ":logits", ":loss"),
        ("named", ":logits", ":loss"),
    ],
)
def test_outputs_of_every_kind(returns, logits, loss):
    taps = dataclasses.replace(TAPS, logits=logits, loss=loss, target="truth")
    inputs, truth = batch()
    for channels in (1,) if returns == "flat" else (1, 2):
        sd = wrap(make(returns=returns, channels=channels), CONFIG, taps=taps)
        check_output(sd, inputs, truth, loss, channels)


def check_output(sd, inputs, truth, loss, channels):
    out = sd(*inputs, truth)
    assert out.logits.shape == (2, channels, 4, 4)
    assert out.logits.requires_grad
    expected = segmentation_loss if loss is None else own_loss
    expected = expected(out.logits, truth)
    torch.testing.assert_close(out.losses["seg"], expected)
    learns(sd, out)
    out = sd(*inputs, target=truth)  # the host's own loss needs its own truth
    torch.testing.assert_close(out.losses["seg"], segmentation_loss(out.logits, truth))
    assert not sd(*inputs).loss


def test_two_channels_are_one_channel_of_the_difference():
    two, one = make(channels=2).double(), make().double()
    with torch.no_grad():
        one.load_state_dict(
            two.state_dict()
            | {
                "head.weight": two.head.weight[1:] - two.head.weight[:1],
                "head.bias": two.head.bias[1:] - two.head.bias[:1],
            }
        )
    inputs, target = batch()
    outs = []
    for host in (two, one):
        sd = wrap(host, CONFIG, taps=TAPS).double()
        outs.append(sd(inputs[0].double(), *inputs[1:], target=target.double()))
        outs[-1].loss.backward()
    torch.testing.assert_close(outs[0].losses, outs[1].losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(two.words.weight.grad, one.words.weight.grad, rtol=1e-9, atol=1e-15)
    difference = two.head.weight.grad[1] - two.head.weight.grad[0]
    torch.testing.assert_close(difference / 2, one.head.weight.grad[0], rtol=1e-9, atol=1e-15)


def test_logits_without_a_gradient_are_found_out():
    sd = wrap(make(returns="detached"), CONFIG, taps=dataclasses.replace(TAPS, logits=":0"))
    with pytest.raises(ValueError, match="logits: :0 carries no gradient; name the module inside"):
        sd(*batch()[0])
    sd.preview(*batch()[0])  # without gradients there is nothing to miss


@pytest.mark.parametrize(
    ("returns", "logits", "loss", "message"),
    [
        (
            "tuple",
            "",
            None,
            r"logits: the host returns a tuple; say which part .*0: Tensor",
        ),
        ("tuple", ":2", None, r"logits: no part '2' in a tuple \(it has 0: Tensor"),
        ("dict", ":masks", None, r"logits: no part 'masks' in a dict \(it has 'out', 'loss'\)"),
        ("dict", ":keys", None, r"no part 'keys' in a dict"),
        ("logits", "norm", None, r"logits must be \(B, 1 or 2, H, W\) or .*, got \(2, 10, 4"),
        ("tuple", ":0", ":0", r"loss must be one number, got \(2, 1, 4, 4\)"),
    ],
)
def test_outputs_that_are_not_as_named(returns, logits, loss, message):
    sd = wrap(
        make(returns=returns), CONFIG, taps=dataclasses.replace(TAPS, logits=logits, loss=loss)
    )
    with pytest.raises(ValueError, match=message):
        sd(*batch()[0])


class Official(Host):
    """As many are: a loss and no more in training, an answer and no loss in evaluation."""

    def forward(self, images, ids, mask=None, truth=None):
        logits = super().forward(images, ids, mask)
        return own_loss(logits, truth) if self.training else (logits > 0).long()


def test_a_host_that_returns_only_its_loss_and_in_evaluation_only_its_answer():
    host = make()
    host.__class__ = Official
    bare = copy.deepcopy(host)
    inputs, truth = batch()
    taps = dataclasses.replace(TAPS, loss="", target="truth", patches="norm", sentence="vector")
    config = dataclasses.replace(CONFIG, image=MaskingConfig(ratio=0.5, relevance="projection"))
    sd = wrap(host, config, taps=taps, example=inputs)
    # the rest is the dot of 256 channels, of which the host has 10
    assert "VMLSD 1.000; a step costs 3.1" in sd.describe(*inputs)
    out = sd(*inputs, truth)
    assert torch.equal(out.losses["seg"], bare(*inputs, truth))
    learns(sd, out)
    assert sd.preview(*inputs, truth).masks["lmvsd"].any()
    bare.load_state_dict(host.state_dict())
    assert torch.equal(sd.eval()(*inputs), bare.eval()(*inputs))


# Names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_embedding": "patch_embd"},
            r"image_embedding='patch_embd'.*did you mean 'patch",
        ),
        ({"image_embedding": "patch_embed:0"}, r"did you mean 'patch_embed'"),
        ({"image_embedding": None}, "image_embedding must be a dotted module path, got NoneType"),
        (
            {"text_embedding": "wrods"},
            r"text_embedding='wrods': Host has no 'wrods'; did you ",
        ),
        ({"text_embedding": None}, "text_embedding is not known.*DistillConfig.text=None"),
        ({"logits": "haed"}, r"logits='haed'.*did you mean 'head'"),
        ({"logits": None}, "logits must be a path, or '' for the host's output; got None"),
        ({"logits": 3}, "logits must be a path such as"),
        ({"patches": "mix.0"}, "Host.mix has no submodules"),
        (
            {"image_embedding": "dropout"},
            "dropout is a Dropout, whose width .*image_width= or text_width=.*example=",
        ),
        ({"valid": None}, "valid is not known: name the argument .* masksd.hosts.bert_words"),
        ({"valid": "msk"}, r"valid: Host.forward has no argument 'msk'; did you mean 'mask'"),
        ({"images": 7}, r"images=7 is not a position of Host.forward\(images, ids, mask, truth\)"),
        ({"tokens": "id"}, "tokens: .*did you mean 'ids'"),
        ({"target": "label"}, "target: .*has no argument 'label'"),
    ],
)
def test_a_wrong_name_leaves_the_host_untouched(changes, message):
    host = make()
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(ValueError, match=message):
        wrap(host, CONFIG, taps=dataclasses.replace(TAPS, **changes))
    assert hooks(host) == []
    assert all(torch.equal(before[k], v) for k, v in host.state_dict().items())
    wrap(host, CONFIG, taps=TAPS)


def test_what_is_no_taps_and_what_has_no_recipe_is_refused():
    with pytest.raises(ValueError, match=r"taps must be a masksd.Taps, got dict"):
        wrap(make(), taps={"image_embedding": "patch_embed"})
    with pytest.raises(ValueError, match=r"no recipe knows Host .*patch_embed, words"):
        wrap(make())
    with pytest.raises(ValueError, match="share_weights=False copies a neck and a decoder"):
        wrap(make(), DistillConfig(share_weights=False), taps=TAPS)
    with pytest.raises(ValueError, match="text_encoder is for recipes"):
        wrap(make(), taps=TAPS, text_encoder=nn.Linear(1, 1))
    host = make()
    wrap(host, CONFIG, taps=TAPS)
    with pytest.raises(ValueError, match="patch_embed is tapped already: unwrap"):
        wrap(host, CONFIG, taps=TAPS)
    assert len(hooks(host)) == 3


def test_a_module_that_does_not_run_or_runs_twice():
    inputs, _ = batch()
    for field in ("logits", "patches"):
        sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, **{field: "unused"}))
        with pytest.raises(RuntimeError, match="unused exists, but did not run in this pass"):
            sd(*inputs)
    idle = make()
    idle.unused = nn.Identity()  # an example is asked for its width
    with pytest.raises(RuntimeError, match="unused exists, but did not run"):
        wrap(idle, CONFIG, taps=dataclasses.replace(TAPS, image_embedding="unused"), example=inputs)
    assert hooks(idle) == []
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, image_embedding="unused"))
    with pytest.raises(RuntimeError, match="unused exists, but did not run in this pass"):
        sd(*inputs)
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, text_embedding="unused"))
    with pytest.raises(RuntimeError, match="unused exists, but did not run in this pass"):
        sd(*inputs)
    twice = make()
    twice.head = nn.Sequential(twice.head, nn.Conv2d(1, C, 1), nn.ReLU())
    twice.head.append(twice.head[0])
    taps = dataclasses.replace(TAPS, logits="head.0")
    with pytest.raises(RuntimeError, match=r"head.0 ran twice in one pass"):
        wrap(twice, CONFIG, taps=taps)(*inputs)


# Arguments


def odd_words(ids):
    return ids % 2 == 1


def counted_words(ids):
    return ids % 2


def test_arguments_by_position_and_by_name():
    (images, ids, mask), target = batch()
    named = dataclasses.replace(TAPS, images="images", tokens="ids", valid="mask")
    placed = dataclasses.replace(TAPS, images=0, tokens=1, valid=2)
    calls = (((images, ids, mask), {}), ((images,), {"ids": ids, "mask": mask}))
    calls += (((), {"mask": mask, "ids": ids, "images": images}),)
    found = []
    for taps in (named, placed):
        for args, kwargs in calls:
            out = wrap(make(), CONFIG, taps=taps)(*args, target=target, **kwargs)
            found.append((out.loss, out.masks["vmlsd"]))
    for loss, words in found:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(words, found[0][1])


def test_real_words_are_asked_for_and_never_guessed():
    (images, ids, mask), _ = batch()
    sd = wrap(make(), CONFIG, taps=TAPS)
    with pytest.raises(ValueError, match="this call of Host brought no argument 'mask'"):
        sd(images, ids)
    with pytest.raises(ValueError, match="this call of Host brought no argument 'mask'"):
        sd(images, ids, None)
    assert sd(images, ids, mask[..., None]).masks["vmlsd"].shape == (2, LENGTH)  # (B, L, 1)
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, valid=odd_words))
    words = sd(images, ids).masks["vmlsd"]
    assert words.any()
    assert (words <= odd_words(ids)).all()
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, valid=counted_words))
    with pytest.raises(ValueError, match=r"valid must be bool \(B, L\) with B=2.*torch.int64"):
        sd(images, ids)
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, images="ids"))
    with pytest.raises(ValueError, match=r"images='ids' must be images \(B, 3, H, W\), got \("):
        sd(images, ids, mask)


def test_without_the_text_branch_nothing_is_asked_about_words():
    sd = wrap(make(), DistillConfig(text=None), taps=Taps("patch_embed", logits="head"))
    (images, ids, _), target = batch()
    assert set(sd(images, ids, target=target).losses) == {"seg", "lmvsd"}
    sd = wrap(make(), DistillConfig(text=None), taps=TAPS)
    assert set(sd(images, ids).losses) == {"lmvsd"}
    sd = wrap(make(), DistillConfig(image=None), taps=TAPS)
    assert set(sd(*batch()[0]).losses) == {"vmlsd"}


# The host stays what it is


def test_compiled_and_distributed_hosts_are_told_the_order(tmp_path):
    host = make()
    with pytest.raises(ValueError, match=r"host is compiled.*wrap the bare model first, then"):
        wrap(torch.compile(host), CONFIG, taps=TAPS)
    part = make()
    part.mix = torch.compile(nn.Sequential(nn.Linear(C, C)))
    wrap(part, CONFIG, taps=TAPS).unwrap()  # it is not tapped there
    inside = dataclasses.replace(TAPS, text_embedding="mix._orig_mod.0")
    with pytest.raises(ValueError, match=r"mod.0 lies in a part of the host that is compiled"):
        wrap(part, CONFIG, taps=inside)
    compiled = make()
    compiled.compile()
    with pytest.raises(ValueError, match="host is compiled"):
        wrap(compiled, CONFIG, taps=TAPS)
    with pytest.raises(ValueError, match="is a DataParallel: wrap the bare model first"):
        wrap(nn.DataParallel(host), CONFIG, taps=TAPS)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        distributed = nn.parallel.DistributedDataParallel(host)
        with pytest.raises(ValueError, match="is a DistributedDataParallel: wrap the bare model"):
            wrap(distributed, CONFIG, taps=TAPS)
        from torch.distributed.fsdp import fully_shard

        with pytest.raises(ValueError, match="is a FSDPHost: wrap the bare model first"):
            wrap(fully_shard(make()), CONFIG, taps=TAPS)
    finally:
        torch.distributed.destroy_process_group()
    assert hooks(host) == hooks(part) == []
    with pytest.raises(ValueError, match=r"host must be an nn.Module, got function"):
        wrap(odd_words, taps=TAPS)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda sd: pickle.loads(pickle.dumps(sd))])
def test_copies_are_independent(twin):
    sd = wrap(make(), CONFIG, taps=dataclasses.replace(TAPS, valid=odd_words))
    inputs, target = batch()
    expected = sd(*inputs, target=target).loss
    other = twin(sd)
    other.step.zero_()
    assert torch.equal(other(*inputs, target=target).loss, expected)
    host = other.unwrap()
    assert hooks(host) == []
    assert len(hooks(sd.segmenter.wrapped)) == 3
    learns(sd, sd(*inputs, target=target))


def test_unwrapping_returns_the_very_host_without_a_hook():
    host = make()
    keys = list(host.state_dict())
    sd = wrap(host, CONFIG, taps=TAPS)
    inputs, target = batch()
    sd(*inputs, target=target).loss.backward()
    assert list(host.state_dict()) == keys
    make().load_state_dict(host.state_dict())  # strictly
    assert sd.unwrap() is host
    assert hooks(host) == []


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "prefixed"])
def test_evaluation_is_the_bare_host_and_keeps_no_activation(layout):
    host = make(layout=layout, dropout=0.5)
    bare = copy.deepcopy(host)
    taps = dataclasses.replace(
        TAPS, image_width=C, prefix=2 if layout == "prefixed" else 0, patches="norm", words="mix"
    )
    sd = wrap(host, CONFIG, taps=taps)
    inputs, target = batch()
    out = sd(*inputs, target=target)
    out.loss.backward()
    bare.load_state_dict(host.state_dict())
    sd.eval()
    assert torch.equal(sd(*inputs), bare.eval()(*inputs))
    assert torch.equal(sd(*inputs, target=target), bare(*inputs))
    kept = [
        value
        for hook in hooks(host)
        for value in vars(hook).values()
        if isinstance(value, torch.Tensor | tuple) and not all(isinstance(v, int) for v in value)
    ]
    assert kept == []


def test_the_plain_pass_is_that_of_the_bare_host_in_training():
    host = make(dropout=0.5)
    bare = copy.deepcopy(host)
    sd = wrap(host, CONFIG, taps=TAPS)
    inputs, target = batch()
    for _ in range(3):
        torch.manual_seed(7)
        out = sd(*inputs, target=target)
        torch.manual_seed(7)
        assert torch.equal(out.host_output, bare(*inputs))
    assert int(host.norm.num_batches_tracked) == 3
    for name, buffer in bare.named_buffers():
        assert torch.equal(buffer, host.get_buffer(name))


def test_a_frozen_encoder_still_teaches_the_tokens():
    host = make()
    host.patch_embed.requires_grad_(False)
    host.words.requires_grad_(False)
    sd = wrap(host, CONFIG, taps=TAPS)
    inputs, target = batch()
    learns(sd, sd(*inputs, target=target))
    assert host.patch_embed.weight.grad is None


def test_thirty_steps_lower_every_loss():
    sd = wrap(make(), CONFIG, taps=TAPS)
    inputs, target = batch(size=8)
    optimizer = torch.optim.Adam([*sd.segmenter.parameters(), *sd.distill_parameters()], lr=0.03)
    outs = []
    for _ in range(30):
        out = sd(*inputs, target=target)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        outs.append({name: loss.item() for name, loss in out.losses.items()})
    for name in outs[0]:
        assert outs[-1][name] < outs[0][name], name
