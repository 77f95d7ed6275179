"""The kit: data sets, training, evaluation and prediction from files.

What ``masksd train``, ``evaluate``, ``predict`` and ``export`` do, in Python. Names are loaded
when they are first used, so that importing this is cheap.

Example:
    >>> from masksd.kit import TrainConfig, get_recipe
    >>> get_recipe("cm-masksd").model
    'clip_cris_tiny'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masksd.kit.checkpoints import load_checkpoint as load_checkpoint
    from masksd.kit.config import DataConfig as DataConfig
    from masksd.kit.config import PretrainConfig as PretrainConfig
    from masksd.kit.config import TrainConfig as TrainConfig
    from masksd.kit.config import TrainingError as TrainingError
    from masksd.kit.data.records import DataError as DataError
    from masksd.kit.data.refer import ReferDataset as ReferDataset
    from masksd.kit.data.shapes.build import ShapesConfig as ShapesConfig
    from masksd.kit.data.shapes.build import build_shapes as build_shapes
    from masksd.kit.data.text.tokenizers import load_tokenizer as load_tokenizer
    from masksd.kit.evaluation.scoring import evaluate as evaluate
    from masksd.kit.evaluation.scoring import score as score
    from masksd.kit.export.folder import export_checkpoint as export_checkpoint
    from masksd.kit.prediction.predictor import Predictor as Predictor
    from masksd.kit.recipes import get_recipe as get_recipe
    from masksd.kit.sources import build_model as build_model
    from masksd.kit.training.pretrain import pretrain as pretrain
    from masksd.kit.training.trainer import RunResult as RunResult
    from masksd.kit.training.trainer import train as train

_ROOMS = {
    "DataConfig": "config",
    "DataError": "data.records",
    "Predictor": "prediction.predictor",
    "PretrainConfig": "config",
    "ReferDataset": "data.refer",
    "RunResult": "training.trainer",
    "ShapesConfig": "data.shapes.build",
    "TrainConfig": "config",
    "TrainingError": "config",
    "build_model": "sources",
    "build_shapes": "data.shapes.build",
    "evaluate": "evaluation.scoring",
    "export_checkpoint": "export.folder",
    "get_recipe": "recipes",
    "load_checkpoint": "checkpoints",
    "load_tokenizer": "data.text.tokenizers",
    "pretrain": "training.pretrain",
    "score": "evaluation.scoring",
    "train": "training.trainer",
}
__all__ = list(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"masksd.kit.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
