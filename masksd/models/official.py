"""CRIS's published weights, from OpenAI's CLIP archives and CRIS.pytorch, by our names."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from masksd.errors import one_line

ARCHIVES = {
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
}
"""SHA-256 of the archives that OpenAI published."""

_UNUSED = ("logit_scale", "input_resolution", "context_length", "vocab_size")

_LAYER = r"transformer\.resblocks\.(\d+)\."
_POOL = "visual.attnpool."
_QKV = {"q": "query", "k": "key", "v": "value"}
_CLIP_NAMES = [
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
    *((_POOL + rf"{part}_proj\.", f"{_POOL}attention.{name}.") for part, name in _QKV.items()),
    (_POOL + r"c_proj\.", _POOL + "attention.out."),
]
_DECODER_LAYER = r"decoder\.layers\.(\d+)\."
_CRIS_NAMES = [
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
    *(
        (_DECODER_LAYER + rf"{theirs}\.{part}_proj\.", rf"decoder.layers.\1.{ours}.{name}.")
        for theirs, ours in (("self_attn", "pixels"), ("multihead_attn", "words"))
        for part, name in {**_QKV, "out": "out"}.items()
    ),
    (_DECODER_LAYER + r"self_attn_norm\.", r"decoder.layers.\1.norm_pixels_out."),
    (_DECODER_LAYER + r"cross_attn_norm\.", r"decoder.layers.\1.norm_words_out."),
    (_DECODER_LAYER + r"norm1\.", r"decoder.layers.\1.norm_pixels."),
    (_DECODER_LAYER + r"norm2\.", r"decoder.layers.\1.norm_words."),
    (_DECODER_LAYER + r"norm3\.", r"decoder.layers.\1.norm_feed."),
    (_DECODER_LAYER + r"ffn\.", r"decoder.layers.\1.feed."),
    (r"proj\.vis\.1\.", "decoder.head.enlarge2."),
    (r"proj\.vis\.3\.", "decoder.head.enlarge4."),
    (r"proj\.vis\.4\.", "decoder.head.project."),
    (r"proj\.txt\.", "decoder.head.kernel."),
]


def clip_weights(path: str | Path, max_length: int, trusted: bool = False) -> dict[str, Tensor]:
    """Read one of OpenAI's archives, a program that loading may run.

    So only the published files are opened, and others where the user says they are ``trusted``.
    """
    try:
        with Path(path).open("rb") as file:  # one handle: what is opened is what was compared
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not trusted and digest not in ARCHIVES.values():
                raise ValueError(
                    f"{str(path)!r} has SHA-256 {digest}, which is not what OpenAI published for "
                    f"{' or '.join(ARCHIVES)}; it was not opened, because it may hold a program: "
                    "download it again, or call load_clip(path, trusted=True) if you made it"
                )
            file.seek(0)
            with warnings.catch_warnings():  # torch deprecates this format, their only one
                warnings.simplefilter("ignore")
                state = torch.jit.load(file, map_location="cpu").state_dict()
    except OSError as error:
        raise ValueError(
            f"no CLIP archive at {str(path)!r} ({error.strerror}); clip/clip.py of OpenAI's CLIP "
            "repository (github.com/openai/CLIP) has the addresses of RN50.pt and RN101.pt"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{str(path)!r} is not an archive of TorchScript: {_first_line(error)}"
        ) from error
    state = {k: each.float() if each.is_floating_point() else each for k, each in state.items()}
    return convert_clip(state, max_length)


def _first_line(error: Exception) -> str:
    return one_line(str(error).partition("\n")[0])


def cris_weights(path: str | Path, max_length: int) -> dict[str, Tensor]:
    """Read a checkpoint of CRIS.pytorch, ``{"state_dict": {"module.*": tensor}}`` or its inside."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"no checkpoint at {str(path)!r} ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of tensors and plain containers: "
            f"{_first_line(error)}. If you trust it, save its 'state_dict' "
            "alone"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{str(path)!r} has no 'state_dict' of tensors by name")
    return convert_cris({k.removeprefix("module."): v for k, v in state.items()}, max_length)


def convert_clip(state: Mapping[str, Tensor], max_length: int) -> dict[str, Tensor]:
    """Rename CLIP's tensors to ours and keep ``max_length`` word positions."""
    result = _renamed(state, _CLIP_NAMES)
    for key, change in (
        ("text_projection.weight", lambda value: value.T),
        ("text.embeddings.position_embedding.weight", lambda value: value[:max_length]),
        (_POOL + "positions", lambda value: value[1:]),  # the first is for a mean CRIS does not use
    ):
        if key in result:
            result[key] = change(result[key])
    return result


def convert_cris(state: Mapping[str, Tensor], max_length: int) -> dict[str, Tensor]:
    """Rename CRIS's tensors to ours and keep ``max_length`` word positions."""
    prefix = "backbone."
    backbone = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    encoder = {f"encoder.{k}": v for k, v in convert_clip(backbone, max_length).items()}
    return {**encoder, **_renamed(rest, _CRIS_NAMES)}


def _renamed(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename each tensor by the first rule that its name begins with; others keep theirs."""
    result = {}
    for key, value in _split_projections(state).items():
        for pattern, name in rules:
            renamed, changed = re.subn("^" + pattern, name, key)
            if changed:
                key = renamed
                break
        result[key] = value
    return result


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joint projections of queries, keys and values; drop what we have no use for."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name, joint, leaf = key.rpartition("in_proj_")
        if joint:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[f"{name}{letter}_proj.{leaf}"] = part
        elif key not in _UNUSED:
            result[key] = value
    return result
