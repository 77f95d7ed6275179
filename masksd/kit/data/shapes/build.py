"""The embedded data set: procedural images with referring expressions, written in refer format.

It is written as files and read back by :class:`masksd.kit.data.refer.ReferDataset`, so that the
default run takes the path that RefCOCO takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from masksd.errors import check_choice
from masksd.kit.data.segmentation import encode_runs
from masksd.kit.data.shapes.drawing import draw_image, visible_masks
from masksd.kit.data.shapes.expressions import VARIANTS, Expression, draw_expressions
from masksd.kit.data.shapes.scenes import KINDS, LEVELS, REFERRED_KINDS, SPLITS, Scene, draw_scene
from masksd.kit.data_config import DataConfig, cache_folder
from masksd.kit.storage.files import sha256_of
from masksd.kit.storage.places import StagedFolder

FORMAT = 1
MANIFEST = "manifest.json"
_REFS_AN_IMAGE = 4


@dataclass(frozen=True)
class ShapesConfig:
    """What the shapes data set holds.

    Attributes:
        level: ``"easy"`` (3 to 5 plain objects), ``"medium"`` (5 to 7, striped and dotted ones,
            some overlap) or ``"hard"`` (8 to 10, several of the same colour and kind, occlusion,
            patterned background, noise).
        variant: ``""``, ``"+"`` (no words of place, as RefCOCO+) or ``"g"`` (long sentences, as
            G-Ref).
        train: images for training, at least 1.
        val: images for validation, at least 1.
        test_a: images of the test whose expressions name circles, squares and triangles.
        test_b: images of the test whose expressions name stars, crosses and diamonds.
        size: side of the square images in pixels, 48 to 1024.
        seed: of everything drawn, at least 0.
    """

    level: str = "easy"
    variant: str = ""
    train: int = 3000
    val: int = 300
    test_a: int = 300
    test_b: int = 300
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS)
        check_choice("variant", self.variant, VARIANTS)
        for field, least, most in (
            *((name, 1, 1_000_000) for name in ("train", "val", "test_a", "test_b")),
            ("size", 48, 1024),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, field)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{field} must be an int from {least} to {most}, got {value!r}")

    def images(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return dict(zip(SPLITS, (self.train, self.val, self.test_a, self.test_b), strict=True))


@dataclass(frozen=True)
class Sample:
    """A scene and the expressions of its referred objects, by the object's index."""

    scene: Scene
    expressions: dict[int, list[tuple[Expression, str]]]


def draw_sample(config: ShapesConfig, split: str, index: int) -> Sample:
    """Draw one image's scene and expressions; (config, split, index) decide everything.

    Every expression is true of exactly one object. Two to four objects are referred to, each by two
    or three expressions, and each shares its kind with another object of the image.
    """
    level = LEVELS[config.level]
    draw = random.Random((config.seed << 64) | (SPLITS.index(split) << 48) | index)
    while True:
        scene = draw_scene(level, split, draw)
        if any(share < level.visible for _, _, share in visible_masks(scene, config.size)):
            continue
        kinds = [item.kind for item in scene.objects]
        eligible = [
            number
            for number, kind in enumerate(kinds)
            if kinds.count(kind) >= 2 and kind in REFERRED_KINDS[split]
        ]
        draw.shuffle(eligible)
        expressions = {}
        for number in eligible[:_REFS_AN_IMAGE]:
            found = draw_expressions(number, scene.objects, level, config.variant, draw)
            if found:
                expressions[number] = found
        if len(expressions) >= 2:
            return Sample(scene, expressions)


def build_shapes(root: str | Path, config: ShapesConfig, progress: bool = True) -> Path:
    """Write the shapes data set in refer format into a folder of its own, and return the folder.

    It holds ``shapes/instances.json``, ``shapes/refs(masksd).p``, a manifest beside them, and
    ``images``. All of it is written elsewhere and then renamed: ``root`` holds a whole data set or
    nothing. The same config gives the same bytes; a folder that holds them already is left as it
    is, and one that holds anything else is a ValueError.

    Example:
        >>> import tempfile
        >>> small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(Path(tempfile.mkdtemp()) / "shapes-easy", small, progress=False)
        >>> sorted(path.name for path in (root / "shapes").iterdir())
        ['instances.json', 'manifest.json', 'refs(masksd).p']
    """
    root = Path(root)
    if _is_built(root, config):
        return root
    with StagedFolder(root, lambda: None, wait=True) as staged:
        if not _is_built(root, config):  # by the process that was waited for
            _write(staged.path, config, progress)
            staged.publish()
    return root


def _is_built(root: Path, config: ShapesConfig) -> bool:
    """Whether the data set is there; False if nothing is, a ValueError for anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    fix = "choose another folder or remove this one"
    manifest_path = root / "shapes" / MANIFEST
    if not manifest_path.is_file():
        raise ValueError(f"{root} exists and is not a shapes data set; {fix}")
    try:
        manifest = json.loads(manifest_path.read_bytes())
        made, made_format = manifest["config"], manifest["format"]
        digests, count = manifest["sha256"], manifest["pictures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest_path} is damaged ({error!r}); {fix}") from None
    wanted = dataclasses.asdict(config)
    if (made, made_format) != (wanted, FORMAT):
        raise ValueError(
            f"{root} holds a shapes data set of another config; there: {made} (format "
            f"{made_format}), wanted: {wanted} (format {FORMAT}); {fix}"
        )
    files = [root / "shapes" / name for name in digests]
    found = {file.name: sha256_of(file) for file in files if file.is_file()}
    folder = root / "images"
    if found != digests or not folder.is_dir() or sum(1 for _ in folder.iterdir()) != count:
        raise ValueError(f"{root} holds a damaged shapes data set; {fix}")
    return True


def _write(folder: Path, config: ShapesConfig, progress: bool) -> None:
    (folder / "images").mkdir()
    (folder / "shapes").mkdir()
    instances: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number + 1, "name": kind} for number, kind in enumerate(KINDS)],
    }
    refs: list[dict[str, Any]] = []
    sentence_count = 0
    counts = config.images()
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    bar = tqdm(jobs, desc=f"drawing shapes ({config.level})", unit="img", disable=not progress)
    for split, index in bar:
        sample = draw_sample(config, split, index)
        image: dict[str, Any] = {
            "id": len(instances["images"]) + 1,
            "file_name": f"shapes_{split}_{index:06d}.jpg",
            "width": config.size,
            "height": config.size,
        }
        instances["images"].append(image)
        drawn = draw_image(sample.scene, LEVELS[config.level], config.size)
        # without chroma subsampling, which would smear the colours that the words speak of
        drawn.save(folder / "images" / image["file_name"], quality=92, subsampling=0)
        first = len(instances["annotations"]) + 1
        instances["annotations"] += _annotations(sample.scene, image["id"], first, config.size)
        for number, found in sorted(sample.expressions.items()):
            ref = {
                "ref_id": len(refs) + 1,
                "ann_id": first + number,
                "category_id": KINDS.index(sample.scene.objects[number].kind) + 1,
                "image_id": image["id"],
                "file_name": image["file_name"],
                "split": split,
                "sent_ids": list(range(sentence_count, sentence_count + len(found))),
                "sentences": [
                    {
                        "raw": f"{sent.capitalize()}.",
                        "sent": sent,
                        "sent_id": sentence_count + position,
                        "tokens": sent.split(),
                    }
                    for position, (_, sent) in enumerate(found)
                ],
            }
            sentence_count += len(found)
            refs.append(ref)
    contents = {
        "instances.json": json.dumps(instances).encode(),
        "refs(masksd).p": pickle.dumps(refs, protocol=2),
    }
    for name, data in contents.items():
        (folder / "shapes" / name).write_bytes(data)
    manifest = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "pictures": sum(counts.values()),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    (folder / "shapes" / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _annotations(scene: Scene, image_id: int, first: int, size: int) -> list[dict[str, Any]]:
    """COCO annotations of what is visible: a polygon, or runs where something lies in front."""
    entries = []
    for number, (item, (polygon, seen, share)) in enumerate(
        zip(scene.objects, visible_masks(scene, size), strict=True)
    ):
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        runs = {"size": [size, size], "counts": encode_runs(seen)}
        entries.append(
            {
                "id": first + number,
                "image_id": image_id,
                "category_id": KINDS.index(item.kind) + 1,
                "segmentation": polygon if share == 1 else runs,
                "area": int(seen.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "iscrowd": 0,
            }
        )
    return entries


def shapes_folder(shapes: ShapesConfig) -> Path:
    """Return where shapes are generated: a folder in the cache for each config."""
    pictures = "-".join(map(str, shapes.images().values()))
    name = f"shapes-{shapes.level}{shapes.variant}-{pictures}-{shapes.size}px-seed{shapes.seed}"
    return cache_folder() / name


def shapes_config(data: DataConfig) -> ShapesConfig:
    """Return the shapes that are generated for a run."""
    default = ShapesConfig()
    train = default.train if data.pictures is None else data.pictures
    return ShapesConfig(level=data.level, variant=data.variant, train=train)
