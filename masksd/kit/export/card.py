"""The model card of an export: what the model is, its scores, and how to load it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import masksd
from masksd.errors import one_line
from masksd.kit.checkpoints import Checkpoint
from masksd.kit.data_config import DataConfig
from masksd.kit.evaluation.settings import SENTENCES
from masksd.kit.printing import markdown_table
from masksd.kit.scores.report import score_cells

_CARD = """\
---
library_name: masksd
pipeline_tag: image-segmentation
tags:
- referring-image-segmentation
---

# {model}, trained on {data}

Finds what a sentence refers to in an image (referring image segmentation). Trained for {step} steps
{method} by masksd {trained}; exported by masksd {version}.

| | |
| --- | ---: |
| parameters | {parameters} |
| input | {size} x {size} pixels ({fit}), {length} tokens |
| a pixel belongs to the object if its probability is above | {threshold:g} |
{scores}
## Use with masksd

```python
{folder}

from masksd.kit import Predictor

predictor = Predictor.from_checkpoint(folder)  # every file is verified
predictor.set_image("IMAGE.jpg")
mask = predictor.predict("the red circle").mask
```

From a shell: `masksd predict IMAGE "the red circle" --checkpoint FOLDER`

## Read the weights without masksd

`model.safetensors` holds {tensors} tensors under the keys of the model's own modules, which are
plain PyTorch; `checkpoint.json` says how they are built and fed; the tokenizer is one of the
tokenizers library. No file is a pickle.

```python
{folder}

from safetensors.torch import load_file
from tokenizers import Tokenizer

weights = load_file(f"{{folder}}/model.safetensors")
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer/tokenizer.json")
```

## Licence

Not stated yet. Whoever publishes these weights states it here, and as `license:` in the header of
this file; data and pretrained weights may have terms of their own.
"""


def model_card(checkpoint: Checkpoint, run: Path, hub: str | None = None) -> str:
    """Write the model card, with scores from the run, to be read on ``hub`` or in its folder."""
    config = checkpoint.config
    masked = any((config.distill or {}).get(branch) for branch in ("image", "text"))
    folder = 'folder = "."  # where this file lies'
    if hub is not None:
        folder = (
            f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{hub}")'
        )
    return _CARD.format(
        model=config.model,
        data=one_line(DataConfig.from_dict(config.data).title()),
        step=config.step,
        method=f"{'with' if masked else 'without'} masked self-distillation",
        trained=one_line(config.version),
        version=masksd.__version__,
        parameters=f"{sum(each.numel() for each in checkpoint.model.parameters()):,}",
        size=config.image_size,
        fit=config.fit,
        length=config.max_length,
        threshold=config.threshold,
        scores=_scores(run, config.step, one_line(config.eval_split)),
        folder=folder,
        tensors=len(checkpoint.model.state_dict()),
    )


def _scores(run: Path, step: int, split: str) -> str:
    """Return a table of the run's scores at a step; nothing where it has none."""
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        return ""
    try:
        records = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
        found = [each["scores"] for each in records if "scores" in each and each["step"] == step]
        if not found:
            return ""
        named = {SENTENCES.get(kind, kind): scores for kind, scores in found[-1].items()}
        table = markdown_table(*score_cells(named))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"the model card has no scores: {metrics} cannot be read "
            f"({type(error).__name__}: {one_line(error)})",
            UserWarning,
            stacklevel=4,
        )
        return ""
    return f"\nScores on {split}, per cent, at the images' own size:\n\n{table}\n"
