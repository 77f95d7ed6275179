"""Tables of scores: with the right sentence, another object's, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.evaluation.scoring import SENTENCES as SENTENCES
from masksd.kit.evaluation.scoring import check_scoring as check_scoring
from masksd.kit.evaluation.scoring import score
from masksd.kit.text_tables import align_columns

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def evaluate(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    sentences: str = "own",
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Score a model at the pictures' original sizes: :func:`score` by our own protocol, in short.

    Args:
        checkpoint: as in :func:`score`, as the others.
        dataset: as there.
        sentences: as there.
        threshold: as there.
        limit: as there.
        batch_size: as there.
        workers: as there.
        progress: as there.

    Returns:
        ``mIoU``, ``oIoU``, ``Pr@0.5`` ... ``Pr@0.9`` in [0, 1] and ``samples``.

    Raises:
        ValueError: as there.
    """
    from masksd.kit.scores.metrics import headline

    result = score(
        checkpoint,
        dataset,
        sentences=sentences,
        threshold=threshold,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    return headline(result.scores["all"])


def evaluate_all(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    *,
    threshold: float | None = None,
    limit: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Score with every kind of sentence: whether the words matter shows in the difference.

    Args:
        checkpoint: as in :func:`evaluate`, as the others.
        dataset: as there.
        threshold: as there.
        limit: as there.
        batch_size: as there.
        workers: as there.
        progress: as there.

    Returns:
        The scores by kind of sentence: ``"own"``, ``"other"``, ``"none"``.
    """
    return {
        sentences: evaluate(
            checkpoint,
            dataset,
            sentences=sentences,
            threshold=threshold,
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        for sentences in SENTENCES
    }


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out what :func:`evaluate_all` returns, in per cent.

    Example:
        >>> print(format_table({"own": {"mIoU": 0.5, "samples": 9}, "none": {"mIoU": 1.0}}))
                              mIoU  samples
        the right sentence   50.00        9
        no sentence         100.00        -
    """
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    lines = [["", *names]]
    for kind, scores in rows.items():
        lines.append([SENTENCES.get(kind, kind), *(_cell(name, scores) for name in names)])
    return align_columns(lines)


def _cell(name: str, scores: Mapping[str, float]) -> str:
    if name not in scores:
        return "-"
    return str(int(scores[name])) if name == "samples" else f"{100 * scores[name]:.2f}"
