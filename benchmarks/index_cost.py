"""Measure what an index of RefCOCO's size costs: time, memory, bytes.

    python -m benchmarks.index_cost [--refs 50000]

The data set is made up (keyed numbers, empty image files): as many refs, sentences, images and
annotations as RefCOCO, many objects with several polygons and some with run lengths. Each step runs
in its own process. Time is counted after the imports; memory is the peak of the whole process.
Rows are appended to ``benchmarks/results/index_cost.csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import append, environment

SOURCES = ("instances.json", "refs(unc).p")
WORDS = "left right man woman red blue shirt on the of with dog front second from chair"
STEPS = {
    "import": "pass",
    "read the sources": "gather_index(layout)",
    "prepare": "prepare_data(root, 'refcoco', progress=False)",
    "open the index": "open_index(layout)",
    "open a split": "ReferDataset(root, 'refcoco', 'train', tokenizer=None, image_size=480)",
}
CHILD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")  # made-up splits differ from the published ones
from masksd.kit.data.prepare import gather_index
from masksd.kit.data.index import open_index
from masksd.kit.data.layout import find_files
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.prepare import prepare_data
root = sys.argv[1]
layout = find_files(root, "refcoco", "unc")
start = time.perf_counter()
{step}
seconds = time.perf_counter() - start
# not getrusage's, which remembers the process before exec
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(json.dumps([seconds, int(peak) / 1024]))
"""


def make_up(root: Path, refs: int) -> None:
    images, annotations, sentences = refs * 2 // 5, refs * 4, round(refs * 2.84418)
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "refcoco").mkdir()
    records = []
    for number in range(images):
        name = f"COCO_train2014_{number:012d}.jpg"
        (root / "images" / name).touch()
        records.append({"id": number, "file_name": name, "width": 640, "height": 480})
    objects = []
    for number in range(annotations):
        if number % 50 == 49:  # 2 %
            counts = draw.integers(1, 500, size=200)
            runs = [*counts.tolist(), 640 * 480 - int(counts.sum())]
            segmentation: object = {"size": [480, 640], "counts": runs}
        else:
            parts = int(draw.choice([1, 1, 1, 2, 3, 5]))
            segmentation = [
                draw.uniform(0, 480, size=2 * int(draw.integers(4, 40))).round(2).tolist()
                for _ in range(parts)
            ]
        objects.append(
            {
                "id": number,
                "image_id": number % images,
                "category_id": number % 80 + 1,
                "segmentation": segmentation,
                "area": 1.0,
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "iscrowd": 0,
            }
        )
    entries, sent_id = [], 0
    shares = draw.multinomial(sentences - refs, [1 / refs] * refs) + 1
    for number, share in enumerate(shares.tolist()):
        said = []
        for _ in range(share):
            words = draw.choice(WORDS.split(), size=int(draw.integers(1, 8))).tolist()
            sent = " ".join(words)
            said.append({"raw": sent + ".", "sent": sent, "sent_id": sent_id, "tokens": words})
            sent_id += 1
        entries.append(
            {
                "ref_id": number,
                "ann_id": number * 4,
                "category_id": number * 4 % 80 + 1,
                "image_id": number * 4 % images,
                "file_name": "ignored.jpg",
                "split": ["train"] * 17 + ["val", "testA", "testB"],
                "sent_ids": [each["sent_id"] for each in said],
                "sentences": said,
            }
        )
        entries[-1]["split"] = entries[-1]["split"][number % 20]
    instances = {"images": records, "annotations": objects}
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(entries, protocol=2))


def megabytes(*paths: Path) -> float:
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--refs", type=int, default=50_000)
    refs = parser.parse_args().refs
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_up(root, refs)
        for step, code in STEPS.items():
            done = subprocess.run(
                [sys.executable, "-c", CHILD.format(step=code), folder],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            index = root / "refcoco" / "index(unc).safetensors"
            rows.append(
                {
                    "step": step,
                    "refs": refs,
                    "sentences": round(refs * 2.84418),
                    "seconds": round(seconds, 3),
                    "peak_mb": round(peak, 1),
                    "sources_mb": megabytes(*(root / "refcoco" / each for each in SOURCES)),
                    "index_mb": megabytes(index) if index.exists() else "",
                    "numpy": np.__version__,
                    **environment(),
                    "device": f"{platform.machine()} CPU, 1 thread",
                }
            )
            print(f"{step:<18}{seconds:>9.3f} s{peak:>9.1f} MB at its peak")
    print(f"sources {rows[-1]['sources_mb']} MB, index {rows[-1]['index_mb']} MB")
    append("index_cost", rows)


if __name__ == "__main__":
    main()
