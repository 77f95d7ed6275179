from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from masksd.models import create_model
from masksd.models.clip import ClipEncoder, resize_positions
from masksd.models.registry import REVISIONS

CLIP = "openai/clip-vit-base-patch16"
END = 29
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def vision_config(**options: Any) -> CLIPVisionConfig:
    values = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 6, **SIZES, **options}
    return CLIPVisionConfig(**values)


def text_config(**options: Any) -> CLIPTextConfig:
    values = {
        "vocab_size": 30,
        "max_position_embeddings": 10,
        "num_hidden_layers": 2,
        "bos_token_id": 28,
        "eos_token_id": END,
        "pad_token_id": 0,
        **SIZES,
        **options,
    }
    return CLIPTextConfig(**values)


def make_encoder(**options: Any) -> ClipEncoder:
    torch.manual_seed(0)
    encoder = ClipEncoder(
        vision_config(**options), text_config(**options), projection=12, end_token=END
    )
    return encoder.double().eval()


def sentences() -> Tensor:
    """Two words, one word, none, and the longest; each ended once."""
    return torch.tensor(
        [
            [28, 3, 4, END, 0, 0],
            [28, 5, END, 0, 0, 0],
            [28, END, 0, 0, 0, 0],
            [28, 6, 7, 8, 9, END],
        ]
    )


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in transformers' own format."""
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config=text_config().to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (24, 40)])
def test_staged_image_pass_is_that_of_transformers(size: tuple[int, int]) -> None:
    encoder = make_encoder()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    layers: list[Tensor] = []
    handles = [
        encoder.vision.encoder.layers[i].register_forward_hook(
            lambda module, args, out: layers.append(out)
        )
        for i in (1, 3)
    ]
    full = CLIPVisionModel.forward(encoder.vision, images, interpolate_pos_encoding=True)
    for handle in handles:
        handle.remove()
    image = encoder.encode_image(images)
    assert image.grid == (size[0] // 8, size[1] // 8)
    assert encoder.map_layers == (2, 4, 6)
    expected = encoder.visual_projection(full.pooler_output)
    assert torch.allclose(image.pooled, expected, rtol=0, atol=1e-12)
    local = encoder.visual_projection(encoder.vision.post_layernorm(full.last_hidden_state))
    assert torch.equal(image.local, local[:, 1:])
    for ours, theirs in zip(image.maps[:2], layers, strict=True):
        assert ours.shape == (2, 16, *image.grid)
        assert torch.equal(ours.flatten(2).transpose(1, 2), theirs[:, 1:])
    assert image.maps[2].shape == (2, 12, *image.grid)
    assert torch.equal(image.maps[2].flatten(2).transpose(1, 2), image.local)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_staged_text_pass_is_that_of_transformers(attention: str) -> None:
    encoder = make_encoder(attn_implementation=attention)
    tokens = sentences()
    full = CLIPTextModel.forward(encoder.text, tokens)
    text = encoder.encode_text(tokens)
    assert encoder.text.config._attn_implementation == attention
    assert torch.equal(text.local, encoder.text_projection(full.last_hidden_state))
    assert torch.allclose(text.pooled, encoder.text_projection(full.pooler_output), atol=1e-12)


def test_valid_words_and_attention_mask() -> None:
    text = make_encoder().encode_text(sentences())
    assert text.valid.dtype == text.attention_mask.dtype == torch.bool
    assert text.valid.long().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
    ]
    assert text.attention_mask.sum(1).tolist() == [4, 3, 2, 6]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, END), min_size=7, max_size=7), min_size=1, max_size=4))
def test_masks_follow_the_first_end_token_whatever_comes_after(rows: list[list[int]]) -> None:
    tokens = torch.tensor([[28, *row, END] for row in rows])
    text = ENCODER.encode_text(tokens)
    for b, row in enumerate(tokens.tolist()):
        end = row.index(END)
        assert text.valid[b].tolist() == [0 < i < end for i in range(9)]
        assert text.attention_mask[b].tolist() == [i <= end for i in range(9)]
        assert torch.equal(text.pooled[b], text.local[b, end])


ENCODER = make_encoder()


def test_what_follows_the_end_token_changes_nothing_before_it() -> None:
    encoder, tokens = make_encoder(), sentences()
    plain = encoder.encode_text(tokens)
    other = tokens.clone()
    other[~plain.attention_mask] = END
    longer = torch.cat([other, torch.full((4, 3), 7)], dim=1)
    for changed in (other, longer):
        text = encoder.encode_text(changed)
        assert torch.allclose(text.pooled, plain.pooled, rtol=0, atol=1e-12)
        ours, theirs = text.local[:, :6][plain.attention_mask], plain.local[plain.attention_mask]
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("checkpointing", [None, {}, {"use_reentrant": True}])
def test_hooks_on_the_named_embeddings_replace_patches_and_words(
    checkpointing: dict[str, bool] | None,
) -> None:
    encoder = make_encoder().train()
    if checkpointing is not None:
        encoder.gradient_checkpointing_enable(**checkpointing)
    calls: dict[str, list[tuple[int, ...]]] = {"image": [], "text": []}
    token = nn.Parameter(torch.randn(16, dtype=torch.float64))

    def replace(kind: str, shape: tuple[int, ...]) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            calls[kind].append(tuple(out.shape))
            return token.reshape(shape).expand_as(out) + 0 * out

        return hook

    image_module = encoder.get_submodule(encoder.image_embedding)
    text_module = encoder.get_submodule(encoder.text_embedding)
    image_module.register_forward_hook(replace("image", (1, 16, 1, 1)))
    text_module.register_forward_hook(replace("text", (1, 1, 16)))
    first = encoder.encode_image(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    second = encoder.encode_image(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    text = encoder.encode_text(sentences())
    assert torch.equal(first.local, second.local)  # all patches replaced, positions remain
    assert not torch.allclose(first.local[:, 0], first.local[:, 1])
    (first.local.sum() + text.local.square().sum()).backward()
    assert token.grad is not None
    assert token.grad.abs().sum() > 0
    assert calls == {"image": [(1, 16, 4, 4)] * 2, "text": [(4, 6, 16)]}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, saving = make_encoder().train(), make_encoder().train()
    saving.gradient_checkpointing_enable()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for encoder in (plain, saving):
        image, text = encoder.encode_image(images), encoder.encode_text(sentences())
        (image.local.square().sum() + text.pooled.square().sum()).backward()
    recomputed = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        ours = recomputed[name].grad
        if parameter.grad is None:
            assert ours is None, name
        else:
            assert ours is not None, name
            assert torch.allclose(ours, parameter.grad, rtol=1e-10, atol=1e-12), name


def test_bfloat16_autocast_stays_close() -> None:
    encoder = make_encoder().float()
    images = torch.randn(2, 3, 48, 32)
    plain = encoder.encode_image(images)
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder.encode_image(images)
        text = encoder.encode_text(sentences())
    assert low.local.dtype == text.pooled.dtype == torch.bfloat16
    assert torch.allclose(low.local.float(), plain.local, atol=0.1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 32, 32), r"floating and \(B, 3, H, W\).*got torch.float32 \(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), r"got torch.float32 \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"normalised; got torch.uint8"),
        (torch.zeros(1, 3, 36, 50), r"36x50 must be a multiple of the patch size 8.*32x48"),
        (torch.zeros(1, 3, 3, 8), r"3x8 must be a multiple.*8x8"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_encoder().encode_image(images)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(5, dtype=torch.int64), r"int64 and \(B, L\), got torch.int64 \(5,\)"),
        (torch.zeros(1, 5), r"got torch.float32 \(1, 5\)"),
        (torch.zeros(1, 5, dtype=torch.int32), r"got torch.int32 \(1, 5\)"),
        (torch.zeros(1, 11, dtype=torch.int64), r"11 long, the text tower takes 1...10"),
        (torch.zeros(1, 0, dtype=torch.int64), r"0 long"),
    ],
)
def test_wrong_tokens_are_refused(tokens: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_encoder().encode_text(tokens)


@pytest.mark.parametrize("levels", [0, 7])
def test_impossible_levels_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=rf"levels must be in 1\.\.\.6 .*, got {levels}"):
        ClipEncoder(vision_config(), text_config(), projection=8, end_token=END, levels=levels)


@pytest.mark.parametrize("size", [32, 64])
def test_loaded_clip_gives_the_features_of_transformers(clip_folder: Path, size: int) -> None:
    encoder = make_encoder(image_size=size).float()
    encoder.load_clip(clip_folder)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = clip.get_image_features(images, interpolate_pos_encoding=True).pooler_output
        assert torch.allclose(encoder.encode_image(images).pooled, expected, atol=1e-5)
        expected = clip.get_text_features(sentences()).pooler_output
        assert torch.allclose(encoder.encode_text(sentences()).pooled, expected, atol=1e-5)


def test_loaded_clip_may_be_given_shorter_sentences(clip_folder: Path) -> None:
    encoder = make_encoder(max_position_embeddings=6)
    encoder.load_clip(clip_folder)
    theirs = CLIPModel.from_pretrained(clip_folder).text_model.embeddings.position_embedding.weight
    ours = encoder.text.embeddings.position_embedding.weight
    assert torch.equal(ours, theirs[:6].double())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_size": 24}, "of another size"),
        ({"num_hidden_layers": 7}, r"96 are missing \(.*, 0 have no place"),
        ({"vocab_size": 31}, r"token_embedding.weight is \(30, 16\) there and \(31, 16\) here"),
        ({"max_position_embeddings": 11}, r"another size: text\.embeddings\.position_embedding"),
        ({"num_attention_heads": 4}, "num_attention_heads=2 where this encoder has 4"),
        ({"hidden_act": "gelu"}, "hidden_act='quick_gelu' where this encoder has 'gelu'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_changes(
    clip_folder: Path, options: dict[str, Any], words: str
) -> None:
    encoder = make_encoder(**options)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        encoder.load_clip(clip_folder)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_weights_that_cannot_be_had_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    small = {"vision_width": 96, "text_width": 64, "vocab_size": 50, "projection": 64, "width": 64}
    with pytest.raises(ValueError, match="not in the cache") as raised:
        create_model("clip_cris_vit_b16", pretrained=True, decoder_layers=1, **small)
    assert "weights 'openai/clip-vit-base-patch16' are not in the cache" in str(raised.value)
    command = f"`hf download {CLIP} --revision {REVISIONS[CLIP]}`"
    assert command in str(raised.value)


def test_the_pinned_revision_is_loaded_and_another_by_name(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{CLIP.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    shutil.copytree(clip_folder, repository / "snapshots" / REVISIONS[CLIP])
    clip = CLIPModel.from_pretrained(clip_folder)
    pinned = clip.visual_projection.weight.detach().clone()
    torch.nn.init.constant_(clip.visual_projection.weight, 7.0)
    clip.save_pretrained(repository / "snapshots" / ("f" * 40))  # what somebody pushed later
    encoder = make_encoder().float()
    encoder.load_clip(CLIP)
    assert torch.equal(encoder.visual_projection.weight, pinned)
    for name in (f"{CLIP}@main", f"{CLIP}@{'f' * 40}"):
        torch.nn.init.zeros_(encoder.visual_projection.weight)
        encoder.load_clip(name)
        assert (encoder.visual_projection.weight == 7.0).all()
    shutil.rmtree(repository / "snapshots" / REVISIONS[CLIP])
    with pytest.raises(ValueError, match="not in the cache and could not be downloaded"):
        encoder.load_clip(CLIP)


def test_resized_positions_keep_the_class_token_and_a_plane() -> None:
    rows = torch.arange(4.0).repeat_interleave(4)
    table = torch.cat([torch.tensor([[7.0]]), rows[:, None]])
    large = resize_positions(table, 8)
    assert large.shape == (65, 1)
    assert large[0] == 7.0
    grid = large[1:].reshape(8, 8)
    assert torch.allclose(grid, grid[:, :1].expand(8, 8))
    assert torch.allclose(grid[3, 0] + grid[4, 0], torch.tensor(3.0), atol=1e-6)  # the middle
    assert resize_positions(table, 4) is table
