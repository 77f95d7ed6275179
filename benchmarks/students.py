"""Train students with and without a teacher, and a host with two necks, paired by seed.

    python -m benchmarks.students [--studies student neck] [--jobs 2]

Runs what is missing and continues where it was interrupted. A run adds a row per split to
``benchmarks/results/students.csv`` and its samples to its study's archive; both are safe to commit
at any time. ``python -m benchmarks.pages`` writes the tables from them. The teacher is trained if
there is none: ten minutes on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.measure import FOLDER
from benchmarks.study.run import run_studies
from benchmarks.study.students import neck_study, student_study, trained_teacher

STUDIES = ("student", "neck")


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--studies", nargs="+", choices=STUDIES, default=STUDIES, help="default: both")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--folder", type=Path, default=FOLDER, help="of rows, samples and the teacher")
    args = parser.parse_args()
    every = {"student": student_study(args.folder), "neck": neck_study()}
    chosen = [every[name] for name in args.studies]
    run_studies(chosen, "students", args.folder, args.jobs, trained_teacher)
    return 0


if __name__ == "__main__":
    sys.exit(main())
