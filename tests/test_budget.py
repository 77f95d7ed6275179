"""What a run costs is what it costs: compared with a model and a step that are really there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from masksd import DistillConfig
from masksd.kit.cli.dry_run import dry_run
from masksd.kit.cli.shared import HEADINGS
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.costs.budget import check_splits, count_items, count_step, measure_budget
from masksd.kit.costs.fits import check_fits, smaller
from masksd.kit.data.records import DataError
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.feeding import model_inputs
from masksd.kit.recipes import RECIPES, get_recipe
from masksd.kit.sources import build_model, open_split, wrap_model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_cris_tiny", "lavt_tiny"])
def test_counts_are_those_of_a_real_step(name: str) -> None:
    config = TrainConfig(model=name, batch_size=2, frozen=())
    budget = measure_budget(config)
    with torch.random.fork_rng():
        checkpoint = build_model(config)
        sd = wrap_model(checkpoint.model, config.distill, checkpoint.tokenizer)
        sd._checked = True  # the check of the first step is no part of a step
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        tokens = checkpoint.tokenizer.encode("the red circle").expand(2, -1)
        inputs = model_inputs(checkpoint, images, tokens)
        target = torch.zeros(2, 64, 64)
        # torch does not count the CPU's own fused attention
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as plain, torch.no_grad():
                checkpoint.model.eval()(*inputs)
                sd.train()
            with FlopCounterMode(display=False) as step:
                out = sd(*inputs, target=target)
                forward = step.get_total_flops()
                out.loss.backward()
    assert budget.parameters == sum(p.numel() for p in checkpoint.model.parameters())
    assert budget.trainable == sum(p.numel() for p in sd.parameters())
    assert budget.added == budget.trainable - budget.parameters
    grads = [p.grad for p in sd.parameters()]
    assert budget.gradients == sum(grad.nbytes for grad in grads if grad is not None)
    assert budget.plain == pytest.approx(plain.get_total_flops() / 4, rel=0.02)
    assert budget.forward == pytest.approx(forward / 4, rel=0.02)
    # fused attention computes the matrix again in backward
    assert budget.step == pytest.approx(step.get_total_flops() / 4, rel=0.05)


def test_activations_are_what_autograd_keeps() -> None:
    """Without dropout, for which the CPU has no fused attention and keeps the matrices."""
    config = TrainConfig(batch_size=2, dropout=0.0)
    budget = measure_budget(config)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.random.fork_rng():
        checkpoint = build_model(config)
        sd = wrap_model(checkpoint.model, config.distill, checkpoint.tokenizer).train()
        tokens = checkpoint.tokenizer.encode("the red circle").expand(2, -1)
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        inputs = model_inputs(checkpoint, images, tokens)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = sd(*inputs, target=torch.zeros(2, 64, 64))
        assert out.loss is not None
    own = {p.untyped_storage().data_ptr() for p in [*sd.parameters(), *sd.buffers()]}
    total = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    assert budget.activations == pytest.approx(total, rel=0.15)


@pytest.mark.slow
def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    small, large = (measure_budget(TrainConfig(batch_size=size)) for size in (2, 8))
    assert large.activations == pytest.approx(4 * small.activations, rel=0.02)
    assert (large.weights, large.plain, large.step) == (small.weights, small.plain, small.step)


@pytest.mark.slow
def test_what_is_frozen_needs_no_gradient_and_no_moments() -> None:
    whole = measure_budget(TrainConfig(batch_size=2))
    frozen = measure_budget(TrainConfig(batch_size=2, frozen=("encoder.",)))
    assert frozen.parameters == whole.parameters
    assert frozen.trainable < whole.trainable
    assert frozen.optimizer == 2 * frozen.gradients == 8 * frozen.trainable
    assert frozen.activations < whole.activations


def test_items_are_counted_where_the_data_are(tmp_path: Path) -> None:
    shapes = ShapesConfig(train=3, val=1, test_a=1, test_b=1)
    data = DataConfig(data_root=build_shapes(tmp_path / "shapes", shapes, progress=False))
    config = TrainConfig(data=data, batch_size=2)
    counts, source = count_items(config)
    tokenizer = build_model(config).tokenizer
    assert counts == {
        kind: len(open_split(data, "train", tokenizer, 8, train_items=kind))
        for kind in ("refs", "sentences")
    }
    assert str(tmp_path) in source
    with pytest.raises(DataError, match="nowhere"):
        count_items(TrainConfig(data=DataConfig(data_root=tmp_path / "nowhere")))


def test_items_of_published_data_are_known_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, source = count_items(get_recipe("paper-refcoco-vit-b"))
    assert counts == {"refs": 42_404, "sentences": 120_624}
    assert source == "as published"
    monkeypatch.setenv("MASKSD_CACHE", str(tmp_path))
    assert count_items(TrainConfig()) == ({}, "shapes that are not generated yet")
    assert list(tmp_path.iterdir()) == []
    other = dataclasses.replace(get_recipe("cris-r50"), data=DataConfig(name="mine"))
    assert count_items(other) == ({}, "not known without --data-root")


@pytest.mark.slow
def test_a_dry_run_shows_every_value_once_and_both_step_counts() -> None:
    config = dataclasses.replace(get_recipe("paper-ablation-vit-b"), batch_size=2)
    text = dry_run("paper-ablation-vit-b", config)
    options = [each for each in text.partition("\ncost ")[0].splitlines() if each[0] == " "]
    values = [option.split(maxsplit=1) for option in options]
    names = [name.partition(".")[0] for name, _ in values]
    for field in dataclasses.fields(TrainConfig):
        assert names.count(field.name) >= 1 or field.name == "data", field.name
    assert len({name for name, _ in values}) == len(values)
    assert all(heading in text.splitlines() for heading in HEADINGS.values())
    shown = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert shown["lr"] == "1e-05"
    assert shown["distill.lambda_image"] == "0.75"
    assert shown["dropout"] == "0.1"  # of the model, which the config leaves to it
    assert shown["tokenizer"] == "clip"
    assert shown["refs"].startswith("42,404 items, 21,202 steps per epoch, 2,120,200 in all")
    assert shown["sentences"].endswith("<- train_items")
    assert "194.1 M of the model" in shown["parameters"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_split": "trian"}, "unknown train_split 'trian'; did you mean 'train'"),
        ({"eval_split": "vall"}, "unknown eval_split 'vall'; did you mean 'val'"),
        (
            {"data": DataConfig(name="refcocog", split_by="umd"), "eval_split": "testA"},
            "unknown eval_split 'testA'; did you mean 'test'",
        ),
    ],
)
def test_a_dry_run_knows_the_splits(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        dry_run("mine", TrainConfig(**changes))


def test_a_dry_run_looks_for_the_splits_where_the_data_are(tmp_path: Path) -> None:
    shapes = ShapesConfig(train=3, val=1, test_a=1, test_b=1)
    data = DataConfig(data_root=build_shapes(tmp_path / "shapes", shapes, progress=False))
    with pytest.raises(ValueError, match=r"'vall'.*did you mean 'val'"):
        dry_run("mine", TrainConfig(data=data, eval_split="vall"))
    check_splits(TrainConfig(data=data, eval_split="testB"))
    check_splits(TrainConfig(data=DataConfig(name="mine"), eval_split="holdout"))  # not known


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_dry_run_says_what_16_bit_keeps(precision: Any) -> None:
    text = dry_run("mine", TrainConfig(batch_size=1, mixed_precision=precision))
    assert ("about half of the activations in bf16" in text) == (precision == "bf16")


@pytest.mark.slow
def test_a_batch_that_batch_norm_cannot_normalise_is_refused() -> None:
    config = TrainConfig(model="clip_cris_rn50", image_size=32, batch_size=1)
    with pytest.raises(ValueError, match="batch_size 1 leaves BatchNorm layer '"):
        measure_budget(config)
    measure_budget(dataclasses.replace(config, batch_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_budget(name: str) -> None:
    """On a batch of two, which a large one differs from in nothing but memory."""
    budget = measure_budget(dataclasses.replace(get_recipe(name), batch_size=2))
    assert 2 <= budget.forward / budget.plain <= 3.001
    assert budget.step > 2.5 * budget.forward
    assert budget.activations > 0


@pytest.mark.slow
def test_what_makes_a_step_smaller_is_counted() -> None:
    config = TrainConfig(batch_size=8)
    budget = measure_budget(config)
    ways = {way.options: way.needed for way in smaller(config, budget)}
    fixed = budget.weights + budget.gradients + budget.optimizer
    low = measure_budget(dataclasses.replace(config, distill=DistillConfig(low_memory=True)))
    assert ways.pop("--mixed-precision bf16") == fixed + budget.activations / 2
    assert ways.pop("--distill.low-memory") == fixed + low.activations + budget.gradients
    assert ways.pop("--batch-size 4 --accumulate 2") == fixed + budget.activations / 2
    [(together, least)] = ways.items()
    assert together == "--mixed-precision bf16 --distill.low-memory --batch-size 4 --accumulate 2"
    assert least == round(fixed + (low.activations + budget.gradients) / 4)


def test_a_batch_that_does_not_fit_is_refused_with_what_would_help() -> None:
    says = r"batch_size 1000000 needs about \d+\.\d GB, this machine has .*--accumulate 2: \d"
    with pytest.raises(ValueError, match=says):
        check_fits(TrainConfig(batch_size=1_000_000, cpu=True))
    check_fits(TrainConfig(batch_size=512, cpu=True))


@pytest.mark.slow
def test_a_dry_run_offers_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(batch_size=2, cpu=True)
    assert "--accumulate" not in dry_run("mine", config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000000")  # processes that share the memory
    text = dry_run("mine", config)
    assert "this machine has 0.0" in text
    assert "with --batch-size 1 --accumulate 2\n" in text


@pytest.mark.slow
def test_low_memory_needs_less_by_little_more_than_one_host_pass() -> None:
    budgets = {
        low: measure_budget(TrainConfig(distill=DistillConfig(low_memory=low)))
        for low in (False, True)
    }
    assert budgets[True].activations < 0.5 * budgets[False].activations
    assert budgets[True].gradients == 2 * budgets[False].gradients
    assert budgets[True].step == budgets[False].step


@pytest.mark.slow
def test_a_step_is_counted_alike_alone() -> None:
    config = TrainConfig(batch_size=2)
    assert count_step(config) == measure_budget(config).step
