"""Measure how fast images, masks and words are loaded, and whether training waits for them.

    python -m benchmarks.loading [--image-size 480] [--train-steps 60]

The data are made up (keyed numbers): JPEG images of 640 x 480 and quality 90 with the spectrum of
photographs (1 / f), two refs per image, outlines of 40 points. Every item is prepared anew
(``cache=False``) as 8-bit pixels, since the device normalises. The last rows are the default
``masksd train`` with and without its cache of decoded images: how long a step waits for its batch.
First an item is compared with Pillow's own reading and resizing. Rows are appended to
``benchmarks/results/loading.csv``. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from benchmarks.measure import append, environment
from masksd.kit.config import TrainConfig
from masksd.kit.data.images import read_image
from masksd.kit.data.refer import ReferDataset
from masksd.kit.data.segmentation import check_segmentation, decode_mask
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.data.transforms import fit_image, fit_mask
from masksd.kit.training import trainer

PICTURES, REFS, HEIGHT, WIDTH, BATCH, ROUNDS = 64, 2, 480, 640, 16, 5
SENTENCES = ["the red circle on the left", "large blue square", "the small one above the circle"]


def photograph(draw: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as in natural scenes."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        waves = draw.normal(size=(2, *frequency.shape)) / frequency
        channel = np.fft.irfft2(waves[0] + 1j * waves[1], (HEIGHT, WIDTH))
        channels.append(110 + 55 * channel / channel.std())
    return Image.fromarray(np.stack(channels, axis=2).clip(0, 255).astype(np.uint8))


def outline(draw: np.random.Generator) -> list[float]:
    """A wavy closed line of 40 points somewhere in the image."""
    x, y = draw.uniform(0.3, 0.7, 2) * (WIDTH, HEIGHT)
    points = []
    for angle in np.linspace(0, 2 * math.pi, 40, endpoint=False):
        radius = draw.uniform(80, 140)
        points += [x + radius * math.cos(angle), y + radius * math.sin(angle)]
    return [round(float(value), 2) for value in points]


def make_up(root: Path) -> None:
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "photographs").mkdir()
    images, annotations, refs = [], [], []
    for number in range(PICTURES):
        name = f"{number:03d}.jpg"
        photograph(draw).save(root / "images" / name, quality=90)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for ann_id in range(REFS * number, REFS * (number + 1)):
            ids = {"id": ann_id, "image_id": number, "category_id": 1}
            annotations.append({**ids, "segmentation": [outline(draw)]})
            said = [
                {"sent_id": 3 * ann_id + k, "sent": sent, "raw": sent, "tokens": sent.split()}
                for k, sent in enumerate(SENTENCES)
            ]
            ids = {"ref_id": ann_id, "ann_id": ann_id, "image_id": number, "category_id": 1}
            refs.append({**ids, "split": "train", "sentences": said})
    instances = {"images": images, "annotations": annotations}
    (root / "photographs" / "instances.json").write_text(json.dumps(instances))
    (root / "photographs" / "refs(unc).json").write_text(json.dumps(refs))


def check(data: ReferDataset, root: Path, size: int) -> None:
    """Compare an item with Pillow and with the area of its outline."""
    item = data[0]
    with Image.open(root / "images" / "000.jpg") as picture:
        plain = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    if not np.array_equal(item["image"].permute(1, 2, 0).numpy(), np.asarray(plain)):
        raise SystemExit("the image of an item differs from what Pillow reads")
    if not 0.02 < item["target"].float().mean() < 0.5:
        raise SystemExit("the mask of an item does not have the area of its outline")


def seconds_each(run: Callable[[int], object], count: int) -> float:
    """Time rounds of ``run(0) ... run(count - 1)``; return the median per call."""
    run(0)
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for number in range(count):
            run(number)
        rounds.append((time.perf_counter() - start) / count)
    return statistics.median(rounds)


def steps(data: ReferDataset, root: Path, size: int) -> dict[str, float]:
    """Seconds per image for each part of the work."""
    paths = [root / "images" / f"{number:03d}.jpg" for number in range(PICTURES)]
    pictures = [read_image(path) for path in paths]
    instances = json.loads((root / "photographs" / "instances.json").read_text())
    objects = [
        check_segmentation(each["segmentation"], HEIGHT, WIDTH)[0]
        for each in instances["annotations"]
    ]
    masks: list[NDArray[np.uint8]] = [decode_mask(each, HEIGHT, WIDTH) for each in objects]
    runs: dict[str, Callable[[int], object]] = {
        "decode the picture": lambda n: read_image(paths[n]),
        "squash it": lambda n: fit_image(pictures[n], size, "squash"),
        "letterbox it instead": lambda n: fit_image(pictures[n], size, "letterbox"),
        "draw the mask": lambda n: decode_mask(objects[n], HEIGHT, WIDTH),
        "squash it too": lambda n: fit_mask(masks[n], size, "squash"),
        "encode the sentence": lambda n: data.tokenizer.encode(SENTENCES[n % 3]),
        "a whole item": lambda n: data[n],
    }
    found = {name: seconds_each(run, PICTURES) for name, run in runs.items()}
    batches = PICTURES // BATCH
    found["items, collated"] = BATCH**-1 * seconds_each(
        lambda n: default_collate([data[n * BATCH + k] for k in range(BATCH)]), batches
    )
    return found


def loader_seconds(data: ReferDataset, workers: int, epochs: int = 12) -> float:
    """Seconds per image of a data loader, including the start of its workers."""
    order = [index for _ in range(epochs) for index in range(len(data))]
    loader: DataLoader[Any] = DataLoader(data, BATCH, sampler=order, num_workers=workers)
    start = time.perf_counter()
    count = sum(len(batch["index"]) for batch in loader)
    return (time.perf_counter() - start) / count


def waiting(cache: bool, train_steps: int, root: Path) -> tuple[float, float]:
    """Train as ``masksd train`` does: seconds per image, and the share waiting for batches."""
    waited, taken = [0.0], [0.0]

    class Watched(trainer.Run):
        def fit(self, progress: bool) -> None:
            self.batches = self.watched(iter(self.batches))
            start = time.perf_counter()
            super().fit(progress)
            taken[0] = time.perf_counter() - start

        def watched(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
            while True:
                start = time.perf_counter()
                batch = next(batches)
                waited[0] += time.perf_counter() - start
                yield batch

    plain, trainer.Run = trainer.Run, Watched  # type: ignore[misc]
    config = TrainConfig(
        steps=train_steps, cache=cache, eval_samples=8, progress=False, output=root / f"run-{cache}"
    )
    trainer.train(config)
    trainer.Run = plain  # type: ignore[misc]
    return taken[0] / (train_steps * config.batch_size), waited[0] / taken[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=480, help="pixels")
    parser.add_argument("--train-steps", type=int, default=60, help="0 skips training")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    rows: list[dict[str, object]] = []

    def add(
        step: str, seconds: float, cores: int, size: int | None, share: float | None = None
    ) -> None:
        rows.append(
            {
                "step": step,
                "image_size": size,
                "milliseconds": round(1000 * seconds, 3),
                "pictures_per_second": round(1 / seconds, 1),
                "pictures_per_second_and_core": round(1 / seconds / cores, 1),
                "waiting": share,
                "pillow": PIL.__version__,
                **environment(),
                "device": f"{platform.machine()} CPU, {cores} of its cores",
            }
        )
        shown = "" if share is None else f", {share:.2%} waiting for data"
        print(f"{step:<28}{1000 * seconds:>9.3f} ms{1 / seconds:>9.1f} images/s{shown}")

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_up(root)
        torch.set_num_threads(1)
        data = ReferDataset(
            root,
            "photographs",
            "train",
            tokenizer=load_tokenizer("shapes", 17),
            image_size=args.image_size,
            training=True,
        )
        check(data, root, args.image_size)
        for step, seconds in steps(data, root, args.image_size).items():
            add(step, seconds, 1, args.image_size)
        for workers in (0, 1, 2):
            seconds = loader_seconds(data, workers)
            name = f"loader, {workers} worker{'s' * (workers != 1)}"
            add(name, seconds, max(1, workers), args.image_size)
        torch.set_num_threads(threads)
        if args.train_steps:
            for cache, step in ((True, "train"), (False, "train, cache=False")):
                seconds, share = waiting(cache, args.train_steps, root)
                add(step, seconds, threads, None, round(share, 4))
    append("loading", rows)


if __name__ == "__main__":
    main()
