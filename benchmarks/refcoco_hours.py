"""Say what the runs on RefCOCO would take: multiply-adds, counted, and hours at an assumed speed.

    python -m benchmarks.refcoco_hours [--tflops 100]

Nothing is run: a step is counted on the meta device, and times the sentences and epochs of the
recipe. The speed is an assumption (100 TFLOP/s is a third of the bf16 peak of an A100, 312); the
multiply-adds are not. Rows are appended to ``benchmarks/refcoco_hours.csv``.
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.measure import append, environment
from masksd.config import DistillConfig
from masksd.kit.data.layout import PUBLISHED
from masksd.kit.recipes import get_recipe
from masksd.kit.training.budget import measure_budget

BRANCHES = {"host": DistillConfig(image=None, text=None), "cm-masksd": DistillConfig()}


def rows(recipe: str, tflops: float) -> list[dict[str, object]]:
    config = get_recipe(recipe)
    items = PUBLISHED["refcoco", "unc"]["train"]
    pictures = items.sentences if config.train_items == "sentences" else items.refs
    found = []
    for name, distill in BRANCHES.items():
        step = measure_budget(dataclasses.replace(config, distill=distill, batch_size=2)).step
        work = step * pictures * (config.epochs or 0)
        found.append(
            {
                "recipe": recipe,
                "variant": name,
                "items": pictures,
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
    parser.add_argument("--tflops", type=float, default=100.0, help="that the device sustains")
    args = parser.parse_args()
    for recipe in ("paper-ablation-vit-b", "paper-refcoco-vit-b", "cris-r50", "lavt-swin-b"):
        found = rows(recipe, args.tflops)
        append("refcoco_hours", found)
        for row in found:
            print(f"{recipe}, {row['variant']}: {row['run_pmac']} P, {row['hours']} hours")


if __name__ == "__main__":
    main()
