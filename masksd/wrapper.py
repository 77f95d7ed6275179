"""What every wrapper is around a segmenter: its parts, its step counter, its check, its end."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from masksd.config import DistillConfig
from masksd.describe import describe, frozen_token_notes, small_logits_notes
from masksd.knowledge.teaching import Knowledge
from masksd.passes.branches import NAMES, MaskedBranch, branch_modalities
from masksd.passes.masker import TokenMasker
from masksd.passes.step import DistillOutput, Passes
from masksd.passes.teacher import Teacher
from masksd.relevance import projection_for
from masksd.segmenter import Segmenter
from masksd.tapping.hooks import OneThread
from masksd.tapping.modules import evaluating, without_gradients
from masksd.trials.check import check_passes


class Wrapper(nn.Module):
    """A segmenter with what is learned beside it; a subclass builds it and says how a step runs."""

    step: Tensor
    _passes: Passes | None

    def _set_up(
        self,
        segmenter: Segmenter,
        config: DistillConfig,
        parts: dict[str, dict[str, nn.Module]],
        example: tuple[Any, ...] | None,
        check: bool,
        teacher: Segmenter | None,
    ) -> None:
        """Finish the construction around a segmenter whose hooks are in place."""
        shares = [m.samples for m in (config.image, config.text) if m and m.samples < 1]
        if shares and not segmenter.splits:
            segmenter.release()
            raise ValueError(
                f"samples={shares[0]} runs a branch on part of a batch, but "
                f"{type(segmenter).__name__} cannot cut one: it does not know all that the host is "
                "given for each sample; use samples=1.0"
            )
        nn.Module.__init__(self)
        self.distill_config = config
        self.segmenter: Segmenter | None = segmenter
        maskers = {
            name: TokenMasker(name, config, segmenter.taps[name].width, segmenter.shared_space)
            for name in NAMES
            if getattr(config, name) is not None
        }
        branches = {
            name: MaskedBranch(modalities, config, parts.get(name))
            for name, modalities in branch_modalities(config).items()
        }
        self.maskers, self.branches = nn.ModuleDict(maskers), nn.ModuleDict(branches)
        learned = any(masker.relevance == "projection" for masker in maskers.values())
        self.projection = projection_for(segmenter, example) if learned else None
        self.knowledge: Knowledge | None = None
        self.teaching: Teacher | None = None
        if config.target == "teacher":
            follows = teacher is None
            own = copy.deepcopy(segmenter) if teacher is None else teacher
            self.teaching = Teacher(own, config.teacher_decay if follows else None)
        self._passes = Passes(segmenter, config, maskers, branches, self.projection, self.teaching)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.loss_scale: float | Tensor = 1.0
        self.teacher_rests = False
        self._next = 0  # the step as a Python number: reading the buffer would stall the device
        self._step_was_set = False
        self._checked = not check
        self._told = False
        self._turn: dict[str, int] = {}  # of a thread, see OneThread
        self.training = any(part.training for part in segmenter.children())  # as the model came
        self.register_load_state_dict_post_hook(_follow_step)
        weight = next(segmenter.parameters(), None)
        if weight is not None:
            for module in self._own():
                module.to(device=weight.device)
            self.step = self.step.to(weight.device)

    def _own(self) -> list[nn.Module]:
        """List what learns beside the host."""
        every = (self.maskers, self.branches, self.projection, self.knowledge)
        return [module for module in every if module is not None]

    def learn_from(self, knowledge: Knowledge) -> None:
        """Learn from a teacher's features too; :class:`masksd.CrossModalDistill` asks for it."""
        passes = self._attached()
        weight = next(passes.segmenter.parameters(), None)
        self.knowledge = knowledge if weight is None else knowledge.to(device=weight.device)
        self._passes = passes._replace(knowledge=knowledge)

    @staticmethod
    def _check_batch(inputs: Any, target: Tensor | None) -> None:
        """Refuse a batch without samples, whose losses would be NaN; ``inputs`` are any tree."""
        tensors = [each for each in tree_leaves(inputs) if isinstance(each, Tensor) and each.ndim]
        if isinstance(target, Tensor) and target.ndim and not len(target):
            tensors = [target]
        if tensors and not any(len(each) for each in tensors):
            raise ValueError(
                "the batch is empty: every tensor that sd(...) got has 0 samples, and a mean over "
                "none is NaN; skip such a batch"
            )

    def _check_once(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check the first training step; never while compiling, nor without values."""
        if self._checked or torch.compiler.is_compiling() or self.step.is_meta:
            return
        check_passes(self._attached(), args, kwargs)
        self._checked = True

    def _tell_once(self, output: DistillOutput) -> None:
        """Warn after the first training step of tokens that cannot learn and of small logits."""
        if self._told or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self._told = True
        passes = self._attached()
        for note in [*frozen_token_notes(passes), *small_logits_notes(passes, output)]:
            warnings.warn(note, UserWarning, stacklevel=5)

    def set_step(self, step: int) -> None:
        """Say which step the next training call is: it keys the draws and activates the branches.

        Calls count by themselves. Only a compiled wrapper with a branch that skips steps
        (``every`` above 1) needs this before each call, since compiled code must not depend on a
        number that changes.

        Args:
            step: training calls before this one, at least 0.

        Raises:
            ValueError: a negative step.

        Example:
            >>> from masksd import CrossModalMaskedSelfDistill
            >>> from masksd.models import create_model
            >>> sd = CrossModalMaskedSelfDistill.wrap(create_model("lavt_tiny"))
            >>> sd.set_step(7)
            >>> int(sd.step)
            7
        """
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"step must be a whole number of at least 0, got {step!r}")
        self.step.fill_(step)
        self._step_was_set, self._next = True, step
        self._attached().activate(step)

    def _advance(self) -> None:
        """Activate the branches of the next step."""
        passes = self._attached()
        if not passes.skips_steps():
            return
        if torch.compiler.is_compiling():
            if not self._step_was_set:
                raise RuntimeError(
                    "a compiled wrapper whose branches skip steps (every above 1) must be told the "
                    "step: call sd.set_step(step) before each call"
                )
            self._step_was_set = False
            return
        self._next += 1
        passes.activate(self._next)

    def check(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Check that masked passes fit the model; the first training step does this by itself.

        In evaluation mode and without gradients: an empty mask must give the plain logits; a mask
        over all tokens of the first sample must leave other samples alone and nothing of that
        sample in the embedding. Costs one plain pass and three masked passes for each modality, and
        two more where something is replayed, which must not see what is masked.
        Every pass starts from the same random state and buffers; these and the modes are kept. A
        compiled wrapper does not check by itself: call this before its first step. Takes what
        :meth:`forward` takes.

        Returns:
            The largest difference by check, as a share of the logits' size.

        Raises:
            RuntimeError: a masked pass is not the plain pass; says which, by how much, and what
                can be done.

        Warns:
            UserWarning: the host gives other logits each time in evaluation, and cannot be judged.

        Example:
            >>> from masksd import CrossModalMaskedSelfDistill
            >>> from masksd.models import create_model
            >>> sd = CrossModalMaskedSelfDistill.wrap(create_model("lavt_tiny"))
            >>> tokens = torch.tensor([[101, 200, 300, 102], [101, 5, 102, 0]])
            >>> max(sd.check(torch.randn(2, 3, 64, 64), tokens, tokens != 0).values()) < 1e-3
            True
        """
        passes = self._attached()
        target = kwargs.pop("target", None)
        with OneThread(self._turn):
            found = check_passes(passes, args, passes.segmenter.with_target(target, kwargs))
        self._checked = True
        return found

    def distill_parameters(self) -> list[nn.Parameter]:
        """Return what is learned beside the host: mask tokens, unshared necks and decoders.

        Add them to your optimiser before you build its scheduler.

        Example:
            >>> from masksd import CrossModalMaskedSelfDistill
            >>> from masksd.models import create_model
            >>> sd = CrossModalMaskedSelfDistill.wrap(create_model("lavt_tiny"))
            >>> len(sd.distill_parameters())
            2
        """
        return [parameter for module in self._own() for parameter in module.parameters()]

    @property
    def teacher(self) -> Any:
        """A copy of the teacher as a plain model, as :meth:`unwrap` returns the host.

        Raises:
            ValueError: the config's target is not ``"teacher"``.
        """
        if self.teaching is None:
            raise ValueError("there is no teacher: DistillConfig(target='teacher') has one")
        return self.teaching.model()

    def unwrap(self) -> Any:
        """Take every hook off and return the model as it came; the wrapper cannot be used again.

        Returns:
            ``(encoder, neck, decoder)``, or the host: the very objects.
        """
        host = self._attached().segmenter.release()
        self.segmenter = self._passes = self.teaching = self.knowledge = None
        return host

    def describe(self, *args: Any, **kwargs: Any) -> str:
        """Say what is tapped, masked, run again and reused, and what it costs.

        Args:
            args: the host's own arguments, to count multiply-adds with; takes about one step.
            kwargs: handed to the host as they are.

        Returns:
            Text, one fact per line.
        """
        passes = self._attached()
        with evaluating(self), without_gradients():
            return describe(passes, (args, kwargs) if args or kwargs else None)

    def _attached(self) -> Passes:
        if self._passes is None:
            raise ValueError("this wrapper was unwrapped: wrap the model again to use it")
        return self._passes


def _follow_step(sd: Wrapper, _: Any) -> None:
    """Go on where a loaded state left off."""
    if not sd.step.is_meta:
        sd.set_step(int(sd.step))
