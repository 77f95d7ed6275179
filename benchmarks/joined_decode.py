"""Time neck and decoder of two branches: two calls, or one with twice the batch.

    python -m benchmarks.joined_decode [--model clip_cris_tiny] [--batch 2 16] [--repeats 15]

Forward and backward, features as leaves. Rows are appended to
``benchmarks/results/joined_decode.csv``.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from benchmarks.measure import append, environment, median_ratio, paired
from masksd.models import create_model


class Branches:
    """A model and the features of a batch, decoded as two branches would."""

    def __init__(self, name: str, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.model = create_model(name, dropout=0.0).to(device)
        size = self.model.config.image_size
        tokens = torch.full((batch, 17), 7, device=device)
        tokens[:, 9] = self.model.config.end_token
        with torch.no_grad():
            self.image = self.model.encoder.encode_image(
                torch.randn(batch, 3, size, size, device=device)
            )
            self.text = self.model.encoder.encode_text(tokens)

    def leaves(self) -> list[Tensor]:
        """Maps, sentence and words of one branch."""
        features = (*self.image.maps, self.text.pooled, self.text.local)
        return [feature.clone().requires_grad_() for feature in features]

    def decode(self, features: list[Tensor], branches: int) -> None:
        *maps, sentence, words = features
        attended = self.text.attention_mask.repeat(branches, 1)
        logits = self.model.decoder(self.model.neck(maps, sentence), words, attended)
        logits.square().sum().backward()

    def two_calls(self) -> None:
        for _ in range(2):
            self.decode(self.leaves(), 1)

    def joined(self) -> None:
        pairs = zip(self.leaves(), self.leaves(), strict=True)
        self.decode([torch.cat(pair) for pair in pairs], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clip_cris_tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 16], help="images")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    for batch in args.batch:
        branches = Branches(args.model, batch, args.device)
        providers = {"two calls": branches.two_calls, "joined": branches.joined}
        seconds = paired(providers, args.repeats, args.device)
        rows = [
            {
                "model": args.model,
                "batch": batch,
                "provider": provider,
                "seconds": round(statistics.median(times), 6),
                "to_two_calls": round(median_ratio(times, seconds["two calls"]), 4),
                "rounds": args.repeats,
                **environment(args.device),
            }
            for provider, times in seconds.items()
        ]
        for row in rows:
            print(*row.values())
        append("joined_decode", rows)


if __name__ == "__main__":
    main()
