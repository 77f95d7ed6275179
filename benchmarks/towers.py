"""Count and time what naming the towers of a tapped host saves: three passes, or 2 + d.

    python -m benchmarks.towers [--repeats 7] [--host LAVT]

Each host is one that no recipe knows, wrapped by taps twice: with nothing replayed, and with the
modules named that see one modality. ``d`` is the share of the host's forward outside of these. Loss
and gradients of both are compared first. Rows are appended to ``benchmarks/results/towers.csv``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import append, environment, median_ratio, paired
from masksd import CrossModalMaskedSelfDistill, Taps, segmentation_loss
from masksd.describe import module_shares, multiply_adds
from masksd.hosts import bert_words
from masksd.models import create_model

LENGTH = 17


def words(ids: Tensor) -> Tensor:
    """Real words: an id above 0."""
    return ids > 0


def layers(number: int, width: int) -> nn.Sequential:
    heads = width // 64
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
            for _ in range(number)
        )
    )


class Towers(nn.Module):
    """Two towers of twelve layers, then three that attend to the words.

    With a bridge, as in ETRIS, the towers exchange what they have before their last four layers.
    """

    def __init__(self, bridge: bool) -> None:
        super().__init__()
        last = 4 if bridge else 0
        self.bridge = bridge
        self.patch_embed, self.words = nn.Conv2d(3, 384, 16, 16), nn.Embedding(1000, 256)
        self.vision, self.text = layers(12 - last, 384), layers(12 - last, 256)
        self.vision_end, self.text_end = layers(last, 384), layers(last, 256)
        self.to_image, self.to_text = nn.Linear(256, 384), nn.Linear(384, 256)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(384, 6, 1536, 0.0, batch_first=True) for _ in range(3)
        )
        self.head = nn.Conv2d(384, 1, 1)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        maps = self.patch_embed(images)
        patches, sentence = self.vision(maps.flatten(2).mT), self.text(self.words(ids))
        if self.bridge:
            seen = self.to_text(patches.mean(1, keepdim=True))
            patches = self.vision_end(patches + self.to_image(sentence.mean(1, keepdim=True)))
            sentence = self.text_end(sentence + seen)
        for layer in self.decoder:
            patches = layer(patches, self.to_image(sentence))
        return self.head(patches.mT.unflatten(2, maps.shape[-2:]))


class Case(NamedTuple):
    """A host, its taps without towers, what names the towers, and a batch."""

    host: nn.Module
    taps: Taps
    towers: dict[str, tuple[str, ...]]
    inputs: tuple[Tensor, ...]


def two_towers(bridge: bool) -> Case:
    taps = Taps("patch_embed", "words", valid=words)
    only = {"image_only": ("vision",), "text_only": ("text",)}
    inputs = torch.randn(1, 3, 160, 160), torch.randint(1, 1000, (1, LENGTH))
    return Case(Towers(bridge), taps, only, inputs)


def lavt() -> Case:
    host = create_model("lavt_tiny", dropout=0.0, image_size=128)
    ids = torch.randint(200, 400, (2, LENGTH))
    ids[:, 0], ids[:, 12], ids[:, 13:] = 101, 102, 0
    taps = Taps(
        "backbone.patch_embed",
        "text_encoder.embeddings.word_embeddings",
        logits="classifier",
        valid=bert_words,
        image_width=host.backbone.patch_embed.proj.out_channels,
        channels_first=False,
    )
    inputs = torch.randn(2, 3, 128, 128), ids, (ids > 0).long()
    return Case(host, taps, {"text_only": ("text_encoder",)}, inputs)


CASES = {
    "two towers": partial(two_towers, bridge=False),
    "two towers with a bridge, as ETRIS": partial(two_towers, bridge=True),
    "LAVT": lavt,
}


def share_of_the_rest(case: Case) -> float:
    """d: the share of the host's forward that runs in every pass."""
    with torch.no_grad():
        shares = module_shares(case.host, lambda: case.host(*case.inputs))
    return 1 - sum(shares[path] for paths in case.towers.values() for path in paths)


def take(case: Case, taps: Taps) -> Tensor:
    """Wrap, take a step, unwrap; return the loss."""
    sd = CrossModalMaskedSelfDistill.wrap(case.host, taps=taps, check=False)
    case.host.zero_grad(set_to_none=True)
    size = case.inputs[0].shape[-2:]
    out = sd(*case.inputs, target=torch.zeros(len(case.inputs[0]), *size))
    out.loss.backward()
    sd.unwrap()
    return out.loss.detach()


def host_step(case: Case) -> None:
    case.host.zero_grad(set_to_none=True)
    size = case.inputs[0].shape[-2:]
    target = torch.zeros(len(case.inputs[0]), *size)
    segmentation_loss(case.host(*case.inputs), target).backward()


def check_equal(case: Case, taps: dict[str, Taps]) -> None:
    """Refuse to time steps whose losses or gradients differ."""
    found = []
    for each in taps.values():
        loss = take(case, each)
        grads = [p.grad.flatten() for p in case.host.parameters() if p.grad is not None]
        found.append((loss, torch.cat(grads)))
    (one, first), (other, second) = found
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max()))


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    case = CASES[name]()
    case.host.train()
    taps = {
        "nothing named": case.taps,
        "towers named": dataclasses.replace(case.taps, **case.towers),
    }
    check_equal(case, taps)
    runs: dict[str, Callable[[], object]] = {"host": partial(host_step, case)}
    runs |= {key: partial(take, case, each) for key, each in taps.items()}
    counted = {key: multiply_adds(run)[0] for key, run in runs.items()}
    seconds = paired(runs, repeats, progress=name)
    share = round(share_of_the_rest(case), 4)
    return [
        {
            "host": name,
            "provider": key,
            "d": share,
            "counted": round(counted[key] / counted["host"], 4),
            "timed": round(median_ratio(seconds[key], seconds["host"]), 3),
            "rounds": repeats,
            **environment(),
        }
        for key in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--host", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    for name in args.host:
        rows = measure(name, args.repeats)
        append("towers", rows)
        for row in rows:
            print(name, row["provider"], row["counted"], row["timed"], "d", row["d"])


if __name__ == "__main__":
    main()
