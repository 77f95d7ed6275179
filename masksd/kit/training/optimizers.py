"""Which parameters are trained, with which weight decay and at which rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from masksd.kit.config import TrainConfig

_TOWERS = ("encoder.", "backbone.", "text_encoder.")  # of a triple, and of LAVT
_POSITIONS = ("position_embedding.weight", "attnpool.positions")
_RELATIVE = "relative_position_bias_table"


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

    Biases, norms and tokens ``(C,)`` do not decay, nor do Swin's tables of relative positions. The
    towers have a learning rate of their own, except for their tables of absolute positions, as in
    CRIS. Groups have a ``scale``, the factor of the learning rate.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> [len(group["params"]) for group in parameter_groups(host, host, 0.1, 1.0)]
        [1, 1]
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
