"""The hook through which masks enter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from masksd.tapping.embeddings import TokenMask
from masksd.tapping.modules import find_module
from masksd.tapping.tap import EmbeddingTap


def tapped(module):
    tap = EmbeddingTap(module, "embed")
    tap.attach(module)
    return tap


@pytest.mark.parametrize(
    ("module", "width"),
    [
        (nn.Conv2d(3, 6, 2), 6),
        (nn.Embedding(4, 5), 5),
        (nn.Linear(3, 7), 7),
        (nn.LayerNorm((2, 8)), 8),
    ],
)
def test_the_width_is_that_of_the_embedding(module, width):
    assert EmbeddingTap(module, "embed").width == width


def test_a_mask_on_another_grid_is_carried_by_nearest_neighbour():
    conv = nn.Conv2d(1, 3, 1)
    tap = tapped(conv)
    mask = torch.tensor([[True, False, False, False, False, True]])  # 2 x 3 cells
    pictures = torch.randn(1, 1, 4, 9)
    plain = conv(pictures)
    with tap.masking(TokenMask(mask, torch.full((3,), 5.0), grid=(2, 3))):
        masked = conv(pictures)
    hidden = (masked != plain).all(1)[0]
    wide = mask.view(2, 3).repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.equal(hidden, wide)
    assert (masked[0][:, wide] == 5.0).all()
    assert torch.equal(masked[0][:, ~wide], plain[0][:, ~wide])


def test_a_token_a_position_follows_its_cell():
    conv = nn.Conv2d(1, 1, 1)
    tap = tapped(conv)
    token = torch.arange(4.0)[:, None] + 10
    with tap.masking(TokenMask(torch.ones(1, 4, dtype=torch.bool), token, grid=(2, 2))):
        masked = conv(torch.randn(1, 1, 4, 4))
    assert masked[0, 0].tolist() == [[10, 10, 11, 11]] * 2 + [[12, 12, 13, 13]] * 2


def test_outside_of_masking_nothing_changes_and_removing_leaves_nothing():
    words = nn.Embedding(5, 3)
    tokens = torch.tensor([[1, 2]])
    before = words(tokens)
    tap = tapped(words)
    assert words(tokens).equal(before)
    tap.remove(words)
    assert not words._forward_hooks


def test_a_module_that_does_not_run_or_runs_twice_is_an_error():
    words = nn.Embedding(5, 3)
    tap = tapped(words)
    mask = TokenMask(torch.ones(1, 2, dtype=torch.bool), torch.zeros(3))
    with (
        pytest.raises(RuntimeError, match="embed did not run in the masked pass"),
        tap.masking(mask),
    ):
        pass
    twice = nn.Sequential(words, nn.Flatten(0), nn.Linear(6, 2), nn.ReLU())
    with pytest.raises(RuntimeError, match="embed ran twice in one masked pass"), tap.masking(mask):
        words(twice(torch.tensor([[1, 2]])).long()[None])
    with (
        pytest.raises(
            ValueError, match="embed embeds a batch of 2, but the logits are a batch of 1"
        ),
        tap.masking(mask),
    ):
        words(torch.tensor([[1, 2], [3, 4]]))
    words(torch.tensor([[1, 2]]))  # and it recovers


def test_masks_that_do_not_fit_are_errors():
    words = nn.Embedding(5, 3)
    tap = tapped(words)
    mask = TokenMask(torch.ones(1, 4, dtype=torch.bool), torch.zeros(3))
    with (
        pytest.raises(ValueError, match=r"embed embeds \(2,\) positions, the mask has 4"),
        tap.masking(mask),
    ):
        words(torch.tensor([[1, 2]]))


def test_a_second_tap_and_an_unknown_module_are_refused():
    words = nn.Embedding(5, 3)
    tapped(words)
    with pytest.raises(ValueError, match="embed is tapped already: unwrap"):
        EmbeddingTap(words, "embed")
    with pytest.raises(ValueError, match="embed is a ReLU, whose width and layout are not known"):
        EmbeddingTap(nn.ReLU(), "embed")


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputing_a_tapped_module_in_backward_is_an_error_not_a_wrong_gradient(reentrant):
    layer = nn.Linear(3, 3)
    tap = tapped(layer)
    x = torch.randn(1, 2, 3, requires_grad=True)
    with tap.masking(TokenMask(torch.tensor([[False, True]]), torch.zeros(3))):
        y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="embed ran during backward, inside a gradient-checkpoi"):
        y.sum().backward()


def test_paths_that_do_not_match_name_the_nearest_module_of_that_level():
    model = nn.ModuleDict({"vision": nn.ModuleDict({"patch_embed": nn.Conv2d(3, 4, 2)})})
    assert find_module(model, "vision.patch_embed", "a") is model["vision"]["patch_embed"]
    with pytest.raises(ValueError, match=r"ModuleDict.vision has no 'patch_embd'; did you mean"):
        find_module(model, "vision.patch_embd", "image_embedding")
    with pytest.raises(ValueError, match=r"image_embedding='visoin.patch_embed'.*'vision'"):
        find_module(model, "visoin.patch_embed", "image_embedding")
    with pytest.raises(ValueError, match="patch_embed has no submodules"):
        find_module(model, "vision.patch_embed.conv", "image_embedding")
    with pytest.raises(ValueError, match="a must be a dotted module path, got Conv2d"):
        find_module(model, model["vision"]["patch_embed"], "a")


def test_a_second_name_of_a_module_is_found():
    model = nn.Module()
    model.words = model.alias = nn.Embedding(3, 4)
    assert find_module(model, "alias", "text_embedding") is model.words


def test_a_grid_turned_over_is_not_carried():
    conv = nn.Conv2d(1, 3, 1)
    tap = tapped(conv)
    mask = TokenMask(torch.ones(1, 6, dtype=torch.bool), torch.zeros(3), grid=(3, 2))
    with pytest.raises(ValueError, match=r"grid \(3, 2\) .* transposed"), tap.masking(mask):
        conv(torch.zeros(1, 1, 2, 3))
