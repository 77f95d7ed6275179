"""MaskRIS and AMLRIS from their formulas, in loops. Imports nothing of masksd.

A step gets the masks, the numbers that were drawn and ``run(images)``, the host with its sentence,
which returns logits ``(B, 1 or 2, H, W)``. Nothing is reused between passes, and no hook is set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def maskris_loss(run, words_masked, images, truth, mask, grid):
    """Half the plain pass against the truth, half the masked one against the plain one."""
    plain = run(images)
    with words_masked:
        masked = run(zero_cells(images, mask, grid))
    target = probabilities(plain.detach())
    return 0.5 * cross_entropy(plain, at_logits(truth, plain)) + 0.5 * cross_entropy(masked, target)


def amlris_loss(run, images, truth, mask, grid, plain_weight, masked_weight):
    """Both passes against the truth."""
    plain, masked = run(images), run(zero_cells(images, mask, grid))
    target = at_logits(truth, plain)
    loss = masked_weight * cross_entropy(masked, target)
    return loss + plain_weight * cross_entropy(plain, target) if plain_weight else loss


def maskris_picked(noise):
    """Of L cells, the L - floor(L / 4) of the smallest numbers."""
    count = noise.shape[1] - int(noise.shape[1] * (1 - 0.75))
    picked = torch.zeros_like(noise, dtype=torch.bool)
    for row, numbers in enumerate(noise.tolist()):
        for cell in sorted(range(len(numbers)), key=numbers.__getitem__)[:count]:
            picked[row, cell] = True
    return picked


def maskris_words(noise, valid):
    """Each real word with a probability of 0.15."""
    picked = torch.zeros_like(valid)
    for row, column in valid.nonzero().tolist():
        picked[row, column] = noise[row, column].item() < 0.15
    return picked


def amlris_picked(relevance, noise):
    """Of the cells below 0.4, a quarter rounded down, or one; none where there are none."""
    picked = torch.zeros_like(noise, dtype=torch.bool)
    for row, numbers in enumerate(noise.tolist()):
        candidates = [i for i in range(len(numbers)) if relevance[row, i].item() < 0.4]
        count = max(1, len(candidates) // 4) if candidates else 0
        for cell in sorted(candidates, key=numbers.__getitem__)[:count]:
            picked[row, cell] = True
    return picked


def amlris_relevance(patches, words, linear=None):
    """For each patch the greatest entry of a softmax over all positions of the sentence."""
    rows = []
    for sample, sentence in zip(patches, words, strict=True):
        sentence = sentence if linear is None else sentence @ linear[0].T + linear[1]
        row = []
        for patch in sample:
            row.append(torch.stack([patch @ word for word in sentence]).softmax(0).max())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def zero_cells(images, mask, grid):
    """Set the pixels of masked cells to 0; cells divide the image."""
    height, width = images.shape[2] // grid[0], images.shape[3] // grid[1]
    images = images.clone()
    for sample, cell in mask.nonzero().tolist():
        top, left = cell // grid[1] * height, cell % grid[1] * width
        images[sample, :, top : top + height, left : left + width] = 0
    return images


class MaskedWords:
    """Inside, an embedding of ``parent`` follows BERT's rule for the words that were picked."""

    def __init__(self, parent, name, picked, numbers, token):
        self.parent, self.name = parent, name
        self.embedding = getattr(parent, name)
        self.masked = BertRule(self.embedding, picked, numbers, token)

    def __enter__(self):
        setattr(self.parent, self.name, self.masked)

    def __exit__(self, *error):
        setattr(self.parent, self.name, self.embedding)


class BertRule(nn.Module):
    def __init__(self, embedding, picked, numbers, token):
        super().__init__()
        self.embedding, self.picked, self.numbers = embedding, picked, numbers
        self.token = token

    def forward(self, ids):
        size = self.embedding.num_embeddings
        rows = []
        for sentence, picked, numbers in zip(ids, self.picked, self.numbers, strict=True):
            row = []
            for id_, hidden, number in zip(sentence, picked, numbers.tolist(), strict=True):
                if hidden and number < 0.8:
                    row.append(self.token)
                elif hidden and number < 0.9:  # the rest of the number says which
                    row.append(self.embedding(torch.tensor(int((number - 0.8) / 0.1 * size))))
                else:
                    row.append(self.embedding(id_))
            rows.append(torch.stack(row))
        return torch.stack(rows)


def at_logits(truth, logits):
    """Nearest neighbour by cell centres, for truths whose size is a multiple of the logits'."""
    step = truth.shape[-1] // logits.shape[-1]
    return truth[:, None, step // 2 :: step, step // 2 :: step].to(logits.dtype)


def probabilities(logits):
    """Of the foreground."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]


def cross_entropy(logits, wanted):
    """Soft cross-entropy of background and foreground, a mean over pixels."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return -(torch.cat([1 - wanted, wanted], dim=1) * F.log_softmax(logits, 1)).sum(1).mean()
