"""What runs leave: a CSV of rows, and per study an archive of their samples and curves."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from masksd.errors import check_choice
from masksd.kit.data.records import DataError
from masksd.kit.storage.files import write_files

Row = dict[str, str]
Samples = Sequence[Mapping[str, Any]]
SCORES = {
    "mIoU": "mIoU",
    "oIoU": "oIoU",
    "Pr@0.5": "Pr@0.5",
    "Pr@0.7": "Pr@0.7",
    "Pr@0.9": "Pr@0.9",
    "over": "mOver",
    "under": "mUnder",
}
"""Score columns, with the names that :mod:`masksd.kit.scores` gives them."""
MACHINE = ("device", "torch", "python", "masksd", "commit")
"""Columns that say where a run was done and with what."""
COLUMNS = (
    *("study", "host", "data", "base", "towers", "variant", "seed", "budget", "split", "steps"),
    *("multiply_adds", *SCORES, "samples", "seconds", "peak_mb", "config_hash"),
    *("jobs", "threads", *MACHINE),
)
_ITEM = ("ref_id", "sent_id", "image_id", "truth_area")  # the same for every run on a split
_ANSWER = ("intersection", "predicted_area")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A CSV with one row per run and split, and a folder with one archive per study.

    One process writes, see :meth:`writing`. The rows of a run are added together, after its
    samples: an interrupted run has no rows and is done again.

    An archive ``STUDY.npz`` opens with :func:`numpy.load`. Per run it holds ``HASH/run.json``
    (config, curve, names of the items scored) and ``HASH/SPLIT.npy`` (its answers). The items are
    stored once; unions and IoUs follow from the areas.
    """

    path: Path
    results: Path

    def rows(self) -> list[Row]:
        """Return all rows; none where there is no file yet."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(
                    f"{self.path} has other columns than a study writes; move it away: "
                    f"{reader.fieldnames}"
                )
            rows = list(reader)
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise DataError(f"{self.path}: line {number} does not have {len(COLUMNS)} cells")
        return rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows: all of them, or none."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*self.rows(), *rows])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_files({self.path: text.getvalue().encode()})

    def keep(
        self,
        study: str,
        config_hash: str,
        config: str,
        samples: Mapping[str, Samples],
        curve: Sequence[Mapping[str, float]],
    ) -> None:
        """Keep a run's config (JSON), its samples by split and its curve in its study's archive."""
        members: dict[str, bytes] = {}
        items = {}
        for split, rows in samples.items():
            _check_derived(rows)
            item = _npy(np.array([[row[name] for row in rows] for name in _ITEM], dtype=np.int64))
            items[split] = f"items-{hashlib.sha256(item).hexdigest()[:12]}.npy"
            members[items[split]] = item
            answers = np.array([[row[name] for row in rows] for name in _ANSWER], dtype="<u4")
            # a byte at a time, which compresses better
            planes = answers.view(np.uint8).reshape(*answers.shape, 4).transpose(0, 2, 1)
            members[f"{config_hash}/{split}.npy"] = _npy(planes)
        run = {"config": json.loads(config), "curve": list(curve), "items": items}
        members[f"{config_hash}/run.json"] = json.dumps(run).encode()
        self.results.mkdir(parents=True, exist_ok=True)
        _add_members(self.results / f"{study}.npz", members, replace=f"{config_hash}/")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes on this machine from writing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            with lock:
                yield
        except Timeout:
            raise ValueError(
                f"another study is writing to {self.path}; wait for it, or choose another folder"
            ) from None

    def kept(self) -> set[str]:
        """Return the config hashes of all runs with samples; those are checked when read."""
        names = (name for path in self._archives() for name in _names(path))
        return {name.partition("/")[0] for name in names if name.endswith("/run.json")}

    def samples(self, row: Row) -> list[dict[str, Any]]:
        """Return the samples behind a row, as :mod:`masksd.kit.scores.compare` takes them."""
        with self._reading(row) as archive:
            items = _array(archive, _run(archive, row)["items"][row["split"]])
            planes = _array(archive, f"{row['config_hash']}/{row['split']}.npy")
            answers = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u4")[..., 0]
        ref, sent, image, truth = items.tolist()
        inter, predicted = answers.astype(np.int64).tolist()
        fields = zip(ref, sent, image, inter, predicted, truth, strict=True)
        return [
            {
                "ref_id": r,
                "sent_id": s,
                "image_id": i,
                "intersection": n,
                "union": p + t - n,
                "predicted_area": p,
                "truth_area": t,
                "iou": _iou(n, p + t - n),
            }
            for r, s, i, n, p, t in fields
        ]

    def curve(self, row: Row) -> list[dict[str, float]]:
        """Return the validation scores recorded while a row's run was training."""
        with self._reading(row) as archive:
            points: list[dict[str, float]] = _run(archive, row)["curve"]
        return points

    def config(self, row: Row) -> dict[str, Any]:
        """Return the training config of a row's run."""
        with self._reading(row) as archive:
            config: dict[str, Any] = _run(archive, row)["config"]
        return config

    def _archives(self) -> list[Path]:
        return sorted(self.results.glob("*.npz"))

    @contextlib.contextmanager
    def _reading(self, row: Row) -> Iterator[zipfile.ZipFile]:
        """Open the archive that holds a row's run, usually its own study's."""
        what = f"samples of {row['variant']!r}, seed {row['seed']}"
        own = self.results / f"{row['study']}.npz"
        for path in sorted(self._archives(), key=lambda path: path != own):
            try:
                with zipfile.ZipFile(path) as archive:
                    if f"{row['config_hash']}/run.json" in archive.namelist():
                        yield archive
                        return
            except Exception as error:  # damaged archives fail in many ways
                raise DataError(f"{what}: remove {path} and run the study again: {error}") from None
        raise DataError(f"{what} are missing: not in {self.results}; run the study again")


def choose(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Return the rows that have these values.

    Example:
        >>> choose([{"study": "a", "seed": "0"}, {"study": "b", "seed": "0"}], study="b")
        [{'study': 'b', 'seed': '0'}]
    """
    rows = list(rows)
    for name in wanted:
        check_choice("column", name, rows[0] if rows else COLUMNS)
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_seed(rows: Iterable[Row]) -> dict[int, Row]:
    """Return rows by seed; of several the last, which was run again.

    Example:
        >>> by_seed([{"seed": "0", "steps": "5"}, {"seed": "0", "steps": "6"}])[0]["steps"]
        '6'
    """
    return {int(row["seed"]): row for row in rows}


def _iou(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def _check_derived(rows: Samples) -> None:
    """Raise unless unions and IoUs follow from the areas, since they are not stored."""
    for row in rows:
        union = row["predicted_area"] + row["truth_area"] - row["intersection"]
        derived = (union, _iou(row["intersection"], union))
        if derived != (row["union"], row["iou"]):
            raise DataError(
                f"ref {row['ref_id']} sentence {row['sent_id']}: union and IoU are "
                f"{row['union']}, {row['iou']}; its areas give {derived[0]}, {derived[1]}"
            )


def _run(archive: zipfile.ZipFile, row: Row) -> Any:
    return json.loads(archive.read(f"{row['config_hash']}/run.json"))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    found: NDArray[Any] = np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
    return found


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is damaged; remove it and run its study again: {error}") from None


def _add_members(path: Path, members: Mapping[str, bytes], replace: str) -> None:
    """Add what is new to an archive, and replace what starts with ``replace``: all or nothing."""
    older = _names(path) if path.exists() else []
    file = io.BytesIO(path.read_bytes() if older else b"")
    if any(name.startswith(replace) for name in older):
        with zipfile.ZipFile(file) as archive:
            kept = {name: archive.read(name) for name in older if not name.startswith(replace)}
        file, older, members = io.BytesIO(), [], {**kept, **members}
    with zipfile.ZipFile(file, "a") as archive:
        for name, data in members.items():
            if name not in older:
                # ZipInfo has a fixed date, so that equal contents are equal files
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_LZMA)
    write_files({path: file.getvalue()})
