"""A checkpoint without its training, compared with its source before it takes its place.

It has a ``README.md`` that the manifest leaves out: whoever publishes the model edits it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from masksd.kit.checkpoints import CONFIG, MODEL, Checkpoint, load_checkpoint, save_checkpoint
from masksd.kit.data.transforms import fit_image
from masksd.kit.data_config import DataConfig
from masksd.kit.export.card import model_card
from masksd.kit.export.hub import check_hub, push
from masksd.kit.feeding import predict_logits, probabilities_of
from masksd.kit.randomness import keyed_generator
from masksd.kit.storage.files import MANIFEST
from masksd.kit.storage.places import StagedFolder, check_place

CARD = "README.md"
FILES = (MODEL, CONFIG, "tokenizer", MANIFEST, CARD)  # what an exported folder holds

SIZES = ((48, 64), (75, 50))
"""Height and width of the images on which the written model is compared with its source."""


class Export(NamedTuple):
    """What :func:`export_checkpoint` leaves: a folder and, if it was pushed, its address."""

    folder: Path
    url: str | None


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    hub: str | None = None,
    public: bool = False,
) -> Export:
    """Write the bare host of a checkpoint and a model card, whole or not at all.

    What was written is loaded and compared with the checkpoint before it takes its place: logits
    and masks on seeded images and sentences must be the same bit for bit. Of the data's folders
    only the last name is kept. Scores come from ``metrics.jsonl`` beside the checkpoint.

    Args:
        checkpoint: folder that training wrote, as in ``runs/NAME/checkpoint``.
        output: folder to write; None takes ``export`` beside the checkpoint.
        overwrite: replace an older export.
        hub: repository on the Hugging Face Hub, ``"OWNER/NAME"``, that receives the folder in one
            commit, with the token of ``hf auth login`` or ``$HF_TOKEN``; it is made if need be.
        public: whether a repository that is made can be seen by everybody.

    Returns:
        ``folder`` and ``url``.

    Raises:
        ValueError: no such checkpoint, a place that is taken, a written model that differs, or a
            Hub that cannot be pushed to. The folder is there only if that alone failed.

    Example:
        >>> import tempfile
        >>> from masksd.kit.config import TrainConfig
        >>> from masksd.kit.sources import build_model
        >>> run = Path(tempfile.mkdtemp())
        >>> checkpoint = save_checkpoint(run / "checkpoint", build_model(TrainConfig()))
        >>> folder = export_checkpoint(checkpoint).folder
        >>> folder == run / "export", sorted(path.name for path in folder.iterdir())[:3]
        (True, ['README.md', 'checkpoint.json', 'manifest.json'])
    """
    source = Path(checkpoint)
    target = _beside(source, "export") if output is None else Path(output)
    if hub is not None:
        check_hub(hub)
    elif public:
        raise ValueError("public says who can see a repository on the Hub; name it with --hub")
    _check_target(target, source, overwrite)
    original = load_checkpoint(source)
    config = dataclasses.replace(original.config, data=_without_places(original.config.data))
    bare = original._replace(config=config)
    with StagedFolder(target, lambda: _check_target(target, source, overwrite)) as staged:
        written = save_checkpoint(staged.path / "checkpoint", bare)
        _verify(written, bare, target)
        for path in written.iterdir():
            path.rename(staged.path / path.name)
        written.rmdir()
        card = model_card(bare, _beside(source, ""), hub)
        (staged.path / CARD).write_text(card, encoding="utf-8")
        staged.publish()
    return Export(target, None if hub is None else push(target, hub, config.step, public))


def _beside(checkpoint: Path, name: str) -> Path:
    return Path(os.path.normpath(checkpoint / ".." / name))  # "." and links included


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` unless an export may be written here."""
    place, taken = target.resolve(), source.resolve()
    if taken in (place, *place.parents):
        raise ValueError(f"output {target} is the checkpoint or in it; choose another --output")
    check_place(target, FILES, kind="bare model", strange="no export writes", over=overwrite)


def _without_places(fields: dict[str, Any]) -> dict[str, Any]:
    """Check fields of the data and keep the last name of folders: a path may tell who it is."""
    DataConfig.from_dict(fields)
    paths = ("data_root", "images", "index")
    return {k: Path(v).name if k in paths and v is not None else v for k, v in fields.items()}


def _verify(folder: Path, expected: Checkpoint, target: Path) -> None:
    """Raise a ``ValueError`` unless a written checkpoint is the expected one."""
    written = load_checkpoint(folder)
    random, tokenizer = keyed_generator("export", "sentences"), expected.tokenizer
    drawn = torch.randint(tokenizer.vocab_size, (3, 4), generator=random)
    sentences = [tokenizer.decode(tokens) for tokens in drawn]
    ours, theirs = (_answers(each, sentences) for each in (expected, written))
    wrong = [name for name in ours if not all(map(torch.equal, ours[name], theirs[name]))]
    if written.config != expected.config:
        wrong.append("settings")
    if wrong:
        raise ValueError(
            f"output {target} would give other {', '.join(wrong)} than the checkpoint, so nothing "
            "was written there; check the disk and export again"
        )


@torch.inference_mode()
def _answers(checkpoint: Checkpoint, sentences: Sequence[str]) -> dict[str, list[Tensor]]:
    """Return tokens, logits and masks of each sentence on each seeded image."""
    config = checkpoint.config
    tokens = torch.stack([checkpoint.tokenizer.encode(sentence) for sentence in sentences])
    found: dict[str, list[Tensor]] = {"tokens": [tokens], "logits": [], "masks": []}
    for size in SIZES:
        random = keyed_generator("export", *size)
        noise = torch.randint(256, (*size, 3), generator=random, dtype=torch.uint8)
        pixels = fit_image(Image.fromarray(noise.numpy()), config.image_size, config.fit)
        logits = predict_logits(checkpoint, pixels.expand(len(tokens), -1, -1, -1), tokens)
        found["logits"].append(logits)
        for each in logits:
            found["masks"].append(probabilities_of(config, each, size) > config.threshold)
    return found
