"""Scores of referring image segmentation: mIoU, oIoU and Pr@X, as sums that are exact.

Every state is an int64 sum, so the score does not depend on batch size, order or the number of
processes. Importing this module imports torchmetrics, which takes 2-3 s: import it late.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_ONE = 2**40  # IoU is summed in units of 2**-40, so that sums have no rounding order


class SegmentationScores(Metric):
    """mIoU, oIoU and Pr@X over samples that are one picture and one expression each.

    With ``I`` and ``U`` the pixels of intersection and union of one sample:

    - ``mIoU``: the mean of ``I / U`` over samples (an empty prediction of an empty truth scores 1);
    - ``oIoU``: the sum of ``I`` over the sum of ``U`` (1 where the sum of ``U`` is 0);
    - ``Pr@X``: the share of samples with ``I / U > X``.

    The paper's "mIoU" for LAVT is LAVT's overall IoU: name the one you mean.

    Example:
        >>> import torch
        >>> scores = SegmentationScores()
        >>> prediction = torch.tensor([[[True, True, False, False]]])
        >>> truth = torch.tensor([[[False, True, True, False]]])
        >>> scores.update(prediction, truth)
        >>> scores.update(truth, truth)
        >>> {name: round(value, 4) for name, value in scores.compute().items()}["mIoU"]
        0.6667
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    intersection: Tensor
    union: Tensor
    iou: Tensor
    hits: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.int64)
        for name in ("intersection", "union", "iou", "count"):
            self.add_state(name, zero.clone(), dist_reduce_fx="sum")
        hits = torch.zeros(len(PRECISION_THRESHOLDS), dtype=torch.int64)
        self.add_state("hits", hits, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add samples.

        Args:
            prediction: bool ``(B, H, W)``; ``B`` may be 0 (a process without a sample).
            truth: bool ``(B, H, W)``.

        Raises:
            ValueError: for another dtype or shape.
        """
        for name, mask in (("prediction", prediction), ("truth", truth)):
            if mask.dtype != torch.bool or mask.ndim != 3:
                raise ValueError(
                    f"{name} must be a bool tensor (B, H, W), "
                    f"got {mask.dtype} {tuple(mask.shape)}; threshold the probabilities first"
                )
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction and truth must have one shape, got {tuple(prediction.shape)} and "
                f"{tuple(truth.shape)}; resize the prediction to the truth"
            )
        intersection = (prediction & truth).sum(dim=(1, 2))  # (B,) int64
        union = (prediction | truth).sum(dim=(1, 2))
        # float64 on the CPU: not every accelerator has it, and B numbers cost nothing
        inter, total = intersection.cpu().double(), union.cpu().double()
        iou = torch.where(total == 0, torch.ones_like(total), inter / total.clamp(min=1))  # (B,)
        self.intersection += intersection.sum()
        self.union += union.sum()
        self.iou += (iou * _ONE).round().long().sum().to(self.iou.device)
        thresholds = torch.tensor(PRECISION_THRESHOLDS, dtype=torch.float64)
        self.hits += (iou[:, None] > thresholds).sum(dim=0).to(self.hits.device)
        self.count += len(prediction)

    def compute(self) -> dict[str, float]:
        """Return the scores, each in [0, 1], and ``samples``, their number.

        Raises:
            ValueError: if no sample came.
        """
        count = int(self.count)
        if count == 0:
            raise ValueError("no sample was scored: the data set or the limit leaves none")
        union = int(self.union)
        scores = {
            "mIoU": int(self.iou) / _ONE / count,
            "oIoU": int(self.intersection) / union if union else 1.0,
        }
        for threshold, hits in zip(PRECISION_THRESHOLDS, self.hits.tolist(), strict=True):
            scores[f"Pr@{threshold}"] = hits / count
        return {**scores, "samples": count}
