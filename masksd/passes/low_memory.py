"""A step whose passes follow each other with their backwards: the activations of one host pass.

The features are cut off from the encoders that made them, so that the graph falls into parts that
run backward, and are freed, one by one::

    plain pass, main losses      backward to the features        frees neck, decoder, head
    VMLSD                        backward to the image's         frees the masked sentence's pass
    image                        backward to the pixels          frees the image encoder
    LMVSD                        backward to the sentence's      frees the masked image's pass
    sentence                     backward to the words           frees the text encoder

At no time are there more activations than those of the host's own pass and one sentence. The
gradients are those of the whole graph, because the target of the branches is detached. They are
kept, one buffer for each parameter, and handed to autograd when ``out.loss.backward()`` comes,
scaled by what comes in: DistributedDataParallel reduces once, accumulation and clipping work as
ever. Parameters that no module has registered get none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map

from masksd.masking.fused import without_autocast
from masksd.passes.step import DistillOutput, Passes
from masksd.passes.truth import Truth
from masksd.segmenter import check_containers
from masksd.trials.towers import made_from


def check_low_memory(sd: nn.Module, inputs: Any) -> None:
    """Raise where the passes cannot follow each other; ``inputs`` are the host's, any tree."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "low_memory=True runs backward inside forward, which cannot be compiled: call "
            ".compile() on the encoder's towers, the neck and the decoder instead of sd"
        )
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(inputs)):
        raise ValueError(
            "low_memory=True gives gradients to parameters only, but an input of the host requires "
            "one: detach it, or use low_memory=False"
        )
    for name, parameter in sd.named_parameters():
        kind = type(parameter).__name__
        if kind in ("DTensor", "FlatParameter"):
            raise ValueError(
                f"low_memory=True does not work with FSDP, which has sharded {name} ({kind}): use "
                "DistributedDataParallel, or low_memory=False with gradient checkpointing"
            )


def low_memory_step(
    passes: Passes,
    parameters: list[nn.Parameter],
    scale: float | Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    truth: Truth,
    step: Tensor,
) -> DistillOutput:
    """Run a step pass by pass; ``scale`` multiplies losses inside, against underflow in fp16."""
    cut = Cut()
    with passes.segmenter.cutting(cut):
        main = passes.main(args, kwargs, truth, step)
    if "seg" not in main.losses:
        raise ValueError(
            "low_memory=True runs backward inside and so needs the whole loss: call "
            "sd(..., target=masks), or use low_memory=False and add out.distill_loss to yours"
        )
    idle = passes.zero_of_unused(main)
    gradients = Gradients([p for p in parameters if p.requires_grad], scale)
    others = passes.with_others(main, idle)
    gradients.add(passes.with_seg(main, others), cut.leaves("image", "text"))
    main = main._replace(
        plain=tree_map(_without_graph, main.plain),
        ranking=tree_map(_without_graph, main.ranking),
        losses={name: loss.detach() for name, loss in main.losses.items()},
    )
    results = {}
    order = passes.order()
    for number, name in enumerate(order):
        needed = {m for later in order[number:] for m in _reused(passes, later)}
        gradients.finish(cut, {"image", "text"} - needed)
        result = passes.branch(name, main)
        loss = cast(Tensor, result.loss)
        gradients.add(passes.branches[name].weight * loss, cut.leaves(*_reused(passes, name)))
        results[name] = result._replace(loss=loss.detach())
    gradients.finish(cut, {"image", "text"})
    out = passes.total(main, results, idle.detach())
    return out._replace(loss=_HandOver.apply(out.loss, gradients, *gradients.parameters))


class Cut:
    """Features cut off from the graph that made them: a leaf in place of each."""

    def __init__(self) -> None:
        # In each list, no tensor was made from a leaf of the same list.
        self._pairs: dict[str, list[list[tuple[Tensor, Tensor]]]] = {"image": [], "text": []}

    def __call__(self, modality: str, features: Any) -> Any:
        """Replace every tensor that has a graph by a leaf; the same tensor by the same leaf."""
        check_containers(features, "low_memory=True")
        before = self._pairs[modality]
        pairs: list[tuple[Tensor, Tensor]] = []

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            for made, replaced in [*chain(*before), *pairs]:
                if made is value or replaced is value:
                    return replaced
            pairs.append((value, value.detach().requires_grad_()))
            return pairs[-1][1]

        cut = tree_map(leaf, features)
        if before and not made_from([made for made, _ in pairs], [x for _, x in before[-1]]):
            before[-1] += pairs
        else:
            before.append(pairs)
        return cut

    def leaves(self, *modalities: str) -> list[Tensor]:
        """Return the leaves of these modalities that are still needed."""
        return [leaf for modality in modalities for _, leaf in chain(*self._pairs[modality])]

    def take(self, modality: str) -> list[tuple[Tensor, Tensor]] | None:
        """Return the tensors that were cut last, each with its gradient, and forget them."""
        pairs = self._pairs[modality].pop() if self._pairs[modality] else None
        return pairs and [(made, leaf.grad) for made, leaf in pairs if leaf.grad is not None]


class Gradients:
    """The gradients of a step, added up part by part."""

    def __init__(self, parameters: list[nn.Parameter], scale: float | Tensor) -> None:
        self.parameters = parameters
        self.scale = scale
        self.values: list[Tensor | None] | None = [None] * len(parameters)

    def add(self, loss: Tensor, leaves: list[Tensor]) -> None:
        """Run a part backward, down to parameters and leaves."""
        if loss.requires_grad:
            self._backward([loss * self.scale], None, leaves)

    def finish(self, cut: Cut, modalities: set[str]) -> None:
        """Run what made these features backward, and free it."""
        for modality in sorted(modalities):
            while (pairs := cut.take(modality)) is not None:
                earlier = cut.leaves(modality)
                if pairs:
                    made, gradients = zip(*pairs, strict=True)
                    # parts before both may be shared
                    self._backward(list(made), list(gradients), earlier, keep=bool(earlier))

    def _backward(
        self,
        outputs: list[Tensor],
        gradients: list[Tensor] | None,
        leaves: list[Tensor],
        keep: bool = False,
    ) -> None:
        inputs = [*self.parameters, *leaves]
        # backward runs in the dtype of forward, whatever autocast says here
        with without_autocast(outputs[0].device), _without_hooks(self.parameters):
            try:
                found = torch.autograd.grad(
                    outputs, inputs, gradients, retain_graph=keep, allow_unused=True
                )
            except RuntimeError as error:
                if "second time" in str(error):
                    raise RuntimeError(
                        "low_memory=True runs each part backward once, but what comes before a "
                        "module of image_only or text_only is used by others too: leave it out, "
                        "name the modules before it as well, or the one around them"
                    ) from error
                if "use_reentrant" not in str(error):
                    raise
                raise RuntimeError(
                    "low_memory=True does not work with reentrant checkpointing: checkpoint with "
                    "use_reentrant=False"
                ) from error
        values = self.values or []
        for index, new in enumerate(found[: len(values)]):
            if new is not None:
                old = values[index]
                # not in place: autograd may give one tensor to two parameters
                values[index] = new if old is None else old + new
        for leaf, new in zip(leaves, found[len(values) :], strict=True):
            if new is not None:
                leaf.grad = new if leaf.grad is None else leaf.grad + new


@contextlib.contextmanager
def _without_hooks(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Keep parameters' own hooks for the hand-over: they run once, on the whole gradient."""
    held = [(p._backward_hooks, dict(p._backward_hooks)) for p in parameters if p._backward_hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in held:
            hooks.update(own)


def _without_graph(value: Any) -> Any:
    """Detach what is not a leaf: its part of the graph is done."""
    made = isinstance(value, Tensor) and value.requires_grad and not value.is_leaf
    return value.detach() if made else value


def _reused(passes: Passes, name: str) -> tuple[str, ...]:
    """Name the modalities whose plain features a branch uses."""
    return tuple(m for m in ("image", "text") if m not in passes.branches[name].modalities)


class _HandOver(torch.autograd.Function):
    """A loss whose backward scales the collected gradients and hands them on."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, ctx.gradients.values = ctx.gradients.values, None
        if values is None:
            raise RuntimeError(
                "a low_memory step can be run backward once: its gradients have been handed on"
            )
        factor = grad / ctx.gradients.scale
        for index, value in enumerate(values):  # one by one: never two buffers of all
            values[index] = None if value is None else value * factor
        return None, None, *values
