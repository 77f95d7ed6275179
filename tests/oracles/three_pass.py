"""CM-MaskSD as three plain passes, nothing reused and no hooks. Imports nothing of masksd.

It receives the masks that were drawn, the weights and the batch, and computes Eq. 1 to 9 anew.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F


def three_pass_loss(
    encoder,
    necks,
    decoders,
    tokens_of_masks,
    images,
    words,
    truth,
    masks,
    weights,
    *,
    target,
    detach_target,
    dice_weight,
    labelled=None,
    teacher=None,
):
    """Return the total loss of Eq. 9.

    ``necks`` and ``decoders`` go by pass: "main", "lmvsd", "vmlsd" (the same object where shared);
    ``tokens_of_masks``, ``masks`` and ``weights`` go by branch, those that are on. ``labelled`` are
    the samples whose truth is known, ``teacher`` an encoder, a neck and a decoder.
    """
    known = list(range(len(images))) if labelled is None else labelled
    main = one_pass(encoder, necks["main"], decoders["main"], images, words)
    loss = 0.0 * main.sum()
    if known:
        loss = loss + cross_entropy(main[known], truth_at(truth, main)[known])
        if dice_weight:
            loss = loss + dice_weight * dice(main[known], truth_at(truth, main)[known])
    for name, mask in masks.items():
        neck, decoder = necks[name], decoders[name]
        hidden = {"lmvsd": "image", "vmlsd": "text"}[name]
        # Only the parts that inference uses must keep their running statistics.
        shared = [part for part in (neck, decoder) if part in (necks["main"], decoders["main"])]
        with scratch_buffers(*shared):
            logits = one_pass(
                encoder, neck, decoder, images, words, **{hidden: (mask, tokens_of_masks[name])}
            )
        if target == "ground_truth":
            if not known:
                continue
            logits, wanted = logits[known], truth_at(truth, main)[known]
        elif target == "teacher":
            with torch.no_grad():
                wanted = log_probabilities(one_pass(*teacher, images, words))[0].exp()
        else:
            wanted = log_probabilities(main)[0].exp()
            wanted = wanted.detach() if detach_target else wanted
        loss = loss + weights[name] * cross_entropy(logits, wanted)
    return loss


@contextlib.contextmanager
def scratch_buffers(*parts):
    """Let a pass write into copies of the running statistics, which are then thrown away."""
    layers = [layer for part in parts for layer in part.modules()]
    kept = [dict(layer._buffers) for layer in layers]
    for layer in layers:
        layer._buffers.update({k: v.clone() for k, v in layer._buffers.items()})
    yield
    for layer, buffers in zip(layers, kept, strict=True):
        layer._buffers.update(buffers)


def one_pass(encoder, neck, decoder, images, words, image=None, text=None):
    embedded = encoder.patch_embed(images)
    grid = tuple(embedded.shape[-2:])
    patches = embedded.flatten(2).transpose(1, 2)
    if image is not None:
        patches = replace(patches, *image)
    picture = encoder.finish_image(patches, grid)
    embedded_words = encoder.words(words)
    if text is not None:
        embedded_words = replace(embedded_words, *text)
    sentence = encoder.finish_text(embedded_words, words)
    fused = neck(picture.maps, sentence.pooled)
    return decoder(fused, sentence.local, sentence.attention_mask)


def replace(vectors, mask, token):
    rows = []
    for sample, hidden in zip(vectors, mask, strict=True):
        row = [
            (token if token.ndim == 1 else token[i]) if hidden[i] else sample[i]
            for i in range(len(sample))
        ]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def truth_at(truth, logits):
    """Nearest neighbour by cell centres, for truths whose size is a multiple of the logits'."""
    step = truth.shape[-1] // logits.shape[-1]
    return truth[:, None, step // 2 :: step, step // 2 :: step].to(logits.dtype)


def log_probabilities(logits):
    """Of foreground and background, by a sigmoid of one channel or a softmax of two."""
    if logits.shape[1] == 1:
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    background, foreground = torch.log_softmax(logits, dim=1).split(1, dim=1)
    return foreground, background


def cross_entropy(logits, wanted):
    foreground, background = log_probabilities(logits)
    positive = wanted * foreground
    negative = (1 - wanted) * background
    return -(positive + negative).mean()


def dice(logits, wanted):
    losses = []
    for p, truth in zip(log_probabilities(logits)[0].exp(), wanted, strict=True):
        losses.append(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
    return torch.stack(losses).mean()
