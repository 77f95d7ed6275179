"""Count what a training step costs, in multiply-adds: the host, three naive passes, and masksd.

    python -m benchmarks.step_cost [--model clip_cris_vit_b16] [--image-size 480] [--tokens 17]
    python -m benchmarks.step_cost --recipes [--tflops 100]

Nothing is computed: all tensors are on the meta device, which knows shapes only. A step of masksd
should cost 2 + d host steps, where d is the share of neck, decoder and head in the host.

``--recipes`` counts whole runs on RefCOCO instead, and their hours at an assumed speed: 100 TFLOP/s
are a third of an A100's bf16 peak. Rows are appended to ``step_cost.csv`` or
``refcoco_hours.csv`` in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import append, environment
from masksd import CrossModalMaskedSelfDistill, DistillConfig, segmentation_loss
from masksd.kit.costs.budget import measure_budget
from masksd.kit.data.layout import PUBLISHED
from masksd.kit.recipes import get_recipe
from masksd.models import create_model

RECIPES = ("paper-ablation-vit-b", "paper-refcoco-vit-b", "cris-r50", "lavt-swin-b")
BRANCHES = {"host": DistillConfig(image=None, text=None), "cm-masksd": DistillConfig()}


def giga_multiply_adds(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9  # the counter counts a multiply-add as two


@torch.no_grad()
def share_of_the_rest(model: nn.Module, images: Tensor, words: Tensor) -> float:
    """d: the share of neck, decoder and head in the forward of a host on the meta device."""
    encoder = model.encoder
    whole = giga_multiply_adds(lambda: model(images, words))
    towers = giga_multiply_adds(lambda: (encoder.encode_image(images), encoder.encode_text(words)))
    return 1 - towers / whole


def count(name: str, image_size: int, tokens: int, batch: int) -> list[dict[str, object]]:
    with torch.device("meta"):
        model = create_model(name, image_size=image_size)
        images = torch.zeros(batch, 3, image_size, image_size)
        words = torch.zeros(batch, tokens, dtype=torch.int64)
        target = torch.zeros(batch, image_size, image_size)
        parts = model.encoder, model.neck, model.decoder
        image_only, text_only = DistillConfig(text=None), DistillConfig(image=None)

        def naive() -> Tensor:
            losses = [segmentation_loss(model(images, words), target) for _ in range(3)]
            return torch.stack(losses).sum()

        def distilled(config: DistillConfig) -> Callable[[], Tensor]:
            def step() -> Tensor:
                sd = CrossModalMaskedSelfDistill(*parts, config)
                loss = sd(images, words, target=target).loss
                sd.unwrap()
                return loss

            return step

        providers = {
            "host": lambda: segmentation_loss(model(images, words), target),
            "naive": naive,
            "masksd lmvsd": distilled(image_only),
            "masksd vmlsd": distilled(text_only),
            "masksd": distilled(DistillConfig()),
        }
        share = round(share_of_the_rest(model, images, words), 4)
        rows = []
        for provider, step in providers.items():
            with torch.no_grad():
                forward = giga_multiply_adds(step)
            rows.append(
                {
                    "model": name,
                    "image_size": image_size,
                    "tokens": tokens,
                    "batch": batch,
                    "provider": provider,
                    "forward_gmac": round(forward, 6),
                    "step_gmac": round(giga_multiply_adds(lambda s=step: s().backward()), 6),
                }
            )
        host = rows[0]
        for row in rows:
            row["forward_ratio"] = round(row["forward_gmac"] / host["forward_gmac"], 4)
            row["step_ratio"] = round(row["step_gmac"] / host["step_gmac"], 4)
            row["d"] = share
            row |= environment() | {"device": "meta (counted)"}
        return rows


def count_recipe(recipe: str, tflops: float) -> list[dict[str, object]]:
    config = get_recipe(recipe)
    train = PUBLISHED["refcoco", "unc"]["train"]
    items = train.sentences if config.train_items == "sentences" else train.refs
    found = []
    for name, distill in BRANCHES.items():
        step = measure_budget(dataclasses.replace(config, distill=distill, batch_size=2)).step
        work = step * items * (config.epochs or 0)
        found.append(
            {
                "recipe": recipe,
                "variant": name,
                "items": items,
                "epochs": config.epochs,
                "step_gmac": round(step / 1e9, 2),
                "run_pmac": round(work / 1e15, 1),
                "tflops": tflops,
                "hours": round(2 * work / (tflops * 1e12) / 3600, 1),
                **environment(),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="clip_cris_vit_b16")
    parser.add_argument("--image-size", type=int, default=480, help="pixels")
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--recipes", action="store_true", help="count runs on RefCOCO instead")
    parser.add_argument("--tflops", type=float, default=100.0, help="that a device sustains")
    args = parser.parse_args()
    if args.recipes:
        for recipe in RECIPES:
            rows = count_recipe(recipe, args.tflops)
            append("refcoco_hours", rows)
            for row in rows:
                print(f"{recipe}, {row['variant']}: {row['run_pmac']} P, {row['hours']} hours")
        return
    rows = count(args.model, args.image_size, args.tokens, args.batch)
    share = rows[0]["d"]
    print(
        f"{args.model}, {args.image_size} px, {args.tokens} tokens, batch {args.batch}: "
        f"d = {share:.4f} of the host's forward is neck, decoder and head; 2 + d = {2 + share:.4f}"
    )
    print(f"{'provider':<14}{'forward, G':>12}{'ratio':>9}{'step, G':>12}{'ratio':>9}")
    for row in rows:
        print(
            f"{row['provider']:<14}{row['forward_gmac']:>12.2f}{row['forward_ratio']:>9.4f}"
            f"{row['step_gmac']:>12.2f}{row['step_ratio']:>9.4f}"
        )
    append("step_cost", rows)


if __name__ == "__main__":
    main()
