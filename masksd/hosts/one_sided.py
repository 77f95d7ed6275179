"""Modules that see one modality, as a user names them for a host by taps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from masksd.tapping.modules import check_not_compiled, find_module
from masksd.tapping.replay import Replay

EMBEDDINGS = {"image": "image_embedding", "text": "text_embedding"}


def replays(
    host: nn.Module, named: Mapping[str, object], tapped: Mapping[str, list[nn.Module]]
) -> list[tuple[Replay, nn.Module]]:
    """Make what replays the modules that users name; ``tapped`` are the others, by field."""
    found: list[tuple[Replay, nn.Module]] = []
    for modality, paths in named.items():
        field = f"{modality}_only"
        if not isinstance(paths, tuple | list):
            raise ValueError(f"{field} must be a tuple of module paths, got {paths!r}: ('a.b',)")
        for path in paths:
            module = find_module(host, path, field)
            check_not_compiled(host, module, path)
            for other, known in found:
                if _holds(known, module) or _holds(module, known):
                    raise ValueError(
                        f"{field}: {path} is, holds or lies inside {other.path}, which "
                        f"{other.modality}_only names as well: name the outer one, once"
                    )
            _check_place(field, path, module, modality, tapped)
            found.append((Replay(module, path, modality), module))
    return found


def _check_place(
    field: str, path: str, module: nn.Module, modality: str, tapped: Mapping[str, list[nn.Module]]
) -> None:
    """Refuse a module that cannot see one modality only, or whose inside is masked."""
    other = EMBEDDINGS["text" if modality == "image" else "image"]
    if any(_holds(module, each) for each in tapped.get(other, ())):
        raise ValueError(
            f"{field}: {path} is or holds the module of {other}, so it sees the other modality; "
            "name modules beside it"
        )
    for name in EMBEDDINGS.values():
        if any(each is not module and _holds(each, module) for each in tapped.get(name, ())):
            raise ValueError(
                f"{field}: {path} lies inside the module of {name}, which is masked as a whole; "
                "name that, or modules after it"
            )
    if any(_holds(module, each) for each in tapped.get("logits", ())):
        raise ValueError(
            f"{field}: {path} is or holds the module of logits, which sees both modalities; name "
            "modules before it"
        )


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(part is inner for part in outer.modules())
