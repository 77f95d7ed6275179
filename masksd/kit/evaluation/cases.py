"""The worst and the best samples of an evaluation on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from masksd.kit.checkpoints import Checkpoint
from masksd.kit.evaluation.reading import scoring_batches
from masksd.kit.feeding import predict_logits
from masksd.kit.figures import TRUTH_COLOUR, SheetRow, overlay, save_figure
from masksd.kit.scores.protocols import choose_threshold, get_protocol, predict_mask
from masksd.modes import evaluating

if TYPE_CHECKING:
    from masksd.kit.data.refer import ReferDataset


def pick_cases(
    rows: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Choose the worst and the best samples, at most one a picture on each side.

    Args:
        rows: as :class:`masksd.kit.evaluation.scoring.Evaluation` holds them.
        count: how many on each side; fewer where there are fewer pictures.

    Returns:
        The worst (lowest IoU first) and the best (highest first); equal ones by index.

    Example:
        >>> rows = [{"index": n, "image_id": n // 2, "iou": n / 10} for n in range(6)]
        >>> [[row["index"] for row in side] for side in pick_cases(rows, 2)]
        [[0, 2], [5, 3]]
    """
    sides = []
    for sign in (1, -1):
        ordered = sorted(rows, key=lambda row: (sign * row["iou"], row["index"]))
        first: dict[int, Mapping[str, Any]] = {}
        for row in ordered:
            first.setdefault(row["image_id"], row)
        sides.append(list(first.values())[:count])
    return sides[0], sides[1]


def case_rows(
    checkpoint: Checkpoint,
    dataset: ReferDataset,
    rows: Sequence[Mapping[str, Any]],
    *,
    protocol: str,
    sentences: str = "own",
    threshold: float | None = None,
) -> list[SheetRow]:
    """Predict samples once more, to draw what was scored.

    Args:
        checkpoint: the model with its tokenizer and config.
        dataset: that was scored.
        rows: the samples to draw.
        protocol: a name; where it scores at the input size, the picture is shown squashed so.
        sentences: what the model was told: ``"own"``, ``"other"`` or ``"none"``.
        threshold: as it was scored with; None takes the protocol's or the checkpoint's.

    Returns:
        One a sample.
    """
    rules = get_protocol(protocol)
    threshold = choose_threshold(rules, threshold, checkpoint.config.threshold)
    device = next(checkpoint.model.parameters()).device
    indices = [row["index"] for row in rows]
    batches = scoring_batches(dataset, indices, sentences=sentences, batch_size=1)
    drawn = []
    with evaluating(checkpoint.model), torch.inference_mode():
        for batch, row in zip(batches, rows, strict=True):
            logits = predict_logits(checkpoint, batch.images.to(device), batch.tokens.to(device))
            truth, picture = batch.truths[0], dataset.image(row["index"])
            prediction = predict_mask(
                rules,
                logits[0],
                size=truth.shape,
                input_size=dataset.image_size,
                fit=dataset.fit,
                threshold=threshold,
            )
            if rules.scored_at == "input":
                truth = batch.targets[0].numpy()
                picture = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
            found = prediction.cpu().numpy()
            drawn.append(
                SheetRow(picture, row["sentence"], truth > 0, found, None, None, row["iou"])
            )
    return drawn


def draw_cases(worst: Sequence[SheetRow], best: Sequence[SheetRow], path: str | Path) -> Path:
    """Draw the worst samples on the left and the best on the right, each with truth and prediction.

    Args:
        worst: from the top.
        best: from the top.
        path: of the PNG.

    Returns:
        ``path`` as a path.

    Raises:
        ValueError: if there is no sample.
    """
    from matplotlib.figure import Figure

    count = max(len(worst), len(best))
    if count == 0:
        raise ValueError("a sheet of cases needs at least one sample")
    figure = Figure(figsize=(13, 2.0 * count + 0.5), layout="constrained")
    sides: Any = figure.subfigures(1, 2, wspace=0.03)
    for side, title, rows in zip(sides, ("worst", "best"), (worst, best), strict=True):
        side.suptitle(title, fontsize=13, fontweight="bold")
        grid = side.subplots(count, 4, squeeze=False, width_ratios=[1.0, 1.3, 1.3, 1.3])
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, name in zip(grid[0, 1:], ("picture", "truth", "prediction"), strict=True):
            axes.set_title(name, fontsize=10)
        for cells, row in zip(grid, rows, strict=False):
            caption = "\n".join(textwrap.wrap(row.sentence or "(no sentence)", 17)[:7])
            # a sentence may hold a dollar sign, which is not mathematics
            cells[0].text(0.0, 0.95, caption, fontsize=10, va="top", parse_math=False)
            cells[0].text(0.0, 0.02, f"IoU {row.score:.2f}", fontsize=10, color="0.35")
            panels = [
                row.picture,
                overlay(row.picture, row.truth, TRUTH_COLOUR),
                overlay(row.picture, row.prediction),
            ]
            for axes, panel in zip(cells[1:], panels, strict=True):
                axes.imshow(np.asarray(panel))
    return save_figure(figure, path)
