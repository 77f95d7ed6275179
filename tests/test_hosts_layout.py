from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from masksd.hosts.layout import (
    as_logits,
    as_loss,
    as_tokens,
    bert_words,
    channels_first,
    clip_words,
    pick,
)
from masksd.tapping.grids import cells, embedding_grid

SIDES = st.integers(1, 40)
PATCHES = st.sampled_from([4, 8, 14, 16, 32])


@given(SIDES, SIDES, PATCHES)
def test_tokens_in_a_row_are_put_back_on_their_grid(rows, columns, patch):
    images = (rows * patch, columns * patch)
    assert embedding_grid((rows * columns,), images) == (rows, columns)
    assert embedding_grid((rows, columns), images) == (rows, columns)


@given(SIDES, SIDES, PATCHES, st.sampled_from([None, 8, 16, 32, 100]))
def test_cells_are_never_finer_than_the_embedding_nor_fewer_than_one(rows, columns, patch, cell):
    images = (rows * patch, columns * patch)
    grid = cells((rows, columns), images, cell)
    if cell is None and patch >= 8:
        assert grid == (rows, columns)
        return
    cell = cell or min(32, max(1, min(images) // 8))
    assert 1 <= grid[0] <= rows
    assert 1 <= grid[1] <= columns
    assert grid[0] in (rows, max(1, rows * patch // cell))


def test_tokens_that_are_no_grid_are_an_error():
    with pytest.raises(ValueError, match=r"197 tokens, which form no grid .* state prefix"):
        embedding_grid((197,), (224, 224))
    with pytest.raises(ValueError, match="no grid of an image of 224x448"):
        embedding_grid((196,), (224, 448))


@given(SIDES, SIDES, PATCHES, st.integers(1, 2000))
def test_channels_are_found_or_asked_for_but_never_mistaken(rows, columns, patch, width):
    picture = (rows * patch, columns * patch)
    assert channels_first((1, width, rows, columns), picture) in (True, None)
    assert channels_first((1, rows, columns, width), picture) in (False, None)
    if width > 2 * max(rows, columns) and min(rows, columns) > 1:
        assert channels_first((1, width, rows, columns), picture) is True


@given(st.integers(32, 200), st.integers(32, 200), st.sampled_from([8, 16]))
def test_a_rounded_grid_is_recognised_among_many_channels(height, width, stride):
    rows, columns = -(-height // stride), -(-width // stride)
    assert channels_first((1, 4000, rows, columns), (height, width)) is True
    assert channels_first((1, rows, columns, 4000), (height, width)) is False


def test_patches_come_as_tokens_or_as_maps_of_any_size():
    maps = torch.randn(2, 5, 4, 6)
    averaged = maps.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5)).flatten(2).mT
    torch.testing.assert_close(as_tokens(maps, (2, 3), 0), averaged)
    last = maps.permute(0, 2, 3, 1)
    torch.testing.assert_close(as_tokens(last, (2, 3), 0, size=(64, 96)), averaged)
    tokens = torch.randn(2, 1 + 6, 5)
    assert as_tokens(tokens, (2, 3), 1).equal(tokens[:, 1:])
    with pytest.raises(ValueError, match=r"patches must be \(B, 6, C\) after 0 prefix tokens"):
        as_tokens(tokens, (2, 3), 0)
    with pytest.raises(ValueError, match="name a module that gives"):
        as_tokens(torch.zeros(1, 4, 4, 4), (2, 2), 0, size=(64, 64))


def test_parts_of_outputs_are_named_step_by_step():
    output = {"stages": [torch.zeros(1), {"map": torch.ones(1)}], "items": torch.ones(2)}
    assert pick(output, "head:stages:1:map", "logits") == 1
    assert pick(output, ":items", "logits").shape == (2,)  # the key, not the method
    assert pick(torch.ones(1), "head", "logits") == 1
    bert = BaseModelOutput(last_hidden_state=torch.ones(1), attentions=(torch.zeros(1),))
    assert pick(bert, "bert:0", "words") == 1
    assert pick(bert, "bert:last_hidden_state", "words") == 1
    assert pick(bert, "bert:-1:0", "words") == 0  # fields that are None do not count
    for path, message in {
        "head": r"head returns a dict; say which part with 'head:KEY' \(it has 'stages', 'items'\)",
        ":values": "logits: no part 'values' in a dict",
        ":stages:2": r"no part '2' in a list \(it has 0: Tensor \(1,\), 1: dict\)",
        ":stages:append": "no part 'append' in a list",
        ":stages:1:map:nope": "no part 'nope' in a Tensor",
    }.items():
        with pytest.raises(ValueError, match=message):
            pick(output, path, "logits")


def test_logits_and_losses_in_the_shapes_of_the_seam():
    assert as_logits(torch.zeros(2, 4, 4)).shape == (2, 1, 4, 4)
    assert as_logits(torch.zeros(2, 2, 4, 4)).shape == (2, 2, 4, 4)
    for wrong in (torch.zeros(2, 3, 4, 4), torch.zeros(4, 4), None):
        with pytest.raises(ValueError, match="logits must be"):
            as_logits(wrong)
    assert as_loss(None) is None
    assert as_loss(torch.ones(1, 1)).shape == ()
    with pytest.raises(ValueError, match=r"loss must be one number, got \(2,\)"):
        as_loss(torch.ones(2))
    with pytest.raises(ValueError, match="loss must be one number, got float"):
        as_loss(0.5)


def test_words_are_neither_padding_nor_special():
    assert bert_words(torch.tensor([[101, 7, 99, 104, 100, 103, 102, 0]])).tolist() == [
        [False, True, True, True, False, False, False, False]
    ]
    ids = torch.tensor([[49406, 5, 6, 49407, 0], [49406, 49407, 49407, 49407, 49407]])
    assert clip_words(ids).tolist() == [[False, True, True, False, False], [False] * 5]
