from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from masksd import CrossModalMaskedSelfDistill
from masksd.models import ResNetCris, ResNetCrisConfig, create_model
from masksd.models.clip_resnet import Bottleneck, DensePool
from masksd.models.cris_resnet import waves
from masksd.models.official import clip_weights, convert_clip, convert_cris

TINY = {
    "image_size": 64,
    "stem": 4,
    "blocks": (1, 2, 1, 1),
    "pool_side": 2,
    "vocab_size": 50,
    "max_length": 9,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "projection": 12,
    "neck_widths": (8, 16, 24),
    "decoder_layers": 2,
    "decoder_heads": 2,
    "feed_width": 32,
    "head_width": 8,
}
TOKENS = torch.tensor([[48, 7, 12, 49, 0, 0], [48, 3, 9, 21, 5, 49]])


def tiny(**overrides: object) -> ResNetCris:
    torch.manual_seed(0)
    return create_model("clip_cris_rn50", **{**TINY, **overrides})


def shapes_of_cris(
    blocks: tuple[int, ...],
    *,
    stem: int = 64,
    side: int = 7,
    vocabulary: int = 49408,
    length: int = 77,
    width: int = 512,
    text_layers: int = 12,
    sentence: int = 1024,
    neck: tuple[int, int, int] = (256, 512, 1024),
    layers: int = 3,
    feed: int = 2048,
    head: int = 256,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a checkpoint of CRIS.pytorch, as measured on the published class."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def plain(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def block(name: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{name}.0.weight"] = (outputs, inputs, kernel, kernel)
        norm(f"{name}.1", outputs)

    def attention(name: str) -> None:
        shapes[f"{name}.in_proj_weight"] = (3 * width, width)
        shapes[f"{name}.in_proj_bias"] = (3 * width,)
        linear(f"{name}.out_proj", width, width)

    tower = "backbone.visual"
    for number, (outputs, inputs) in enumerate(
        ((stem // 2, 3), (stem // 2, stem // 2), (stem, stem // 2)), start=1
    ):
        shapes[f"{tower}.conv{number}.weight"] = (outputs, inputs, 3, 3)
        norm(f"{tower}.bn{number}", outputs)
    inputs = stem
    for stage, count in enumerate(blocks):
        inner = stem * 2**stage
        for index in range(count):
            name = f"{tower}.layer{stage + 1}.{index}"
            for number, (outputs, kernel) in enumerate(
                ((inner, 1), (inner, 3), (4 * inner, 1)), start=1
            ):
                before = inputs if number == 1 else inner
                shapes[f"{name}.conv{number}.weight"] = (outputs, before, kernel, kernel)
                norm(f"{name}.bn{number}", outputs)
            if index == 0:
                block(f"{name}.downsample", 4 * inner, inputs, 1)
            inputs = 4 * inner
    shapes[f"{tower}.attnpool.positional_embedding"] = (side**2 + 1, inputs)
    for letter in "kqv":
        linear(f"{tower}.attnpool.{letter}_proj", inputs, inputs)
    linear(f"{tower}.attnpool.c_proj", sentence, inputs)
    block(f"{tower}.attnpool.connect", sentence, inputs, 1)

    shapes["backbone.positional_embedding"] = (length, width)
    shapes["backbone.text_projection"] = (width, sentence)
    shapes["backbone.logit_scale"] = ()
    shapes["backbone.token_embedding.weight"] = (vocabulary, width)
    plain("backbone.ln_final", width)
    for number in range(text_layers):
        name = f"backbone.transformer.resblocks.{number}"
        attention(f"{name}.attn")
        plain(f"{name}.ln_1", width)
        plain(f"{name}.ln_2", width)
        linear(f"{name}.mlp.c_fc", 4 * width, width)
        linear(f"{name}.mlp.c_proj", width, 4 * width)

    low, middle, deep = neck
    shapes["neck.txt_proj.0.weight"] = (deep, sentence)
    norm("neck.txt_proj.1", deep)
    norm("neck.norm_layer.0", deep)
    for name, outputs, channels, kernel in (
        ("f1_v_proj", deep, sentence, 1),
        ("f2_v_proj", middle, 16 * stem, 3),
        ("f2_cat", middle, deep + middle, 1),
        ("f3_v_proj", low, 8 * stem, 3),
        ("f3_cat", middle, low + middle, 1),
        ("f4_proj5", middle, deep, 3),
        ("f4_proj4", middle, middle, 3),
        ("f4_proj3", middle, middle, 3),
        ("aggr", middle, 3 * middle, 1),
        ("coordconv.0.conv1", middle, middle + 2, 3),
        ("coordconv.1", middle, middle, 3),
    ):
        block(f"neck.{name}", outputs, channels, kernel)

    for number in range(layers):
        name = f"decoder.layers.{number}"
        for part in ("self_attn_norm", "cross_attn_norm", "norm1", "norm2", "norm3"):
            plain(f"{name}.{part}", width)
        attention(f"{name}.self_attn")
        attention(f"{name}.multihead_attn")
        linear(f"{name}.ffn.0", feed, width)
        plain(f"{name}.ffn.3", feed)
        linear(f"{name}.ffn.4", width, feed)
    plain("decoder.norm", width)

    block("proj.vis.1", 2 * head, width, 3)
    block("proj.vis.3", head, 2 * head, 3)
    shapes["proj.vis.4.weight"], shapes["proj.vis.4.bias"] = (head, head, 1, 1), (head,)
    linear("proj.txt", 9 * head + 1, sentence)
    return shapes


def tiny_cris() -> dict[str, Tensor]:
    """A state of a tiny CRIS: every tensor another, all of a size that does not blow up."""
    shapes = shapes_of_cris(
        (1, 2, 1, 1),
        stem=4,
        side=2,
        vocabulary=50,
        length=77,
        width=16,
        text_layers=2,
        sentence=12,
        neck=(8, 16, 24),
        layers=2,
        feed=32,
        head=8,
    )
    random = torch.Generator().manual_seed(1)
    return {key: 0.1 + 0.1 * torch.rand(shape, generator=random) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "blocks", "sentence", "tensors"),
    [("clip_cris_rn50", (3, 4, 6, 3), 1024, 662), ("clip_cris_rn101", (3, 4, 23, 3), 512, 968)],
)
def test_every_tensor_of_cris_has_its_place(
    name: str, blocks: tuple[int, ...], sentence: int, tensors: int
) -> None:
    shapes = shapes_of_cris(blocks, sentence=sentence)
    assert len(shapes) == tensors
    with torch.device("meta"):
        model = create_model(name)
        converted = convert_cris({k: torch.empty(v) for k, v in shapes.items()}, max_length=77)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    theirs = sum(torch.Size(v).numel() for k, v in shapes.items() if "num_batches" not in k)
    ours = sum(v.numel() for k, v in converted.items() if "num_batches" not in k)
    assert theirs - ours == 1 + 2048  # the scale of CLIP's loss, a position that CRIS does not use


def test_a_checkpoint_is_loaded_prefix_and_all(tmp_path: Path) -> None:
    state = tiny_cris()
    path = tmp_path / "best_model.pth"
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))]).state_dict()
    torch.save(
        {
            "epoch": 3,
            "state_dict": {f"module.{key}": value for key, value in state.items()},
            "optimizer": optimizer,
        },
        path,
    )
    model = tiny()
    model.load_cris(path)
    own = model.state_dict()
    layer = "backbone.transformer.resblocks.1"
    attend = "encoder.text.encoder.layers.1.self_attn"
    joint = state[f"{layer}.attn.in_proj_weight"]
    assert torch.equal(own[f"{attend}.q_proj.weight"], joint[:16])
    assert torch.equal(own[f"{attend}.k_proj.weight"], joint[16:32])
    assert torch.equal(own[f"{attend}.v_proj.weight"], joint[32:])
    joint = state["decoder.layers.0.multihead_attn.in_proj_bias"]
    assert torch.equal(own["decoder.layers.0.words.value.bias"], joint[32:])
    assert torch.equal(own["encoder.text_projection.weight"], state["backbone.text_projection"].T)
    positions = state["backbone.positional_embedding"]
    table = own["encoder.text.embeddings.position_embedding.weight"]
    assert torch.equal(table, positions[:9])
    positions = state["backbone.visual.attnpool.positional_embedding"]
    assert torch.equal(own["encoder.visual.attnpool.positions"], positions[1:])
    assert model.eval()(torch.zeros(2, 3, 64, 64), TOKENS).isfinite().all()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": 3}, "has no 'state_dict' of tensors by name"),
        ([1], "has no 'state_dict' of tensors by name"),
        ({"state_dict": {}}, "does not hold the weights of this model: .* are missing"),
        ({"state_dict": Malicious()}, "not a checkpoint of tensors and plain containers"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        model.load_cris(path)
    assert str(caught.value).isprintable()  # torch's own message has colours
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint of tensors and plain containers"):
        tiny().load_cris(tmp_path / "text.pth")
    with pytest.raises(ValueError, match=r"no checkpoint at .*none\.pth"):
        tiny().load_cris(tmp_path / "none.pth")


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_cris()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"another size: decoder\.layers\.0\.feed.* is \(32,"):
        tiny(feed_width=48).load_cris(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"have no place \(.*is it for a model of another size"):
        tiny(blocks=(1, 1, 1, 1)).load_cris(tmp_path / "a.pth")


def test_clip_takes_all_but_what_cris_adds() -> None:
    state = {
        key.removeprefix("backbone."): value
        for key, value in tiny_cris().items()
        if key.startswith("backbone.") and ".connect." not in key
    }
    facts = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(1))
    encoder = tiny().encoder
    connect = encoder.visual.attnpool.connect[0].weight.clone()
    encoder.load_converted(convert_clip({**state, **facts}, 9), "RN50.pt")
    assert torch.equal(encoder.visual.conv1.weight, state["visual.conv1.weight"])
    assert torch.equal(encoder.visual.attnpool.connect[0].weight, connect)
    del state["ln_final.weight"]
    with pytest.raises(ValueError, match=r"1 are missing \(text\.final_layer_norm\.weight\)"):
        encoder.load_converted(convert_clip(state, 9), "RN50.pt")
    assert "visual.attnpool.positions" in convert_clip(state, 9)


def test_only_published_archives_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("the archive was opened")

    monkeypatch.setattr(torch.jit, "load", opened)
    path = tmp_path / "RN50.pt"
    path.write_bytes(b"a program")
    with pytest.raises(ValueError, match=r"SHA-256 .* not what OpenAI published for RN50\.pt"):
        clip_weights(path, 77)
    with pytest.raises(ValueError, match=r"no CLIP archive at .*RN101\.pt"):
        tiny().encoder.load_clip(tmp_path / "RN101.pt")


def test_an_archive_that_the_user_trusts_is_opened(tmp_path: Path) -> None:
    state = {
        key.removeprefix("backbone."): value
        for key, value in tiny_cris().items()
        if key.startswith("backbone.") and ".connect." not in key
    }
    root = nn.Module()
    for key, value in state.items():
        *modules, name = key.split(".")
        inner = root
        for each in modules:
            if each not in inner._modules:
                inner.add_module(each, nn.Module())
            inner = inner.get_submodule(each)
        inner.register_buffer(name, value)
    path = tmp_path / "mine.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), path)
    encoder = tiny().encoder
    with pytest.raises(ValueError, match=r"load_clip\(path, trusted=True\) if you made it"):
        encoder.load_clip(path)
    encoder.load_clip(path, trusted=True)
    assert torch.equal(encoder.visual.conv1.weight, state["visual.conv1.weight"])
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"mine\.pt' is not an archive of TorchScript"):
        encoder.load_clip(path, trusted=True)


def test_pretrained_says_where_the_archive_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"OpenAI's RN50.pt: put it at .*/.cache/clip/RN50.pt"):
        tiny(pretrained=True)


def test_attention_pool_is_attention_of_every_place() -> None:
    """Against torch's own attention with the same weights, at the size of the stored positions."""
    torch.manual_seed(0)
    pool = DensePool(8, 6, heads=2, side=3).eval()
    x = torch.randn(2, 8, 3, 3)
    oracle = nn.MultiheadAttention(8, 2, batch_first=True)
    attend = pool.attention
    projections = (attend.query, attend.key, attend.value)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        oracle.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        oracle.out_proj.weight.copy_(torch.eye(8))
        oracle.out_proj.bias.zero_()
        places = x.flatten(2).transpose(1, 2) + pool.positions
        mixed = attend.out(oracle(places, places, places)[0])
        expected = mixed.transpose(1, 2).unflatten(2, (3, 3)) + pool.connect(x)
        torch.testing.assert_close(pool(x), expected.relu(), rtol=1e-5, atol=1e-5)


def test_a_new_block_passes_its_input_on() -> None:
    x = torch.rand(2, 16, 4, 4)
    assert torch.equal(Bottleneck(16, 4, stride=1)(x), x)


def test_waves_alternate() -> None:
    table = waves(5, 6, torch.zeros(1))
    for position in range(5):
        for pair in range(3):
            angle = torch.tensor(position / 10000 ** (2 * pair / 6))
            torch.testing.assert_close(table[position, 2 * pair], angle.sin())
            torch.testing.assert_close(table[position, 2 * pair + 1], angle.cos())


def test_relevance_of_words_is_that_of_projected_words() -> None:
    model = tiny().eval()
    image = model.encoder.encode_image(torch.randn(2, 3, 64, 96))
    text = model.encoder.encode_text(TOKENS)
    assert image.local is not None
    scores = torch.einsum("bc,blc->bl", image.pooled, text.local)
    projected = model.encoder.text_projection(text.local)
    expected = torch.einsum("bp,blp->bl", image.local.mean(1), projected)
    torch.testing.assert_close(scores, expected)
    assert image.grid == (2, 3)
    assert text.valid.tolist()[0] == [False, True, True, False, False, False]


def test_padding_changes_nothing() -> None:
    model = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    short, long = TOKENS[:1, :4], torch.tensor([[48, 7, 12, 49, 31, 8, 49, 2]])
    torch.testing.assert_close(model(images, short), model(images, long))


def test_it_is_trained_as_a_triple() -> None:
    model = tiny()
    sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder)
    images, target = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64)
    out = sd(images, TOKENS, target=target)
    out.loss.backward()
    assert sorted(out.losses) == ["lmvsd", "seg", "vmlsd"]
    assert out.masks["lmvsd"].shape == (2, 4)
    assert all(token.grad.abs().sum() > 0 for token in sd.distill_parameters()[:1])
    assert torch.equal(sd.eval()(images, TOKENS), model.eval()(images, TOKENS))


def test_text_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointed in (False, True):
        model = tiny(dropout=0.0)
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(images, TOKENS).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny(dropout=0.3).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["blocks"] == [1, 2, 1, 1]
    again = ResNetCris.from_pretrained(tmp_path)
    assert again.config == model.config
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images, TOKENS[:1]), model(images, TOKENS[:1]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"blocks": (1, 2, 3)}, r"blocks must be 4 whole numbers, got \(1, 2, 3\)"),
        (
            {"blocks": (1, 0, 1, 1)},
            r"blocks must be whole numbers of at least 1, got \(1, 0, 1, 1\)",
        ),
        ({"neck_widths": (8, 20, 24)}, "the second of neck_widths .* must be text_width 16"),
        ({"image_size": 65}, "image_size 65 must be a multiple of 32"),
        ({"text_heads": 3}, "text_width 16 must be a multiple of text_heads 3"),
        ({"stem": 0}, "stem must be a whole number of at least 1, got 0"),
        ({"end_token": 50}, "end_token 50 must be below vocab_size 50"),
        ({"dropuot": 0.1}, "unknown model option 'dropuot'; did you mean 'dropout'"),
    ],
)
def test_wrong_options_name_the_fix(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**overrides)


def test_wrong_images_name_the_fix() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"70x64 must be a multiple of 32; resize .* 64x64"):
        model(torch.zeros(1, 3, 70, 64), TOKENS[:1])
    with pytest.raises(ValueError, match=r"images must be floating and \(B, 3, H, W\)"):
        model(torch.zeros(1, 1, 64, 64), TOKENS[:1])


def test_defaults_are_rn50() -> None:
    with torch.device("meta"):
        assert create_model("clip_cris_rn50").config == ResNetCrisConfig()
        rn101 = create_model("clip_cris_rn101").config
    assert (rn101.blocks, rn101.projection) == ((3, 4, 23, 3), 512)
