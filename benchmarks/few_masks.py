"""Train hosts with few masks, with and without a teacher, paired by seed.

    python -m benchmarks.few_masks [--masks 100 400] [--noise 0 0.4] [--model clip_cris_tiny]

Runs what is missing and continues where it was interrupted; without ``--masks``, ``--noise`` and
``--level``, all. A run adds a row per split to ``benchmarks/results/few_masks.csv`` and its samples
to its study's archive; both are safe to commit at any time. ``python -m benchmarks.pages`` writes
tables and figures from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.measure import FOLDER
from benchmarks.study import bases
from benchmarks.study.few_masks import (
    MASKS,
    NOISE,
    few_masks_study,
    level_study,
    noise_study,
    trained_start,
)
from benchmarks.study.run import run_studies


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--masks", type=int, nargs="+", choices=MASKS, help="of training; default: all numbers")
    add("--noise", type=float, nargs="+", choices=NOISE, help="shares of wrong masks; all")
    add("--level", action="store_true", help="a harder level, from a host of the easy one")
    add("--model", choices=bases.HOSTS, default="clip_cris_tiny", help="host")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--folder", type=Path, default=FOLDER, help="of rows and samples")
    args = parser.parse_args()
    everything = args.masks is None and args.noise is None and not args.level
    studies = [
        *(
            few_masks_study(each, args.model)
            for each in (MASKS if everything else args.masks or ())
        ),
        *(noise_study(each, args.model) for each in (NOISE if everything else args.noise or ())),
    ]
    if everything or args.level:
        studies.append(level_study(args.model, args.folder))
    run_studies(studies, "few_masks", args.folder, args.jobs, trained_start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
