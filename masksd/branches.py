"""A branch: masks -> masked pass -> consistency."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from masksd.config import DistillConfig, MaskingConfig
from masksd.losses import consistency_loss, segmentation_loss
from masksd.masker import NAMES
from masksd.segmenter import Pass, Segmenter, check_containers
from masksd.tap import TokenMask

JOINT = "joint"
"""The name of the branch that masks patches and words in one pass."""


def branch_modalities(config: DistillConfig) -> dict[str, tuple[str, ...]]:
    """Say which branches a config has on, and what each masks.

    Args:
        config: of the distillation.

    Example:
        >>> branch_modalities(DistillConfig())
        {'lmvsd': ('image',), 'vmlsd': ('text',)}
        >>> branch_modalities(DistillConfig(joint=True))
        {'joint': ('image', 'text')}
    """
    on = tuple(modality for modality in NAMES if getattr(config, modality) is not None)
    return {JOINT: on} if config.joint else {NAMES[modality]: (modality,) for modality in on}


class MaskedBranch(nn.Module):
    """One masked self-distillation branch (Sec. III-B): a masked pass and what it shall predict.

    Args:
        modalities: what it masks: ``("image",)`` (LMVSD), ``("text",)`` (VMLSD), or both.
        config: the distillation's configuration.
        parts: a neck and a decoder of its own, for ``share_weights=False``.

    Attributes:
        weight: the loss weight λ, a 0-d buffer that a trainer may change; of a joint branch the sum
            of both.
        active: whether it runs in the next step; see ``MaskingConfig.every``.

    Example:
        >>> MaskedBranch(("text",), DistillConfig()).weight
        tensor(0.1000)
    """

    weight: Tensor

    def __init__(
        self,
        modalities: tuple[str, ...],
        config: DistillConfig,
        parts: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.config = config
        masking: MaskingConfig = getattr(config, modalities[0])  # a joint branch has both alike
        self.every, self.samples = masking.every, masking.samples
        self.active = True
        weights = {"image": config.lambda_image, "text": config.lambda_text}
        # Not in the state: a run that resumes goes by its config.
        weight = torch.tensor(float(sum(weights[modality] for modality in modalities)))
        self.register_buffer("weight", weight, persistent=False)
        self.parts = nn.ModuleDict(parts or {})

    def rows(self, batch: int) -> int:
        """Return how many samples of a batch the branch sees, at least one.

        Example:
            >>> from masksd.config import MaskingConfig
            >>> config = DistillConfig(image=MaskingConfig(samples=0.5))
            >>> MaskedBranch(("image",), config).rows(5)
            3
        """
        return max(1, math.ceil(self.samples * batch - 1e-9))

    def forward(
        self,
        segmenter: Segmenter,
        plain: Pass,
        masks: Mapping[str, TokenMask],
        target: Tensor | None,
    ) -> Tensor:
        """Run the masked pass and compare.

        Args:
            segmenter: the model.
            plain: its plain pass, of the samples that the branch sees.
            masks: by modality.
            target: the truth of these, for ``target="ground_truth"``.

        Returns:
            The consistency with the target, 0-d, not yet weighted.

        Raises:
            ValueError: the truth is needed and missing, or the tokens do not fit.
        """
        with frozen_statistics(segmenter):  # parts of its own are used nowhere else
            logits = segmenter.masked(
                plain, masks.get("image"), masks.get("text"), **dict(self.parts.items())
            )
        if self.config.target == "main":
            loss = consistency_loss(logits, plain.logits, self.config.detach_target)
        elif target is None:
            raise ValueError("target='ground_truth' needs the truth: call sd(..., target=masks)")
        else:
            loss = segmentation_loss(logits, target)
        return loss

    def extra_repr(self) -> str:
        """Say what is masked and when, for ``print``."""
        return f"{' and '.join(self.modalities)}, every {self.every}, {self.samples:.0%} of a batch"


def first_samples(plain: Pass, rows: int) -> Pass:
    """Return the pass of the first samples alone.

    Inputs of the batch's length are cut, and features that are floating or bool: whole numbers in
    there, such as the sizes of maps, are no samples.

    Args:
        plain: a pass of ``B`` samples.
        rows: how many, at most ``B``.

    Example:
        >>> from masksd.segmenter import ImageFeatures, TextFeatures
        >>> image = ImageFeatures(torch.ones(4, 9, 2), (3, 3))
        >>> text = TextFeatures(None, None, torch.ones(4, 5) > 0)
        >>> part = first_samples(Pass(torch.ones(4, 1, 3, 3), image, text, None, ()), 2)
        >>> part.image.local.shape, part.text.valid.shape
        (torch.Size([2, 9, 2]), torch.Size([2, 5]))
    """
    batch = plain.logits.shape[0]
    if rows == batch:
        return plain

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return leaf[:rows] if whole else leaf

    def cut_feature(leaf: Any) -> Any:
        numbers = isinstance(leaf, Tensor) and not (
            leaf.is_floating_point() or leaf.dtype == torch.bool
        )
        return leaf if numbers else cut(leaf)

    check_containers((plain.image, plain.text), "samples")
    return plain._replace(
        logits=cut(plain.logits),
        image=tree_map(cut_feature, plain.image),
        text=tree_map(cut_feature, plain.text),
        inputs=tree_map(cut, plain.inputs),
        host_output=None,
    )


@contextlib.contextmanager
def frozen_statistics(model: object) -> Iterator[None]:
    """Keep running statistics where they are: BatchNorm normalises by the batch as before.

    A masked pass shows the model pictures and sentences that inference never sees: they must not
    move what BatchNorm will use there.

    Args:
        model: whose BatchNorm layers (and InstanceNorm, if it has statistics) are held in training.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.running_mean.tolist(), int(norm.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    held = [
        layer
        for layer in cast(nn.Module, model).modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and layer.training
        and layer.track_running_stats
    ]
    try:
        for layer in held:
            layer.track_running_stats = False
        yield
    finally:
        for layer in held:
            layer.track_running_stats = True
