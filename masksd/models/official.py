"""Published weights for CRIS with a ResNet: OpenAI's CLIP archives and CRIS.pytorch's checkpoints.

Only tensors are taken from either, by the names that they have there.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ARCHIVES = {
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
}
"""SHA-256 of the archives that OpenAI published, by their names."""

_FACTS = ("logit_scale", "input_resolution", "context_length", "vocab_size")  # no weights of ours
_CONNECT = "visual.attnpool.connect."  # CRIS's own part of the encoder

_LAYER = r"transformer\.resblocks\.(\d+)\."
_POOL = "visual.attnpool."
_ENCODER = [
    (_LAYER + r"ln_([12])\.", r"text.encoder.layers.\1.layer_norm\2."),
    (_LAYER + r"attn\.out_proj\.", r"text.encoder.layers.\1.self_attn.out_proj."),
    (_LAYER + r"attn\.([qkv])_proj\.", r"text.encoder.layers.\1.self_attn.\2_proj."),
    (_LAYER + r"mlp\.c_fc\.", r"text.encoder.layers.\1.mlp.fc1."),
    (_LAYER + r"mlp\.c_proj\.", r"text.encoder.layers.\1.mlp.fc2."),
    (r"ln_final\.", "text.final_layer_norm."),
    (r"token_embedding\.", "text.embeddings.token_embedding."),
    (r"positional_embedding$", "text.embeddings.position_embedding.weight"),
    (r"text_projection$", "text_projection.weight"),
    (_POOL + "positional_embedding$", _POOL + "positions"),
    (_POOL + r"q_proj\.", _POOL + "attention.query."),
    (_POOL + r"k_proj\.", _POOL + "attention.key."),
    (_POOL + r"v_proj\.", _POOL + "attention.value."),
    (_POOL + r"c_proj\.", _POOL + "attention.out."),
]
_DECODER = r"decoder\.layers\.(\d+)\."
_CRIS = [
    (r"neck\.txt_proj\.", "neck.sentence."),
    (r"neck\.f1_v_proj\.", "neck.lateral5."),
    (r"neck\.norm_layer\.", "neck.modulated."),
    (r"neck\.f2_v_proj\.", "neck.lateral4."),
    (r"neck\.f2_cat\.", "neck.merge4."),
    (r"neck\.f3_v_proj\.", "neck.lateral3."),
    (r"neck\.f3_cat\.", "neck.merge3."),
    (r"neck\.f4_proj([345])\.", r"neck.smooth\1."),
    (r"neck\.aggr\.", "neck.gather."),
    (r"neck\.coordconv\.0\.conv1\.", "neck.coordinates.0."),
    (r"neck\.coordconv\.1\.", "neck.coordinates.1."),
    (_DECODER + r"self_attn\.q_proj\.", r"decoder.layers.\1.pixels.query."),
    (_DECODER + r"self_attn\.k_proj\.", r"decoder.layers.\1.pixels.key."),
    (_DECODER + r"self_attn\.v_proj\.", r"decoder.layers.\1.pixels.value."),
    (_DECODER + r"self_attn\.out_proj\.", r"decoder.layers.\1.pixels.out."),
    (_DECODER + r"multihead_attn\.q_proj\.", r"decoder.layers.\1.words.query."),
    (_DECODER + r"multihead_attn\.k_proj\.", r"decoder.layers.\1.words.key."),
    (_DECODER + r"multihead_attn\.v_proj\.", r"decoder.layers.\1.words.value."),
    (_DECODER + r"multihead_attn\.out_proj\.", r"decoder.layers.\1.words.out."),
    (_DECODER + r"self_attn_norm\.", r"decoder.layers.\1.norm_pixels_out."),
    (_DECODER + r"cross_attn_norm\.", r"decoder.layers.\1.norm_words_out."),
    (_DECODER + r"norm1\.", r"decoder.layers.\1.norm_pixels."),
    (_DECODER + r"norm2\.", r"decoder.layers.\1.norm_words."),
    (_DECODER + r"norm3\.", r"decoder.layers.\1.norm_feed."),
    (_DECODER + r"ffn\.", r"decoder.layers.\1.feed."),
    (r"proj\.vis\.1\.", "decoder.head.enlarge2."),
    (r"proj\.vis\.3\.", "decoder.head.enlarge4."),
    (r"proj\.vis\.4\.", "decoder.head.project."),
    (r"proj\.txt\.", "decoder.head.kernel."),
]


def clip_archive(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of one of OpenAI's CLIP archives.

    Such an archive is a program that loading may run, so only the published files are opened.

    Args:
        path: ``RN50.pt`` or ``RN101.pt``, under any name.

    Returns:
        Float32 tensors by OpenAI's names.

    Raises:
        ValueError: there is no such file, or it is not one that OpenAI published.
    """
    try:
        with Path(path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"no CLIP archive at {str(path)!r} ({error.strerror}); OpenAI's CLIP repository "
            "(github.com/openai/CLIP, clip/clip.py) names the addresses of RN50.pt and RN101.pt"
        ) from error
    if found not in ARCHIVES.values():
        raise ValueError(
            f"{str(path)!r} has SHA-256 {found}, which is none that OpenAI published for "
            f"{' or '.join(ARCHIVES)}; it was not opened, as it may hold a program: download it "
            "again"
        )
    with warnings.catch_warnings():  # torch deprecates the format, and these files have no other
        warnings.simplefilter("ignore", DeprecationWarning)
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def cris_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint that CRIS.pytorch wrote.

    Args:
        path: the file, ``{"state_dict": {"module.*": tensor}, ...}``; a plain state dict does too.

    Returns:
        Tensors by the names of CRIS.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"no checkpoint at {str(path)!r} ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} is no checkpoint of tensors and plain containers: "
            f"{str(error).partition(chr(10))[0]}. If you trust it, save its 'state_dict' alone"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{str(path)!r} has no 'state_dict' of tensors by name")
    return {key.removeprefix("module."): value for key, value in state.items()}


def convert_clip(state: Mapping[str, Tensor], max_length: int) -> dict[str, Tensor]:
    """Rename CLIP's weights to those of :class:`masksd.models.clip_resnet.ClipResNetEncoder`.

    Args:
        state: tensors by OpenAI's names; ``visual.attnpool.connect`` is CRIS's and may be missing.
        max_length: rows of the table of word positions that are kept.

    Returns:
        Tensors by our names.
    """
    tensors = {key: value for key, value in _split(state).items() if key not in _FACTS}
    result = _renamed(tensors, _ENCODER)
    for key, change in (
        ("text_projection.weight", lambda value: value.T),
        ("text.embeddings.position_embedding.weight", lambda value: value[:max_length]),
        (_POOL + "positions", lambda value: value[1:]),  # the first is of a mean that is not used
    ):
        if key in result:
            result[key] = change(result[key])
    return result


def convert_cris(state: Mapping[str, Tensor], max_length: int) -> dict[str, Tensor]:
    """Rename the weights of CRIS to those of :class:`masksd.models.cris_resnet.ResNetCris`.

    Args:
        state: tensors by the names of CRIS.
        max_length: rows of the table of word positions that are kept.

    Returns:
        Tensors by our names.
    """
    prefix = "backbone."
    backbone = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    encoder = convert_clip(backbone, max_length)
    return {
        **{f"encoder.{key}": value for key, value in encoder.items()},
        **_renamed(_split(rest), _CRIS),
    }


def load_converted(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load converted weights, which may leave out what CRIS adds to CLIP's attention pool.

    Args:
        module: whose weights they are to be.
        state: by our names, of :func:`convert_clip` or :func:`convert_cris`.
        source: the file, for messages.

    Raises:
        ValueError: they do not fit; nothing has been changed then.
    """
    own = module.state_dict()
    ours = {**{key: value for key, value in own.items() if key.startswith(_CONNECT)}, **state}
    _check(own, ours, source)
    module.load_state_dict(ours)


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Part the one projection of queries, keys and values into three."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name, joint, leaf = key.rpartition("in_proj_")
        if not joint:
            result[key] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            result[f"{name}{letter}_proj.{leaf}"] = part
    return result


def _renamed(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Apply to every name the rule that its beginning matches; others keep theirs."""
    result = {}
    for key, value in state.items():
        for pattern, name in rules:
            renamed, changed = re.subn("^" + pattern, name, key)
            if changed:
                key = renamed
                break
        result[key] = value
    return result


def _check(own: Mapping[str, Any], ours: Mapping[str, Tensor], source: str) -> None:
    missing, left = sorted(own.keys() - ours.keys()), sorted(ours.keys() - own.keys())
    if missing or left:
        raise ValueError(
            f"{source!r} does not hold the weights of this model: {len(missing)} are missing "
            f"({', '.join(missing[:2]) or 'none'}), {len(left)} have no place "
            f"({', '.join(left[:2]) or 'none'}); is it for another ResNet?"
        )
    for key, value in own.items():
        if value.shape != ours[key].shape:
            raise ValueError(
                f"{source!r} is of another size: {key} is {tuple(ours[key].shape)} there and "
                f"{tuple(value.shape)} here; build the model with the sizes of the weights"
            )
