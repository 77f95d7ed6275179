"""The wrapper: one plain pass, the masked branches, the losses, in that order."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from masksd.branches import NAMES, MaskedBranch
from masksd.config import DistillConfig, checked_config
from masksd.describe import describe
from masksd.hosts import Taps, segmenter_for
from masksd.losses import segmentation_loss
from masksd.modes import evaluating
from masksd.relevance import projection_for
from masksd.segmenter import Segmenter
from masksd.triple import Triple


class DistillOutput(NamedTuple):
    """What a training step returns, the loss first.

    Attributes:
        loss: the whole of Eq. 9, 0-d; None where there is no target and the host has no loss of its
            own: add ``distill_loss`` to yours.
        losses: the terms of Eq. 9, unweighted and 0-d: ``"seg"``, ``"lmvsd"``, ``"vmlsd"``, those
            that there are; and ``"align"`` with relevance ``"projection"``.
        distill_loss: ``λ1 · lmvsd + λ2 · vmlsd``, and ``align`` where there is one, 0-d.
        logits: the main branch, ``(B, 1 or 2, H, W)``.
        masks: bool, the tokens that were replaced: ``"lmvsd"`` ``(B, N)``, ``"vmlsd"`` ``(B, L)``.
        relevance: the scores that the filter saw, as ``masks``.
        host_output: what the host returned in its plain pass.
    """

    loss: Tensor | None
    losses: dict[str, Tensor]
    distill_loss: Tensor
    logits: Tensor
    masks: dict[str, Tensor]
    relevance: dict[str, Tensor]
    host_output: Any


class CrossModalMaskedSelfDistill(nn.Module):
    """Train a referring image segmentation model with cross-modality masked self-distillation.

    In training a call runs the model once plainly and once a branch with some tokens masked, and
    returns the losses of Eq. 9 of CM-MaskSD (arXiv 2305.11481). In evaluation it is the model. The
    truth that comes in evaluation is ignored, so that one call serves both.

    Args:
        encoder: module with ``encode_image(images) -> ImageFeatures`` and ``encode_text(tokens) ->
            TextFeatures``.
        neck: ``neck(image.maps, text.pooled) -> fused``.
        decoder: ``decoder(fused, text.local, attention_mask) -> logits (B, 1, H, W)``, where
            ``attention_mask`` is ``text.attention_mask``, or ``text.valid`` where that is None.
        config: the method's choices; None takes the paper's.
        image_embedding: dotted path, inside the encoder, of the module that embeds the patches;
            None takes ``encoder.image_embedding``.
        text_embedding: the same for the words; None takes ``encoder.text_embedding``.
        example: ``(images, tokens)``, which relevance ``"projection"`` finds its widths with.

    Attributes:
        config: the configuration, which never changes.
        segmenter: the model as the branches see it; holds the host's modules.
        branches: the masked branches by name, ``"lmvsd"`` and ``"vmlsd"``, those that are on. The
            loss weights are ``sd.branches["lmvsd"].weight``, 0-d buffers that a trainer may ramp.
        step: 0-d int64 buffer, the training calls so far; with the config's seed and a sample's
            position in the global batch it keys every draw. torch's random streams are not touched.

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

    step: Tensor

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
    ) -> None:
        config = checked_config(config)
        # Copied before the hooks: what a branch owns shall not write into the host's taps.
        parts: dict[str, dict[str, nn.Module]] = {}
        if not config.share_weights:
            parts = {m: copy.deepcopy({"neck": neck, "decoder": decoder}) for m in NAMES}
        triple = Triple(
            encoder, neck, decoder, image_embedding=image_embedding, text_embedding=text_embedding
        )
        self._set_up(triple, config, parts, example)

    @classmethod
    def wrap(
        cls,
        host: nn.Module,
        config: DistillConfig | None = None,
        *,
        taps: Taps | None = None,
        text_encoder: nn.Module | None = None,
        example: tuple[Any, ...] | None = None,
    ) -> CrossModalMaskedSelfDistill:
        """Wrap a whole model that nobody wrote for this.

        Args:
            host: a model that is recognised by its parts (CRIS, LAVT, CLIPSeg), or any with
                ``taps``. It is not changed: hooks are registered, once, and nothing else.
            config: the method's choices; None takes the paper's.
            taps: where the host does what; None asks the recipes.
            text_encoder: a second module, for hosts that keep BERT outside (LAVT); the wrapper then
                takes the ids.
            example: arguments of the host. One evaluation forward under ``no_grad`` then finds the
                widths that the modules do not say; the random state is kept.

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
        config = checked_config(config)
        self = cls.__new__(cls)
        self._set_up(segmenter_for(host, config, taps, text_encoder, example), config, {}, example)
        return self

    def _set_up(
        self,
        segmenter: Segmenter,
        config: DistillConfig,
        parts: dict[str, dict[str, nn.Module]],
        example: tuple[Any, ...] | None,
    ) -> None:
        """Finish the construction around a segmenter whose hooks are in place."""
        nn.Module.__init__(self)
        self.config = config
        self.segmenter: Segmenter | None = segmenter
        self.branches = nn.ModuleDict(
            {
                name: MaskedBranch(
                    modality,
                    config,
                    segmenter.taps[modality].width,
                    parts.get(modality),
                    segmenter.shared_space,
                )
                for modality, name in NAMES.items()
                if getattr(config, modality) is not None
            }
        )
        kinds = [branch.relevance for branch in self._named_branches().values()]
        self.projection = projection_for(segmenter, example) if "projection" in kinds else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        weight = next(cast(nn.Module, segmenter).parameters(), None)
        if weight is not None:
            for module in (self.branches, self.projection):
                if module is not None:
                    module.to(device=weight.device)
            self.step = self.step.to(weight.device)

    def forward(self, *args: Any, target: Tensor | None = None, **kwargs: Any) -> Any:
        """Run a step; in evaluation, run the host and nothing else.

        Args:
            args: what the host takes; for a triple ``images (B, 3, H, W)`` and ``tokens (B, L)``.
            target: the truth, ``(B, h, w)`` or ``(B, 1, h, w)`` in [0, 1] at any size.
            kwargs: handed to the host as they are.

        Returns:
            :class:`DistillOutput` in training; in evaluation what the host returns.

        Raises:
            ValueError: shapes that do not fit, or a target that the config needs and did not come.
            RuntimeError: a tapped module ran inside a gradient-checkpointed region.
        """
        segmenter = self._attached()
        if not self.training:
            return segmenter.host(*args, **kwargs)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel runs its replicas in threads that share the hooks: use "
                "DistributedDataParallel, one process a GPU"
            )
        output = self._distill(segmenter, args, kwargs, target)
        self.step += 1
        return output

    def preview(self, *args: Any, target: Tensor | None = None, **kwargs: Any) -> DistillOutput:
        """Return what the next training step would mask, and its losses, without taking it.

        Runs in evaluation mode without gradients; no parameter, statistic, counter or mode changes.

        Args:
            args: as :meth:`forward`.
            target: as :meth:`forward`.
            kwargs: as :meth:`forward`.

        Returns:
            :class:`DistillOutput`.
        """
        segmenter = self._attached()
        with evaluating(self), torch.no_grad():
            return self._distill(segmenter, args, kwargs, target)

    def _distill(
        self,
        segmenter: Segmenter,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Tensor | None,
    ) -> DistillOutput:
        plain = segmenter.plain(*args, **kwargs)
        target = plain.target if target is None else target
        losses: dict[str, Tensor] = {}
        if plain.loss is not None:
            losses["seg"] = plain.loss
        elif target is not None:
            losses["seg"] = segmentation_loss(plain.logits, target, self.config.dice_weight)

        masks, relevance = {}, {}
        distill_loss = plain.logits.new_zeros(())
        ranking = plain
        if self.projection is not None:
            if target is None:
                raise ValueError(
                    "relevance 'projection' needs a target: call sd(..., target=masks)"
                )
            ranking = self.projection(plain)
            losses["align"] = distill_loss = self.projection.loss(ranking, target)
        first = _first_position(plain.logits.shape[0])
        for name, branch in self._named_branches().items():
            losses[name], masks[name], relevance[name] = branch(
                segmenter,
                plain,
                ranking if branch.relevance == "projection" else plain,
                target,
                self.step,
                first,
            )
            distill_loss = distill_loss + branch.weight * losses[name]

        loss = losses["seg"] + distill_loss if "seg" in losses else None
        return DistillOutput(
            loss, losses, distill_loss, plain.logits, masks, relevance, plain.host_output
        )

    def distill_parameters(self) -> list[nn.Parameter]:
        """Return what the branches learn: mask tokens, and unshared necks and decoders.

        Add them to your optimiser before you build its scheduler.

        Example:
            >>> from masksd.models import create_model
            >>> model = create_model("clip_cris_tiny")
            >>> sd = CrossModalMaskedSelfDistill(model.encoder, model.neck, model.decoder)
            >>> len(sd.distill_parameters())
            2
        """
        own = list(self.branches.parameters())
        return own if self.projection is None else [*own, *self.projection.parameters()]

    def unwrap(self) -> Any:
        """Take every hook off and return the model as it came; this object is used up then.

        Returns:
            ``(encoder, neck, decoder)``, or the host: the very objects.
        """
        host = self._attached().release()
        self.segmenter = None
        return host

    def describe(self, *args: Any, **kwargs: Any) -> str:
        """Say what is tapped, masked, run again and reused, and what it costs.

        Args:
            args: inputs of the host, to count multiply-adds with: takes about one step.
            kwargs: handed to the host as they are.

        Returns:
            Text, a line a fact.
        """
        segmenter = self._attached()
        if not args and not kwargs:
            return describe(segmenter, self._named_branches(), self.config)
        with evaluating(self), torch.no_grad():
            return describe(
                segmenter, self._named_branches(), self.config, (args, kwargs, self.step)
            )

    def _named_branches(self) -> dict[str, MaskedBranch]:
        return cast("dict[str, MaskedBranch]", dict(self.branches.items()))

    def _attached(self) -> Segmenter:
        if self.segmenter is None:
            raise ValueError("this wrapper was unwrapped: wrap the model again to use it")
        return self.segmenter


def _first_position(batch: int) -> int:
    """The global position of this process's first sample, as batches are split over processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() * batch
    return 0
