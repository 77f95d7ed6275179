"""The wrapper that users call; :mod:`masksd.passes.step` runs each of its training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from masksd.config import DistillConfig, checked_config
from masksd.hosts import Taps, segmenter_for
from masksd.passes.branches import branch_modalities
from masksd.passes.low_memory import check_low_memory, low_memory_step
from masksd.passes.one_pass import one_pass_step
from masksd.passes.step import DistillOutput as DistillOutput
from masksd.passes.step import Passes
from masksd.passes.truth import Truth
from masksd.tapping.hooks import OneThread
from masksd.tapping.modules import BatchNormTold, check_wrappable, evaluating, without_gradients
from masksd.triple import Triple
from masksd.wrapper import Wrapper


class CrossModalMaskedSelfDistill(Wrapper):
    """Train a referring image segmentation model with cross-modality masked self-distillation.

    In training, a call runs the model once plainly and once for each branch with some tokens
    masked, and returns the losses of Eq. 9 of CM-MaskSD (arXiv 2305.11481). In evaluation it is the
    model itself; a target is ignored there, so that one call serves both.

    Args:
        encoder: module with ``encode_image(images) -> ImageFeatures`` and ``encode_text(tokens) ->
            TextFeatures``.
        neck: ``neck(image.maps, text.pooled) -> fused``.
        decoder: ``decoder(fused, text.local, attention_mask) -> logits (B, 1, H, W)``, where
            ``attention_mask`` is ``text.attention_mask``, or ``text.valid`` where that is None.
        config: the method's choices; None takes the paper's.
        image_embedding: dotted path, inside the encoder, of the module that embeds the patches;
            None takes ``encoder.image_embedding``.
        text_embedding: the same for the words.
        example: ``(images, tokens)``, from which relevance ``"projection"`` learns its widths.
        check: compare masked passes with the plain pass at the first step, see :meth:`check`.
        teacher: ``(encoder, neck, decoder)`` that teach, for ``target="teacher"``. They are put
            into evaluation mode and frozen; None takes an average of the model's own weights.

    Attributes:
        distill_config: the configuration, which never changes. (``config`` is the name that
            transformers' ``Trainer`` writes to.)
        segmenter: the model as the branches see it; holds the host's modules.
        branches: those that are on, by name: ``"lmvsd"`` and ``"vmlsd"``, or ``"joint"``. Their
            ``weight`` is that of their loss, a 0-d buffer that a trainer may ramp.
        maskers: what ranks, draws and replaces tokens, by modality, ``"image"`` and ``"text"``.
        loss_scale: with ``low_memory=True`` and a ``GradScaler`` (fp16), its scale for the inner
            backwards; set it before each step, ``sd.loss_scale = scaler.get_scale()``.
        teacher_rests: with ``target="teacher"``, whether the average stays as it is in the next
            calls: set it for all calls of an accumulated step but the first.
        step: 0-d int64 buffer, the training calls so far. With the config's seed and a sample's
            position in the global batch it keys every draw; torch's random state is never touched.

    Raises:
        ValueError: a part or path that does not fit. The model has not been touched then.

    Example:
        >>> from masksd.models import create_model
        >>> model = create_model("clip_cris_tiny")
        >>> sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder)
        >>> images = torch.randn(2, 3, 64, 64)
        >>> tokens = torch.zeros(2, 8, dtype=torch.long)
        >>> tokens[:, :4] = torch.tensor([1, 5, 6, model.config.end_token])
        >>> out = sd(images, tokens, target=torch.zeros(2, 64, 64))
        >>> out.loss.backward()
        >>> sorted(out.losses)
        ['lmvsd', 'seg', 'vmlsd']
        >>> torch.equal(sd.eval()(images, tokens), model.eval()(images, tokens))
        True
        >>> encoder, neck, decoder = sd.unwrap()
    """

    def __init__(
        self,
        encoder: nn.Module,
        neck: nn.Module,
        decoder: nn.Module,
        config: DistillConfig | None = None,
        *,
        image_embedding: str | None = None,
        text_embedding: str | None = None,
        example: tuple[Any, ...] | None = None,
        check: bool = True,
        teacher: tuple[nn.Module, nn.Module, nn.Module] | None = None,
    ) -> None:
        config = checked_config(config, teacher)
        # Copied before any hook is attached, so that the copies carry none.
        parts: dict[str, dict[str, nn.Module]] = {}
        if not config.share_weights:
            own = {"neck": neck, "decoder": decoder}
            parts = {name: copy.deepcopy(own) for name in branch_modalities(config)}

        where: dict[str, Any] = {
            "image_embedding": image_embedding,
            "text_embedding": text_embedding,
            "image_layer": config.image.layer if config.image else 0,
        }
        teaching = None if teacher is None else Triple(*teacher, **where)
        segmenter = Triple(encoder, neck, decoder, **where)
        self._set_up(segmenter, config, parts, example, check, teaching)

    @classmethod
    def wrap(
        cls,
        host: nn.Module,
        config: DistillConfig | None = None,
        *,
        taps: Taps | None = None,
        text_encoder: nn.Module | None = None,
        valid: Callable[[Tensor], Tensor] | None = None,
        example: tuple[Any, ...] | None = None,
        check: bool = True,
        teacher: nn.Module | None = None,
    ) -> CrossModalMaskedSelfDistill:
        """Wrap a whole model, unmodified.

        Args:
            host: a model that is recognised by its parts (CRIS, LAVT, CLIPSeg, SAM 3), or any other
                with ``taps``, or a :class:`masksd.Segmenter` of your own. Nothing of it is changed,
                but hooks are registered.
            config: the method's choices; None takes the paper's.
            taps: where in the host things happen; None looks for a recipe that knows it.
            text_encoder: a second module, for hosts that keep BERT outside (LAVT); the wrapper then
                takes token ids.
            valid: for a recognised host whose recipe's own does not fit, a function that takes ids
                ``(B, L)`` and returns bool ``(B, L)``, True for real words.
            example: arguments of the host. One evaluation forward under ``no_grad`` then finds the
                widths that modules do not state; the random state is kept.
            check: as for the class.
            teacher: as for the class, a model that is called like the host.

        Returns:
            The wrapper; ``sd(*args, **kwargs)`` takes what the host takes.

        Raises:
            ValueError: the host is not recognised or a tap does not match; it has not been touched
                then.

        Example:
            >>> from masksd.hosts import Taps
            >>> host = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 1, 1))
            >>> sd = CrossModalMaskedSelfDistill.wrap(
            ...     host, DistillConfig(text=None), taps=Taps("0", images=0, tokens=0))
            >>> sd(torch.zeros(1, 3, 32, 32), target=torch.zeros(1, 32, 32)).masks["lmvsd"].shape
            torch.Size([1, 16])
            >>> sd.unwrap() is host
            True
        """
        if isinstance(host, Wrapper):
            raise ValueError("the host is wrapped already: call its unwrap() first, or train it")
        config = checked_config(config, teacher)
        self = cls.__new__(cls)
        teaching = None
        if teacher is not None:
            check_wrappable(teacher, "teacher")
            teaching = segmenter_for(teacher, config, taps, None, example, valid)
        segmenter = segmenter_for(host, config, taps, text_encoder, example, valid)
        self._set_up(segmenter, config, {}, example, check, teaching)
        return self

    def forward(
        self,
        *args: Any,
        target: Tensor | None = None,
        labelled: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a training step; in evaluation, run the host and nothing else.

        Args:
            args: what the host takes; for a triple ``images (B, 3, H, W)`` and ``tokens (B, L)``.
            target: the truth, ``(B, h, w)`` or ``(B, 1, h, w)`` in [0, 1] at any size. A host that
                has an argument of this name gets it as well.
            labelled: bool ``(B,)``, True for samples whose target is the truth; None for all. The
                losses against the truth are means over these, over all processes; the branches see
                every sample. Masks of the others may be 0.
            kwargs: handed to the host as they are.

        Returns:
            :class:`DistillOutput` in training; in evaluation what the host returns.

        Raises:
            ValueError: an empty batch, shapes that do not fit, or a target that the config needs
                and is missing.
            RuntimeError: a tapped module ran inside a gradient-checkpointed region.

        Warns:
            UserWarning: once, after the first step: a mask token cannot learn, or the logits that
                taps name have fewer pixels than the mask that the host returns.
        """
        passes = self._attached()
        kwargs = passes.segmenter.with_target(target, kwargs)
        if not self.training:
            return passes.segmenter.host(*args, **kwargs)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs its replicas in threads that share the hooks: use "
                "DistributedDataParallel, one process a GPU"
            )
        self._check_batch((args, kwargs), target)
        with OneThread(self._turn), BatchNormTold():
            self._check_once(args, kwargs)
            if self.teaching is not None and not self.teacher_rests:
                self.teaching.follow(passes.segmenter, self.step)
            truth = Truth(target, labelled)
            if self.distill_config.low_memory and torch.is_grad_enabled():
                check_low_memory(self, (args, kwargs))
                learners, scale = list(self.parameters()), self.loss_scale
                output = low_memory_step(passes, learners, scale, args, kwargs, truth, self.step)
            else:
                output = self._run(passes, args, kwargs, truth)
        self._tell_once(output)
        self.step += 1
        self._advance()
        return output

    def preview(
        self,
        *args: Any,
        target: Tensor | None = None,
        labelled: Tensor | None = None,
        **kwargs: Any,
    ) -> DistillOutput:
        """Return what the next training step would mask, and its losses, without taking it.

        Takes what :meth:`forward` takes, and runs in evaluation mode without gradients; no
        parameter, statistic, counter or mode changes. In training mode, BatchNorm and dropout can
        change the model's own prediction, and with it the patches that it ranks highest.

        Returns:
            :class:`DistillOutput`: ``masks`` and ``relevance`` show what would be masked.
        """
        passes = self._attached()
        kwargs = passes.segmenter.with_target(target, kwargs)
        self._check_batch((args, kwargs), target)
        if passes.skips_steps():
            passes.activate(int(self.step))  # compiled steps do not
        kept = passes.segmenter.keeping_buffers(every=True)
        with OneThread(self._turn), kept, evaluating(self), without_gradients():
            self._check_once(args, kwargs)
            return self._run(passes, args, kwargs, Truth(target, labelled))

    def _run(
        self, passes: Passes, args: tuple[Any, ...], kwargs: dict[str, Any], truth: Truth
    ) -> DistillOutput:
        run = one_pass_step if self.distill_config.one_pass else Passes.run
        return run(passes, args, kwargs, truth, self.step)
