"""Ablation studies: variants of one training run, paired by seed, at equal steps and compute.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from masksd.kit.config import DataConfig, TrainConfig
    >>> base = TrainConfig(
    ...     data=DataConfig(level="medium", pictures=8),
    ...     steps=2, warmup=0, batch_size=2, eval_samples=2, sheet_rows=1, progress=False,
    ... )  # far too small to find anything
    >>> half = Variant("half of the patches", {"text": None, "image": {"ratio": 0.5}})
    >>> study = Study("mine", base, (host(), half), seeds=(0, 1), samples=4, budgets=("steps",))
    >>> folder = Path(tempfile.mkdtemp())
    >>> ledger = Ledger(folder / "runs.csv", folder / "results")
    >>> run_study(study, ledger, report=lambda line: None)
    4
    >>> found = summarise(study, ledger, "val", resamples=100)
    >>> found["half of the patches"].seeds
    (0, 1)
    >>> table = study_table(found, ("mIoU",))
"""

from benchmarks.study.plan import Study as Study
from benchmarks.study.plan import Variant as Variant
from benchmarks.study.plan import host as host
from benchmarks.study.rows import Ledger as Ledger
from benchmarks.study.run import run_study as run_study
from benchmarks.study.summary import study_table as study_table
from benchmarks.study.summary import summarise as summarise
