"""The towers of a study: pretrained once, kept by what they depend on, shared by all its runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from benchmarks.study.names import SILENT
from benchmarks.study.plan import Study
from masksd.kit.training.pretrain import PretrainConfig, pretrain


def with_towers(study: Study, results: Path) -> Study:
    """Return the study with its towers pretrained, which is done where it is not yet.

    Args:
        study: whose ``towers`` say how; unchanged where that is None.
        results: folder that keeps the weights, by what they depend on.

    Raises:
        ValueError: towers of another model, data or input than the study's.
    """
    if study.towers is None:
        return study
    base = study.base
    # more pictures of the same kind are as good a start; the scored splits are the same
    own = dataclasses.replace(base.data, pictures=study.towers.data.pictures)
    wanted = {name: getattr(base, name) for name in ("model", "max_length", "image_size")}
    for name, value in {**wanted, "data": own}.items():
        if getattr(study.towers, name) != value:
            raise ValueError(
                f"towers of study {study.name!r} have {name}={getattr(study.towers, name)!r} and "
                f"its runs {value!r}; pretrain on what is trained"
            )
    path = towers_file(study.towers, results)
    if not path.is_file():
        pretrain(dataclasses.replace(study.towers, output=path))
    return dataclasses.replace(study, base=dataclasses.replace(base, encoder_weights=path))


def towers_file(towers: PretrainConfig, results: Path) -> Path:
    """Return where the weights of towers are kept.

    Args:
        towers: how they are pretrained.
        results: the folder.

    Example:
        >>> towers_file(PretrainConfig(), Path("results")).name.startswith("towers-")
        True
    """
    fields = dataclasses.asdict(towers)
    report = ("eval_samples", "eval_split")
    fields = {name: each for name, each in fields.items() if name not in (*SILENT, *report)}
    text = json.dumps(fields, sort_keys=True, default=str)
    return results / f"towers-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def towers_name(study: Study) -> str:
    """Return what the rows of a study say of its towers, or how that begins.

    Weights that are there are named by their contents too: another machine may pretrain others.

    Args:
        study: with its towers pretrained or not yet.

    Example:
        >>> from masksd.kit.config import TrainConfig
        >>> from benchmarks.study.plan import host
        >>> towers_name(Study("one", TrainConfig(), (host(),)))
        'scratch'
    """
    own = study.base.encoder_weights
    if own is not None:
        return f"{own.stem}-{hashlib.sha256(own.read_bytes()).hexdigest()[:8]}"
    return "scratch" if study.towers is None else towers_file(study.towers, Path()).stem
