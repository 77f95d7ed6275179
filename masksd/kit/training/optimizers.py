"""What is minimised, over which parameters, with which weight decay and at which rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksd.distill import DistillOutput
from masksd.kit.config import TrainConfig
from masksd.losses import class_weighted_loss

_TOWERS = ("encoder.", "backbone.", "text_encoder.")  # of a triple, and of LAVT
_POSITIONS = ("position_embedding.weight", "attnpool.positions")
_RELATIVE = "relative_position_bias_table"


def losses(
    out: DistillOutput, target: Tensor, config: TrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a run and its terms; class weights replace the segmentation loss."""
    if config.class_weights is None:
        return cast(Tensor, out.loss), out.losses
    rows = slice(config.batch_size)  # the labelled ones come first
    seg = class_weighted_loss(out.host_output[rows], target[rows], config.class_weights)
    return config.distill.lambda_main * seg + out.distill_loss, {**out.losses, "seg": seg}


def freeze(model: nn.Module, beginnings: Iterable[str]) -> None:
    """Do not train the host's parameters whose names begin so; each beginning must fit one."""
    named = dict(model.named_parameters())
    beginnings = tuple(beginnings)
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in named):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
            raise ValueError(
                f"frozen: no parameter's name begins with {beginning!r}; the model's parts are "
                f"{parts}"
            )
    for name, parameter in named.items():
        if name.startswith(beginnings):
            parameter.requires_grad_(False)


def parameter_groups(
    module: nn.Module, host: nn.Module, weight_decay: float, backbone_lr: float
) -> list[dict[str, Any]]:
    """Split the trainable parameters of the wrapper around a host by weight decay and rate.

    Biases, norms, tokens ``(C,)`` and Swin's tables of relative positions do not decay. The towers,
    except for their tables of absolute positions, have a rate of their own (``scale``), as in CRIS.
    """
    names = {id(parameter): name for name, parameter in host.named_parameters()}
    keys = [(scale, decay) for scale in (1.0, backbone_lr) for decay in (weight_decay, 0.0)]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {key: [] for key in keys}
    for parameter in module.parameters():
        if parameter.requires_grad:
            name = names.get(id(parameter), "")
            tower = name.startswith(_TOWERS) and not name.endswith(_POSITIONS)
            decays = parameter.ndim > 1 and not name.endswith(_RELATIVE)
            groups[backbone_lr if tower else 1.0, weight_decay if decays else 0.0].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in groups.items()
        if parameters
    ]


def build_optimizer(
    module: nn.Module, host: nn.Module, config: TrainConfig
) -> torch.optim.Optimizer:
    """Build the optimiser of a run for the wrapper ``module`` around ``host``."""
    groups = parameter_groups(module, host, config.weight_decay, config.backbone_lr)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr)
