"""Hosts whose inputs, outputs or loops no path alone describes, against plain passes by hand."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig, Taps
from masksd.hosts import clip_words
from tests import look_alikes
from tests.look_alikes import (
    LOOK_ALIKES,
    Loop,
    Queries,
    TwoVisionTowers,
    WordTable,
    pictures,
    sentences,
    truth,
)

wrap = CrossModalMaskedSelfDistill.wrap
CONFIG = DistillConfig(
    image=MaskingConfig(ratio=0.5),
    text=MaskingConfig(ratio=0.5, rounding="ceil"),
    seed=3,
    lambda_text=0.125,
)
NAMES = pytest.mark.parametrize("name", LOOK_ALIKES)


def make(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LOOK_ALIKES[name].make()


def double(value):
    """The same call in float64: lists, dictionaries and tuples are looked into."""
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, value
    )


def wrapped(name: str, config: DistillConfig = CONFIG, **changes):
    host = make(name).double()
    taps = dataclasses.replace(LOOK_ALIKES[name].taps(), **changes)
    return host, wrap(host, config, taps=taps)


def call(name: str):
    args, _ = LOOK_ALIKES[name].call()
    target = {} if name == "ReLA" else {"target": truth().double()}
    return double(args), target


@contextlib.contextmanager
def replacing(module: nn.Module, mask: torch.Tensor, token: torch.Tensor):
    """Replace tokens of a module's output by hand, call by call, each with the rows that follow."""
    own, row = module.forward, 0

    def forward(*args):
        nonlocal row
        output = own(*args).clone()
        for sample in range(len(output)):
            hidden, row = mask[row], row + 1
            if output.ndim == 3:
                output[sample, hidden] = token
                continue
            side = output.shape[-1] // 4  # the masks lie on 4 x 4 cells
            cells = hidden.view(4, 4).repeat_interleave(side, 0).repeat_interleave(side, 1)
            output[sample, :, cells] = token[:, None]
        return output

    module.forward = forward
    yield
    del module.forward


@contextlib.contextmanager
def longer_table(args, mask, token, host):
    """Hide words of a bare table: another id, whose row is the token."""
    table, lookup = host.table, F.embedding
    longer = torch.cat([table, token[None]])
    ids = torch.where(mask, len(table), args[1])

    def embedding(given, weight):
        assert given is args[1]
        assert weight is table
        return lookup(ids, longer)

    look_alikes.F.embedding = embedding
    yield
    look_alikes.F.embedding = lookup


def masked_by_hand(name, host, args, modality, mask, token):
    """Logits of the host, with tokens of one modality replaced inside."""
    taps = LOOK_ALIKES[name].taps()
    with contextlib.ExitStack() as stack:
        if name == "BarLeRIa" and modality == "text":
            stack.enter_context(longer_table(args, mask, token, host))
        elif name == "EVF-SAM" and modality == "image":
            rows, width = mask[[0, 2]], look_alikes.C  # sentences 0 and 1 are of picture 0
            stack.enter_context(replacing(host.sam[0], rows, token[:width]))
            shared = mask[[0, 0, 2]]  # this tower sees the picture of each sentence
            stack.enter_context(replacing(host.beit_patches, shared, token[width:]))
        else:
            module = host.get_submodule(getattr(taps, f"{modality}_embedding"))
            stack.enter_context(replacing(module, mask, token))
        return logits_of(name, host, args)


def logits_of(name, host, args):
    kept = []
    heads = {"ReLA": "predictor", "OneRef": "head"}
    if name in heads:
        handle = host.get_submodule(heads[name]).register_forward_hook(
            lambda module, given, output: kept.append(output)
        )
    output = host(*args)
    if name in heads:
        handle.remove()
    if name == "ReLA":
        found = kept[0]["masks"] * found_scores(kept[0])
        return found.sum(1, keepdim=True)
    return {
        "EVF-SAM": lambda: torch.cat(output["pred_masks"]),
        "OneRef": lambda: kept[0].reshape(-1, 1, 4, 4),
        "BarLeRIa": lambda: output[1][:, 2:3],
        "a loop": lambda: torch.stack(output),
    }[name]()


def found_scores(output):
    return output["scores"][:, :, None, None]


def by_hand(name, host, args, out, tokens):
    """Total of Eq. 9 for the masks that were drawn."""
    plain = logits_of(name, host, args)
    if name == "ReLA":
        losses = host(*args)
        total = losses["loss_mask"] + losses["loss_scores"]
    else:
        small = F.interpolate(truth().double()[:, None], plain.shape[-2:], mode="nearest-exact")
        total = F.binary_cross_entropy_with_logits(plain, small)
    for branch, modality, weight in (("lmvsd", "image", 0.75), ("vmlsd", "text", 0.125)):
        mask, token = out.masks[branch], tokens[modality]
        logits = masked_by_hand(name, host, args, modality, mask, token)
        target = plain.detach().sigmoid()
        total = total + weight * F.binary_cross_entropy_with_logits(logits, target)
    return total


@NAMES
@pytest.mark.parametrize("low_memory", [False, True])
def test_losses_and_gradients_are_those_of_passes_by_hand(name, low_memory):
    host, sd = wrapped(name, dataclasses.replace(CONFIG, low_memory=low_memory))
    sd.double()
    args, target = call(name)
    out = sd(*args, **target)
    out.loss.backward()
    assert all(mask.any() for mask in out.masks.values())
    plain = copy.deepcopy(make(name)).double()
    tokens = {
        modality: masker.token.detach().clone().requires_grad_()
        for modality, masker in sd.maskers.items()
    }
    total = by_hand(name, plain, args, out, tokens)
    total.backward()
    assert abs(out.loss.item() - total.item()) < 1e-10
    for (path, got), wanted in zip(host.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=0, atol=1e-10, msg=path)
    for modality, masker in sd.maskers.items():
        assert masker.token.grad.any()
        torch.testing.assert_close(masker.token.grad, tokens[modality].grad, rtol=0, atol=1e-10)


@NAMES
def test_evaluation_and_the_host_are_untouched(name):
    host, sd = wrapped(name)
    args, _ = call(name)
    before = make(name).double().eval()
    leaves = torch.utils._pytree.tree_leaves
    for got, wanted in zip(leaves(sd.eval()(*args)), leaves(before(*args)), strict=True):
        assert torch.equal(got, wanted)
    assert list(host.state_dict()) == list(before.state_dict())
    assert sd.unwrap() is host
    assert not any(each._forward_hooks or "forward" in vars(each) for each in host.modules())


@NAMES
@pytest.mark.parametrize(
    "options",
    [{"joint": True}, {"target": "teacher"}, {"one_pass": True, "target": "ground_truth"}],
    ids=["joint", "teacher", "one pass"],
)
def test_other_kinds_of_step(name, options):
    _, sd = wrapped(name, dataclasses.replace(CONFIG, **options))
    sd.double()
    args, target = call(name)
    if name == "a loop" and "one_pass" in options:
        with pytest.raises(ValueError, match=r"in_parts=True. embeds it in parts: use two passes"):
            sd(*args, **target)
        return
    out = sd(*args, **target)
    out.loss.backward()
    assert all(parameter.grad.any() for parameter in sd.distill_parameters())
    assert sd.eval().check(*args)


@NAMES
def test_a_copy_and_a_description(name):
    _, sd = wrapped(name)
    sd.double()
    args, target = call(name)
    again = copy.deepcopy(sd)
    assert torch.equal(again(*args, **target).loss, sd(*args, **target).loss)
    assert "a step costs" in sd.describe(*args)
    assert max(sd.check(*args).values()) == 0


def test_sentences_of_a_picture_share_its_mask():
    _, sd = wrapped("EVF-SAM")
    sd.double()
    args, target = call("EVF-SAM")
    out = sd(*args, **target)
    first, second, third = out.masks["lmvsd"]
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(*out.relevance["lmvsd"][:2])


def test_without_pictures_the_error_names_it():
    _, sd = wrapped("EVF-SAM", pictures=None)
    args, target = call("EVF-SAM")
    with pytest.raises(ValueError, match=r"batch of 2, .* logits are a batch of 3.*Taps\(pictures"):
        sd.double()(*args, **target)
    _, sd = wrapped("EVF-SAM", pictures="offset")
    with pytest.raises(ValueError, match=r"pictures must be from 0 to 1, .* got 0 to 3"):
        sd.double()(*args, **target)
    _, sd = wrapped("EVF-SAM", pictures=lambda *args: torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"pictures must be .* of 3 sentences, .* got .*\(2,\)"):
        sd.double()(*args, **target)


def test_lists_are_refused_with_the_remedy():
    _, sd = wrapped("ReLA", images=0)
    args, _ = call("ReLA")
    with pytest.raises(ValueError, match=r"got list; Taps\(images=None\) takes their size"):
        sd.double()(*args)
    _, sd = wrapped("ReLA", loss="")
    with pytest.raises(ValueError, match=r"loss: the host returns a dict; say which part"):
        sd.double()(*args)
    _, sd = wrapped("ReLA", loss=dict)
    with pytest.raises(ValueError, match=r"got dict; add it up with loss=lambda losses: sum"):
        sd.double()(*args)
    _, sd = wrapped("ReLA", logits="predictor:masks")
    with pytest.raises(ValueError, match=r"got \(3, 5, 4, 4\); make them with Taps\(logits=\('MOD"):
        sd.double()(*args)


def test_a_loop_must_be_said():
    args, target = call("a loop")
    _, sd = wrapped("a loop", in_parts=False)
    with pytest.raises(ValueError, match=r"batch of 1, .* Taps.in_parts=True. is for .* loop"):
        sd.double()(*args, **target)
    _, sd = wrapped("a loop", in_parts=False, logits="head")
    with pytest.raises(RuntimeError, match=r"head ran twice in one pass.*in_parts=True"):
        sd.double()(*args, **target)
    images, ids = args
    _, sd = wrapped("a loop")
    with pytest.raises(ValueError, match=r"visual embeds \(4, 4\) positions for some .* \(4, 2\)"):
        sd.double()([images[0], images[1][..., :16]], ids[:2])


def test_parts_that_cannot_be_joined_are_named():
    class Uneven(Loop):
        def forward(self, images, ids):
            found = super().forward(images, ids)
            return [self.resize(each, 4 + number) for number, each in enumerate(found)]

    host = Uneven()
    host.resize = Resize()
    sd = wrap(host, CONFIG, taps=dataclasses.replace(look_alikes.loop_taps(), logits="resize"))
    args, _ = LOOK_ALIKES["a loop"].call()
    with pytest.raises(ValueError, match=r"outputs of resize for the parts .* cannot be joined"):
        sd(*args)


class Resize(nn.Module):
    def forward(self, logits, side):
        return F.interpolate(logits[None], (side, side))


def test_a_table_that_is_looked_up_twice_or_never():
    class Sliced(WordTable):
        def forward(self, img, word):
            self.seen = self.table[word], self.table[:2], self.table[self.table[:, 0] > 0]
            return super().forward(img, word)

    args, target = LOOK_ALIKES["BarLeRIa"].call()[0], {"target": truth()}
    sd = wrap(Sliced(), CONFIG, taps=look_alikes.word_table_taps())
    with pytest.raises(RuntimeError, match="table ran twice in one masked pass"):
        sd(*args, **target)

    class Multiplied(WordTable):
        def forward(self, img, word):
            words = F.one_hot(word, len(self.table)).float() @ self.table
            return (self.head(look_alikes.mixed(self.visual(img), words)),)

    sd = wrap(Multiplied(), CONFIG, taps=look_alikes.word_table_taps())
    with pytest.raises(RuntimeError, match=r"no F.embedding\(ids, table\) and no table\[ids\] was"):
        sd(*args, **target)


@pytest.mark.skipif(
    torch.__version__.startswith("2.7."), reason="torch 2.7 does not compile tapped models"
)
def test_a_table_is_refused_in_compiled_code():
    args, target = LOOK_ALIKES["BarLeRIa"].call()[0], {"target": truth()}
    sd = wrap(make("BarLeRIa"), CONFIG, taps=look_alikes.word_table_taps())
    with pytest.raises(RuntimeError, match=r"table is a parameter, .* keep it in an nn.Embedding"):
        torch.compile(sd, backend="eager", fullgraph=True)(*args, **target)


def test_names_are_checked_before_the_host_is_touched():
    host = make("EVF-SAM")
    good = look_alikes.two_towers_taps()
    for changes, message in (
        ({"image_embedding": ("sam.0", "beit_patch")}, "did you mean 'beit_patches'"),
        ({"image_embedding": ()}, "image_embedding is empty: name at least one module"),
        ({"prefix": (1,)}, "prefix must have an entry for each of 2 embeddings"),
        ({"tokens": "input_idz:0"}, "did you mean 'input_ids'"),
        ({"logits": ("decoder",)}, r"logits must be a path such as 'head:out', a function"),
        ({"logits": ("decoder", "masks")}, r"logits must be a path such as 'head:out', a function"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(host, CONFIG, taps=dataclasses.replace(good, **changes))
        assert not any(each._forward_hooks for each in host.modules())


def test_taps_of_named_functions_can_be_pickled():
    taps = dataclasses.replace(
        look_alikes.word_table_taps(), logits="head", valid=clip_words, in_parts=False
    )
    assert pickle.loads(pickle.dumps(taps)) == taps


def test_widths_of_several_embeddings_are_found_by_an_example():
    class Patches(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images)

    host = TwoVisionTowers()
    host.beit_patches = Patches(host.beit_patches)
    args, _ = LOOK_ALIKES["EVF-SAM"].call()
    taps = look_alikes.two_towers_taps()
    with pytest.raises(ValueError, match="beit_patches is a Patches, whose width"):
        wrap(host, CONFIG, taps=taps)
    sd = wrap(host, CONFIG, taps=taps, example=args)
    assert sd.segmenter.taps["image"].width == 2 * look_alikes.C + 4
    sd = wrap(Queries(), CONFIG, taps=look_alikes.queries_taps(), example=batched_example())
    assert sd.segmenter.taps["image"].width == look_alikes.C


def batched_example():
    return LOOK_ALIKES["ReLA"].call()[0]


def lines_of(name: str) -> int:
    """Lines that wrap a look-alike: its ``Taps`` as the formatter sets it, and ``wrap``."""
    source = inspect.getsource(LOOK_ALIKES[name].taps)
    taps = source[source.index("return Taps(") :].rstrip().splitlines()
    helpers = source[: source.index("return Taps(")].splitlines()[1:]
    return sum(bool(line.strip()) for line in [*helpers, *taps]) + 1


def table_of_lines() -> str:
    rows = ["| model | lines |", "|---|---:|", "| recognised: CRIS, LAVT, CLIPSeg, SAM 3 | 1 |"]
    rows += [f"| shaped as {name} | {lines_of(name)} |" for name in LOOK_ALIKES]
    return "\n".join(rows) + "\n"


def test_the_guide_says_how_many_lines_each_takes():
    page = (Path(__file__).parents[1] / "examples" / "README.md").read_text()
    assert f"<!-- lines -->\n{table_of_lines()}<!-- end -->" in page
    assert max(map(lines_of, LOOK_ALIKES)) <= 20


# Faults that were found by trying


def test_towers_of_different_layouts_are_measured_one_by_one():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 8, 8)

        def forward(self, images):
            return self.conv(images).permute(0, 2, 3, 1)

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Conv2d(3, 8, 8, 8)), Rows()
            self.words, self.head = nn.Embedding(9, 8), nn.Conv2d(8, 1, 1)

        def forward(self, images, ids):
            maps = self.a(images) + self.b(images).permute(0, 3, 1, 2)
            return self.head(maps * self.words(ids).mean(1)[:, :, None, None])

    inputs = torch.randn(2, 3, 32, 48), torch.tensor([[3, 4], [5, 6]])
    taps = Taps(("a", "b"), "words", valid=look_alikes.words_above_two)
    for named in (taps, dataclasses.replace(taps, image_embedding=("a.0", "b"))):
        sd = wrap(Host(), CONFIG, taps=named, example=inputs)
        sd(*inputs, target=torch.zeros(2, 32, 48))
        members = sd.segmenter.taps["image"].members
        assert [(tap.width, tap.positions) for tap in members] == [(8, (4, 6))] * 2


def test_features_of_pictures_and_of_sentences_are_told_apart():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.words = nn.Conv2d(3, 8, 8, 8), nn.Embedding(9, 8)
            self.spread, self.head = nn.Identity(), nn.Conv2d(8, 1, 1)
            self.odd = nn.Identity()

        def forward(self, images, ids, number):
            maps = self.visual(images)
            self.odd(torch.cat([maps, maps]))
            spread = self.spread(maps[number.long()])
            return self.head(spread * self.words(ids).mean(1)[:, :, None, None])

    number = torch.tensor([0, 0, 1])
    inputs = torch.randn(2, 3, 32, 32), torch.randint(3, 9, (3, 4)), number
    found = []
    taps = Taps("visual", "words", valid=look_alikes.words_above_two, pictures="number")
    for place in ("visual", "spread"):
        sd = wrap(Host(), CONFIG, taps=dataclasses.replace(taps, patches=place))
        plain = sd.segmenter.plain(*inputs)
        expected = sd.segmenter.wrapped.visual(inputs[0])[number].flatten(2).mT
        found.append(torch.equal(plain.image.local, expected))
    assert found == [True, True]
    with pytest.raises(ValueError, match=r"patches has 4 rows: there are 3 sent.* 2 pictures"):
        wrap(Host(), CONFIG, taps=dataclasses.replace(taps, patches="odd"))(*inputs)
    sd = wrap(Host(), CONFIG, taps=taps)
    with pytest.raises(ValueError, match=r"pictures must be .* got torch.float32 \(3,\)"):
        sd(*inputs[:2], number.float())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_table_in_a_checkpointed_region_is_refused(reentrant):
    class Checkpointed(WordTable):
        def forward(self, img, word):
            maps = self.visual(img)

            def mix(maps):
                return look_alikes.mixed(maps, F.embedding(word, self.table))

            mixed = torch.utils.checkpoint.checkpoint(mix, maps, use_reentrant=reentrant)
            return (self.head(mixed),)

    sd = wrap(Checkpointed(), CONFIG, taps=look_alikes.word_table_taps())
    with pytest.raises(RuntimeError, match="table is a parameter and looked up inside a"):
        sd(pictures(), sentences(), target=truth())


def test_pictures_in_another_order_in_a_loop():
    class Host(Loop):
        def forward(self, images, ids, number):
            maps = torch.cat([self.visual(image[None]) for image in images])
            words = torch.cat([self.words(each[None]) for each in ids])
            return list(self.head(look_alikes.mixed(maps[number], words)))

    taps = dataclasses.replace(look_alikes.loop_taps(), pictures="number")
    sd = wrap(Host(), CONFIG, taps=taps)
    number = torch.tensor([1, 0, 0])
    out = sd(list(pictures(number=2)), sentences(), number, target=truth())
    out.loss.backward()
    assert all(parameter.grad.any() for parameter in sd.distill_parameters())
    assert torch.equal(out.masks["lmvsd"][1], out.masks["lmvsd"][2])


def test_what_runs_for_each_sample_cannot_be_replayed():
    taps = dataclasses.replace(look_alikes.loop_taps(), image_only=("deep",))

    class Host(Loop):
        def __init__(self):
            super().__init__()
            self.deep = nn.Conv2d(look_alikes.C, look_alikes.C, 1)

        def forward(self, images, ids):
            return [
                self.head(look_alikes.mixed(self.deep(self.visual(i[None])), self.words(w[None])))[
                    0
                ]
                for i, w in zip(images, ids, strict=True)
            ]

    with pytest.raises(
        RuntimeError, match=r"deep ran twice in one pass, .* leave it out of image_only"
    ):
        wrap(Host(), CONFIG, taps=taps)(pictures(), sentences(), target=truth())


def test_an_embedding_named_twice_is_refused():
    taps = dataclasses.replace(look_alikes.loop_taps(), text_embedding=("words.weight", "words"))
    with pytest.raises(ValueError, match="text_embedding names words twice"):
        wrap(Loop(), CONFIG, taps=taps)
