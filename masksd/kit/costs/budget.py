"""What a run costs, before it starts: parameters, multiply-adds, memory and steps.

The model is built on torch's meta device, where tensors have shapes but no values, and takes one
training step there. Neither weights nor data are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from masksd.config import DistillConfig
from masksd.distill import CrossModalMaskedSelfDistill
from masksd.errors import check_choice, one_line
from masksd.kit.checkpoints import read_config
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.costs.kept import kept_activations
from masksd.kit.data.layout import PUBLISHED, SplitSize, preferred_split
from masksd.kit.data.selection import count_labels
from masksd.kit.data.shapes import shapes_config, shapes_folder
from masksd.kit.data.text.tokenizers import load_tokenizer
from masksd.kit.sources import (
    find_root,
    learn_from,
    model_options,
    open_split,
    open_training,
    tokenizer_name,
    wrap_model,
)
from masksd.kit.training.checks import batch_norm_watched
from masksd.kit.training.optimizers import freeze, losses
from masksd.models import create_model
from masksd.models.registry import SHIPPED


@dataclass(frozen=True)
class Budget:
    """What a training step of ``config.images_per_pass()`` images costs on one device."""

    model_config: dict[str, Any]  # every field of it
    parameters: int  # of the host
    trainable: int  # of the host and of masksd
    added: int  # of masksd, in training only
    plain: int  # multiply-adds of one plain pass, per image
    forward: int  # the same of a training step's passes
    step: int  # the same with their backward
    weights: int  # bytes of all parameters and buffers
    gradients: int  # bytes
    optimizer: int  # bytes of Adam's two moments
    activations: int  # bytes that a step of the whole batch keeps for its backward


def measure_budget(config: TrainConfig) -> Budget:
    """Count what a training step costs.

    Activations are the bytes that autograd keeps for backward at their peak, in float32 (16-bit
    training keeps about half), with attention as fused kernels compute it. Workspace of kernels and
    allocator is not included: expect a fifth more. A model of one's own that reads values in its
    forward is a ``ValueError``, because there are none to read.
    """
    try:
        return _measure(config)
    except RuntimeError as error:
        if config.model in SHIPPED:
            raise
        raise ValueError(
            f"the cost of {config.model} cannot be counted: its step fails on tensors without "
            f"values ({one_line(error)[:150]})"
        ) from None


def _measure(config: TrainConfig) -> Budget:
    model, inputs, truth = _on_meta(config)
    batch = config.images_per_pass()
    host = sum(p.numel() for p in model.parameters())
    sd, teacher = _wrapped(model, _countable(config.distill), config, inputs)
    added = sum(p.numel() for p in sd.distill_parameters())
    trainable = sum(p.numel() for p in sd.parameters() if p.requires_grad)
    own = [*sd.parameters(), *sd.buffers()]
    with _Shapes(), batch_norm_watched(model, batch):
        with torch.no_grad():
            plain = _flops(lambda: model.eval()(*inputs))
            sd.train()
            forward = _flops(lambda: sd(*inputs, **truth))
        step = _flops(lambda: losses(sd(*inputs, **truth), truth["target"], config)[0].backward())
        sd.unwrap()
        kept = _kept(model, inputs, truth, config)
    copies = 2 if config.distill.low_memory else 1  # it sums gradients of its own
    halves = 2 * batch  # the counter counts two operations per multiply-add
    return Budget(
        model_config=dataclasses.asdict(model.config),
        parameters=host,
        trainable=trainable,
        added=added,
        plain=plain // halves,
        forward=forward // halves,
        step=step // halves,
        weights=sum(tensor.nbytes for tensor in [*own, *teacher]),
        gradients=4 * trainable * copies,
        optimizer=8 * trainable,
        activations=kept,
    )


def measure_activations(config: TrainConfig) -> int:
    """Return ``measure_budget(config).activations`` alone, in a third of the time."""
    model, inputs, truth = _on_meta(config)
    with _Shapes():
        return _kept(model.train(), inputs, truth, config)


def _kept(model: Any, inputs: list[Tensor], truth: dict[str, Tensor], config: TrainConfig) -> int:
    """Count the bytes that one step keeps for its backward."""
    sd, teacher = _wrapped(model, config.distill, config, inputs)
    with kept_activations([*sd.parameters(), *sd.buffers(), *teacher]) as kept:
        losses(sd.train()(*inputs, **truth), truth["target"], config)[0].backward()
    return kept.peak


def count_step(config: TrainConfig) -> int:
    """Return ``measure_budget(config).step`` alone, in a third of the time."""
    model, inputs, truth = _on_meta(config)
    sd, _ = _wrapped(model.train(), _countable(config.distill), config, inputs)
    with _Shapes():
        step = _flops(lambda: losses(sd(*inputs, **truth), truth["target"], config)[0].backward())
    return step // (2 * config.images_per_pass())


def _on_meta(config: TrainConfig) -> tuple[Any, list[Tensor], dict[str, Tensor]]:
    """Build a run's model, with inputs and truth of one step, as shapes without values."""
    options = model_options(config)
    name = tokenizer_name(config)
    if name == "shapes" or Path(name).is_dir():
        options["vocab_size"] = load_tokenizer(name).vocab_size
    with torch.device("meta"):
        model = create_model(config.model, **options)
        size, batch = model.config.image_size, config.images_per_pass()
        tokens = torch.zeros(batch, config.max_length, dtype=torch.int64)
        inputs: list[Tensor] = [torch.zeros(batch, 3, size, size), tokens]
        if model.takes_attention_mask:
            inputs.append(torch.ones_like(tokens))
        truth = {"target": torch.zeros(batch, size, size)}
        if config.unlabelled is not None:
            truth["labelled"] = torch.zeros(batch, dtype=torch.bool)
    freeze(model, config.frozen)
    return model, inputs, truth


def _wrapped(
    model: Any, distill: DistillConfig, config: TrainConfig, inputs: list[Tensor]
) -> tuple[CrossModalMaskedSelfDistill, list[Tensor]]:
    """Wrap a run's model, with the teacher of its config; return that one's tensors too."""
    sd = wrap_model(model, distill).to("meta")
    if config.teacher is None:
        return sd, []
    described = read_config(config.teacher)
    with torch.device("meta"):
        teacher = create_model(described.model, **described.model_config)
    with _Shapes():
        learn_from(sd, teacher, config, tuple(inputs))
    return sd, list(teacher.state_dict().values())


def _countable(distill: DistillConfig) -> DistillConfig:
    """Leave low memory out: it runs the same operations where the counter cannot follow."""
    return dataclasses.replace(distill, low_memory=False)


def _flops(run: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class _Shapes(TorchFunctionMode):
    """Let models run without values: attention is one kernel, and every tensor is false."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__bool__:  # "are all words valid?"; no is the costlier answer
            return False
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call the kernel that GPUs use; the meta device would take one that keeps the matrices."""
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    result: Tensor = attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return result


class _NoTokenizer:
    """Stands in where items are only counted."""

    def encode(self, sentence: str) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)


def check_splits(config: TrainConfig) -> None:
    """Raise a ``ValueError`` unless the data, as far as known, have the splits of a run."""
    data = config.data
    if data.data_root is not None:
        for split in (config.train_split, config.eval_split):
            open_split(data, split, _NoTokenizer(), 1, cache=False)
        return
    known = shapes_config(data).images() if data.name == "shapes" else _published(data)
    if known:
        check_choice("train_split", config.train_split, known)
        check_choice("eval_split", config.eval_split, known)


def _published(data: DataConfig) -> Mapping[str, SplitSize]:
    return PUBLISHED.get((data.name, data.split_by or preferred_split(data.name) or ""), {})


def count_items(config: TrainConfig) -> tuple[dict[str, int], str]:
    """Count the training items by ``"refs"`` and ``"sentences"``, where known, and say from where.

    Those whose masks are not used count as ``"unlabelled refs"`` and ``"unlabelled sentences"``.
    """
    data, split = config.data, config.train_split
    if data.data_root is None and data.name != "shapes":
        published = _published(data).get(split)
        if published is None:
            return {}, "not known without --data-root"
        found = {"refs": published.refs, "sentences": published.sentences}
        if config.labels is not None and published.refs:
            kept = count_labels(config.labels, published.refs)
            left = published.refs - kept if config.unlabelled == data.name else None
            found = {"refs": kept, "unlabelled refs": left}
        return {kind: count for kind, count in found.items() if count}, "as published"
    if data.data_root is None and not shapes_folder(shapes_config(data)).is_dir():
        return {}, "shapes that are not generated yet"
    counts = {}
    for kind in ("refs", "sentences"):
        alike = dataclasses.replace(config, train_items=kind)
        training, unlabelled = open_training(alike, _NoTokenizer(), 1, cache=False)
        counts[kind] = len(training)
        if unlabelled is not None:
            counts[f"unlabelled {kind}"] = len(unlabelled)
    return counts, f"in {find_root(data)}"
