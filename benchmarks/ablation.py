"""Train variants of one host, paired by seed, at equal steps and at equal compute.

    python -m benchmarks.ablation screen [--jobs 2] [--dry-run]
    python -m benchmarks.ablation screen --tables

The first prints what it will take before it starts, and goes on where it was interrupted; the
second writes tables and figures from the rows there are. Without options it is what is
committed; ``--pictures``, ``--steps``, ``--batch`` and ``--seeds`` make it larger. Studies are in
``benchmarks/studies.py``: baseline, screen, no-masking, confirm. A run is a row of
``benchmarks/ablation.csv`` for each split; its samples are in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks import bases
from benchmarks.measure import FOLDER, commit, environment
from benchmarks.paper_tables import TABLES
from benchmarks.studies import SWEEPS, VARIANTS, get_study, only
from masksd.engine.devices import default_device
from masksd.study.estimate import expected_seconds
from masksd.study.figures import draw_gain, draw_learning, draw_scatter, draw_sweeps
from masksd.study.plan import COMPUTE, STEPS, Study
from masksd.study.rows import Ledger
from masksd.study.run import missing_runs, run_study
from masksd.study.summary import summarise
from masksd.study.tables import caption, paper_table, study_table
from masksd.study.towers import towers_file, towers_name, with_towers


def write_tables(study: Study, ledger: Ledger, folder: Path) -> Path:
    """Write ``ablation-STUDY-HOST-DATA-STEPSxBATCH.md`` and its figures from the rows there are."""
    length = f"{study.base.steps}x{study.base.batch_size}"
    name = f"ablation-{study.name}-{study.base.model}-{study.data_name()}-{length}"
    parts, towers = [f"# {name}"], towers_name(study)
    folder.mkdir(parents=True, exist_ok=True)
    for split in study.splits:
        found = summarise(study, ledger, split, towers=towers)
        parts += [f"## {split}", caption(study, split, found), study_table(found)]
        if study.name == "screen":
            parts += [paper_table(table, found) for table in TABLES]
        if any(each.equal_steps for each in found.values()):
            draw_gain(found, folder / f"{name}-{split}-gain.png")
            draw_scatter(found, folder / f"{name}-{split}-cost.png")
            if study.name == "screen":
                draw_sweeps(found, SWEEPS, folder / f"{name}-{split}-sweeps.png")
    shown = [variant.name for variant in study.variants if variant.name in found][:6]
    if shown:
        draw_learning(study, ledger, shown, folder / f"{name}-learning.png", towers)
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=VARIANTS)
    parser.add_argument("--model", default="clip_cris_tiny")
    parser.add_argument("--level", default=bases.LEVEL, help="easy, medium, hard")
    parser.add_argument("--pictures", type=int, default=bases.PICTURES, help="for training")
    parser.add_argument("--steps", type=int, default=bases.STEPS)
    parser.add_argument("--batch", type=int, default=bases.BATCH, help="pictures a step")
    parser.add_argument("--towers", type=int, default=bases.TOWERS, help="steps; 0: from scratch")
    parser.add_argument("--tower-pictures", type=int, help="for pretraining; default: all")
    parser.add_argument("--patches", type=float, default=1.0, help="0 pretrains as CLIP did")
    parser.add_argument("--recipe", help="a preset of masksd train in place of all these")
    parser.add_argument("--data-root", type=Path, help="of the recipe's data")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--samples", type=int, default=0, help="scored of each split; 0: all")
    parser.add_argument("--budgets", nargs="+", default=[STEPS, COMPUTE], choices=[STEPS, COMPUTE])
    parser.add_argument("--only", nargs="+", default=[], help="these variants and their references")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of rows, samples and tables")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables")
    args = parser.parse_args()
    if (args.recipe is None) != (args.data_root is None):
        parser.error("--recipe and --data-root go together")
    if args.recipe is None:
        base = bases.shapes_run(
            args.model,
            level=args.level,
            pictures=args.pictures,
            steps=args.steps,
            batch_size=args.batch,
            tuned=args.study != "baseline",
        )
        towers = bases.shapes_towers(
            base, steps=args.towers, pictures=args.tower_pictures, patches=args.patches
        )
    else:
        base, towers = bases.recipe_run(args.recipe, args.data_root), None
    study = get_study(
        args.study,
        base,
        seeds=tuple(args.seeds) if args.seeds else None,
        samples=args.samples,
        towers=towers,
        budgets=tuple(args.budgets),
    )
    ledger = Ledger(args.folder / "ablation.csv", args.folder / "results")
    if not args.tables:
        run(only(study, args.only) if args.only else study, ledger, args.jobs, dry=args.dry_run)
    if not args.dry_run:
        print(write_tables(study, ledger, args.folder))


def run(study: Study, ledger: Ledger, jobs: int, *, dry: bool) -> None:
    """Say what it will take, and do it unless this is a dry run."""
    if study.towers is not None:
        file = towers_file(study.towers, ledger.results)
        if not file.is_file():
            print(f"first the towers are pretrained, {study.towers.steps} steps")
        if file.is_file() or not dry:
            study = with_towers(study, ledger.results)
    runs = missing_runs(study, ledger)
    work = sum(run.multiply_adds for run in runs) / 1e15
    hours = expected_seconds(study, runs) / 3600
    print(
        f"{len(runs)} runs to do, {work:.3g} P multiply-adds, about {hours:.2f} hours here one "
        "after another",
        flush=True,
    )
    if not dry:
        here = {**environment(default_device().type), "commit": commit()}
        here["device"] = here["device"].partition(",")[0]  # threads are those of a job
        run_study(study, ledger, here, partial(print, flush=True), jobs)


if __name__ == "__main__":
    main()
