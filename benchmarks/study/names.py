"""Names that outlive changes of the code: hashes of runs and towers, and recorded defaults.

A name leaves out what equals the default *as it was when the first rows were recorded*, in
``defaults.json``. So a default that changes later changes neither the name nor the meaning of a
row. A field that is added later belongs in ``defaults.json`` with the value that keeps the
behaviour as it was; then it changes no name either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.study.plan import Study
from masksd.kit.checkpoints import MODEL
from masksd.kit.config import DataConfig, PretrainConfig, TrainConfig
from masksd.kit.storage.places import find_folder
from masksd.kit.training.pretrain import pretrain

Fields = dict[str, Any]
RECORDED: dict[str, Fields] = json.loads(
    (Path(__file__).parent / "defaults.json").read_text(encoding="utf-8")
)
_SILENT = ("output", "overwrite", "progress", "workers", "cache", "cpu", "log_every")
"""Fields that never change a score or a weight."""
_SILENT_TRAIN = (
    *_SILENT,
    *("sheet_rows", "eval_batch_size", "timeout", "save_minutes", "keep", "log_with"),
    *("encoder_weights", "start_from", "teacher"),  # these have a name
)
_SILENT_TOWERS = (*_SILENT, "eval_samples", "eval_split")


def recorded_train(**changes: Any) -> TrainConfig:
    """Return a training run with the recorded defaults; ``data`` and ``distill`` take mappings."""
    return TrainConfig.from_json(json.dumps(_changed(RECORDED["train"], changes), default=str))


def recorded_towers(**changes: Any) -> PretrainConfig:
    """Return a pretraining run with the recorded defaults; ``data`` takes a mapping."""
    fields = _changed(RECORDED["pretrain"], changes)
    data, output = DataConfig(**fields["data"]), Path(fields["output"])
    tuples = {name: tuple(each) for name, each in fields.items() if isinstance(each, list)}
    return PretrainConfig(**{**fields, **tuples, "data": data, "output": output})


def config_hash(study: Study, config: TrainConfig, towers: str) -> str:
    """Name a run by all that its scores depend on: its config, its towers, what it is scored on.

    The name depends on where data lies (nobody compares contents), but not on the machine.
    """
    return _digest(study, {**_differing_train(config), "towers": towers}, 16)


def base_hash(study: Study) -> str:
    """Name what all runs of a study share, except seed and towers; rows show it to readers."""
    distill = dataclasses.replace(study.base.distill, seed=0)
    return _digest(
        study, _differing_train(dataclasses.replace(study.base, seed=0, distill=distill)), 8
    )


def with_towers(study: Study, results: Path) -> Study:
    """Return the study with its towers' weights, pretraining them if ``results`` has none."""
    if study.towers is None:
        return study
    base = study.base
    # towers may see more images of the same kind: the scored splits stay the same
    own = dataclasses.replace(base.data, pictures=study.towers.data.pictures)
    wanted = {name: getattr(base, name) for name in ("model", "max_length", "image_size")}
    for name, value in {**wanted, "data": own}.items():
        if getattr(study.towers, name) != value:
            raise ValueError(
                f"study {study.name!r}: its towers have {name}={getattr(study.towers, name)!r} and "
                f"its runs {value!r}; pretrain on what is trained"
            )
    path = towers_file(study.towers, results)
    if not path.is_file():
        pretrain(dataclasses.replace(study.towers, output=path))
    return dataclasses.replace(study, base=dataclasses.replace(base, encoder_weights=path))


def towers_file(towers: PretrainConfig, results: Path) -> Path:
    """Return where the weights of towers are kept."""
    now, recorded = _json(PretrainConfig()), RECORDED["pretrain"]
    added = {**_without(now, recorded), "data": _without(now["data"], recorded["data"])}
    fields = _differing(_json(towers), added)  # all recorded fields, added ones where they differ
    fields = {name: each for name, each in fields.items() if name not in _SILENT_TOWERS}
    text = json.dumps(fields, sort_keys=True)
    return results / f"towers-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"


def towers_name(study: Study) -> str:
    """Return what a study's rows say of its towers, or how that starts while there are no weights.

    A teacher is named there too.

    The name ends with a hash of the weights: another machine may pretrain others.
    """
    own = _start_name(study)
    return own if study.teacher is None else f"{own}, {_checkpoint_name(study.teacher)}"


def _start_name(study: Study) -> str:
    if study.base.start_from is not None:
        return _checkpoint_name(study.base.start_from)
    own = study.base.encoder_weights
    if own is not None:
        return f"{own.stem}-{_short_digest(own)}"
    return "scratch" if study.towers is None else towers_file(study.towers, Path()).stem


def _checkpoint_name(folder: Path) -> str:
    weights = find_folder(folder) / MODEL
    return f"{folder.name}-{_short_digest(weights)}" if weights.is_file() else folder.name


def _short_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def _digest(study: Study, fields: Fields, length: int) -> str:
    scored = [list(study.splits), study.samples, *(["best"] if study.best else [])]
    text = json.dumps({**fields, "scored": scored}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _differing_train(config: TrainConfig) -> Fields:
    default = _changed(_json(TrainConfig()), RECORDED["train"])
    fields = _differing(_json(config), default)
    kept = {name: value for name, value in fields.items() if name not in _SILENT_TRAIN}
    # which weights it has, only the towers of a row say
    return kept if config.teacher is None else {**kept, "teacher": config.teacher.name}


def _differing(fields: Fields, default: Fields) -> Fields:
    """Return the fields that ``default`` does not have, or has with another value."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(default.get(name), dict):
            value = _differing(value, default[name])
            if value:
                found[name] = value
        elif name not in default or value != default[name]:
            found[name] = value
    return found


def _changed(fields: Fields, changes: Fields) -> Fields:
    """Return the fields with changes, merged where both are mappings."""
    merged = dict(fields)
    for name, value in changes.items():
        older = fields.get(name)
        if isinstance(value, dict) and isinstance(older, dict):
            value = _changed(older, value)
        merged[name] = value
    return merged


def _without(fields: Fields, others: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in others}


def _json(config: TrainConfig | PretrainConfig) -> Fields:
    """Return a config's fields as JSON has them."""
    if isinstance(config, TrainConfig):
        fields: Fields = json.loads(config.to_json())
    else:
        fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return fields
