"""What a student learns from a larger teacher, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from masksd.config import JsonConfig
from masksd.errors import check_choice, check_fraction, check_weight

LOSSES = {
    "cross-modal": ("relation", "channel"),
    "icd": ("channel",),
    "cwd": ("channel",),
    "logits": ("logits",),
}
"""The losses of each kind, by name."""


@dataclass(frozen=True)
class ChannelDistillConfig(JsonConfig):
    """The choices of :class:`masksd.CrossModalDistill`.

    On generated shapes, with one seed, weights of 1 were best for ``"icd"`` and ``"cwd"``, 10 for
    both losses of ``"cross-modal"`` and 0.1 for ``"logits"``; with 1, these two made the student
    worse.

    Attributes:
        kind: what is matched:

            - ``"cross-modal"``, after the abstract of arXiv 2604.16806, which gives no formula:
              how patches and words relate (``"relation"``), and how channels relate, guided by
              the teacher's channel attention (``"channel"``); both on a ``share`` alone.
            - ``"icd"``: how channels relate, all alike (ICKD, arXiv 2202.03680).
            - ``"cwd"``: where each channel is active (CWD, arXiv 2011.13256).
            - ``"logits"``: the mask (Hinton et al., arXiv 1503.02531).

            :mod:`masksd.knowledge.losses` has the formulas.
        lambda_relation: weight of ``"relation"``, 0 or more; 0 leaves the loss out, and the words
            that it needs.
        lambda_channel: weight of ``"channel"``, 0 or more; 0 leaves the loss out.
        lambda_logits: weight of ``"logits"``, 0 or more; 0 leaves the loss out.
        share: of relations and channels that a ``"cross-modal"`` student is held to, in (0, 1]; it
            is free in those where the teacher is least sure, or attends least. No paper tells a
            value; 0.5 is ours, and untuned.
        temperature: of ``"cwd"`` and ``"logits"``, above 0; both papers have about 4.
        seed: keys the initial embedding.

    Example:
        >>> config = ChannelDistillConfig(share=0.25)
        >>> ChannelDistillConfig.from_json(config.to_json()) == config
        True
        >>> ChannelDistillConfig("logits").weights()
        {'logits': 1.0}
    """

    kind: Literal["cross-modal", "icd", "cwd", "logits"] = "cross-modal"
    lambda_relation: float = 1.0
    lambda_channel: float = 1.0
    lambda_logits: float = 1.0
    share: float = 0.5
    temperature: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, LOSSES)
        for name in ("lambda_relation", "lambda_channel", "lambda_logits", "temperature"):
            check_weight(name, getattr(self, name))
        if self.temperature == 0:
            raise ValueError("temperature must be above 0, got 0: it divides")
        check_fraction("share", self.share)
        if self.share == 0:
            raise ValueError("share must be above 0, got 0: the student would be held to nothing")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed must be an integer, got {self.seed!r}")
        if not self.weights():
            names = " and ".join(f"lambda_{name}" for name in LOSSES[self.kind])
            raise ValueError(f"kind {self.kind!r} has no loss with {names} at 0: raise one")

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss that takes part, by name."""
        every = {name: float(getattr(self, f"lambda_{name}")) for name in LOSSES[self.kind]}
        return {name: weight for name, weight in every.items() if weight}
