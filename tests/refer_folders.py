"""Data sets in refer format, written by hand for tests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 8, "height": 6, **changes}


def annotation(number: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "segmentation": SQUARE, **changes}


def ref(number: int, ann_id: int, image_id: int, *sents: str, **changes: Any) -> dict[str, Any]:
    """A ref whose sentences have the ids 100 * number, 100 * number + 1, ..."""
    sentences = [
        {"sent_id": 100 * number + place, "sent": sent, "raw": f"{sent}!"}
        for place, sent in enumerate(sents or ("red circle",))
    ]
    known = {"ref_id": number, "ann_id": ann_id, "image_id": image_id, "split": "val"}
    return {**known, "sentences": sentences, **changes}


def write_refer(
    root: Path,
    images: list[Any],
    annotations: list[Any],
    refs: list[Any],
    name: str = "mine",
    split_by: str = "unc",
) -> Path:
    """Write refs, instances and a black picture for every well-formed image record."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    for each in images:
        if isinstance(each, dict) and "/" not in str(each["file_name"]):
            Image.new("RGB", (8, 6)).save(root / "images" / each["file_name"])
    instances = {"images": images, "annotations": annotations}
    (root / name / "instances.json").write_text(json.dumps(instances))
    (root / name / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, 2))
    return root
