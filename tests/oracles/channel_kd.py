"""Distillation of relations and channels from their formulas, in loops. Imports nothing of masksd.

Features are ``(B, N, C)`` with the rows and columns of their patches, as everywhere else.
"""

from __future__ import annotations

import math

import torch


def relation_loss(student, teacher, valid, grids, share):
    """Mean of (a - b)² over the patches of each real word that stand out from the word's mean."""
    losses = []
    for b in range(len(valid)):
        terms = []
        for j in range(valid.shape[1]):
            if not valid[b, j]:
                continue
            ours, theirs = (
                area_means(
                    [cosine(patch, words[b, j]) for patch in patches[b]], grid, coarser(*grids)
                )
                for (patches, words), grid in zip((student, teacher), grids, strict=True)
            )
            mean = sum(theirs) / len(theirs)
            for i in top([float(abs(value - mean).detach()) for value in theirs], share):
                terms.append((ours[i] - theirs[i].detach()) ** 2)
        losses.append(sum(terms) / len(terms) if terms else torch.zeros((), dtype=torch.float64))
    return sum(losses) / len(losses)


def channel_loss(student, teacher, share, weighted):
    """Weighted mean over rows c of ‖g_s,c - g_t,c‖², G of F Fᵀ with rows of length 1."""
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        channels = theirs.shape[1]
        attention = attention_of(theirs)
        above = below = 0.0
        for c in top([float(value.detach()) for value in attention], share):
            weight = attention[c].detach() if weighted else 1.0
            difference = row(ours, c, channels) - row(theirs, c, channels).detach()
            above = above + weight * (difference**2).sum()
            below = below + weight
        losses.append(above / below)
    return sum(losses) / len(losses)


def channel_wise_loss(student, teacher, grids, temperature):
    """CWD: tau² / (C · B) Σ_c KL of two softmaxes over the patches."""
    total = 0.0
    batch, _, channels = student.shape
    for b in range(batch):
        for c in range(channels):
            s, t = (
                torch.stack(area_means(list(local[b, :, c]), grid, coarser(*grids))) / temperature
                for local, grid in zip((student, teacher.detach()), grids, strict=True)
            )
            p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
            total = total + sum(p[i] * (p[i] / q[i]).log() for i in range(len(p)))
    return temperature**2 / (channels * batch) * total


def logits_loss(student, teacher, temperature):
    """Hinton: tau² KL of background and foreground, a mean over pixels."""
    terms = []
    grids = tuple(student.shape[-2:]), tuple(teacher.shape[-2:])
    for b in range(len(student)):
        s, t = (
            area_means(list(foreground(each[b]).flatten()), grid, coarser(*grids))
            for each, grid in zip((student, teacher.detach()), grids, strict=True)
        )
        for ours, theirs in zip(s, t, strict=True):
            q = [1 / (1 + (-sign * ours / temperature).exp()) for sign in (1, -1)]
            p = [1 / (1 + (-sign * theirs / temperature).exp()) for sign in (1, -1)]
            terms.append(sum(p[k] * (p[k] / q[k]).log() for k in (0, 1)))
    return temperature**2 * sum(terms) / len(terms)


def foreground(logits):
    return logits[0] if len(logits) == 1 else logits[1] - logits[0]


def attention_of(local):
    """C · softmax of each channel's mean absolute value, in units of their mean."""
    means = [local[:, c].abs().mean() for c in range(local.shape[1])]
    unit = sum(means) / len(means)
    powers = [(mean / unit).exp() for mean in means]
    return [len(means) * power / sum(powers) for power in powers]


def row(local, c, channels):
    products = torch.stack([(local[:, c] * local[:, d]).sum() for d in range(channels)])
    return products / (products**2).sum().sqrt()


def cosine(one, other):
    return (one * other).sum() / ((one**2).sum().sqrt() * (other**2).sum().sqrt())


def coarser(one, other):
    return min(one[0], other[0]), min(one[1], other[1])


def area_means(values, grid, target):
    """Means of a row-major grid over the cells of a coarser one; cells that a line cuts count."""
    found = []
    for r in range(target[0]):
        rows = range(r * grid[0] // target[0], math.ceil((r + 1) * grid[0] / target[0]))
        for c in range(target[1]):
            columns = range(c * grid[1] // target[1], math.ceil((c + 1) * grid[1] / target[1]))
            cell = [values[i * grid[1] + j] for i in rows for j in columns]
            found.append(sum(cell) / len(cell))
    return found


def top(scores, share):
    count = max(1, math.ceil(share * len(scores) - 1e-9))
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
