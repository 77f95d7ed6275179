"""Evaluation protocols in use: numbers are only comparable within one.

A protocol is data; :func:`predict_mask` and :class:`masksd.kit.scores.metrics.SegmentationScores`
carry it out. Read from the public code of CRIS (``engine/engine.py``), LAVT (``test.py``) and CARIS
(``eval.py``, ``model/models/caris.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masksd.errors import check_choice, check_fraction
from masksd.kit.scores.resampling import resize, unletterbox


@dataclass(frozen=True)
class Resample:
    """One step of what a model returns on its way to where it is scored.

    Attributes:
        to: ``"input"`` (the model's square) or ``"original"`` (the picture's own size).
        mode: ``"bilinear"`` or ``"bicubic"`` (a = -0.75, no antialiasing).
        align_corners: as in ``torch.nn.functional.interpolate``. A letterbox is undone by its own
            map of pixel centres instead.
        border: beyond a letterbox's map: ``"zero"`` or ``"edge"``.
    """

    to: str
    mode: str
    align_corners: bool = False
    border: str = "edge"


@dataclass(frozen=True)
class Protocol:
    """How a model is fed and scored.

    Attributes:
        name: of the protocol.
        input_size: side of the square input that its authors use, in pixels; a model made for
            another one runs at its own. None where every model has its own.
        fit: how a picture becomes a square, ``"squash"`` or ``"letterbox"``; None where the
            checkpoint says.
        resampled: what travels through the steps: ``"logits"`` or ``"probabilities"``.
        steps: from the model's output to the size it is scored at.
        rule: ``"threshold"`` of the probability, or ``"argmax"`` of background and foreground
            (for a model of one channel: a probability above 0.5, which is the same).
        threshold: probability above which a pixel is foreground; None takes the checkpoint's.
        scored_at: ``"original"`` size, with the truth as it is drawn, or ``"input"`` size, with the
            truth resized nearest.
        epsilon: added to the union, ``I / (U + epsilon)``.
        empty_iou: IoU of an empty prediction of an empty truth.
        thresholds: the X of Pr@X.
        comparisons: ``">"`` or ``">="`` of Pr@X; the first one is meant where one is shown.
        reported: what its authors report; the other scores are extra.
    """

    name: str
    input_size: int | None
    fit: str | None
    resampled: str
    steps: tuple[Resample, ...]
    rule: str
    threshold: float | None
    scored_at: str
    epsilon: float
    empty_iou: float
    thresholds: tuple[float, ...]
    comparisons: tuple[str, ...]
    reported: tuple[str, ...]

    def title(self, input_size: int) -> str:
        """Say in a few words what a table of scores was made with.

        Args:
            input_size: side of the model's square input, in pixels.

        Example:
            >>> PROTOCOLS["lavt"].title(64)
            'protocol lavt at 64 px instead of 480, scored at the input size, Pr@X is IoU >= X'
        """
        other = self.input_size is not None and self.input_size != input_size
        nominal = f" instead of {self.input_size}" if other else ""
        return (
            f"protocol {self.name} at {input_size} px{nominal}, "
            f"scored at the {self.scored_at} size, Pr@X is IoU {self.comparisons[0]} X"
        )


_TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9)

PROTOCOLS: dict[str, Protocol] = {
    "original": Protocol(
        name="original",
        input_size=None,
        fit=None,
        resampled="logits",
        steps=(Resample("original", "bilinear"),),
        rule="threshold",
        threshold=None,
        scored_at="original",
        epsilon=0.0,
        empty_iou=1.0,
        thresholds=_TENTHS,
        comparisons=(">", ">="),
        reported=("mIoU", "oIoU", "Pr"),
    ),
    "cris": Protocol(
        name="cris",
        input_size=416,
        fit="letterbox",
        resampled="probabilities",
        steps=(
            Resample("input", "bicubic", align_corners=True),
            Resample("original", "bicubic", border="zero"),
        ),
        rule="threshold",
        threshold=0.35,
        scored_at="original",
        epsilon=1e-6,
        empty_iou=0.0,
        thresholds=_TENTHS,
        comparisons=(">",),
        reported=("mIoU", "Pr"),
    ),
    "lavt": Protocol(
        name="lavt",
        input_size=480,
        fit="squash",
        resampled="logits",
        steps=(Resample("input", "bilinear", align_corners=True),),
        rule="argmax",
        threshold=None,
        scored_at="input",
        epsilon=0.0,
        empty_iou=0.0,
        thresholds=_TENTHS,
        comparisons=(">=",),
        reported=("mIoU", "oIoU", "Pr"),
    ),
    "caris": Protocol(
        name="caris",
        input_size=448,
        fit="squash",
        resampled="logits",
        steps=(Resample("input", "bilinear", align_corners=True),),
        rule="argmax",
        threshold=None,
        scored_at="input",
        epsilon=0.0,
        empty_iou=0.0,  # its code divides 0 by 0 there, which has no mean
        thresholds=(0.5, 0.7, 0.9),
        comparisons=(">=",),
        reported=("mIoU", "oIoU", "Pr"),
    ),
}
"""By name: ours (``original``) and those of three repositories."""


def get_protocol(name: str) -> Protocol:
    """Return a protocol by name.

    Args:
        name: a key of :data:`PROTOCOLS`.

    Raises:
        ValueError: an unknown name, with the nearest.

    Example:
        >>> get_protocol("cris").threshold
        0.35
        >>> get_protocol("lavd")
        Traceback (most recent call last):
        ...
        ValueError: unknown protocol 'lavd'; did you mean 'lavt'? Known: 'caris', ...
    """
    check_choice("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def choose_threshold(protocol: Protocol, asked: float | None, own: float) -> float:
    """Decide the probability above which a pixel is foreground.

    Args:
        protocol: may fix it.
        asked: by the user; None where not.
        own: of the checkpoint.

    Raises:
        ValueError: asked for where the protocol fixes it, or outside [0, 1].

    Example:
        >>> choose_threshold(PROTOCOLS["original"], None, 0.35)
        0.35
    """
    fixed = 0.5 if protocol.rule == "argmax" else protocol.threshold
    if asked is None:
        return own if fixed is None else fixed
    check_fraction("threshold", asked)
    if fixed is not None and asked != fixed:
        raise ValueError(
            f"threshold {asked} contradicts protocol {protocol.name!r}, which fixes it at {fixed}; "
            "leave it out, or use protocol 'original'"
        )
    return asked


def predict_mask(
    protocol: Protocol,
    logits: Tensor,
    *,
    size: tuple[int, int],
    input_size: int,
    fit: str,
    threshold: float,
) -> Tensor:
    """Turn what a model returns for one sample into the mask that is scored.

    Args:
        protocol: how.
        logits: ``(1, h, w)``, positive is foreground; of a model of two channels, their difference.
        size: height H and width W of the picture, in pixels.
        input_size: side S of the model's square input, in pixels.
        fit: how the picture was put into it, ``"squash"`` or ``"letterbox"``.
        threshold: probability above which a pixel is foreground (:func:`choose_threshold`).

    Returns:
        bool ``(H, W)``, or ``(S, S)`` where the protocol scores at the input size.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[-1.0, 1.0]]])
        >>> options = {"size": (1, 4), "input_size": 2, "fit": "squash", "threshold": 0.5}
        >>> predict_mask(PROTOCOLS["original"], logits, **options)
        tensor([[False, False,  True,  True]])
        >>> predict_mask(PROTOCOLS["lavt"], logits, **options)
        tensor([[False,  True],
                [False,  True]])
    """
    values = logits.float()
    if protocol.resampled == "probabilities":
        values = values.sigmoid()
    for step in protocol.steps:
        if step.to == "original" and fit == "letterbox":
            values = unletterbox(values, size, input_size, step.mode, step.border)
        else:
            target = size if step.to == "original" else (input_size, input_size)
            values = resize(values, target, step.mode, step.align_corners)
    if protocol.rule == "argmax":  # equal scores are background, the first of the two channels
        return values[0] > 0
    if protocol.resampled == "logits":
        values = values.sigmoid()
    return values[0] > threshold
