"""Training with some masks left out and images beside them: which items, and what they change."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.study.plan import multiply_adds
from masksd import CrossModalMaskedSelfDistill, DistillConfig, MaskingConfig
from masksd.kit.checkpoints import load_checkpoint
from masksd.kit.cli.dry_run import dry_run
from masksd.kit.cli.options import checked
from masksd.kit.cli.train import train_command
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.costs.budget import count_items, measure_budget
from masksd.kit.data.selection import choose_refs, count_labels, mislabel
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.feeding import model_inputs
from masksd.kit.randomness import keyed_generator, keyed_randomness, keyed_seed
from masksd.kit.sources import build_model, open_split, open_training, wrap_model
from masksd.kit.training.loop import Batches, JointBatches
from masksd.kit.training.optimizers import build_optimizer
from masksd.kit.training.run import items_of
from masksd.kit.training.trainer import train
from masksd.losses import class_weighted_loss
from tests.test_resume import assert_equal_runs, interrupted, settings

REFS = 13
TOKENIZER = load_tokenizer("shapes", 17)
TEACHER = DistillConfig(target="teacher", teacher_decay=0.9)
KEYS = ("image", "tokens", "target")
BOTH: dict[str, Any] = {"labels": 5, "unlabelled": "shapes", "unlabelled_batch": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = ShapesConfig(train=5, val=2, test_a=1, test_b=1)
    return build_shapes(tmp_path_factory.mktemp("data") / "shapes", shapes, progress=False)


@pytest.fixture(scope="module")
def data(root: Path) -> DataConfig:
    return DataConfig(data_root=root)


def copy_of(root: Path, folder: Path, name: str = "shapes") -> Path:
    """Copy a data set, under another name if wanted, with its pictures."""
    shutil.copytree(root / "images", folder / "images", dirs_exist_ok=True)
    shutil.copytree(root / "shapes", folder / name)
    for index in (folder / name).glob("index*"):
        index.unlink()
    return folder


def opened(config: TrainConfig) -> Any:
    return open_training(config, TOKENIZER, 64)


@given(
    st.integers(1, 60).flatmap(lambda refs: st.tuples(st.just(refs), *[st.integers(1, refs)] * 2)),
    st.integers(0, 2**32),
)
def test_fewer_labels_are_among_more(sizes: tuple[int, int, int], seed: int) -> None:
    refs, one, other = sizes
    few, rest = choose_refs(min(one, other), refs, seed)
    more, _ = choose_refs(max(one, other), refs, seed)
    assert len(few) == min(one, other)
    assert set(few) <= set(more)
    assert sorted([*few, *rest]) == list(range(refs))
    assert list(few) == sorted(few)
    assert list(rest) == sorted(rest)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(1, 1000))
def test_a_share_is_rounded_and_at_least_one(share: float, refs: int) -> None:
    count = count_labels(share, refs)
    assert 1 <= count <= refs
    assert abs(count - share * refs) <= 0.5 or count == 1


def test_seeds_choose_other_refs() -> None:
    assert len({tuple(choose_refs(5, 40, seed)[0]) for seed in range(10)}) == 10


@pytest.mark.parametrize("items", ["refs", "sentences"])
def test_the_parts_have_the_refs_and_expressions_of_the_whole(data: DataConfig, items: Any) -> None:
    config = TrainConfig(data=data, train_items=items, labels=5, unlabelled="shapes", batch_size=2)
    labelled, rest = opened(config)
    whole = open_split(data, "train", TOKENIZER, 64, train_items="sentences")
    sentences: dict[Any, set[str]] = {}
    targets = {}
    for index in range(len(whole)):
        ref = whole.record(index)["ref_id"]
        sentences.setdefault(ref, set()).add(whole.sentence(index))
        targets[ref] = whole[index]["target"]
    order = torch.randperm(REFS, generator=keyed_generator(0, "labels")).tolist()
    ids = list(sentences)
    found: list[set[Any]] = []
    for part, chosen in ((labelled, order[:5]), (rest, order[5:])):
        found.append({part.record(index)["ref_id"] for index in range(len(part))})
        assert found[-1] == {ids[position] for position in chosen}
        said: dict[Any, set[str]] = {}
        for index in range(len(part)):
            ref, item = part.record(index)["ref_id"], part[index]
            said.setdefault(ref, set()).add(part.sentence(index))
            wanted = targets[ref] if part is labelled else torch.zeros_like(targets[ref])
            assert torch.equal(item["target"], wanted)
            assert torch.equal(item["tokens"], TOKENIZER.encode(part.sentence(index)))
        for ref, each in said.items():
            assert each == sentences[ref] if items == "sentences" else each <= sentences[ref]
    assert len(labelled) == 5 or items == "sentences"
    labelled.set_epoch(3)
    assert (labelled.epoch, rest.epoch) == (3, 0)


def test_unlabelled_data_may_be_others(root: Path, data: DataConfig, tmp_path: Path) -> None:
    copy_of(root, copy_of(root, tmp_path), name="more")
    folder = TrainConfig(data=data, unlabelled=str(tmp_path))
    named = TrainConfig(data=DataConfig(data_root=tmp_path), labels=2, unlabelled="more")
    for config in (folder, named):
        labelled, rest = opened(config)
        assert (labelled.refs, rest.refs) == (config.labels or REFS, REFS)
        assert not any(rest[index]["target"].any() for index in range(len(rest)))
        assert rest.image_path(0).parent == tmp_path / "images"
        drawn = [[part.sentence(i) for i in range(REFS)] for part in opened(folder)]
    assert drawn[0] != drawn[1]  # expressions are drawn apart


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(
        size, generator=keyed_generator(seed, "order", epoch)
    ).tolist()
    return order


def test_batches_of_both_kinds_go_through_their_own_epochs(data: DataConfig) -> None:
    labelled, rest = opened(TrainConfig(data=data, **BOTH, batch_size=2))
    seed = keyed_seed(0, "unlabelled")
    batches = [
        JointBatches(
            Batches(labelled, batch_size=2, seed=0, workers=0),
            Batches(rest, batch_size=3, seed=seed, workers=0),
        )
        for _ in range(2)
    ]
    wanted = []
    for epoch in range(3):  # 2 batches of 5 items, 2 of 8
        known, unknown = epoch_order(5, 0, epoch), epoch_order(8, seed, epoch)
        wanted += [known[:2] + unknown[:3], known[2:4] + unknown[3:6]]
    found = [batch for batch, _ in zip(batches[0], wanted, strict=False)]
    assert [batch["index"].tolist() for batch in found] == wanted
    assert all(batch["labelled"].tolist() == [True] * 2 + [False] * 3 for batch in found)
    assert not any(batch["target"][2:].any() for batch in found)
    batches[1].start = 3
    for batch, expected in zip(batches[1], found[3:], strict=False):
        assert all(torch.equal(value, expected[name]) for name, value in batch.items())
    assert len(batches[0]) == 2
    assert items_of(found[:2]) == (
        f"{wanted[0][:2] + wanted[1][:2]} and the unlabelled {wanted[0][2:] + wanted[1][2:]}"
    )


def by_hand(config: TrainConfig) -> dict[str, Tensor]:
    """Train with a plain loop over items that are picked one by one."""
    labelled, rest = opened(config)
    with keyed_randomness(torch.device("cpu")):
        torch.manual_seed(keyed_seed(config.seed, "weights"))
        checkpoint = build_model(config)
        model: Any = checkpoint.model.train()
        sd = wrap_model(model, config.distill, checkpoint.tokenizer)
        optimizer = build_optimizer(sd, model, config)
        schedule = config.schedule_of(2)
        for step in range(schedule.steps):
            epoch, place = divmod(step, 2)
            items = []
            for part, size in ((labelled, 2), (rest, 3)):
                part.set_epoch(epoch)
                order = epoch_order(len(part), part.seed, epoch)
                items += [part[i] for i in order[size * place : size * (place + 1)]]
            images, tokens, masks = (
                torch.stack([item[name] for item in items])
                for name in ("image", "tokens", "target")
            )
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step) * group["scale"]
            torch.manual_seed(keyed_seed(config.seed, "dropout", step + 1, 0))
            flags = torch.tensor([True, True, False, False, False])
            out = sd(
                *model_inputs(checkpoint, images, tokens), target=masks.float(), labelled=flags
            )
            loss = out.loss
            if config.class_weights is not None:
                seg = class_weighted_loss(out.host_output[:2], masks[:2], (0.9, 1.1))
                loss = seg + out.distill_loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sd.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"distill": TEACHER}, {"class_weights": (0.9, 1.1)}],
    ids=["main", "teacher", "class weights"],
)
def test_a_run_is_a_plain_loop_and_unlabelled_masks_change_nothing(
    root: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The second run has other masks for what is unlabelled."""
    copy_of(root, tmp_path / "data")
    data = DataConfig(data_root=tmp_path / "data")
    config = settings(data, tmp_path / "one", **BOTH, **changes, steps=3)
    one = train(config)
    expected = by_hand(config)
    labelled, rest = opened(config)
    hidden = {rest.record(index)["ann_id"] for index in range(len(rest))}
    assert not hidden & {labelled.record(index)["ann_id"] for index in range(len(labelled))}
    path = tmp_path / "data/shapes/instances.json"
    instances = json.loads(path.read_text())
    for annotation in instances["annotations"]:
        if annotation["id"] in hidden:
            annotation["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    path.write_text(json.dumps(instances))
    other = train(dataclasses.replace(config, output=tmp_path / "other"))
    found = load_checkpoint(one.checkpoint).model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert_equal_runs(one, other)
    record = json.loads((one.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert record["losses"].keys() == {"seg", "lmvsd", "vmlsd"}


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_refuses_other_data(root: Path, tmp_path: Path) -> None:
    data, more = (DataConfig(data_root=copy_of(root, tmp_path / name)) for name in ("one", "more"))
    changes: dict[str, Any] = {**BOTH, "unlabelled": str(more.data_root), "distill": TEACHER}
    config = settings(data, tmp_path / "cut", **changes, steps=5)
    whole = train(dataclasses.replace(config, output=tmp_path / "whole"))
    resumed = interrupted(config, 3)
    assert_equal_runs(resumed, whole)
    longer = dataclasses.replace(config, steps=6)
    with pytest.raises(ValueError, match="labels of the run is 5, now 6; leave it as it was"):
        train(dataclasses.replace(longer, labels=6), resume=True, allow=["steps"])
    fewer = dataclasses.replace(longer, unlabelled="shapes")
    match = "unlabelled split 'train' has 8 items, it had 13 when the run was saved"
    with pytest.raises(ValueError, match=match):
        train(fewer, resume=True, allow=["steps", "unlabelled"])
    instances = tmp_path / "more/shapes/instances.json"
    instances.write_text(instances.read_text().replace("shapes_train_", "other_train_"))
    for path in (tmp_path / "more/images").glob("shapes_train_*"):
        path.rename(path.with_name(path.name.replace("shapes", "other")))
    with pytest.raises(ValueError, match="unlabelled split 'train' has other images than when"):
        train(longer, resume=True, allow=["steps"])


def test_without_unlabelled_data_the_wrapper_is_told_nothing(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    forward = CrossModalMaskedSelfDistill.forward

    def noting(sd: Any, *args: Any, **kwargs: Any) -> Any:
        if sd.training:
            told.append(sorted(kwargs))
        return forward(sd, *args, **kwargs)

    monkeypatch.setattr(CrossModalMaskedSelfDistill, "forward", noting)
    train(settings(data, tmp_path / "run", labels=0.5, steps=1, warmup=0))
    assert told == [["target"]]


@pytest.mark.parametrize(("text", "value"), [("25", 25), ("1", 1), ("0.1", 0.1), ("None", None)])
def test_labels_are_a_number_or_a_share_on_the_command_line(text: str, value: object) -> None:
    arguments = ["train", "--labels", text, "--unlabelled", "more", "--unlabelled-batch", "3"]
    given = tyro.cli(train_command(arguments), args=arguments[1:]).settings
    config = checked(TrainConfig(), given)
    assert (config.labels, config.unlabelled, config.unlabelled_batch) == (value, "more", 3)
    assert type(config.labels) is type(value)


@pytest.mark.slow
def test_what_it_costs() -> None:
    """A teacher costs a plain pass for every image; images without masks cost what others do."""
    student = TrainConfig(batch_size=2, steps=10, distill=DistillConfig(text=None))
    distill = DistillConfig(text=None, target="teacher")
    config = dataclasses.replace(student, **BOTH, distill=distill, class_weights=(0.9, 1.1))
    alone, budget = measure_budget(student), measure_budget(config)
    assert (budget.plain, budget.step) == (alone.plain, alone.step + alone.plain)
    assert budget.activations > 2 * alone.activations
    assert multiply_adds(config) == 10 * 5 * budget.step


def test_items_are_counted_with_and_without_masks(data: DataConfig) -> None:
    config = TrainConfig(data=data, **BOTH)
    counts, _ = count_items(config)
    whole, _ = count_items(TrainConfig(data=data))
    assert (counts["refs"], counts["unlabelled refs"]) == (5, REFS - 5)
    assert counts["sentences"] + counts["unlabelled sentences"] == whole["sentences"]
    assert f"8 items, 3 in each pass beside {config.batch_size} with masks" in dry_run("x", config)
    published = TrainConfig(data=DataConfig(name="refcoco"), labels=0.1, unlabelled="refcoco")
    assert count_items(published)[0] == {"refs": 4240, "unlabelled refs": 38_164}


NONE = DistillConfig(image=None, text=None)
HALF = MaskingConfig(samples=0.5)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no mask": ({"labels": 0}, "at least 1, or a share in (0, 1), got 0"),
    "every mask": ({"labels": 1.0}, "at least 1, or a share in (0, 1), got 1.0"),
    "a truth": ({"labels": True}, "at least 1, or a share in (0, 1), got True"),
    "a batch of nothing": ({"unlabelled_batch": 4}, "but there are no unlabelled data"),
    "an empty batch": ({**BOTH, "unlabelled_batch": 0}, "unlabelled_batch must be a whole number"),
    "all labelled": ({"unlabelled": "shapes"}, "labels is None and leaves none out; set labels"),
    "no branch": ({**BOTH, "distill": NONE}, "nothing would learn from it"),
    "truth": ({**BOTH, "distill": DistillConfig(target="ground_truth")}, "needs masks, which"),
    "first half": (
        {**BOTH, "batch_size": 3, "distill": DistillConfig(image=HALF, text=HALF)},
        "the branches see only the first 3 images of a batch, of which 3 are labelled",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_named(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        TrainConfig(**changes)
    assert message in str(caught.value)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "too many": ({"labels": 14}, "labels is 14, but the training split has 13 refs with masks"),
    "too few": (
        {"labels": 1},
        "split 'train' has 1 items with labels=1, one step takes 2; lower --batch-size or raise",
    ),
    "too few others": (
        {**BOTH, "unlabelled_batch": 9},
        "unlabelled 'shapes' has 8 items, one step takes 9; lower --unlabelled-batch",
    ),
    "no such data": (
        {"unlabelled": "shapez"},
        "unlabelled 'shapez' is neither a data set in the root of the training data ('shapes') nor",
    ),
    "ranked by truth": (
        {**BOTH, "distill": DistillConfig(image=MaskingConfig(relevance="ground_truth"))},
        "ranks by masks that unlabelled samples do not have",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_the_data_do_not_have_is_named_before_anything_is_written(
    data: DataConfig, tmp_path: Path, name: str
) -> None:
    changes, message = MISFITS[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        train(settings(data, tmp_path / "run", **changes))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_wrong_masks_are_of_the_same_image_and_nested(seed, one, other):
    less, more = sorted((one, other))
    images = np.repeat(np.arange(6), [1, 2, 3, 4, 2, 3])
    objects = np.arange(100, 100 + len(images))
    objects[4] = objects[3]  # two refs of one object
    few, many = (mislabel(images, objects, share, seed) for share in (less, more))
    owner = dict(zip(objects.tolist(), images.tolist(), strict=True))
    for share, found in ((less, few), (more, many)):
        assert [owner[each] for each in found.tolist()] == images.tolist()
        assert share > 0 or (found == objects).all()
    changed = few != objects
    assert (few[changed] == many[changed]).all()
    assert few[0] == objects[0]  # alone in its image


def test_about_the_share_is_wrong():
    images = np.repeat(np.arange(1000), 3)
    wrong = mislabel(images, np.arange(3000), 0.4, seed=1) != np.arange(3000)
    assert 0.35 < wrong.mean() < 0.45


@pytest.mark.parametrize("labels", [None, 8])
def test_wrong_masks_reach_the_training_items(data, labels):
    """With all masks or some of them: every object that has a neighbour shows the neighbour's."""
    config = TrainConfig(data=data, labels=labels, seed=4)
    clean, wrong = (
        open_training(dataclasses.replace(config, label_noise=share), TOKENIZER, 64)[0]
        for share in (0.0, 1.0)
    )
    assert len(clean) == len(wrong) == (labels or REFS)
    same = [bool((clean.truth(i) == wrong.truth(i)).all()) for i in range(len(clean))]
    assert not all(same)
    assert [clean.record(i)["image_id"] for i in range(len(clean))] == [
        wrong.record(i)["image_id"] for i in range(len(wrong))
    ]
