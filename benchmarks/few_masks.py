"""Train hosts with few masks, with and without a teacher, paired by seed.

    python -m benchmarks.few_masks [--masks 100 200] [--model clip_cris_tiny] [--jobs 2]

Runs what is missing and continues where it was interrupted. A run adds a row per split to
``benchmarks/results/few_masks.csv`` and its samples to ``benchmarks/results/masks-N.npz``; both are
safe to commit at any time. ``python -m benchmarks.pages`` writes tables and figures from them.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.measure import FOLDER, commit
from benchmarks.study import bases
from benchmarks.study.few_masks import MASKS, few_masks_study
from benchmarks.study.rows import Ledger
from benchmarks.study.run import run_study
from masksd.kit.devices import default_device, describe_machine

ROWS = "few_masks.csv"


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--masks", type=int, nargs="+", choices=MASKS, default=MASKS, help="masks for training")
    add("--model", choices=bases.HOSTS, default="clip_cris_tiny", help="host")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--folder", type=Path, default=FOLDER, help="of rows and samples")
    args = parser.parse_args()
    ledger = Ledger(args.folder / ROWS, args.folder)
    here = {**describe_machine(default_device()), "commit": commit()}
    for masks in args.masks:
        study = few_masks_study(masks, args.model)
        run_study(study, ledger, here, partial(print, flush=True), args.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
