"""The studies of students: what a small model learns from a large one; and of two necks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import FOLDER
from benchmarks.study import bases
from benchmarks.study.plan import COMPUTE, STEPS, Study, Variant, host
from benchmarks.study.run import Scored
from masksd import ChannelDistillConfig
from masksd.kit.checkpoints import load_checkpoint
from masksd.kit.config import TrainConfig
from masksd.kit.evaluation.scoring import score
from masksd.kit.recipes import TOWERS

STUDENT, TEACHER = "clip_cris_mini", "clip_cris_tiny"
SEEDS = tuple(range(400, 406))
SPLITS = ("testA", "testB")
SAMPLES = 300
"""Expressions scored on each split."""
BATCH, PICTURES = 16, 3000
STUDENT_STEPS, TEACHER_STEPS, NECK_STEPS = 400, 2000, 400

KINDS: dict[str, ChannelDistillConfig] = {
    "logits": ChannelDistillConfig("logits", lambda_logits=0.1),
    "CWD": ChannelDistillConfig("cwd", lambda_channel=1.0),
    "channel relations": ChannelDistillConfig("icd", lambda_channel=1.0),
    "ours": ChannelDistillConfig("cross-modal", lambda_relation=10.0, lambda_channel=10.0),
}
"""By row: what the student is asked to share with its teacher.

Weights are powers of ten, the best by val with seed 0; for ours, 100 was not tried before the runs.
"""


def student_study(results: Path = FOLDER, **run: Any) -> Study:
    """Build the study of a student that starts from scratch, with and without its teacher.

    At equal compute, the student alone trains for whole multiples of the steps: a teacher's forward
    pass counts. :func:`trained_teacher` trains the teacher.
    """
    teacher = results / f"teacher-{TEACHER}"
    rows = [host()]
    for name, knowledge in KINDS.items():
        rows.append(Variant(name, host().distill, {"teacher": teacher, "knowledge": knowledge}))
    base = _run(STUDENT, lr=8e-4, weight_decay=0.1, **{"steps": STUDENT_STEPS, **run})
    return _study("student", base, tuple(rows), (STEPS, COMPUTE))


def neck_study(**run: Any) -> Study:
    """Build the study of CRIS's neck and that of language-driven attention, all else equal.

    Both have the settings that were found for CRIS's.
    """
    base = _run(TEACHER, **{"steps": NECK_STEPS, **bases.HOSTS[TEACHER], **run})
    rows = (host(), Variant("LDA neck", host().distill, {"model": "clip_lda_tiny"}))
    return _study("neck", dataclasses.replace(base, encoder_weights=TOWERS), rows, (STEPS,))


def trained_teacher(study: Study) -> None:
    """Train the teacher of a study of students, unless it is there, and write down its scores."""
    folder = study.teacher
    if folder is None or folder.is_dir():
        return
    train_teacher(folder)
    score_teacher(folder)


def score_teacher(folder: Path) -> None:
    """Score the teacher as students are scored, into a JSON file beside it."""
    config, checkpoint = _run(TEACHER, steps=TEACHER_STEPS), load_checkpoint(folder)
    found = {}
    for name in SPLITS:
        data = Scored.parse(name).open(config, checkpoint)
        scores = score(checkpoint, data, limit=SAMPLES, progress=False).scores["all"]
        found[name] = {"mIoU": round(scores["mIoU"], 6), "samples": int(scores["samples"])}
    text = json.dumps(found, indent=2) + "\n"
    folder.with_name(f"{folder.name}.json").write_text(text, encoding="utf-8")


def train_teacher(folder: Path) -> None:
    """Train the teacher into a folder, which must not be there."""
    base = _run(TEACHER, **{"steps": TEACHER_STEPS, **bases.HOSTS[TEACHER]})
    distill = dataclasses.replace(base.distill, image=None, text=None)
    bases.train_into(folder, dataclasses.replace(base, distill=distill, encoder_weights=TOWERS))


def _run(model: str, **changes: Any) -> TrainConfig:
    common: dict[str, Any] = {"pictures": PICTURES, "distill": {"dice_weight": 1.0}}
    return bases.short_run(model, batch_size=BATCH, **{**common, **changes})


def _study(
    name: str, base: TrainConfig, rows: tuple[Variant, ...], budgets: tuple[str, ...]
) -> Study:
    return Study(
        name, base, rows, SEEDS, SPLITS, SAMPLES, best=True, budgets=budgets, multiples=True
    )
