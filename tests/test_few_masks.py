"""The studies of few masks, far too small to find anything: what is run, scored and compared."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.study.few_masks import CLEAN, MISSING, few_masks_study, noise_study
from benchmarks.study.plan import Study, plan_runs
from benchmarks.study.rows import Ledger, choose
from benchmarks.study.run import Scored, run_study
from benchmarks.study.summary import summarise
from masksd.kit.config import DataConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    shapes = ShapesConfig(level="medium", train=20, val=6, test_a=6, test_b=6)
    return DataConfig(
        data_root=build_shapes(tmp_path_factory.mktemp("few"), shapes, progress=False)
    )


def small(study: Study, data: DataConfig, rows: list[str]) -> Study:
    base = dataclasses.replace(
        study.base, data=data, batch_size=2, eval_samples=4, cpu=True, threshold=0.1
    )
    variants = [each for each in study.variants if each.name in rows]
    return dataclasses.replace(study, base=base, variants=variants, seeds=(0, 1), samples=4)


@pytest.mark.slow
def test_a_study_is_run_scored_and_compared(data, tmp_path):
    rows = ["host", "augment", "teacher, both"]
    study = small(few_masks_study(8, steps=2), data, rows)
    ledger = Ledger(tmp_path / "few_masks.csv", tmp_path)
    # two seeds of three rows, and of the host trained five times as long
    assert run_study(study, ledger, report=lambda line: None) == 8
    assert run_study(study, ledger, report=lambda line: None) == 0
    written = ledger.rows()
    assert {row["split"] for row in written} == {*CLEAN, *MISSING}
    assert {row["steps"] for row in choose(written, budget="compute")} == {"10"}
    plain, hidden = (
        choose(written, variant="host", budget="steps", seed="0", split=split)[0]
        for split in ("testA", "testA hide=0.5")
    )
    areas = [[one["predicted_area"] for one in ledger.samples(row)] for row in (plain, hidden)]
    assert areas[0] != areas[1]
    assert plain["samples"] == hidden["samples"] == "4"
    found = summarise(study, ledger, "testA", resamples=100)
    assert found["teacher, both"].equal_steps["mIoU"].seeds == 2
    assert found["teacher, both"].longer == 10
    assert found["augment"].cost == 1.0
    assert found["teacher, both"].cost > 4


@pytest.mark.slow
def test_every_row_of_both_studies_can_be_planned():
    study = few_masks_study(400)
    runs = plan_runs(dataclasses.replace(study, seeds=(0,)))
    # rows, and the host trained three times as long; five times is a row
    assert len({run.config for run in runs}) == 7 + 1
    five = {run.config for run in runs if run.config.steps == 4000}
    assert len(five) == 2  # the host's is one run under two names
    alone = {run.variant for run in runs if run.config.unlabelled is None}
    assert alone == {"host", "augment", "cm-masksd", "host, long", "augment, long"}
    noise = plan_runs(dataclasses.replace(noise_study(0.4), seeds=(0,)))
    assert [run.config.label_noise for run in noise] == [0.4] * 3
    assert {run.config.unlabelled for run in noise} == {None}


def test_a_host_from_scratch_has_the_same_rows():
    assert few_masks_study(400, "lavt_tiny").base.encoder_weights is None


@pytest.mark.parametrize("split", ["testA hid=0.5", "testA drops=1"])
def test_an_unknown_condition_is_an_error(split):
    with pytest.raises(ValueError, match="did you mean"):
        Scored.parse(split)
