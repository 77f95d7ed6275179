"""Run ``masksd train`` without options and keep its scores in ``results/default_run.csv``.

    python -m benchmarks.default_run [--seeds 0 1 2]

Each seed is a whole run, including data generation, in a folder that is removed afterwards.
"another object's sentence" scores the same model with the sentence of another object of the image:
the closer to the first row, the less words matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from benchmarks.measure import append, environment
from masksd.kit.evaluation.scoring import format_table
from masksd.kit.recipes import get_recipe
from masksd.kit.training.trainer import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MASKSD_CACHE"] = f"{folder}/cache"  # so that generating is timed as well
            default = get_recipe("cm-masksd")
            config = dataclasses.replace(default, seed=seed, output=Path(folder) / "run")
            result = train(config)
        print(format_table(result.scores))
        rows = [
            {
                "seed": seed,
                "model": config.model,
                "steps": config.steps,
                "sentence": sentence,
                **{name: round(value, 4) for name, value in scores.items()},
                "seconds": round(result.seconds, 1),
                **environment(),
            }
            for sentence, scores in result.scores.items()
        ]
        append("default_run", rows)


if __name__ == "__main__":
    main()
