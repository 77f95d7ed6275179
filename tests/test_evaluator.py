"""The evaluator equals plain code that goes sample by sample, for any batch size and process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from masksd.data.refer import ReferDataset
from masksd.data.shapes import ShapesConfig, build_shapes
from masksd.data.transforms import CLIP_MEAN, CLIP_STD
from masksd.engine.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from masksd.engine.config import DataConfig, TrainConfig
from masksd.engine.evaluator import (
    evaluate,
    evaluate_all,
    format_table,
    spread_indices,
)
from masksd.engine.feeding import resize_probabilities
from masksd.engine.sources import build_model, open_split
from tests.processes import leave

THRESHOLD = 0.1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = ShapesConfig(train=1, val=3, test_a=1, test_b=1)
    return build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fresh = build_model(TrainConfig(dropout=0.5, threshold=THRESHOLD))
        for parameter in fresh.model.decoder.parameters():  # untrained logits hardly vary
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return fresh


@pytest.fixture(scope="module")
def dataset(root: Path, checkpoint: Checkpoint) -> ReferDataset:
    return open_split(DataConfig(data_root=root), "val", checkpoint.tokenizer, 64)


def plain_scores(checkpoint: Checkpoint, dataset: ReferDataset, kind: str) -> dict[str, float]:
    """Score one sample after the other, written out."""
    model = checkpoint.model.eval()
    ious, intersection, union = [], 0, 0
    for index in range(len(dataset)):
        picture = dataset.picture(index).resize((64, 64), 2)  # bilinear
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        words = {
            "own": dataset.sentence(index),
            "other": dataset.other_sentence(index),
            "none": "",
        }[kind]
        with torch.no_grad():
            logits = model((image - mean) / std, checkpoint.tokenizer.encode(words)[None])
        truth = dataset.truth(index).astype(bool)
        resized = torch.nn.functional.interpolate(
            logits, size=truth.shape, mode="bilinear", align_corners=False
        )
        found = (torch.sigmoid(resized) > THRESHOLD)[0, 0].numpy()
        both, either = (found & truth).sum(), (found | truth).sum()
        ious.append(both / either)
        intersection, union = intersection + both, union + either
    shares = {f"Pr@{t / 10}": np.mean([iou > t / 10 for iou in ious]) for t in range(5, 10)}
    return {"mIoU": np.mean(ious), "oIoU": intersection / union, **shares, "samples": len(ious)}


@pytest.mark.parametrize("kind", ["own", "other", "none"])
def test_scores_equal_plain_code(checkpoint: Checkpoint, dataset: ReferDataset, kind: str) -> None:
    expected = plain_scores(checkpoint, dataset, kind)
    assert 0 < expected["mIoU"] < 1
    checkpoint.model.train()  # dropout is 0.5: evaluation must turn it off, and on again
    scores = evaluate(checkpoint, dataset, sentences=kind, batch_size=5)
    assert checkpoint.model.training
    assert scores == pytest.approx(expected, abs=2e-4)


def test_batch_size_does_not_matter_and_kinds_differ(
    checkpoint: Checkpoint, dataset: ReferDataset
) -> None:
    rows = evaluate_all(checkpoint, dataset, batch_size=7)
    assert rows["own"] == pytest.approx(evaluate(checkpoint, dataset, batch_size=2), abs=2e-4)
    assert len({row["oIoU"] for row in rows.values()}) == 3
    table = format_table(rows).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [
        "the right sentence",
        "another object's sentence",
        "no sentence",
    ]
    assert len({len(line) for line in table}) == 1


def test_limit_and_threshold(checkpoint: Checkpoint, dataset: ReferDataset) -> None:
    assert evaluate(checkpoint, dataset, limit=4)["samples"] == 4
    everything = evaluate(checkpoint, dataset, threshold=0.0)
    shares = [dataset.truth(index).mean() for index in range(len(dataset))]
    assert everything["mIoU"] == pytest.approx(np.mean(shares))
    assert evaluate(checkpoint, dataset, threshold=1.0)["mIoU"] == 0.0


def test_wrong_options_are_named(checkpoint: Checkpoint, dataset: ReferDataset) -> None:
    with pytest.raises(ValueError, match="did you mean 'other'"):
        evaluate(checkpoint, dataset, sentences="others")
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0, 1\], got 35"):
        evaluate(checkpoint, dataset, threshold=35)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        evaluate(checkpoint, dataset, batch_size=0)
    with pytest.raises(ValueError, match="limit must be a whole number of at least 0, got -1"):
        evaluate(checkpoint, dataset, limit=-1)


def test_spread_indices_are_distinct_and_cover_the_split() -> None:
    for total in range(1, 30):
        for limit in range(1, 40):
            chosen = spread_indices(total, limit)
            assert len(set(chosen)) == min(total, limit)
            assert chosen == sorted(chosen)
            assert chosen[0] == 0
            assert chosen[-1] < total


def test_probabilities_of_a_constant_are_constant() -> None:
    probabilities = resize_probabilities(torch.full((1, 4, 4), 2.0), (7, 9))
    assert probabilities.shape == (7, 9)
    assert torch.allclose(probabilities, torch.tensor(2.0).sigmoid())


def _evaluate_share(rank: int, folder: str, root: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    loaded = load_checkpoint(f"{folder}/checkpoint")
    dataset = open_split(DataConfig(data_root=Path(root)), "val", loaded.tokenizer, 64)
    scores = {limit: evaluate(loaded, dataset, limit=limit, batch_size=1) for limit in (1, 7)}
    torch.save(scores, f"{folder}/{rank}.pt")
    leave()


def test_two_processes_equal_one(
    checkpoint: Checkpoint, dataset: ReferDataset, root: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    torch.multiprocessing.spawn(_evaluate_share, (str(tmp_path), str(root)), nprocs=2)
    for limit in (1, 7):
        one = evaluate(checkpoint, dataset, limit=limit, batch_size=1)
        for rank in range(2):
            scores = torch.load(tmp_path / f"{rank}.pt")[limit]
            assert scores == pytest.approx(one, abs=2e-4)
            assert scores["samples"] == limit
