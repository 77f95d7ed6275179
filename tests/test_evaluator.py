"""The evaluator equals plain code that goes sample by sample, for any batch size and process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from masksd.kit.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.survey import spread_indices
from masksd.kit.data.transforms import CLIP_MEAN, CLIP_STD
from masksd.kit.evaluation.reading import gather_rows
from masksd.kit.evaluation.scoring import evaluate, evaluate_all, format_table, score
from masksd.kit.feeding import probabilities_of
from masksd.kit.sources import build_model, open_split
from tests.processes import leave
from tests.scored import make_checkpoint, open_data, write_data

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
        picture = dataset.image(index).resize((64, 64), 2)  # bilinear
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
    means = {"mIoU": np.mean(ious), "gIoU": np.mean(ious)}  # no truth is empty
    overall = {"oIoU": intersection / union, "cIoU": intersection / union}
    return {**means, **overall, **shares, "samples": len(ious)}


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
    with pytest.raises(ValueError, match="workers must be a whole number of at least 0, got -2"):
        evaluate(checkpoint, dataset, workers=-2)
    with pytest.raises(ValueError, match="unknown protocol 'chris'; did you mean 'cris'"):
        score(checkpoint, dataset, protocol="chris")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("small") / "data", pictures=9)


@pytest.mark.parametrize("protocol", ["original", "cris", "lavt"])
def test_sums_are_exact_for_any_batch_and_any_number_of_workers(small: Path, protocol: str) -> None:
    """The model's logits are the same in any batch, so all that is summed must be, too."""
    dataset = open_data(small, "letterbox" if protocol == "cris" else "squash")
    assert len(dataset) == 36  # 32 and 4 in the batches of 32
    one = score(make_checkpoint(), dataset, protocol=protocol, batch_size=1)
    for options in ({"batch_size": 32}, {"batch_size": 32, "workers": 2}, {"workers": 1}):
        other = score(make_checkpoint(), dataset, protocol=protocol, **options)
        assert other == one
    assert 0 < one.scores["all"]["mIoU"] < 1


def test_rows_say_what_was_scored(small: Path) -> None:
    dataset = open_data(small)
    for kind in ("own", "other", "none"):
        found = score(make_checkpoint(), dataset, sentences=kind, limit=5)
        assert [row["index"] for row in found.rows] == spread_indices(36, 5)
        for row in found.rows:
            index = row["index"]
            truth = dataset.truth(index)
            assert dataset.record(index).items() >= {
                (key, row[key])
                for key in ("ref_id", "ann_id", "image_id", "sent_id", "height", "width")
            }
            assert (row["height"], row["width"]) == truth.shape
            assert row["truth_area"] == row["object_area"] == truth.sum()
            assert row["union"] == row["truth_area"] + row["predicted_area"] - row["intersection"]
            assert row["iou"] == row["intersection"] / row["union"]
            told = {"own": dataset.sentence(index), "other": dataset.other_sentence(index)}
            assert row["sentence"] == told.get(kind, "")
        mean = sum(row["iou"] for row in found.rows) / 5
        assert found.scores["all"]["mIoU"] == pytest.approx(mean, abs=1e-11)
        union = sum(row["union"] for row in found.rows)
        overall = sum(row["intersection"] for row in found.rows) / union
        assert found.scores["all"]["oIoU"] == pytest.approx(overall, abs=1e-15)
    at_input = score(make_checkpoint(), dataset, protocol="lavt", limit=5)
    for row in at_input.rows:  # the object counts in the picture's pixels, the rest in the input's
        assert row["object_area"] == dataset.truth(row["index"]).sum()
        assert row["truth_area"] == int(dataset[row["index"]]["target"].sum())


def test_groups_add_up_to_all(small: Path) -> None:
    scores = score(make_checkpoint(), open_data(small)).scores
    for names in (
        ["small object", "medium object", "large object"],
        ["1-2 words", "3-5 words", "6-10 words", "> 10 words"],
    ):
        groups = [scores[name] for name in names if name in scores]
        assert sum(group["samples"] for group in groups) == 36
        mean = sum(group["mIoU"] * group["samples"] for group in groups) / 36
        assert mean == pytest.approx(scores["all"]["mIoU"], abs=1e-9)
    assert {"small object", "> 10 words", "1-2 words"} < scores.keys()


def test_a_damaged_picture_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", pictures=3)
    picture = root / "images" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    texts = []
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"2\.png") as caught:
            score(make_checkpoint(), open_data(root), workers=workers)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]


def test_end_to_end_the_batch_size_moves_the_mean_by_rounding_only(
    checkpoint: Checkpoint, dataset: ReferDataset
) -> None:
    one = score(checkpoint, dataset, batch_size=1).scores["all"]
    many = score(checkpoint, dataset, batch_size=32).scores["all"]
    assert many["mIoU"] == pytest.approx(one["mIoU"], abs=1e-5)


def test_spread_indices_are_distinct_and_cover_the_split() -> None:
    for total in range(1, 30):
        for limit in range(1, 40):
            chosen = spread_indices(total, limit)
            assert len(set(chosen)) == min(total, limit)
            assert chosen == sorted(chosen)
            assert chosen[0] == 0
            assert chosen[-1] < total


def test_probabilities_of_a_constant_are_constant() -> None:
    config = make_checkpoint().config
    probabilities = probabilities_of(config, torch.full((1, 4, 4), 2.0), (7, 9))
    assert probabilities.shape == (7, 9)
    assert torch.allclose(probabilities, torch.tensor(2.0).sigmoid())


def test_a_sample_that_comes_twice_counts_once() -> None:
    first, second = [2, 9, 1, 4, 2, 3], [7, 9, 1, 4, 2, 3]
    assert gather_rows([second, first, second]) == [first, second]


def _evaluate_share(rank: int, folder: str, root: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    loaded = load_checkpoint(f"{folder}/checkpoint")
    dataset = open_split(DataConfig(data_root=Path(root)), "val", loaded.tokenizer, 64)
    scores = {limit: evaluate(loaded, dataset, limit=limit, batch_size=1) for limit in (1, 7)}
    fixed = open_data(Path(folder) / "small")
    exact = [score(make_checkpoint(), fixed, batch_size=size, **options) for size, options in EXACT]
    torch.save((scores, [tuple(each) for each in exact]), f"{folder}/{rank}.pt")
    leave()


# the last batch is uneven on one process or both; of one sample, the other has none
EXACT: list[tuple[int, dict[str, Any]]] = [
    (32, {}),
    (4, {"sentences": "other"}),
    (2, {"limit": 7}),
    (8, {"limit": 1, "sentences": "none"}),
    (3, {"hide": 0.25, "drop_words": 1}),
]


@pytest.mark.slow
def test_two_processes_equal_one(
    checkpoint: Checkpoint, dataset: ReferDataset, root: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    fixed = open_data(write_data(tmp_path / "small", pictures=9))
    torch.multiprocessing.spawn(_evaluate_share, (str(tmp_path), str(root)), nprocs=2)
    for limit in (1, 7):
        one = evaluate(checkpoint, dataset, limit=limit, batch_size=1)
        for rank in range(2):
            scores = torch.load(tmp_path / f"{rank}.pt")[0][limit]
            assert scores == pytest.approx(one, abs=2e-4)
            assert scores["samples"] == limit
    for number, (size, options) in enumerate(EXACT):
        one = score(make_checkpoint(), fixed, batch_size=size, **options)
        for rank in range(2):
            assert torch.load(tmp_path / f"{rank}.pt")[1][number] == tuple(one)
