"""Relevance recall equals counting by hand, and knows what chance is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from masksd import DistillConfig, MaskingConfig
from masksd.config import PRESETS
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.transforms import normalize
from masksd.kit.evaluation.recall import _image_config, on_pixels, relevance_recall, top_patches
from masksd.kit.sources import build_model, open_split


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = ShapesConfig(train=1, val=3, test_a=1, test_b=1)
    return build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)


def fresh(relevance: str, top_k: float = 0.3, model: str = "clip_cris_tiny") -> Checkpoint:
    image = MaskingConfig(top_k=top_k, ratio=0.25, relevance=relevance)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(TrainConfig(model=model, distill=DistillConfig(image=image)))


def test_recall_of_a_known_relevance_equals_counting(root: Path) -> None:
    checkpoint = fresh("ground_truth")
    size = checkpoint.config.image_size
    dataset = open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, size)
    side = 8  # 64 pixels in patches of 8
    keep = math.ceil(0.3 * side * side)
    shares, inside, total = [], 0, 0
    for index in range(len(dataset)):
        truth = dataset[index]["target"].tolist()
        cells = {
            (row, column): sum(
                truth[y][x]
                for y in range(row * 8, row * 8 + 8)
                for x in range(column * 8, column * 8 + 8)
            )
            for row in range(side)
            for column in range(side)
        }
        best = sorted(cells.values(), reverse=True)[:keep]
        shares.append(sum(best) / sum(cells.values()))
        inside, total = inside + sum(best), total + sum(cells.values())
    modes = [part.training for part in checkpoint.model.modules()]
    found = relevance_recall(checkpoint, dataset, batch_size=4)
    assert found["recall"] == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert found["overall"] == pytest.approx(inside / total, abs=1e-12)
    assert found["chance"] == keep / side**2
    assert found["samples"] == len(dataset)
    assert [part.training for part in checkpoint.model.modules()] == modes
    assert not any(part._forward_hooks for part in checkpoint.model.modules())
    assert relevance_recall(checkpoint, dataset, batch_size=3, workers=1) == found


def test_the_sign_is_that_of_the_relevance(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth ranks its own patches first; its opposite ranks them last."""
    checkpoint = fresh("ground_truth", 0.5)
    size = checkpoint.config.image_size
    dataset = open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, size)
    assert relevance_recall(checkpoint, dataset)["recall"] > 0.99

    def opposite(relevance: torch.Tensor, config: DistillConfig) -> torch.Tensor:
        return top_patches(-relevance, config)

    monkeypatch.setattr("masksd.kit.evaluation.recall.top_patches", opposite)
    assert relevance_recall(checkpoint, dataset)["recall"] < 0.01


def test_recall_of_the_dot_product_equals_computing_it_from_the_towers(root: Path) -> None:
    checkpoint = fresh("dot", 0.5)
    config = checkpoint.config
    dataset = open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, config.image_size)
    encoder = checkpoint.model.eval().encoder
    shares = []
    for index in range(len(dataset)):
        item = dataset[index]
        with torch.no_grad():
            picture = normalize(item["image"][None], config.mean, config.std)
            patches = encoder.encode_image(picture).local[0].tolist()
            words = encoder.encode_text(item["tokens"][None]).pooled[0].tolist()
        scores = [sum(p * w for p, w in zip(patch, words, strict=True)) for patch in patches]
        best = sorted(range(64), key=lambda patch: -scores[patch])[:32]
        truth = item["target"]
        inside = sum(
            int(truth[p // 8 * 8 : p // 8 * 8 + 8, p % 8 * 8 : p % 8 * 8 + 8].sum()) for p in best
        )
        shares.append(inside / int(truth.sum()))
    found = relevance_recall(checkpoint, dataset)
    assert found["recall"] == pytest.approx(sum(shares) / len(shares), abs=0.01)


@pytest.mark.parametrize("model", ["clip_cris_tiny", "lavt_tiny"])
def test_a_relevance_that_knows_nothing_is_near_chance(root: Path, model: str) -> None:
    checkpoint = fresh("random", 0.5, model)
    size = checkpoint.config.image_size
    dataset = open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, size)
    found = relevance_recall(checkpoint, dataset)
    assert found["chance"] == 0.5
    assert abs(found["recall"] - 0.5) < 0.25


def test_patches_cover_pixels_where_the_grid_does_not_divide_the_input() -> None:
    patches = torch.tensor([True, False, False] * 3)
    pixels = on_pixels(patches, 7)
    assert pixels.shape == (7, 7)
    assert (pixels.sum(dim=1) == 3).all()  # columns 0 to 2 of 7


def test_top_patches_are_the_filter_of_the_method() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.3, 0.2, 0.0]])
    config = DistillConfig(image=MaskingConfig(top_k=0.41, selection="top"))
    assert top_patches(scores, config).tolist() == [[True, False, True, True, False]]


def test_checkpoints_that_rank_no_patches_are_refused(root: Path) -> None:
    checkpoint = fresh("random")
    dataset = open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, 64)
    for distill, message in (
        (None, "without an image branch"),
        ({**(checkpoint.config.distill or {}), "image": None}, "without an image branch"),
    ):
        config = dataclasses.replace(checkpoint.config, distill=distill)
        with pytest.raises(ValueError, match=message):
            relevance_recall(checkpoint._replace(config=config), dataset)
    learned = dataclasses.asdict(DistillConfig(image=MaskingConfig(relevance="projection")))
    config = dataclasses.replace(checkpoint.config, distill=learned)
    with pytest.raises(ValueError, match="a learned projection, which checkpoints do not hold"):
        relevance_recall(checkpoint._replace(config=config), dataset)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        relevance_recall(checkpoint, dataset, batch_size=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_leaves_its_branch_of_patches(name: str) -> None:
    checkpoint = build_model(TrainConfig(distill=DistillConfig.preset(name)))
    assert _image_config(checkpoint).image == DistillConfig.preset(name).image
