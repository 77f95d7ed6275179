"""Counting what autograd keeps: each storage once, and only while it lives."""

from __future__ import annotations

import pytest
import torch

from masksd.kit.costs.kept import KeptBytes, kept_activations


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kept_bytes_are_counted_once_and_let_go(device: str) -> None:
    x = torch.ones(10, requires_grad=True, device=device)
    with kept_activations([x]) as count:
        y = x * 2.0
        z = y.exp()  # keeps its result
        w = z * z  # keeps it again
        assert count == KeptBytes(40, 40)
        w.sum().backward()
    assert count == KeptBytes(0, 40)


def test_graphs_that_follow_each_other_count_by_the_largest() -> None:
    x = torch.ones(10, requires_grad=True)
    with kept_activations([x]) as count:
        for size in (1, 3, 2):
            x.expand(size, 10).exp().sum().backward()
    assert count == KeptBytes(0, 120)
