"""Train variants of one host, paired by seed, at equal steps and at equal compute.

    python -m benchmarks.ablation confirm [--jobs 2] [--dry-run]
    python -m benchmarks.ablation confirm --tables

The first says what it will take, runs what is missing and continues where it was interrupted; the
second writes tables and figures from the rows there are. The studies are in
``benchmarks/study/studies.py``. Without options they are the committed ones; ``--pictures``,
``--steps``, ``--batch`` and ``--seeds`` make them larger. A run adds a row per split to
``benchmarks/results/ablation.csv`` and its samples to ``benchmarks/results/STUDY.npz``; both are
safe to commit at any time.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.measure import FOLDER, commit
from benchmarks.study import bases
from benchmarks.study.figures import draw_best, draw_gain
from benchmarks.study.names import base_hash, towers_file, towers_name, with_towers
from benchmarks.study.plan import COMPUTE, STEPS, Study
from benchmarks.study.rows import Ledger
from benchmarks.study.run import expected_seconds, missing_runs, run_study
from benchmarks.study.studies import VARIANTS, get_study, only, shapes_study
from benchmarks.study.summary import LEGEND, caption, study_table, summarise
from masksd.kit.devices import default_device, describe_machine

SHAPES = {
    "model": "clip_cris_tiny",
    "level": bases.LEVEL,
    "pictures": bases.PICTURES,
    "steps": bases.STEPS,
    "batch": bases.BATCH,
    "towers": bases.TOWERS,
    "tower_pictures": None,
    "patches": 1.0,
}
"""Options of runs on shapes, with their defaults; a recipe does not take them."""


def tables_path(study: Study, folder: Path) -> Path:
    """Return where a study's tables go; refuse to replace those of a study on another base."""
    length = f"{study.base.steps}x{study.base.batch_size}"
    towers = "-".join(towers_name(study).split("-")[:2])  # how they were made, not which
    parts = ("ablation", study.name, study.base.model, study.data_name(), length, towers)
    path = folder / f"{'-'.join(parts)}.md"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_head(study, path)):
        raise ValueError(
            f"{path} is of a study on another base (its runs or --samples differ); choose another "
            "--folder"
        )
    return path


def _head(study: Study, path: Path) -> str:
    return f"# {path.stem}\n\nRows of base {base_hash(study)}."


def write_tables(study: Study, ledger: Ledger, folder: Path) -> Path:
    """Write ``ablation-STUDY-HOST-DATA-STEPSxBATCH-TOWERS.md`` and its figures."""
    path = tables_path(study, folder)
    parts = [_head(study, path), LEGEND]
    for split in study.splits:
        found = summarise(study, ledger, split)
        if not found:
            raise ValueError(
                f"{ledger.path} has no rows of study {study.name!r} on base {base_hash(study)}, "
                f"{split}; run it first, or give its --folder and options"
            )
        parts += [f"## {split}", caption(study, split, found), study_table(found)]
        if any(each.equal_steps for each in found.values()):
            draw_gain(found, folder / f"{path.stem}-{split}-gain.png")
    draw_best(study, ledger, found, folder / f"{path.stem}-learning.png")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def main() -> int:
    """Run the command; return its exit code, 2 for a user's error."""
    args = arguments()
    try:
        _do(args)
    except (ValueError, OSError) as error:
        if os.environ.get("MASKSD_TRACEBACK"):
            raise
        print(f"ablation: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ablation: stopped; the same command continues after the last row", file=sys.stderr)
        return 130
    return 0


def _do(args: argparse.Namespace) -> None:
    study = asked(args)
    ledger = Ledger(args.folder / "ablation.csv", args.folder)
    tables_path(study, args.folder)  # before anything is run
    if not args.tables:
        chosen = only(study, args.only) if args.only else study
        run(_with_own_towers(chosen, ledger), ledger, args.jobs, dry=args.dry_run)
    if not args.dry_run:
        print(write_tables(_with_own_towers(study, ledger), ledger, args.folder))


def _with_own_towers(study: Study, ledger: Ledger) -> Study:
    """Return the study with its towers, if they have been pretrained already."""
    there = study.towers is not None and towers_file(study.towers, ledger.results).is_file()
    return with_towers(study, ledger.results) if there else study


def arguments() -> argparse.Namespace:
    """Read the options, and refuse those that would have no effect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("study", choices=VARIANTS)
    for name, of in (
        ("model", "host"),
        ("level", "of shapes: easy, medium, hard"),
        ("pictures", "images for training"),
        ("steps", "of a run"),
        ("batch", "images per step"),
        ("towers", "steps of pretraining; 0: from scratch"),
        ("tower-pictures", "images for pretraining; default: all of the level"),
        ("patches", "weight of the nearest-patch loss of the towers; 0 pretrains like CLIP"),
    ):
        default = SHAPES[name.replace("-", "_")]
        kind = int if default is None else type(default)
        shown = "" if default is None else f" (default {default})"
        add(f"--{name}", type=kind, help=f"{of}{shown}")
    add("--recipe", help="a preset of masksd train instead of these options")
    add("--data-root", type=Path, help="folder of the recipe's data")
    add("--images", type=Path, help="folder of its images; default: DATA_ROOT/images")
    add("--seeds", type=int, nargs="+")
    add("--samples", type=int, default=0, help="expressions scored per split; 0: all")
    add("--steps-only", action="store_true", help="skip the longer runs of the host")
    add("--only", nargs="+", default=[], help="run only these variants and their references")
    add("--jobs", type=int, default=1, help="runs at a time, all of one command")
    add("--folder", type=Path, default=FOLDER, help="of rows, samples and tables")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    mode.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    args = parser.parse_args()
    given = [name for name in SHAPES if getattr(args, name) is not None]
    if (args.recipe is None) != (args.data_root is None):
        parser.error("--recipe and --data-root go together")
    if args.recipe is None and args.images is not None:
        parser.error("--images goes with --recipe")
    if args.recipe is not None and given:
        parser.error(f"--recipe sets {', '.join(given)}; leave these out")
    for name in set(SHAPES) - set(given):
        setattr(args, name, SHAPES[name])
    loose = {"tower_pictures", "patches"}.intersection(given)
    if loose and (not args.towers or not bases.has_towers(args.model)):
        parser.error(f"{', '.join(sorted(loose))}: no towers are pretrained in this study")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    run_here = not (args.dry_run or args.tables)
    if run_here and args.data_root is not None and not args.data_root.is_dir():
        parser.error(f"--data-root {args.data_root} is not a folder")
    if args.tables and args.only:
        parser.error("--only says what to run, and --tables runs nothing")
    return args


def asked(args: argparse.Namespace) -> Study:
    """Build the study that the options describe; print what may surprise the reader."""
    fields = {
        "seeds": tuple(args.seeds) if args.seeds else None,
        "samples": args.samples,
        "budgets": (STEPS,) if args.steps_only else (STEPS, COMPUTE),
    }
    if args.recipe is None:
        study = shapes_study(args.study, **{name: getattr(args, name) for name in SHAPES}, **fields)
        if args.study != "baseline" and args.model not in bases.HOSTS:
            print(f"{args.model} has not been tuned: see HOSTS in benchmarks/study/bases.py")
    else:
        base = bases.recipe_run(args.recipe, args.data_root, args.images)
        study = get_study(args.study, base, **fields)
    if len(study.seeds) == 1:
        print("one seed gives no interval and no verdict; use two or more")
    return study


def run(study: Study, ledger: Ledger, jobs: int, *, dry: bool) -> None:
    """Say what the missing runs will take, and do them unless this is a dry run."""
    if study.towers is not None and study.base.encoder_weights is None:
        print(f"first the towers are pretrained, {study.towers.steps} steps")
        if not dry:
            study = with_towers(study, ledger.results)
    runs = missing_runs(study, ledger)
    work = sum(run.multiply_adds for run in runs) / 1e15
    print(f"{len(runs)} runs to do, {work:.3g} P multiply-adds", flush=True)
    try:
        hours = expected_seconds(study, runs) / 3600
        print(f"about {hours:.2f} hours here, one after another", flush=True)
    except (ValueError, OSError) as error:
        if not dry:
            raise
        print(f"the time cannot be estimated: {error}")
    if not dry:
        here = {**describe_machine(default_device()), "commit": commit()}
        run_study(study, ledger, here, partial(print, flush=True), jobs)


if __name__ == "__main__":
    sys.exit(main())
