"""Hidden cells and missing words: drawn by the index alone, nested, and scored beside the whole."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.kit.checkpoints import save_checkpoint
from masksd.kit.cli import main
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.records import DataError
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.data.shapes.build import draw_sample
from masksd.kit.data.shapes.missing_words import droppable_words, names_one, read_words
from masksd.kit.data.shapes.scenes import COLORS, KINDS, SIZES, TEXTURES, SceneObject
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data.transforms import CLIP_MEAN
from masksd.kit.evaluation.perturbation import Perturbation, hidden_cells
from masksd.kit.evaluation.reading import choose_sentences, scoring_batches
from masksd.kit.evaluation.report_folder import check_report_place
from masksd.kit.evaluation.scoring import Evaluation, pair_with, score
from masksd.kit.evaluation.settings import EvaluateConfig
from masksd.kit.feeding import model_inputs
from masksd.kit.scores.report import read_report, read_samples
from masksd.kit.sources import build_model
from tests.scored import SIZE, make_checkpoint, open_data, write_data

SHARES = st.floats(0, 1)
INDICES = st.integers(0, 2**40)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    return open_data(write_data(tmp_path_factory.mktemp("small") / "data"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ShapesConfig(level="medium", train=1, val=6, test_a=1, test_b=1)
    return build_shapes(tmp_path_factory.mktemp("shapes") / "data", config, progress=False)


def open_shapes(root: Path, text: str = "sent") -> ReferDataset:
    return ReferDataset(
        root,
        "shapes",
        "val",
        split_by="masksd",
        tokenizer=load_tokenizer("shapes", 17),
        image_size=SIZE,
        text=text,
    )


@given(INDICES, SHARES, SHARES)
def test_as_many_cells_as_asked_for_are_hidden_and_they_are_nested(
    index: int, a: float, b: float
) -> None:
    few, many = (hidden_cells(index, share) for share in sorted((a, b)))
    assert bool((few <= many).all())
    for share in (a, b):
        count = int(hidden_cells(index, share).sum())
        assert count - 0.5 <= 64 * share < count + 0.5
    assert torch.equal(hidden_cells(index, a), hidden_cells(index, a))


def test_items_differ_and_every_cell_is_hidden_now_and_then() -> None:
    drawn = torch.stack([hidden_cells(index, 0.25) for index in range(400)])
    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 400
    shares = drawn.float().mean(0)
    assert 0.15 < float(shares.min()) <= float(shares.max()) < 0.35


@pytest.mark.parametrize("size", [8, 32, 60, 97])
def test_cells_of_the_image_by_loops(size: int) -> None:
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    before = image.clone()
    found = Perturbation(0.3, 0, CLIP_MEAN).hide_cells(image, 5)
    cells = hidden_cells(5, 0.3)
    assert int(cells.sum()) == 19  # 19.2
    for y in range(size):
        for x in range(size):
            hidden = cells[math.floor(8 * y / size), math.floor(8 * x / size)]
            expected = [123, 117, 104] if hidden else before[:, y, x].tolist()
            assert found[:, y, x].tolist() == expected
    assert torch.equal(image, before)


def test_what_is_hidden_is_zero_to_the_model_and_the_truth_is_whole(small: ReferDataset) -> None:
    chosen = choose_sentences(small, "own", 0)
    checkpoint = build_model(TrainConfig())
    perturbation = Perturbation(0.5, 0, checkpoint.config.mean)
    whole = list(scoring_batches(small, chosen, batch_size=4))
    harder = list(scoring_batches(small, chosen, perturbation=perturbation, batch_size=4))
    for before, after in zip(whole, harder, strict=True):
        assert before.indices == after.indices
        assert torch.equal(before.tokens, after.tokens)
        assert torch.equal(before.targets, after.targets)
        for a, b in zip(before.truths, after.truths, strict=True):
            assert np.array_equal(a, b)
        normalized = model_inputs(checkpoint, after.images, after.tokens)[0]
        for row, index in enumerate(after.indices):
            hidden = hidden_cells(index, 0.5).repeat_interleave(4, 0).repeat_interleave(4, 1)
            # half a step of 8 bits, in deviations
            assert float(normalized[row][:, hidden].abs().max()) < 0.5 / 255 / 0.26
            assert torch.equal(after.images[row][:, ~hidden], before.images[row][:, ~hidden])


def test_nothing_hidden_and_no_word_dropped_are_the_clean_scores(small: ReferDataset) -> None:
    for kind in ("own", "other", "none"):
        clean = score(make_checkpoint(), small, sentences=kind)
        assert score(make_checkpoint(), small, sentences=kind, hide=0, drop_words=0) == clean


@pytest.mark.parametrize("sentences", ["own", "other", "none"])
@pytest.mark.parametrize("data", ["small", "shapes"])
def test_batch_size_and_workers_do_not_matter(
    small: ReferDataset, root: Path, data: str, sentences: str
) -> None:
    dataset = small if data == "small" else open_shapes(root)
    harder = {"hide": 0.25, "drop_words": 1, "sentences": sentences}
    one = score(make_checkpoint(), dataset, batch_size=1, **harder)
    for options in ({"batch_size": 32}, {"batch_size": 5, "workers": 2}):
        assert score(make_checkpoint(), dataset, **options, **harder) == one
    clean = score(make_checkpoint(), dataset, sentences=sentences)
    assert one.scores != clean.scores
    assert len(one.rows) <= len(clean.rows)


def test_a_limit_does_not_move_what_is_hidden_or_dropped(small: ReferDataset) -> None:
    every = score(make_checkpoint(), small, hide=0.4, drop_words=1)
    some = score(make_checkpoint(), small, hide=0.4, drop_words=1, limit=7)
    assert 0 < len(some.rows) <= 7
    assert all(row in every.rows for row in some.rows)


@given(st.integers(0, 19), st.integers(0, 6), st.integers(0, 6))
def test_words_are_nested_and_one_stays(
    small: ReferDataset, index: int, fewer: int, more: int
) -> None:
    fewer, more = sorted((fewer, more))
    before = {index: small.sentence(index)}
    kept = []
    for count in (0, fewer, more):
        found = Perturbation(0, count).shorten(small, before)
        words = before[index].split()
        assert (index in found) == (len(words) > count)
        if found:
            kept.append(found[index].split())
            assert len(kept[-1]) == len(words) - count
    for longer, shorter in pairwise(kept):
        assert is_part(shorter, longer)


def is_part(shorter: Sequence[str], longer: Sequence[str]) -> bool:
    """Whether the words come in the other sentence, in order."""
    rest: Iterator[str] = iter(longer)
    return all(word in rest for word in shorter)


def test_rows_say_the_sentence_that_was_given_and_pair_with_the_whole(small: ReferDataset) -> None:
    clean = score(make_checkpoint(), small)
    found = score(make_checkpoint(), small, drop_words=1)
    pairs = pair_with(found, clean, small)
    assert [row["index"] for row in pairs.rows] == [row["index"] for row in found.rows]
    assert all(row in clean.rows for row in pairs.rows)
    assert {row["sentence"] for row in clean.rows} - {row["sentence"] for row in pairs.rows} == {
        "red"
    }
    for row, whole in zip(found.rows, pairs.rows, strict=True):
        assert len(row["sentence"].split()) == len(whole["sentence"].split()) - 1
        assert row["truth_area"] == whole["truth_area"]
    mean = sum(row["iou"] for row in pairs.rows) / len(pairs.rows)
    assert pairs.scores["all"]["mIoU"] == pytest.approx(mean, abs=1e-11)
    assert pair_with(clean, clean, small) == clean == Evaluation(clean.scores, clean.rows)


def test_values_out_of_range_are_named(small: ReferDataset) -> None:
    for hide in (-0.1, 1.5, math.nan, True):
        with pytest.raises(ValueError, match=r"hide must be a number in \[0, 1\], got "):
            score(make_checkpoint(), small, hide=hide)
    for words in (-1, 1.0):
        with pytest.raises(ValueError, match="drop_words must be a whole number of at least 0"):
            EvaluateConfig(Path("x"), drop_words=words)
    with pytest.raises(ValueError, match="drop_words is 50, but no sentence can lose so many"):
        score(make_checkpoint(), small, drop_words=50)


# What a sentence of shapes names, from its words alone, written out once more.


def named(words: Sequence[str], objects: Sequence[SceneObject], relational: bool) -> set[int]:
    """Find what a shortened sentence names; of a relational one, two words are there."""
    looks = {*KINDS, *COLORS, *SIZES, *TEXTURES}
    end = next((at for at, word in enumerate(words) if word in KINDS), len(words))
    first = [
        word for at, word in enumerate(words) if word in looks and (at <= end or not relational)
    ]
    second = [word for at, word in enumerate(words) if word in looks and at > end]
    alike = [each for each in objects if looks_like(each, first)]
    if len(alike) == 1:
        return {objects.index(alike[0])}
    where = [word for word in words if word in DIRECTIONS]
    if not where:
        return {objects.index(each) for each in alike}
    direction = DIRECTIONS[where[0]]
    if not relational:
        (dx, dy) = direction
        reach = sorted(
            ((each.x - 0.5) * dx + (each.y - 0.5) * dy, n) for n, each in enumerate(alike)
        )
        clear = reach[-1][0] > 0.02 and reach[-1][0] - reach[-2][0] >= 0.07
        return {objects.index(alike[reach[-1][1]])} if clear else set()
    anchors = [each for each in objects if looks_like(each, second)]
    if len(anchors) != 1:
        return set()
    others = [each for each in alike if each is not anchors[0]]
    if direction is None:
        away = sorted(
            (math.dist((a.x, a.y), (anchors[0].x, anchors[0].y)), n) for n, a in enumerate(others)
        )
        clear = away[0][0] < 0.45 and (len(away) == 1 or away[1][0] >= 1.4 * away[0][0])
        return {objects.index(others[away[0][1]])} if clear else set()
    (dx, dy) = direction
    side = [
        each for each in others if (each.x - anchors[0].x) * dx + (each.y - anchors[0].y) * dy > 0
    ]
    if len(side) != 1:
        return set()
    x, y = side[0].x - anchors[0].x, side[0].y - anchors[0].y
    along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
    return {objects.index(side[0])} if along > max(0.07, across) else set()


DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "above": (0, -1),
    "below": (0, 1),
    "next": None,
    "near": None,
}


def looks_like(each: SceneObject, words: Sequence[str]) -> bool:
    return {*words} <= {each.kind, each.color, each.size, each.texture}


def allowed(
    words: Sequence[str], missing: Sequence[int], target: int, objects: Sequence[SceneObject]
) -> bool:
    nouns = [at for at, word in enumerate(words) if word in KINDS]
    kept = [word for at, word in enumerate(words) if at not in missing]
    if len(nouns) == 2 and (nouns[0] in missing or not DIRECTIONS.keys() & {*kept}):
        return False
    return named(kept, objects, relational=len(nouns) == 2) == {target}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["easy", "medium", "hard"]),
    st.sampled_from(["", "+", "g"]),
    st.integers(0, 500),
    st.randoms(use_true_random=False),
)
def test_as_many_words_of_shapes_are_dropped_as_can_be(level, variant, index, random) -> None:
    config = ShapesConfig(level=level, variant=variant)
    sample = draw_sample(config, "val", index)
    objects = sample.scene.objects
    for target, found in sample.expressions.items():
        for expression, sentence in found:
            words = sentence.split()
            assert read_words(words) == expression
            order = list(range(len(words)))
            random.shuffle(order)
            drop = droppable_words(config, f"shapes_val_{index:06d}.jpg", sentence, order)
            assert [at for at in order if at in drop] == drop
            for count in range(len(drop) + 1):  # nested, and each of them names one object
                assert allowed(words, drop[:count], target, objects)
            sizes = range(len(words) + 1) if len(words) <= 8 else [len(drop) + 1]
            for size in sizes:
                for missing in combinations(range(len(words)), size):
                    fits = allowed(words, missing, target, objects)
                    assert fits == names_one(words, missing, target, objects)
                    assert not (fits and size > len(drop))


def test_the_scene_of_a_picture_is_the_one_that_was_drawn(root: Path) -> None:
    """The object that a shortened sentence names is the one of the truth."""
    dataset = open_shapes(root)
    config = ShapesConfig(level="medium")
    clean = score(make_checkpoint(), dataset)
    found = score(make_checkpoint(), dataset, drop_words=1)
    assert 0 < len(found.rows) < len(clean.rows) == len(dataset)
    for row in found.rows:
        index = row["index"]
        objects = draw_sample(config, "val", int(dataset.image_path(index).stem[-6:])).scene.objects
        whole, shorter = dataset.sentence(index).split(), row["sentence"].split()
        assert len(shorter) == len(whole) - 1
        assert is_part(shorter, whole)
        relational = sum(word in KINDS for word in whole) == 2
        (target,) = named(shorter, objects, relational)
        rows, columns = np.nonzero(dataset.truth(index))
        size = dataset.record(index)["height"]
        centre = (columns.mean() / size, rows.mean() / size)
        distances = [math.dist(centre, (each.x, each.y)) for each in objects]
        assert distances.index(min(distances)) == target


def test_sentences_as_written_lose_the_same_words(root: Path) -> None:
    cleaned, raw = (
        score(make_checkpoint(), open_shapes(root, text), drop_words=1) for text in ("sent", "raw")
    )
    assert [row["index"] for row in raw.rows] == [row["index"] for row in cleaned.rows]
    for a, b in zip(raw.rows, cleaned.rows, strict=True):
        assert a["sentence"].lower().rstrip(".") == b["sentence"]


def test_shapes_that_their_manifest_does_not_lead_to_are_refused(
    root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = copy / "shapes" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["seed"] = 5
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="manifest of this shapes data set does not lead to"):
        score(make_checkpoint(), open_shapes(copy), drop_words=1)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        score(make_checkpoint(), open_shapes(copy), drop_words=1)
    path.unlink()  # a data set like any other: words are dropped whatever they leave
    found = score(make_checkpoint(), open_shapes(copy), drop_words=1)
    assert len(found.rows) > len(score(make_checkpoint(), open_shapes(root), drop_words=1).rows)


def test_the_command_prints_and_writes_scores_beside_the_clean_ones(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = build_model(TrainConfig(data=DataConfig(data_root=root)))
    save_checkpoint(tmp_path / "one", checkpoint)
    run = ["evaluate", "--cpu", "--no-progress", "--checkpoint", str(tmp_path / "one")]
    assert main(run) == 0
    clean = capsys.readouterr().out.splitlines()
    harder = ["--hide", "0.25", "--drop-words", "1", "--output"]
    assert main([*run, *harder, str(tmp_path / "a")]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out.splitlines()
    titles = [line[: line.index("  ")] for line in printed[2:10]]
    assert titles == [
        "the right sentence",
        "the right sentence, 25% hidden, 1 word dropped",
        "the right sentence, the same samples unchanged",
        "another object's sentence",
        "another object's sentence, 25% hidden, 1 word dropped",
        "another object's sentence, the same samples unchanged",
        "no sentence",
        "no sentence, 25% hidden",
    ]
    for old, new in zip(clean[2:], (printed[2], printed[5], printed[8]), strict=True):
        assert old.split() == new.split()
    fields = read_report(tmp_path / "a")
    assert (fields["hide"], fields["drop_words"]) == (0.25, 1)
    total = fields["scores"]["own"]["all"]["samples"]
    kept = fields["scores"]["own-perturbed"]["all"]["samples"]
    assert kept == fields["scores"]["own-paired"]["all"]["samples"] < total
    note = (
        f"sentences: own; {total - kept} of {total} cannot lose 1 word and are left out where "
        "words are dropped"
    )
    assert note in printed
    text = (tmp_path / "a" / "report.md").read_text()
    assert note in text
    assert "## Sentences: own, 25% hidden, 1 word dropped\n" in text
    pairs = (
        read_samples(tmp_path / "a", "own-perturbed"),
        read_samples(tmp_path / "a", "own-paired"),
    )
    for one, two in zip(*pairs, strict=True):
        assert one["sent_id"] == two["sent_id"]
        assert is_part(one["sentence"].split(), two["sentence"].split())
    check_report_place(tmp_path / "a", overwrite=True)  # all files in it are of a report
    compare = ["--compare", str(tmp_path / "a"), str(tmp_path / "a"), "--sentences", "own"]
    assert main(["evaluate", *compare]) == 0  # by its clean scores
    assert f"{total} samples on" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--hide", "1.5"), ("--drop-words", "-1")])
def test_the_command_names_an_option_out_of_range(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *option]) == 2
    name = option[0][2:].replace("-", "_")
    assert f"masksd: error: {name} must be " in capsys.readouterr().err
