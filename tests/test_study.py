"""The instrument behind the evidence: pairing, resuming, equal compute, tables."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablation
from benchmarks.study import names
from benchmarks.study.bases import recipe_run, shapes_run, shapes_towers
from benchmarks.study.names import (
    base_hash,
    config_hash,
    recorded_towers,
    recorded_train,
    towers_file,
    towers_name,
    with_towers,
)
from benchmarks.study.plan import (
    COMPUTE,
    STEPS,
    Study,
    Variant,
    host,
    matched_host,
    multiply_adds,
    plan_runs,
)
from benchmarks.study.rows import COLUMNS, Ledger, Row
from benchmarks.study.run import expected_seconds, missing_runs, run_study
from benchmarks.study.studies import VARIANTS, get_study, only
from benchmarks.study.summary import study_table, summarise
from masksd.config import DistillConfig
from masksd.kit.config import DataConfig, PretrainConfig, TrainConfig, TrainingError
from masksd.kit.costs.budget import measure_budget
from masksd.kit.data.records import DataError
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.randomness import EpochSampler
from masksd.kit.sources import build_model, wrap_model
from masksd.models import create_model

pytestmark = pytest.mark.slow  # a study is many runs

HERE = {"device": "here", "torch": "t", "python": "p", "masksd": "m", "commit": "c"}
SILENT = Variant("silent", {"lambda_image": 0.0, "lambda_text": 0.0})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two seeds, the host, and branches that have no weight: they cost and change nothing."""
    shapes = ShapesConfig(train=8, val=4, test_a=1, test_b=1)
    root = build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)
    base = TrainConfig(
        data=DataConfig(data_root=root),
        steps=4,
        batch_size=4,
        warmup=1,
        evaluate_every=2,
        eval_samples=4,
        sheet_rows=1,
        progress=False,
        cpu=True,
    )
    return Study("small", base, (host(), SILENT), seeds=(0, 1), samples=10)


@pytest.fixture(scope="module")
def ledger(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The study, stopped after its first run and gone on with."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(folder / "runs.csv", folder / "results")

    def stop(line: str) -> None:
        if "mIoU" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, ledger, HERE, stop)
    assert len(ledger.rows()) == 1
    assert len(missing_runs(study, ledger)) == 5
    said: list[str] = []
    assert run_study(study, ledger, HERE, said.append) == 5
    assert said[0] == "1 of 6 runs are there already"
    assert ["mIoU" in line for line in said] == [False] + [True] * 5
    return ledger


def test_a_study_is_resumed_and_not_done_twice(study: Study, ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    assert run_study(study, ledger, HERE, lambda _: None) == 0
    assert ledger.path.read_bytes() == before
    assert missing_runs(study, ledger) == []
    keys = [(r["variant"], r["budget"], r["seed"]) for r in ledger.rows()]
    each = [("host", STEPS), ("silent", STEPS), ("host", COMPUTE)]
    assert keys == [(*pair, seed) for seed in "01" for pair in each]


def test_runs_side_by_side_find_the_same(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    one = dataclasses.replace(study, seeds=(0,))
    assert run_study(one, other, HERE, lambda _: None, jobs=2) == 3
    keys = ("variant", "budget", "seed", "config_hash")
    scores = {tuple(r[key] for key in keys): float(r["mIoU"]) for r in ledger.rows()}
    for row in other.rows():  # fewer threads add up in another order
        assert float(row["mIoU"]) == pytest.approx(
            scores[tuple(row[key] for key in keys)], abs=1e-4
        )
        assert len(other.samples(row)) == 10
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run_study(one, other, HERE, jobs=0)


def test_a_run_that_fails_leaves_the_others(study: Study, tmp_path: Path) -> None:
    """What runs beside it is finished and kept."""
    bad = Variant("bad", {}, {"lr": 1e30, "max_bad_steps": 1})
    some = dataclasses.replace(study, variants=(host(), bad), seeds=(0,), budgets=(STEPS,))
    ledger = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    with pytest.raises(TrainingError):
        run_study(some, ledger, HERE, lambda _: None, jobs=2)
    assert [row["variant"] for row in ledger.rows()] == ["host"]


def test_no_worker_outlives_its_study(tmp_path: Path) -> None:
    """The parent is killed without a chance to end them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from benchmarks.study.workers import begin_worker\n"
        "if __name__ == '__main__':\n"
        "    context = get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, context, initializer=begin_worker, initargs=(1,))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=root)
    worker = Path("/proc") / done.stdout.strip()
    assert worker.name.isdigit(), done.stderr
    for _ in range(100):
        if not (worker / "exe").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{worker.name} still runs")


def test_rows_of_another_base_are_not_mixed_in(study: Study, ledger: Ledger) -> None:
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, lr=0.1))
    assert summarise(study, ledger, "val", resamples=100)
    assert summarise(other, ledger, "val", resamples=100) == {}
    oftener = dataclasses.replace(study, base=dataclasses.replace(study.base, evaluate_every=1))
    assert len(missing_runs(oftener, ledger)) == 6  # another curve
    assert base_hash(study) == base_hash(dataclasses.replace(study, seeds=(7,)))


def test_rows_of_a_variant_that_has_changed_are_left_out(study: Study, ledger: Ledger) -> None:
    changed = Variant("silent", {**SILENT.distill, "image": {"ratio": 0.9}})
    other = dataclasses.replace(study, variants=(host(), changed))
    assert list(summarise(other, ledger, "val", resamples=100)) == ["host"]


def test_rows_of_seeds_that_are_not_asked_for_are_left_out(study: Study, ledger: Ledger) -> None:
    one = dataclasses.replace(study, seeds=(1,))
    assert summarise(one, ledger, "val", resamples=100)["silent"].seeds == (1,)


def test_equal_compute_is_with_the_run_that_was_planned_for_it(
    study: Study, ledger: Ledger, tmp_path: Path
) -> None:
    """A reference that trains on for a dearer variant is not taken for a cheaper one."""
    rows = ledger.rows()
    for row in rows:
        if row["budget"] == COMPUTE:
            config = dataclasses.replace(host().config(study.base, int(row["seed"])), steps=99)
            row["steps"], row["config_hash"] = "99", config_hash(study, config, row["towers"])
    other = Ledger(tmp_path / "runs.csv", ledger.results)
    other.add(rows)
    silent = summarise(study, other, "val", resamples=100)["silent"]
    assert (silent.longer, silent.equal_compute) == (0, {})
    assert silent.equal_steps


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that the tests of the command share, so that pictures are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def ablate(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run the command's confirmation in small; return what it prints."""
    size = "--pictures 64 --tower-pictures 64 --steps 2 --batch 4 --samples 12"
    monkeypatch.setattr("sys.argv", f"ablation confirm {size} {options}".split())
    assert ablation.main() == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("drawn")
def test_a_dry_run_says_what_it_takes_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ablate(
        f"--seeds 0 --towers 30 --dry-run --folder {tmp_path / 'out'}", monkeypatch, capsys
    )
    assert "first the towers are pretrained, 30 steps" in said
    assert "runs to do" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--recipe cris-r50", "--recipe and --data-root go together"),
        ("--recipe cris-r50 --data-root x --steps 5 --patches 0", "leave these out"),
        ("--images x", "--images goes with --recipe"),
        ("--model lavt_tiny --patches 0", "patches: no towers are pretrained"),
        ("--towers 0 --tower-pictures 5", "tower_pictures: no towers are pretrained"),
        ("--tables --only host", "--tables runs nothing"),
        ("--tables --dry-run", "not allowed with"),
        ("--jobs 0", "--jobs must be at least 1, got 0"),
        ("--recipe cris-r50 --data-root nowhere", "--data-root nowhere is not a folder"),
    ],
)
def test_options_that_would_not_be_looked_at_are_refused(
    options: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", f"ablation confirm {options}".split())
    with pytest.raises(SystemExit):
        ablation.main()
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("confirm --model lavt_tiny --only maskd", "no variant 'maskd'"),
        ("confirm --tables", "has no rows of study 'confirm'"),
        ("confirm --model clip_cris_tny --dry-run", "did you mean 'clip_cris_tiny'"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(
    options: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", f"ablation {options} --folder {tmp_path / 'out'}".split())
    assert ablation.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ablation: error: ")
    assert text in line
    assert not (tmp_path / "out").exists()


def test_what_a_reader_may_not_expect_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "confirm --model clip_cris_rn50 --towers 0 --seeds 3 --steps-only"
    monkeypatch.setattr("sys.argv", f"ablation {options}".split())
    study = ablation.asked(ablation.arguments())
    said = capsys.readouterr().out
    assert "clip_cris_rn50 has not been tuned" in said
    assert "one seed gives no interval" in said
    assert study.budgets == (STEPS,)


def test_an_interrupted_run_leaves_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "runs.csv", tmp_path / "results")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.study.run.score", interrupted)  # the training is done by then
        with pytest.raises(KeyboardInterrupt):
            run_study(study, ledger, HERE, lambda _: None)
    assert ledger.rows() == []
    assert not ledger.results.exists()


def test_runs_of_a_seed_are_paired(study: Study, ledger: Ledger) -> None:
    """Branches without weight run and draw, and still the model is the host's, bit for bit."""
    rows = {(r["variant"], r["budget"], r["seed"]): r for r in ledger.rows()}
    for seed in "01":
        plain, silent = rows["host", STEPS, seed], rows["silent", STEPS, seed]
        assert ledger.samples(plain) == ledger.samples(silent)
        assert ledger.curve(plain) == ledger.curve(silent)
        assert plain["config_hash"] != silent["config_hash"]
    assert ledger.samples(rows["host", STEPS, "0"]) != ledger.samples(rows["host", STEPS, "1"])


def test_variants_start_from_the_same_weights_and_data_order(study: Study) -> None:
    states = []
    for variant in (host(), SILENT, Variant("own", {"share_weights": False, "text": None})):
        config = variant.config(study.base, seed=5)
        torch.manual_seed(config.seed)
        states.append(build_model(config).model.state_dict())
        assert list(EpochSampler(9, config.seed)) == list(EpochSampler(9, 5))
    for state in states[1:]:
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_rows_say_what_was_run(study: Study, ledger: Ledger) -> None:
    for row in ledger.rows():
        assert tuple(row) == COLUMNS
        assert row["host"] == "clip_cris_tiny"
        assert row["towers"] == "scratch"
        assert row["samples"] == "10"
        assert float(row["seconds"]) > 0
        assert {name: row[name] for name in HERE} == HERE
        samples = ledger.samples(row)
        assert float(row["mIoU"]) == pytest.approx(sum(s["iou"] for s in samples) / 10, abs=1e-6)
        steps = int(row["steps"])
        assert [p["step"] for p in ledger.curve(row)] == [*range(2, steps, 2), steps]


def test_the_summary_finds_no_difference_where_there_is_none(study: Study, ledger: Ledger) -> None:
    found = summarise(study, ledger, "val", resamples=100)
    silent = found["silent"]
    assert silent.equal_steps["mIoU"].difference == 0
    assert silent.equal_steps["mIoU"].verdict == "no difference could be shown"
    assert silent.cost == pytest.approx(measure_cost(study, SILENT) / measure_cost(study, host()))
    assert (
        silent.longer
        == matched_host(host().config(study.base, 0), SILENT.config(study.base, 0)).steps
    )
    assert found["host"].reference is None
    assert not found["host"].equal_steps
    text = study_table(found)
    assert "no difference could be shown" in text
    assert f"{silent.cost:.2f}" in text


def measure_cost(study: Study, variant: Variant) -> int:
    return measure_budget(variant.config(study.base, 0)).step


def test_equal_compute_is_no_less_and_hardly_more() -> None:
    base = TrainConfig(steps=1000)
    for overrides in ({}, {"text": None}, {"image": None}, {"joint": True}):
        config = Variant("v", overrides).config(base, 0)
        longer = matched_host(host().config(base, 0), config)
        assert multiply_adds(config) <= multiply_adds(longer)
        assert multiply_adds(longer) - multiply_adds(config) <= multiply_adds(
            dataclasses.replace(longer, steps=20)
        )
        assert longer.distill == host().config(base, 0).distill


def test_multiply_adds_of_a_run_are_those_of_its_steps() -> None:
    base = TrainConfig(steps=10)
    for overrides in ({}, {"joint": True}):
        config = Variant("v", overrides).config(base, 0)
        assert multiply_adds(config) == 10 * 16 * measure_budget(config).step
    plain, full = (multiply_adds(v.config(base, 0)) for v in (host(), Variant("v")))
    image = multiply_adds(Variant("v", {"text": None}).config(base, 0))
    some = {"image": {"every": 3}, "text": {"every": 4}}  # of 10 steps 4 and 3
    found = multiply_adds(Variant("v", some).config(base, 0))
    assert found == plain + (image - plain) * 4 // 10 + (full - image) * 3 // 10


def test_the_plan_shares_runs_of_one_seed() -> None:
    alike = (host(), Variant("a"), Variant("b", {"image": {"ratio": 0.5}}))
    runs = plan_runs(Study("s", TrainConfig(steps=100, warmup=9), alike, seeds=(3, 4)))
    assert [(r.variant, r.budget, r.config.seed) for r in runs] == [
        (name, budget, seed)
        for seed in (3, 4)
        for name, budget in (("host", STEPS), ("a", STEPS), ("b", STEPS), ("host", COMPUTE))
    ]
    assert {r.config.distill.seed for r in runs} == {3, 4}
    rates = (host(), Variant("dice", {**host().distill, "dice_weight": 1.0}))
    assert all(
        r.budget == STEPS for r in plan_runs(Study("s", TrainConfig(steps=100, warmup=9), rates))
    )


def test_a_row_of_another_study_is_taken_over(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "runs.csv", ledger.results)
    other.add(ledger.rows())
    again = dataclasses.replace(study, name="again", variants=(host("plain"),))
    assert run_study(again, other, HERE, lambda _: None) == 0
    new = other.rows()[len(ledger.rows()) :]
    assert [(r["study"], r["variant"], r["seed"]) for r in new] == [
        ("again", "plain", "0"),
        ("again", "plain", "1"),
    ]
    assert summarise(again, other, "val")["plain"].seeds == (0, 1)


def keep_again(ledger: Ledger, row: Row, other: Ledger, config_hash: str = "") -> None:
    """Put a run into another ledger's archive, by its own name or another."""
    config, curve = json.dumps(ledger.config(row)), ledger.curve(row)
    samples = {row["split"]: ledger.samples(row)}
    other.keep(row["study"], config_hash or row["config_hash"], config, samples, curve)


def test_a_run_kept_again_replaces_the_older(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    first, second = ledger.rows()[:2]
    for row in (first, second):
        keep_again(ledger, row, other)
    archive = other.results / "small.npz"
    once = archive.read_bytes()
    keep_again(ledger, first, other)
    assert len(archive.read_bytes()) == len(once)
    assert other.samples(first) == ledger.samples(first)
    assert other.samples(second) == ledger.samples(second)
    assert other.kept() == {first["config_hash"], second["config_hash"]}


def test_samples_that_do_not_follow_from_their_areas_are_refused(
    ledger: Ledger, tmp_path: Path
) -> None:
    row = ledger.rows()[0]
    samples = ledger.samples(row)
    samples[3]["iou"] += 1e-9
    with pytest.raises(DataError, match="its areas give"):
        Ledger(tmp_path / "runs.csv", tmp_path).keep("small", "0" * 16, "{}", {"val": samples}, [])
    assert not list(tmp_path.iterdir())


def test_a_run_of_which_something_is_gone_is_done_again(
    study: Study, ledger: Ledger, tmp_path: Path
) -> None:
    other = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    other.add(ledger.rows())
    first, *others = ledger.rows()
    for row in others:
        keep_again(ledger, row, other)
    (run,) = missing_runs(study, other)
    assert (run.variant, run.budget, run.config.seed) == ("host", STEPS, 0)
    assert run_study(study, other, HERE, lambda _: None) == 1
    assert other.samples(first) == ledger.samples(first)
    two = dataclasses.replace(study, splits=("val", "testA"))
    digest = config_hash(two, two.variants[0].config(two.base, 0), "scratch")
    half = Ledger(tmp_path / "half.csv", other.results)
    half.add([{**first, "config_hash": digest}])  # as if the row of testA were gone
    keep_again(ledger, first, half, digest)
    assert len(missing_runs(two, half)) == 6


def test_one_process_writes_to_a_ledger(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    with other.writing(), pytest.raises(ValueError, match="another study is writing to"):
        run_study(study, other, HERE)
    assert other.rows() == []
    with other.writing():  # is left again
        pass


def test_what_a_row_says_of_the_machine_is_whole(study: Study, tmp_path: Path) -> None:
    other = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    with pytest.raises(ValueError, match=r"environment must have device, .* got \['device'\]"):
        run_study(study, other, {"device": "mine"})


def test_the_hash_knows_what_matters(study: Study, tmp_path: Path) -> None:
    base = study.base
    same = [{"output": tmp_path}, {"progress": True}, {"log_every": 1}, {"cpu": False}]
    others = [{"lr": 1.0}, {"seed": 1}, {"steps": 5}, {"dropout": 0.5}, {"ramp": (0.0, 0.5)}]
    others += [{"evaluate_every": 0}, {"eval_samples": 9}]  # the curve is kept too

    def digest(study: Study = study, towers: str = "scratch", **fields: Any) -> str:
        return config_hash(study, dataclasses.replace(base, **fields), towers)

    assert {digest(**fields) for fields in same} == {digest()}
    hashes = [digest(), *(digest(**fields) for fields in others)]
    hashes.append(digest(dataclasses.replace(study, samples=11)))
    for contents in (b"one", b"two"):
        (tmp_path / "towers").write_bytes(contents)
        weights = dataclasses.replace(base, encoder_weights=tmp_path / "towers")
        hashes.append(digest(towers=towers_name(dataclasses.replace(study, base=weights))))
    assert len(set(hashes)) == len(hashes)


def test_a_field_that_is_added_later_changes_no_name() -> None:
    """Pinned: rows that are committed are found by these."""
    study = Study("two", recorded_train(lr=0.1, distill={"text": None}), (host(),))
    assert config_hash(study, study.base, "scratch") == "302d027633191037"
    assert base_hash(study) == "9d70b5cb"


def test_a_default_that_changes_changes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its name nor what it means; nor does a field that is added with its default."""

    @dataclasses.dataclass(frozen=True)
    class Train(TrainConfig):
        lr: float = 0.5
        added: int = 3

    @dataclasses.dataclass(frozen=True)
    class Pretrain(PretrainConfig):
        lr: float = 0.5
        added: int = 3

    def named(**changes: Any) -> tuple[str, ...]:
        base = recorded_train(**changes)
        study = Study("one", base, (host(),), towers=recorded_towers(**changes))
        return config_hash(study, base, "scratch"), base_hash(study), towers_name(study)

    before = named()
    # the one default that has changed so far
    assert recorded_train() == dataclasses.replace(TrainConfig(), evaluate_every=0)
    assert recorded_towers() == PretrainConfig()
    monkeypatch.setattr(names, "TrainConfig", Train)
    monkeypatch.setattr(names, "PretrainConfig", Pretrain)
    assert named() == before
    assert recorded_train().lr == TrainConfig().lr
    for changes in ({"added": 4}, {"lr": 0.5}):
        assert not set(named(**changes)) & set(before)


@pytest.mark.parametrize(("kind", "config"), [("train", TrainConfig), ("pretrain", PretrainConfig)])
def test_defaults_of_all_fields_are_recorded(kind: str, config: type[Any]) -> None:
    """A new field goes into benchmarks/study/defaults.json with the value that changes nothing."""

    def leaves(fields: dict[str, Any]) -> set[str]:
        inner = [leaves(each) for each in fields.values() if isinstance(each, dict)]
        return set(fields).union(*inner)

    assert leaves(dataclasses.asdict(config())) <= leaves(names.RECORDED[kind])


def test_the_estimate_grows_with_the_runs(study: Study) -> None:
    runs = plan_runs(study)
    few, many = expected_seconds(study, runs[:1]), expected_seconds(study, runs)
    assert 0 < few < many
    assert expected_seconds(study, []) == 0


def test_damaged_results_are_refused(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    lone = Ledger(ledger.path, tmp_path)
    with pytest.raises(DataError, match=r"samples of 'host', seed 0 are missing: .* run the study"):
        summarise(study, lone, "val")
    whole = (ledger.results / "small.npz").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "small.npz").write_bytes(whole[: middle - 200] + b"x" * 40 + whole[middle - 160 :])
    with pytest.raises(DataError, match=r"seed \d: remove .* and run the study again: "):
        summarise(study, lone, "val")
    (tmp_path / "small.npz").write_bytes(whole[:middle])
    with pytest.raises(DataError, match=r"seed \d: remove .* and run the study again: "):
        summarise(study, lone, "val")
    with pytest.raises(DataError, match=r"small.npz is damaged; remove it and run its study again"):
        missing_runs(study, lone)
    (tmp_path / "cut.csv").write_text(ledger.path.read_text()[:-40])
    with pytest.raises(DataError, match="line 7 does not have"):
        Ledger(tmp_path / "cut.csv", tmp_path).rows()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="other columns"):
        Ledger(tmp_path / "other.csv", tmp_path).rows()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"variants": ()}, "needs variants"),
        ({"variants": (host(), host())}, "has a variant twice"),
        ({"variants": (host(), Variant("a", reference="hst"))}, "did you mean 'host'"),
        ({"budgets": ("compute",)}, "needs the budget 'steps'"),
        ({"budgets": ("steps", "compte")}, "did you mean 'compute'"),
        ({"samples": -1}, "samples must be at least 0"),
        ({"variants": (host(), Variant("a", {}, {"steps": 9}))}, "must take the same steps"),
        ({"splits": ("train",)}, "its base trained on 'train', which is scored"),
        ({"splits": ("test",), "towers": PretrainConfig(split="test")}, "its towers trained on"),
        ({"base": TrainConfig(steps=None, epochs=1)}, "set base.steps"),
        ({"splits": "val"}, "got one string"),
        ({"base": TrainConfig(train_split="val")}, "its base trained on 'val', which is scored"),
        ({"variants": (host(train_split="val"),)}, "'host' trained on 'val', which is scored"),
        ({"base": TrainConfig(steps=9, warmup=9)}, "a warm-up of 9 steps in runs of 9"),
    ],
)
def test_a_study_that_cannot_be_is_refused(study: Study, change: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(study, **change)


def test_a_variant_names_what_it_misspells(study: Study) -> None:
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        Variant("a", train={"dropot": 0.1}).config(study.base, 0)
    with pytest.raises(ValueError, match="did you mean 'ratio'"):
        Variant("a", {"image": {"ratoi": 0.1}}).config(study.base, 0)
    with pytest.raises(ValueError, match="'seed', which a study sets itself"):
        Variant("a", train={"seed": 9})
    with pytest.raises(ValueError, match="'encoder_weights', which a study sets itself"):
        Variant("a", train={"encoder_weights": Path("x")})
    with pytest.raises(ValueError, match="image of variant 'a' must be None or what differs"):
        Variant("a", {"image": 3})


def test_towers_of_other_data_are_refused(tmp_path: Path) -> None:
    base = shapes_run("clip_cris_tiny", steps=10, pictures=5)
    study = get_study("confirm", base, towers=shapes_towers(base, steps=7))
    towers = study.towers
    assert towers is not None
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, max_length=9))
    with pytest.raises(ValueError, match="max_length=17"):
        with_towers(other, tmp_path)
    moved = dataclasses.replace(towers, output=tmp_path / "x.safetensors", progress=False)
    assert towers_file(moved, tmp_path) == towers_file(towers, tmp_path)
    longer = dataclasses.replace(towers, steps=towers.steps + 1)
    assert towers_file(longer, tmp_path) != towers_file(towers, tmp_path)


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny"])
def test_every_variant_goes_with_its_host(model: str) -> None:
    host_model = create_model(model)
    for name in VARIANTS:
        study = get_study(name, shapes_run(model))
        for variant in study.variants:
            wrap_model(host_model, variant.config(study.base, 0).distill).unwrap()


def test_a_study_can_be_cut_to_some_variants() -> None:
    confirm = get_study("confirm", shapes_run("clip_cris_tiny"))
    assert [v.name for v in only(confirm, ["masksd"]).variants] == ["host", "masksd"]
    with pytest.raises(ValueError, match="no variant 'maskd'"):
        only(confirm, ["maskd"])


def test_the_confirmation_has_the_runs_that_the_evidence_counts() -> None:
    lavt = shapes_run("lavt_tiny")
    assert shapes_towers(lavt) is None
    confirm = get_study("confirm", lavt)
    # four variants at equal steps; the host also at the two presets' compute and at every fourth's
    assert len(plan_runs(confirm)) == 6 * len(confirm.seeds)


def test_a_study_with_few_samples_has_a_cheap_curve_too() -> None:
    base = shapes_run("clip_cris_tiny")
    for samples, eval_samples in ((0, 200), (12, 12), (900, 200)):
        assert get_study("confirm", base, samples=samples).base.eval_samples == eval_samples
    every = dataclasses.replace(base, eval_samples=0)  # scores all on the way
    assert get_study("confirm", every, samples=12).base.eval_samples == 12


def test_a_recipe_can_be_studied() -> None:
    base = recipe_run("paper-ablation-vit-b", Path("refcoco"))
    assert base.steps == 100 * (120_624 // 32)
    study = get_study("confirm", base)
    found = {variant.name: variant.config(study.base, 0).distill for variant in study.variants}
    for name in ("cm-masksd", "masksd"):
        assert found[name] == DistillConfig.preset(name)
    every = dataclasses.asdict(found["masksd, every 4"])
    assert every["image"].pop("every") == every["text"].pop("every") == 4
    with pytest.raises(ValueError, match="does not train on RefCOCO"):
        recipe_run("cm-masksd", Path("refcoco"))


@pytest.mark.filterwarnings("ignore:split .* published:UserWarning")  # RefCOCO is larger
def test_a_recipe_is_timed_and_runs(study: Study, tmp_path: Path) -> None:
    """All but its size and the pretrained weights is the recipe's: its warm-up counts in epochs."""
    shapes = study.base.data.data_root
    assert shapes is not None
    (tmp_path / "refcoco").mkdir()
    shutil.copy(shapes / "shapes" / "instances.json", tmp_path / "refcoco")
    shutil.copy(shapes / "shapes" / "refs(masksd).p", tmp_path / "refcoco" / "refs(unc).p")
    base = dataclasses.replace(
        recipe_run("paper-ablation-vit-b", tmp_path, shapes / "images"),
        model="clip_cris_tiny",
        pretrained=False,
        tokenizer="shapes",
        image_size=None,
        batch_size=52,
        steps=11,  # of one epoch each
        evaluate_every=5,
        eval_samples=2,
        workers=1,
        cpu=True,
    )
    small = get_study("confirm", base, seeds=(0,), samples=2)
    assert small.base.warmup_epochs == 10
    ledger = Ledger(tmp_path / "runs.csv", tmp_path / "results")
    only_host = only(small, ["host"])
    assert expected_seconds(only_host, missing_runs(only_host, ledger)) > 0
    assert run_study(only_host, ledger, HERE, lambda _: None) == 1
    assert [row["split"] for row in ledger.rows()] == ["testA", "testB"]
    assert ledger.rows()[0]["data"] == base.data.title()


def test_tables_and_figures_regenerate_without_runs(
    study: Study, ledger: Ledger, tmp_path: Path
) -> None:
    first = ablation.write_tables(study, ledger, tmp_path).read_text()
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert [name.rpartition("-")[2] for name in names] == ["learning.png", "gain.png"]
    assert ablation.write_tables(study, ledger, tmp_path).read_text() == first
    assert "silent" in first
    other = dataclasses.replace(study, base=dataclasses.replace(study.base, lr=0.1))
    with pytest.raises(ValueError, match="is of a study on another base"):
        ablation.write_tables(other, ledger, tmp_path)


@pytest.mark.usefixtures("drawn")
def test_the_command_confirms_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From pictures and towers to tables and figures; the harness is checked, not the result."""
    options = f"--seeds 0 1 --jobs 2 --towers 3 --folder {tmp_path / 'out'}"
    said = ablate(f"{options} --only cm-masksd", monkeypatch, capsys)
    study = only(get_study("confirm", shapes_run("clip_cris_tiny", steps=2)), ["cm-masksd"])
    runs = len({(run.variant, run.budget, run.config.steps) for run in plan_runs(study)}) * 2
    assert f"{runs} runs to do" in said
    assert said.count("mIoU") == runs
    (path,) = (tmp_path / "out").glob(
        "ablation-confirm-clip_cris_tiny-shapes-medium-64-2x4-towers-*.md"
    )
    table = path.read_text()
    for split in ("testA", "testB"):
        assert f"## {split}" in table
    for variant in study.variants:
        assert table.count(f"| {variant.name} | 2 |") == 2
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    ablate(f"{options} --tables", monkeypatch, capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == files


@pytest.mark.parametrize("name", ["", "paired", "plan", "rows"])
def test_examples_give_what_they_say(name: str) -> None:
    module = importlib.import_module(f"benchmarks.study.{name}".rstrip("."))
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_curves_and_configs_are_kept(study: Study, ledger: Ledger) -> None:
    row = ledger.rows()[0]
    assert ledger.config(row)["steps"] == study.base.steps
