"""Knowledge distillation: a student learns how its larger teacher relates image and sentence."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from masksd.config import DistillConfig
from masksd.distill import CrossModalMaskedSelfDistill
from masksd.knowledge.config import ChannelDistillConfig
from masksd.knowledge.teaching import Knowledge

_NO_BRANCH = DistillConfig(image=None, text=None)


class CrossModalDistill(nn.Module):
    """Train a small model with the help of a large one that was trained before.

    After the abstract of "Channel Attention-Guided Cross-Modal Knowledge Distillation for Referring
    Image Segmentation" (arXiv 2604.16806): the student learns how the teacher's patches and words
    relate and how its channels do, guided by channel attention, and "retains part of its
    independent learning ability". The paper's formulas cannot be had. Ours are built on its nearest
    published relatives, see :mod:`masksd.knowledge.losses`, and its gain has not been reproduced.

    In evaluation it is the student itself: nothing is added, and the teacher does not run. It
    composes with what ``student`` does: masked branches, samples without a mask, low memory.

    Args:
        student: a :class:`CrossModalMaskedSelfDistill`, which is taken over; or what its ``wrap``
            takes, or ``(encoder, neck, decoder)``, which get no masked branch. Wrap it yourself to
            name taps.
        teacher: the same, called with the student's own arguments. It is put into evaluation mode
            and frozen, and is in no state, no list of parameters and no optimiser.
        config: what is matched; None takes the defaults.
        example: arguments of the hosts, such as ``(images, tokens)``, which check at once that both
            fit. Where widths differ, they show how large the embedding of the student's channels
            must be (in training only).

    Attributes:
        sd: the wrapped student.
        distill_config: the configuration, which never changes.

    Raises:
        ValueError: a model or an example that does not fit. Neither model has been touched then.

    Example:
        >>> import torch
        >>> from masksd.models import create_model
        >>> small, large = create_model("clip_cris_tiny"), create_model("clip_cris_tiny")
        >>> kd = CrossModalDistill(*((m.encoder, m.neck, m.decoder) for m in (small, large)))
        >>> images, tokens = torch.randn(2, 3, 64, 64), torch.tensor([[510, 3, 7, 511]] * 2)
        >>> out = kd(images, tokens, target=torch.zeros(2, 64, 64))
        >>> out.loss.backward()
        >>> sorted(out.losses)
        ['channel', 'relation', 'seg']
        >>> torch.equal(kd.eval()(images, tokens), small.eval()(images, tokens))
        True
        >>> encoder, neck, decoder = kd.unwrap()
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        config: ChannelDistillConfig | None = None,
        *,
        example: tuple[Any, ...] | None = None,
    ) -> None:
        if config is not None and not isinstance(config, ChannelDistillConfig):
            raise ValueError(f"config must be a ChannelDistillConfig, got {type(config).__name__}")
        _check_apart(student, teacher)
        super().__init__()
        self.distill_config = config or ChannelDistillConfig()
        with contextlib.ExitStack() as undo:  # unless all goes well
            self.sd = _wrapped(student, undo)
            if self.sd.knowledge is not None:
                raise ValueError("this student learns from a teacher already: wrap the model anew")
            teaching = _wrapped(teacher, undo)
            ours, theirs = (each._attached().segmenter for each in (self.sd, teaching))
            self.sd.learn_from(Knowledge(ours, theirs, self.distill_config, example))
            undo.pop_all()
        self._made_teacher = teaching is not teacher
        self.training = self.sd.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run a training step; in evaluation, run the student and nothing else.

        Takes what :meth:`CrossModalMaskedSelfDistill.forward` takes; the losses against the teacher
        need neither ``target`` nor ``labelled``.

        Returns:
            :class:`DistillOutput` in training, with the losses of ``distill_config.kind``:
            ``"relation"`` and ``"channel"``, ``"channel"``, or ``"logits"``.
        """
        return self.sd(*args, **kwargs)

    def distill_parameters(self) -> list[nn.Parameter]:
        """Return what is learned beside the student: the embedding, and what the branches learn."""
        return self.sd.distill_parameters()

    def describe(self, *args: Any, **kwargs: Any) -> str:
        """Say what is learned from whom, and what it costs; see ``sd.describe``."""
        return self.sd.describe(*args, **kwargs)

    def unwrap(self) -> Any:
        """Take every hook off and return the student as it came.

        The teacher stays frozen; it loses its hooks unless it came wrapped.
        """
        knowledge = self.sd.knowledge
        student = self.sd.unwrap()
        if knowledge is not None and self._made_teacher:
            knowledge.teacher.segmenter.release()
        return student


def _wrapped(model: Any, undo: contextlib.ExitStack) -> CrossModalMaskedSelfDistill:
    """Return a wrapper as it is, and wrap anything else without a branch."""
    if isinstance(model, CrossModalMaskedSelfDistill):
        return model
    if isinstance(model, tuple):
        if len(model) != 3:
            raise ValueError(f"expected (encoder, neck, decoder), got a tuple of {len(model)}")
        made = CrossModalMaskedSelfDistill(*model, _NO_BRANCH)
    else:
        made = CrossModalMaskedSelfDistill.wrap(model, _NO_BRANCH)
    undo.callback(made.unwrap)
    return made


def _check_apart(student: Any, teacher: Any) -> None:
    """Refuse models of which freezing one would freeze a part of the other."""

    def named(model: Any) -> list[tuple[str, nn.Parameter]]:
        parts = model if isinstance(model, tuple) else (model,)
        return [each for p in parts if isinstance(p, nn.Module) for each in p.named_parameters()]

    ours = {id(parameter) for _, parameter in named(student)}
    shared = [name for name, parameter in named(teacher) if id(parameter) in ours]
    if shared:
        raise ValueError(
            f"student and teacher share {len(shared)} parameters ({shared[0]}, ...), and the "
            "teacher is frozen: give a copy, copy.deepcopy(model)"
        )
