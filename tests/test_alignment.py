from __future__ import annotations

import pytest
import torch

from masksd.losses import alignment_loss


def test_it_is_the_cross_entropy_of_every_patch_with_the_sentence():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator)
    sentence = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    truth = (torch.rand(2, 4, 6, generator=generator) > 0.5).double()
    terms = []
    for b in range(2):
        for row in range(2):
            for column in range(3):
                share = truth[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
                p = torch.sigmoid(patches[b, 3 * row + column] @ sentence[b])
                terms.append(-(share * p.log() + (1 - share) * (1 - p).log()))
    expected = torch.stack(terms).mean()
    for target in (truth, truth[:, None]):
        loss = alignment_loss(patches, sentence, target, (2, 3))
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_descent_brings_the_sentence_to_its_patches():
    patches = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    sentence = torch.ones(1, 3)
    truth = torch.tensor([[[1, 0], [0, 1]]])
    for _ in range(50):
        loss = alignment_loss(patches, sentence, truth, (2, 2))
        (gradient,) = torch.autograd.grad(loss, patches)
        patches = (patches - 5 * gradient).detach().requires_grad_()
    scores = (patches @ sentence[0]).flatten()
    assert (scores > 0).tolist() == [True, False, False, True]


def test_it_is_taken_in_full_precision():
    patches, sentence = (
        torch.full((1, 4, 1), 300.0).bfloat16(),
        torch.full((1, 1), 300.0).bfloat16(),
    )
    loss = alignment_loss(patches, sentence, torch.ones(1, 2, 2, dtype=torch.bool), (2, 2))
    assert loss.dtype == torch.float32
    assert loss == 0


def test_a_truth_of_another_batch_is_an_error():
    with pytest.raises(ValueError, match=r"target must be .* with B=1, got \(2, 4, 4\)"):
        alignment_loss(torch.zeros(1, 4, 3), torch.zeros(1, 3), torch.zeros(2, 4, 4), (2, 2))
