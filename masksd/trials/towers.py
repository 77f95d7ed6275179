"""Which parts of a model see one modality: what they give stays when the other is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from masksd.segmenter import Segmenter, tensors_of
from masksd.tapping.kinds import TableTap
from masksd.tapping.modules import is_compiled
from masksd.trials.trial import Trial, difference

NOISE = 1e-4
"""Change of an output, as a share of its size, that kernels of a GPU may give by themselves."""


class Sight:
    """What parts of a model give, plainly and with all embeddings of a modality replaced."""

    def __init__(self, trial: Trial, modality: str, parts: Iterable[nn.Module]) -> None:
        parts, taps = list(parts), [tap for tap, _ in trial.segmenter.tapped(modality)]
        self._leaves: list[Tensor] = []
        self._plain = _outputs(parts, trial.plain)
        for tap in taps:
            tap.after = partial(self._replaced, tap.prefix)
        try:
            with torch.enable_grad():
                self._other = _outputs(parts, trial.plain)
        finally:
            for tap in taps:
                tap.after = None

    def _replaced(self, prefix: int, output: Tensor) -> Tensor:
        """Return other embeddings in the place of those that a tap passes on."""
        other = 1 - output.detach()
        if prefix:  # is never masked
            other[:, :prefix] = output[:, :prefix].detach()
        self._leaves.append(other.requires_grad_())
        return other

    def change(self, part: nn.Module) -> float | None:
        """Return how much the output changed, as a share of its size; None unless it ran once."""
        plain, other = self._plain[part], self._other[part]
        if len(plain) != 1 or len(other) != 1:
            return None
        if len(plain[0]) != len(other[0]):
            return float("inf")
        return max((_apart(*pair) for pair in zip(other[0], plain[0], strict=True)), default=0.0)

    def follows(self, part: nn.Module) -> bool:
        """Whether the output's graph leads to what was replaced; a bridge may start at zero."""
        given = [tensor for call in self._other[part] for tensor in call]
        return made_from(given, self._leaves)

    def alone(self, part: nn.Module) -> bool:
        """Whether the part ran once and sees nothing of what was replaced."""
        change = self.change(part)
        return change is not None and change <= NOISE and not self.follows(part)


def _outputs(
    parts: list[nn.Module], run: Callable[[], object]
) -> dict[nn.Module, list[list[Tensor]]]:
    """Run a pass, and return the tensors that each call of the parts gave."""
    found: dict[nn.Module, list[list[Tensor]]] = {part: [] for part in parts}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found[module].append(tensors_of(output))

    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _apart(got: Tensor, wanted: Tensor) -> float:
    if got.is_floating_point() and got.numel():
        return difference(got.detach(), wanted)
    return 0.0 if torch.equal(got, wanted) else float("inf")


def made_from(tensors: list[Tensor], leaves: list[Tensor]) -> bool:
    """Whether the graph of any of the tensors leads to any of the leaves."""
    wanted = set(map(id, leaves))
    nodes, seen = [tensor.grad_fn for tensor in tensors], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def replayable(
    segmenter: Segmenter, modalities: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, list[str]]:
    """Name, by modality, the outermost modules that see it alone and are not named yet."""
    root, trial = segmenter.root, Trial(segmenter, args, kwargs)
    if any(map(is_compiled, root.modules())):  # they would keep the hooks
        return {}
    known = {
        module
        for hook, module in [*segmenter.replayed(), *segmenter.tapped()]
        if not isinstance(hook, TableTap)  # whose module has more in it than the table
    }
    sights = {masked: Sight(trial, masked, root.modules()) for masked in modalities}
    found = {}
    for masked, sight in sights.items():
        others = [other for name, other in sights.items() if name != masked]
        paths = _unchanged(sight, root, "", known)
        found["text" if masked == "image" else "image"] = [
            path
            for path in paths
            if not any(other.alone(root.get_submodule(path)) for other in others)
        ]
    return found


def _unchanged(sight: Sight, module: nn.Module, path: str, known: set[nn.Module]) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if child in known or next(child.parameters(), None) is None:
            continue
        if sight.alone(child):
            yield inner
        else:
            yield from _unchanged(sight, child, inner, known)
