"""Distillation from a teacher: the losses against loops, and the step around them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masksd.knowledge_losses import (
    channel_attention,
    channel_loss,
    channel_wise_loss,
    logits_loss,
    relation_loss,
)
from tests.oracles import channel_kd as oracle

BATCH, WORDS = 2, 4
GRIDS = [((2, 3), (2, 3)), ((4, 4), (2, 3)), ((2, 4), (5, 3))]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def features(grid: tuple[int, int], width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches and words."""
    return drawn(BATCH, grid[0] * grid[1], width, seed=seed), drawn(
        BATCH, WORDS, width, seed=seed + 1
    )


def agree(ours: Tensor, theirs: Tensor, learns: tuple[Tensor, ...]) -> None:
    """Losses and gradients are equal."""
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(ours, learns), torch.autograd.grad(theirs, learns), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


VALID = torch.tensor([[False, True, True, True], [False, True, False, False]])


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("grids", GRIDS)
def test_relations_equal_loops(grids, share) -> None:
    student, teacher = features(grids[0], 5, 1), features(grids[1], 8, 3)
    ours = relation_loss(student, teacher, VALID, grids, share)
    agree(ours, oracle.relation_loss(student, teacher, VALID, grids, share), student)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_channels_equal_loops(weighted, share) -> None:
    student, teacher = drawn(BATCH, 9, 6, seed=1), drawn(BATCH, 4, 6, seed=2)
    ours = channel_loss(student, teacher, share, weighted)
    agree(ours, oracle.channel_loss(student, teacher, share, weighted), (student,))


@pytest.mark.parametrize("grids", GRIDS)
def test_channel_wise_equals_loops(grids) -> None:
    student, teacher = features(grids[0], 5, 1)[0], features(grids[1], 5, 3)[0]
    ours = channel_wise_loss(student, teacher, grids, 3.0)
    agree(ours, oracle.channel_wise_loss(student, teacher, grids, 3.0), (student,))


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("channels", [(1, 1), (1, 2), (2, 1)])
def test_logits_equal_loops(grids, channels) -> None:
    student, teacher = (
        drawn(BATCH, count, *grid, seed=count) for count, grid in zip(channels, grids, strict=True)
    )
    ours = logits_loss(student, teacher, 2.5)
    agree(ours, oracle.logits_loss(student, teacher, 2.5), (student,))
