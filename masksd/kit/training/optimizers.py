"""Which parameters are trained, and how: the optimiser from a config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from masksd.kit.config import TrainConfig

BACKBONES = ("encoder.", "backbone.", "text_encoder.")
"""Beginnings of names of the towers' parameters: of a triple, and of LAVT."""

_POSITIONS = ("position_embedding.weight", "attnpool.positions")
_RELATIVE = "relative_position_bias_table"


def freeze(model: nn.Module, beginnings: Iterable[str]) -> None:
    """Take parameters out of the training.

    Args:
        model: the host, changed in place.
        beginnings: of the names of its parameters.

    Raises:
        ValueError: a beginning that no parameter has; then nothing has changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> freeze(model, ["0."])
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """
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
    """Split what is trained by weight decay and learning rate.

    Biases, norms and tokens ``(C,)`` do not decay, nor do Swin's tables of relative positions. The
    towers have a learning rate of their own; their tables of absolute positions do not, as in CRIS.

    Args:
        module: the wrapper; all of its trainable parameters are taken, once each.
        host: the model in it, whose names say what belongs to a tower.
        weight_decay: of those that decay.
        backbone_lr: factor of the towers' learning rate.

    Returns:
        Groups for an optimiser, with ``scale``, the factor of the learning rate; empty ones left
        out.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> [len(group["params"]) for group in parameter_groups(host, host, 0.1, 1.0)]
        [1, 1]
    """
    names = {id(parameter): name for name, parameter in host.named_parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for scale in (1.0, backbone_lr):
        for decay in (weight_decay, 0.0):
            groups[scale, decay] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            name = names.get(id(parameter), "")
            tower = name.startswith(BACKBONES) and not name.endswith(_POSITIONS)
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
    """Build the optimiser of a run.

    Args:
        module: the wrapper.
        host: the model in it.
        config: of the run.

    Example:
        >>> host = nn.Linear(2, 3)
        >>> build_optimizer(host, host, TrainConfig(optimizer="adam")).__class__.__name__
        'Adam'
    """
    groups = parameter_groups(module, host, config.weight_decay, config.backbone_lr)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr)
