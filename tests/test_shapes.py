"""The shapes data set: its words are true, its layouts are kept apart, its files are repeatable."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from masksd.kit.data.shapes.build import Sample, ShapesConfig, build_shapes, draw_sample
from masksd.kit.data.shapes.drawing import draw_image, visible_masks
from masksd.kit.data.shapes.expressions import (
    PLACES,
    Expression,
    referents,
    shapes_vocabulary,
    unambiguous,
)
from masksd.kit.data.shapes.scenes import (
    COLORS,
    KINDS,
    LEVELS,
    REFERRED_KINDS,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    SceneObject,
    layout_signature,
    layout_split,
)

COUNT = 60
EVERY = [(level, variant) for level in LEVELS for variant in ("", "+", "g")]
TINY = ShapesConfig(train=4, val=2, test_a=2, test_b=2)


def samples(level: str, variant: str = "") -> Iterator[tuple[str, Sample]]:
    config = ShapesConfig(level=level, variant=variant)
    for split in SPLITS:
        for index in range(COUNT if split == "train" else COUNT // 3):
            yield split, draw_sample(config, split, index)


# -- an independent reading of the sentences: from the words alone, with the plainest rules --------


def read_attributes(words: Sequence[str]) -> dict[str, str]:
    named = {"kind": KINDS, "color": COLORS, "size": SIZES, "texture": TEXTURES}
    return {key: word for word in words for key, known in named.items() if word in known}


def fitting(attributes: dict[str, str], objects: Sequence[SceneObject]) -> list[int]:
    return [
        index
        for index, each in enumerate(objects)
        if all(getattr(each, key) == value for key, value in attributes.items())
    ]


def understand(sentence: str, objects: Sequence[SceneObject]) -> int:
    """The object a plain listener points at."""
    words = sentence.split()
    nouns = [position for position, word in enumerate(words) if word in KINDS]
    among = fitting(read_attributes(words[: nouns[0] + 1]), objects)
    if len(nouns) == 2:
        (anchor,) = fitting(read_attributes(words[nouns[0] + 1 :]), objects)
        here = objects[anchor]
        among = [index for index in among if index != anchor]
        between = words[nouns[0] : nouns[1]]
        if "near" in between or "next" in between:
            return min(
                among,
                key=lambda index: math.dist((objects[index].x, objects[index].y), (here.x, here.y)),
            )
        if "left" in between:
            (found,) = [index for index in among if objects[index].x < here.x]
        elif "right" in between:
            (found,) = [index for index in among if objects[index].x > here.x]
        elif "above" in between:
            (found,) = [index for index in among if objects[index].y < here.y]
        else:
            assert "below" in between
            (found,) = [index for index in among if objects[index].y > here.y]
        return found
    said = [place for place in PLACES if place in words]
    if said:
        sign = -1 if said[0] in ("left", "top") else 1
        axis = "x" if said[0] in ("left", "right") else "y"
        return max(among, key=lambda index: sign * getattr(objects[index], axis))
    (found,) = among
    return found


@pytest.mark.parametrize(("level", "variant"), EVERY)
def test_every_sentence_means_its_object_and_no_other(level: str, variant: str) -> None:
    for _, sample in samples(level, variant):
        objects = sample.scene.objects
        for target, found in sample.expressions.items():
            for expression, sentence in found:
                assert unambiguous(expression, target, objects)
                assert understand(sentence, objects) == target


@pytest.mark.parametrize(("level", "variant"), EVERY)
def test_words_and_lengths(level: str, variant: str) -> None:
    vocabulary = set(shapes_vocabulary())
    place_words = {*PLACES, "above", "below", "side", "edge"}
    for _, sample in samples(level, variant):
        for found in sample.expressions.values():
            sentences = [sentence for _, sentence in found]
            assert len(set(sentences)) == len(sentences) in (2, 3)
            for sentence in sentences:
                words = sentence.split()
                assert set(words) <= vocabulary
                # 17 tokens are the paper's for RefCOCO and RefCOCO+, 22 for G-Ref
                assert len(words) <= (20 if variant == "g" else 15)
                assert variant != "g" or len(words) >= 7
                assert variant != "+" or not place_words & set(words)


def test_vocabulary_is_used() -> None:
    used = {
        word
        for level, variant in EVERY
        for _, sample in samples(level, variant)
        for found in sample.expressions.values()
        for _, sentence in found
        for word in sentence.split()
    }
    assert used == set(shapes_vocabulary())


@pytest.mark.parametrize("level", LEVELS)
def test_layouts_are_kept_apart(level: str) -> None:
    seen: dict[object, str] = {}
    for seed in (0, 1):
        for split in SPLITS:
            for index in range(COUNT):
                scene = draw_sample(ShapesConfig(level=level, seed=seed), split, index).scene
                assert layout_split(scene) == split
                assert seen.setdefault(layout_signature(scene), split) == split


def test_layout_signature_forgets_looks_and_order() -> None:
    one = SceneObject("star", "red", "big", "plain", 0.2, 0.3, 0.07)
    two = SceneObject("cross", "blue", "small", "plain", 0.7, 0.8, 0.03)
    other = SceneObject("star", "green", "small", "plain", 0.21, 0.29, 0.03)
    moved = SceneObject("star", "red", "big", "plain", 0.4, 0.3, 0.07)
    base = layout_signature(Scene((one, two), 0))
    assert layout_signature(Scene((two, other), 1)) == base
    assert layout_signature(Scene((moved, two), 0)) != base


@pytest.mark.parametrize("level", LEVELS)
def test_words_matter(level: str) -> None:
    least, most = LEVELS[level].objects
    for split, sample in samples(level):
        objects = sample.scene.objects
        assert least <= len(objects) <= most
        assert 2 <= len(sample.expressions) <= 4
        kinds = [each.kind for each in objects]
        for target in sample.expressions:
            assert kinds.count(kinds[target]) >= 2
            assert kinds[target] in REFERRED_KINDS[split]


def test_easy_targets_are_small_and_whole() -> None:
    for _, sample in samples("easy"):
        for _, mask, share in visible_masks(sample.scene, 96):
            assert 0.025 <= mask.mean() <= 0.15
            assert share >= 0.97


def test_hard_pictures_need_more_than_colour_and_kind() -> None:
    twins = total = 0
    for _, sample in samples("hard"):
        looks = [(each.color, each.kind) for each in sample.scene.objects]
        twins += sum(looks.count(looks[target]) > 1 for target in sample.expressions)
        total += len(sample.expressions)
    assert twins > 0.6 * total


def palette_distance(sample: Sample, level: str) -> np.ndarray:
    """How far each pixel is from each colour of the palette, ``(96, 96, 7)``."""
    pixels = np.asarray(draw_image(sample.scene, LEVELS[level], 96), dtype=np.int64)
    return np.abs(pixels[:, :, None] - np.array(list(COLORS.values()))).sum(axis=3)


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_have_the_colour_that_is_named(level: str) -> None:
    for _, sample in samples(level):
        distance = palette_distance(sample, level)
        masks = visible_masks(sample.scene, 96)
        for item, (_, mask, _) in zip(sample.scene.objects, masks, strict=True):
            inside = distance[mask == 1]
            # white parts and blurred edges are near no colour of the palette
            named = inside.argmin(axis=1)[inside.min(axis=1) < 100]
            assert len(named) > 0.25 * len(inside)
            assert list(COLORS)[np.bincount(named).argmax()] == item.color


def test_masks_cover_the_pixels_of_their_object() -> None:
    shifts = []
    for _, sample in samples("easy"):
        distance = palette_distance(sample, "easy")
        names = [item.color for item in sample.scene.objects]
        for name, (_, mask, share) in zip(names, visible_masks(sample.scene, 96), strict=True):
            if names.count(name) == 1 and share == 1:
                painted = distance[:, :, list(COLORS).index(name)] < 60  # all but the edges
                assert (painted & (mask == 1)).sum() > 0.95 * painted.sum()
                assert painted.sum() > 0.65 * mask.sum()
                rows, columns = np.nonzero(painted)
                ys, xs = np.nonzero(mask)
                shifts.append((rows.mean() - ys.mean(), columns.mean() - xs.mean()))
    assert len(shifts) > 100
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1  # of a pixel: no systematic shift


def test_visible_masks_do_not_overlap_and_later_objects_lie_in_front() -> None:
    hidden = 0
    for _, sample in samples("hard"):
        masks = visible_masks(sample.scene, 96)
        assert sum(mask.astype(int) for _, mask, _ in masks).max() == 1
        assert masks[-1][2] == 1.0
        hidden += sum(share < 1 for _, _, share in masks)
    assert hidden > 20


def pair(left: float, right: float, y: float = 0.5) -> list[SceneObject]:
    return [
        SceneObject("star", color, "big", "plain", x, y, 0.05)
        for color, x in (("red", left), ("blue", right))
    ]


def test_close_calls_are_ambiguous() -> None:
    assert referents(Expression("star", place="left"), pair(0.2, 0.6)) == ({0}, {0})
    assert referents(Expression("star", place="left"), pair(0.2, 0.24)) == (set(), {0, 1})
    assert referents(Expression("star", place="left"), pair(0.6, 0.9)) == (set(), {0})
    assert referents(Expression("star", place="left"), pair(0.2, 0.6)[:1]) == (set(), {0})
    assert referents(Expression("star", color="green"), pair(0.2, 0.6)) == (set(), set())
    blue = Expression("star", color="blue")
    beside = Expression("star", relation="left of", anchor=blue)
    assert referents(beside, pair(0.2, 0.6)) == ({0}, {0})
    assert referents(beside, pair(0.57, 0.6)) == (set(), {0})
    assert referents(beside, pair(0.7, 0.6)) == (set(), set())
    unclear = Expression("star", relation="left of", anchor=Expression("star"))
    assert not unambiguous(unclear, 0, pair(0.2, 0.6))


# -- files -----------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_config_same_bytes(tmp_path: Path) -> None:
    config = ShapesConfig(level="hard", train=3, val=1, test_a=1, test_b=1)
    one = contents(build_shapes(tmp_path / "one", config, progress=False))
    two = contents(build_shapes(tmp_path / "two", config, progress=False))
    assert one == two
    other = ShapesConfig(level="hard", train=3, val=1, test_a=1, test_b=1, seed=1)
    three = contents(build_shapes(tmp_path / "three", other, progress=False))
    assert three["shapes/instances.json"] != one["shapes/instances.json"]
    assert three["images/shapes_train_000000.jpg"] != one["images/shapes_train_000000.jpg"]


def test_refer_format(tmp_path: Path) -> None:
    root = build_shapes(tmp_path / "easy", TINY, progress=False)
    instances = json.loads((root / "shapes" / "instances.json").read_text())
    refs = pickle.loads((root / "shapes" / "refs(masksd).p").read_bytes())
    assert [each["name"] for each in instances["categories"]] == list(KINDS)
    assert len(instances["images"]) == 10 == len(list((root / "images").iterdir()))
    annotations = {each["id"]: each for each in instances["annotations"]}
    assert len(annotations) == len(instances["annotations"])
    splits = [ref["split"] for ref in refs]
    assert set(splits) == set(SPLITS)
    for ref in refs:
        assert set(ref) == {
            *("ref_id", "ann_id", "category_id", "image_id", "file_name", "split"),
            *("sent_ids", "sentences"),
        }
        annotation = annotations[ref["ann_id"]]
        assert annotation["image_id"] == ref["image_id"]
        assert annotation["category_id"] == ref["category_id"]
        assert (root / "images" / ref["file_name"]).is_file()
        assert [each["sent_id"] for each in ref["sentences"]] == ref["sent_ids"]
        for each in ref["sentences"]:
            assert each["tokens"] == each["sent"].split()
            assert each["raw"].lower() == each["sent"] + "."


def test_a_finished_folder_is_reused_and_a_different_one_refused(tmp_path: Path) -> None:
    root = build_shapes(tmp_path / "data", TINY, progress=False)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert build_shapes(root, TINY, progress=False) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(
        ValueError, match=r"another config; there: .*'seed': 0.*wanted: .*'seed': 1"
    ):
        build_shapes(root, ShapesConfig(train=4, val=2, test_a=2, test_b=2, seed=1))
    next((root / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="damaged shapes data set; choose another folder"):
        build_shapes(root, TINY)


@pytest.mark.parametrize("damage", ["instances.json", "refs(masksd).p", "manifest.json"])
def test_damaged_files_are_found(tmp_path: Path, damage: str) -> None:
    root = build_shapes(tmp_path / "data", TINY, progress=False)
    (root / "shapes" / damage).write_bytes(b"{}")
    with pytest.raises(ValueError, match="damaged"):
        build_shapes(root, TINY)


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not a shapes data set; choose another"):
        build_shapes(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(*args: object) -> Sample:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return draw_sample(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("masksd.kit.data.shapes.build.draw_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_shapes(tmp_path / "data", TINY, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_config_errors() -> None:
    with pytest.raises(ValueError, match="unknown level 'eazy'; did you mean 'easy'"):
        ShapesConfig(level="eazy")
    with pytest.raises(ValueError, match="unknown variant 'x'"):
        ShapesConfig(variant="x")
    with pytest.raises(ValueError, match="train must be an int from 1 to 1000000, got 0"):
        ShapesConfig(train=0)
    with pytest.raises(ValueError, match="size must be an int from 48 to 1024, got 8"):
        ShapesConfig(size=8)
    with pytest.raises(ValueError, match="seed must be an int from 0 to 2147483647, got True"):
        ShapesConfig(seed=True)


def test_the_working_folder_takes_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
    build_shapes(".", small, progress=False)
    assert sorted(path.name for path in place.iterdir()) == ["images", "shapes"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
