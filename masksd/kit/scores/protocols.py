"""Evaluation protocols in use: numbers are only comparable within one.

Read from the public code of CRIS (``engine/engine.py``), LAVT (``test.py``) and CARIS (``eval.py``,
``model/models/caris.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from masksd.errors import check_choice, check_fraction

if TYPE_CHECKING:
    from torch import Tensor

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Resample:
    """One step of what a model returns on its way to where it is scored."""

    to: str  # the "input" square, or the image's "original" size
    mode: str  # "bilinear" or "bicubic" (a = -0.75, no antialiasing)
    align_corners: bool = False  # of torch's interpolate; a letterbox has its own map
    border: str = "edge"  # beyond a letterbox's map: its "edge" or "zero"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is fed and scored."""

    name: str
    input_size: int | None = None  # of its authors' square, pixels; a model runs at its own
    fit: str | None = None  # how an image becomes a square; None: as in training
    resampled: str = "logits"  # what goes through the steps, or "probabilities"
    steps: tuple[Resample, ...]  # from the model's output to the size that is scored
    # "threshold" of the probability, or "argmax" of background and foreground, which is a
    # probability above 0.5 where a model has one channel
    rule: str = "threshold"
    threshold: float | None = None  # None: the checkpoint's
    scored_at: str = "original"  # with the truth as drawn; "input": with the truth resized nearest
    epsilon: float = 0.0  # I / (U + epsilon)
    empty_iou: float = 0.0  # of an empty prediction of an empty truth
    thresholds: tuple[float, ...] = PRECISION_THRESHOLDS  # the X of Pr@X
    comparisons: tuple[str, ...] = (">",)  # of Pr@X; the first counts where one is shown
    reported: tuple[str, ...] = ("mIoU", "oIoU", "Pr")  # by its authors; other scores are extra

    def __post_init__(self) -> None:
        if not self.comparisons or not set(self.comparisons) <= {">", ">="}:
            raise ValueError(f"comparisons must be '>' or '>=', got {self.comparisons!r}")

    @property
    def precisions(self) -> list[str]:
        """The names of its Pr@X, those of the first comparison first."""
        endings = ["", *(f" ({other})" for other in self.comparisons[1:])]
        return [f"Pr@{x}{ending}" for ending in endings for x in self.thresholds]

    def title(self, input_size: int) -> str:
        """Say in a few words how a table was scored, with a model of this input size."""
        other = self.input_size is not None and self.input_size != input_size
        nominal = f" instead of {self.input_size}" if other else ""
        return (
            f"protocol {self.name} at {input_size} px{nominal}, "
            f"scored at the {self.scored_at} size, Pr@X is IoU {self.comparisons[0]} X"
        )


_ORIGINAL = Protocol(
    name="original",
    steps=(Resample("original", "bilinear"),),
    empty_iou=1.0,
    comparisons=(">", ">="),
)
_CRIS = Protocol(
    name="cris",
    input_size=416,
    fit="letterbox",
    resampled="probabilities",
    steps=(
        Resample("input", "bicubic", align_corners=True),
        Resample("original", "bicubic", border="zero"),
    ),
    threshold=0.35,
    epsilon=1e-6,
    reported=("mIoU", "Pr"),
)
_LAVT = Protocol(
    name="lavt",
    input_size=480,
    fit="squash",
    steps=(Resample("input", "bilinear", align_corners=True),),
    rule="argmax",
    scored_at="input",
    comparisons=(">=",),
)
# CARIS's code divides 0 by 0 where both masks are empty; LAVT's 0 stands in
_CARIS = replace(_LAVT, name="caris", input_size=448, thresholds=(0.5, 0.7, 0.9))
PROTOCOLS = {protocol.name: protocol for protocol in (_ORIGINAL, _CRIS, _LAVT, _CARIS)}
"""By name: ours (``original``) and those of three repositories."""


def get_protocol(name: str) -> Protocol:
    """Return a protocol by name."""
    check_choice("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def choose_threshold(protocol: Protocol, asked: float | None, own: float) -> float:
    """Decide the threshold: the protocol's, else the one asked for, else the checkpoint's own."""
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
    """Turn foreground logits ``(1, h, w)`` of one sample into the bool mask that is scored.

    ``size`` is the image's own (H, W), ``input_size`` and ``fit`` say how it became a square. The
    mask has that size, or the input's where the protocol scores there.
    """
    from masksd.kit.scores.resampling import resize, unletterbox

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
