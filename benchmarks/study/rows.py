"""The table of a study's runs, and the samples of each: files that resume and regenerate."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from masksd.errors import check_choice
from masksd.kit.data.records import DataError
from masksd.kit.files import verify_folder, write_files, write_folder

Row = dict[str, str]
SCORES = {
    "mIoU": "mIoU",
    "oIoU": "oIoU",
    "Pr@0.5": "Pr@0.5",
    "Pr@0.7": "Pr@0.7",
    "Pr@0.9": "Pr@0.9",
    "over": "mOver",
    "under": "mUnder",
}
"""Columns of scores, with the names that :mod:`masksd.kit.scores` gives them."""
MACHINE = ("device", "torch", "python", "masksd", "commit")
"""Columns that say where and with what a run was done."""
COLUMNS = (
    *("study", "host", "data", "base", "towers", "variant", "seed", "budget", "split", "steps"),
    *("multiply_adds", *SCORES, "samples", "seconds", "peak_mb", "config_hash"),
    *("jobs", "threads", *MACHINE),
)
_SAMPLE = {
    **dict.fromkeys(("ref_id", "sent_id", "image_id"), int),
    **dict.fromkeys(("intersection", "union", "predicted_area", "truth_area"), int),
    "iou": float,
}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A CSV file with one row a run and split, and a folder with the samples of each run.

    One process writes, see :meth:`writing`. Rows of a run are added together, by replacing the
    file, after its samples are on the disk: a run that is interrupted leaves nothing, and is done
    again.

    Attributes:
        path: of the CSV.
        results: the folder; a run has one in it, named by its config hash.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> ledger = Ledger(place / "runs.csv", place / "results")
        >>> ledger.add([dict.fromkeys(COLUMNS, "1")])
        >>> ledger.rows()[0]["seed"]
        '1'
    """

    path: Path
    results: Path

    def rows(self) -> list[Row]:
        """Return all rows; none where there is no file yet.

        Raises:
            DataError: other columns than :data:`COLUMNS`, or a row that is cut off.
        """
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
                raise DataError(f"{self.path}: line {number} has not {len(COLUMNS)} cells")
        return rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows: all of them, or none.

        Args:
            rows: with :data:`COLUMNS`.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*self.rows(), *rows])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_files({self.path: text.getvalue().encode()})

    def keep(
        self,
        config_hash: str,
        config: str,
        samples: Mapping[str, Iterable[Mapping[str, Any]]],
        curve: Sequence[Mapping[str, float]],
    ) -> None:
        """Keep what a run leaves beside its row.

        Args:
            config_hash: of the run.
            config: as JSON text.
            samples: by split, rows of :class:`masksd.kit.evaluation.scoring.Evaluation`.
            curve: scores on the way, each with its ``step``.
        """

        def write(folder: Path) -> None:
            (folder / "config.json").write_text(config, encoding="utf-8")
            (folder / "curve.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")
            for split, rows in samples.items():
                text = io.StringIO(newline="")
                writer = csv.DictWriter(
                    text, fieldnames=_SAMPLE, extrasaction="ignore", lineterminator="\n"
                )
                writer.writeheader()
                writer.writerows(rows)
                packed = gzip.compress(text.getvalue().encode(), mtime=0)
                (folder / f"{split}.csv.gz").write_bytes(packed)

        write_folder(self.results / config_hash, write)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes of this machine from writing.

        Raises:
            ValueError: one of them does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            with lock:
                yield
        except Timeout:
            raise ValueError(
                f"another study is writing to {self.path}; wait for it, or choose another folder"
            ) from None

    def has(self, row: Row) -> bool:
        """Say whether there are samples of a row; whether they are whole is seen when read.

        Args:
            row: of the CSV.
        """
        return (self.results / row["config_hash"]).is_dir()

    def _folder(self, row: Row) -> Path:
        folder = self.results / row["config_hash"]
        what = f"samples of {row['variant']!r}, seed {row['seed']}"
        if not self.has(row):
            raise DataError(f"{what} are missing: no {folder}; run the study again")
        try:
            return verify_folder(folder)
        except ValueError as error:
            raise DataError(f"{what}: remove {folder} and run the study again: {error}") from None

    def samples(self, row: Row) -> list[dict[str, Any]]:
        """Return the samples behind a row, as :func:`masksd.kit.scores.compare.compare_rows` takes.

        Args:
            row: of the CSV.

        Raises:
            ValueError: they are missing or have changed.
        """
        folder = self._folder(row)
        with gzip.open(folder / f"{row['split']}.csv.gz", "rt", encoding="utf-8") as file:
            return [
                {name: kind(each[name]) for name, kind in _SAMPLE.items()}
                for each in csv.DictReader(file)
            ]

    def curve(self, row: Row) -> list[dict[str, float]]:
        """Return the scores on the way to a row.

        Args:
            row: of the CSV.

        Raises:
            ValueError: they are missing or have changed.
        """
        folder = self._folder(row)
        points: list[dict[str, float]] = json.loads(
            (folder / "curve.json").read_text(encoding="utf-8")
        )
        return points


def choose(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Return the rows that have these values.

    Args:
        rows: of a :class:`Ledger`.
        **wanted: value by column.

    Example:
        >>> choose([{"study": "a", "seed": "0"}, {"study": "b", "seed": "0"}], study="b")
        [{'study': 'b', 'seed': '0'}]
    """
    rows = list(rows)
    for name in wanted:
        check_choice("column", name, rows[0] if rows else COLUMNS)
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_seed(rows: Iterable[Row]) -> dict[int, Row]:
    """Return the rows by their seed; of several the last, which was run again.

    Args:
        rows: of one variant and budget.

    Example:
        >>> by_seed([{"seed": "0", "steps": "5"}, {"seed": "0", "steps": "6"}])[0]["steps"]
        '6'
    """
    return {int(row["seed"]): row for row in rows}
