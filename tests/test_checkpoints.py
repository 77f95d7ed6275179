"""A checkpoint is whole and right, or it is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from masksd.kit.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
)
from masksd.kit.config import TrainConfig
from masksd.kit.sources import build_model
from masksd.kit.storage.files import verify_folder, write_folder
from masksd.models import create_model


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(TrainConfig(dropout=0.0))


def test_round_trip_is_exact_and_keeps_host_keys(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {"moment": torch.arange(3.0), "steps": torch.tensor(7)}
    folder = save_checkpoint(tmp_path / "one", checkpoint, state)
    loaded = load_checkpoint(folder)
    assert loaded.config == checkpoint.config
    assert not loaded.model.training
    assert load_file(folder / "model.safetensors").keys() == checkpoint.model.state_dict().keys()
    for key, value in checkpoint.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    sentence = "the red circle"
    assert torch.equal(loaded.tokenizer.encode(sentence), checkpoint.tokenizer.encode(sentence))
    restored = load_training_state(folder)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[key], state[key]) for key in state)


def test_same_content_gives_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first, second = (save_checkpoint(tmp_path / name, checkpoint) for name in ("a", "b"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert [path.as_posix() for path in names if path.suffix == ".safetensors"] == [
        "model.safetensors"
    ]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_files_are_readable_as_the_umask_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(tmp_path / "one", checkpoint)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_saving_again_replaces_and_leaves_nothing_beside(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "one", checkpoint, {"old": torch.zeros(1)})
    save_checkpoint(tmp_path / "one", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(ValueError, match=r"has no training\.safetensors"):
        load_training_state(tmp_path / "one")


def test_failure_while_writing_keeps_the_older_one(tmp_path: Path) -> None:
    def good(folder: Path) -> None:
        (folder / "a").write_text("old")

    def bad(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise OSError("disk full")

    write_folder(tmp_path / "one", good)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "one", bad)
    assert (verify_folder(tmp_path / "one") / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "format"])
def test_damage_is_named(checkpoint: Checkpoint, tmp_path: Path, damage: str) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
        expected = r"damaged: model\.safetensors"
    elif damage == "cut":
        weights.write_bytes(data[:-5])
        expected = r"damaged: model\.safetensors \(\d+ bytes\)"
    elif damage == "remove":
        weights.unlink()
        expected = r"incomplete: model\.safetensors is missing"
    elif damage == "manifest":
        manifest.write_text('{"files": []}')
        expected = r"manifest\.json is damaged"
    else:
        config = json.loads((folder / "checkpoint.json").read_text())

        def newer(place: Path) -> None:
            (place / "checkpoint.json").write_text(json.dumps({**config, "format": 99}))
            (place / "model.safetensors").write_bytes(data)

        write_folder(folder, newer)
        expected = "has format 99, this masksd reads 2"
    with pytest.raises(ValueError, match=expected) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_is_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .*/nothing; `masksd runs` lists"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no manifest"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    with pytest.raises(ValueError, match=r"did you mean .*/checkpoint\?"):
        load_checkpoint(tmp_path)


def test_manifest_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = write_folder(tmp_path / "one", lambda place: (place / "a").touch())
    entry = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps({"files": {"../secret": entry}}))
    with pytest.raises(ValueError, match=r"incomplete: \.\./secret is missing"):
        verify_folder(folder)


def rewritten(folder: Path, name: str, data: bytes) -> Path:
    """Replace a file and make the manifest fit."""
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files[Path(name)] = data

    def write(place: Path) -> None:
        (place / "tokenizer").mkdir()
        for path, content in files.items():
            if path.name != "manifest.json":
                (place / path).write_bytes(content)

    return write_folder(folder, write)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": 5}, "model must be a string, got 5"),
        ({"model": "nothing"}, "holds a 'nothing', which is not registered"),
        ({"model_config": []}, r"model_config must be an object, got \(\)"),
        ({"model_config": {"width": "wide"}}, "describes no model: "),
        ({"model_config": {"wdith": 5}}, "did you mean 'width'"),
        ({"image_size": "64"}, "image_size must be an integer from 1, got '64'"),
        ({"image_size": 10**9}, "image_size must be at most 8192, got 1000000000"),
        ({"max_length": 2.5}, r"max_length must be an integer from 3, got 2\.5"),
        ({"mean": 0.5}, r"mean must be three numbers, got 0\.5"),
        ({"std": [1, 2]}, r"std must be three numbers, got \(1, 2\)"),
        ({"mean": [0.5, float("nan"), 0.5]}, r"mean must be finite, within 1e6, got \(0\.5, nan"),
        ({"mean": [0.5, float("inf"), 0.5]}, r"mean must be finite, within 1e6, got \(0\.5, inf"),
        ({"mean": [10**400, 0, 0]}, "mean must be finite, within 1e6, got"),
        ({"std": [0.2, 0, 0.2]}, r"std must be three finite numbers above 0, .* \(0\.2, 0, 0\.2\)"),
        ({"std": [-0.2, 1, 1]}, "std must be three finite numbers above 0"),
        ({"std": [1, 1, float("inf")]}, "std must be three finite numbers above 0"),
        ({"std": [1, 1, float("nan")]}, "std must be three finite numbers above 0"),
        ({"std": [1, 1, 1e-300]}, "std must be three finite numbers above 0"),
        ({"model_config": {"decoder_layers": 10**9}}, "decoder_layers must be .* at most 1048576"),
        ({"threshold": "low"}, r"threshold must be a number in \[0, 1\], got 'low'"),
        ({"distill": "yes"}, "distill must be an object or null, got 'yes'"),
        ({"step": None}, "step must be an integer from 0, got None"),
        ({"data": 1}, "data must be an object, got 1"),
        ({"eval_split": 1}, "eval_split must be a string, got 1"),
        ({"more": 1}, "lacks or adds fields: more"),
        ({"\x1b[31mmore\x07": 1}, "lacks or adds fields: more$"),
        ({"model_config": {"\x1b[1mwide\x1b[0m": 5}}, r"describes no model: .*wide"),
    ],
)
def test_fields_of_another_type_are_named(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    fields = json.loads((folder / "checkpoint.json").read_text())
    rewritten(folder, "checkpoint.json", json.dumps({**fields, **changes}).encode())
    with pytest.raises(ValueError, match=expected) as caught:
        load_checkpoint(folder)
    assert "checkpoint.json" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_checkpoint_that_is_older_has_the_default_splits(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    fields = json.loads((folder / "checkpoint.json").read_text())
    for name in ("fit", "train_split", "eval_split"):
        del fields[name]
    rewritten(folder, "checkpoint.json", json.dumps(fields).encode())
    assert load_checkpoint(folder).config == checkpoint.config


def test_junk_whose_manifest_fits_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint, {"moment": torch.zeros(2)})
    weights = (folder / "model.safetensors").read_bytes()
    text = (folder / "checkpoint.json").read_bytes()
    for junk in (b"{", b"[]", b"\xff", b"[" * 100_000):
        rewritten(folder, "checkpoint.json", junk)
        with pytest.raises(ValueError, match=r"checkpoint\.json is damaged"):
            load_checkpoint(folder)
    rewritten(folder, "checkpoint.json", text)
    for junk in (b"junk", b"\xff" * 64, save({"another": torch.zeros(3)})):
        rewritten(folder, "model.safetensors", junk)
        with pytest.raises(ValueError, match=r"model\.safetensors does not fit") as caught:
            load_checkpoint(folder)
        assert "\n" not in str(caught.value)
    rewritten(folder, "model.safetensors", weights)
    assert load_checkpoint(folder).config == checkpoint.config
    rewritten(folder, "training.safetensors", b"junk")
    with pytest.raises(ValueError, match=r"training\.safetensors is damaged"):
        load_training_state(folder)


def test_tokenizer_of_another_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = build_model(TrainConfig(dropout=0.0)).model
    wrong = checkpoint._replace(model=other)
    config = {**checkpoint.config.model_config, "vocab_size": 99, "end_token": 98}
    folder = save_checkpoint(
        tmp_path / "one", wrong._replace(config=replace(checkpoint.config, model_config=config))
    )
    tensors = load_file(folder / "model.safetensors")
    [name] = [n for n in tensors if n.endswith(checkpoint.model.encoder.text_embedding + ".weight")]
    tensors[name] = torch.zeros(99, tensors[name].shape[1])
    rewritten(folder, "model.safetensors", save(tensors))
    with pytest.raises(ValueError, match=r"its tokenizer has .* tokens, its model 99"):
        load_checkpoint(folder)


def poisoned(checkpoint: Checkpoint, name: str, value: float) -> Checkpoint:
    """A copy with one number of one tensor replaced."""
    model = create_model(checkpoint.config.model, **checkpoint.config.model_config)
    model.load_state_dict(checkpoint.model.state_dict())
    model.state_dict()[name].view(-1)[1] = value
    return checkpoint._replace(model=model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_written(
    checkpoint: Checkpoint, tmp_path: Path, value: float
) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    before = (folder / "model.safetensors").read_bytes()
    name = next(iter(checkpoint.model.state_dict()))
    count = checkpoint.model.state_dict()[name].numel()
    expected = rf"one is not written: weight '{name}' is not finite: 1 of {count} numbers is NaN or"
    with pytest.raises(ValueError, match=expected):
        save_checkpoint(folder, poisoned(checkpoint, name, value))
    with pytest.raises(ValueError, match=expected.replace("one", "two", 1)):
        save_checkpoint(tmp_path / "two", poisoned(checkpoint, name, value))
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_running_variance_that_overflowed_is_named(tmp_path: Path) -> None:
    checkpoint = build_model(TrainConfig(model="lavt_tiny", tokenizer="shapes"))
    name = "classifier.steps.0.1.running_var"
    with pytest.raises(ValueError, match=f"weight '{name}' is not finite"):
        save_checkpoint(tmp_path / "one", poisoned(checkpoint, name, float("inf")))
    assert not list(tmp_path.iterdir())
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3] = float("nan")
    rewritten(folder, "model.safetensors", save(tensors))
    with pytest.raises(ValueError, match=rf"model\.safetensors: weight '{name}' is not finite"):
        load_checkpoint(folder)


def test_training_state_may_be_infinite_but_not_nan(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {"best": torch.tensor(-float("inf")), "moment": torch.zeros(3)}
    folder = save_checkpoint(tmp_path / "one", checkpoint, state)
    assert load_training_state(folder)["best"] == -float("inf")
    state["moment"][2] = float("nan")
    with pytest.raises(
        ValueError, match=r"state 'moment' is not finite: 1 of 3 numbers is NaN; go back"
    ):
        save_checkpoint(tmp_path / "one", checkpoint, state)
    rewritten(folder, "training.safetensors", save(state))
    with pytest.raises(ValueError, match=r"training\.safetensors: state 'moment' is not finite"):
        load_training_state(folder)


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ("clip_cris_tiny", {"decoder_layers": 10**6}, "asks for more than twice the .* tensors"),
        ("clip_cris_tiny", {"text_layers": 10**6}, "asks for more than twice the .* tensors"),
        ("clip_cris_tiny", {"neck_width": 2**20}, "tensors differ, the first is .*1048576"),
        ("clip_cris_tiny", {"vocab_size": 2**20}, "tensors differ, the first is .*1048576"),
        ("clip_cris_tiny", {"image_size": 2**20}, "tensors differ, the first is "),
        ("lavt_tiny", {"depths": [1, 1, 10**6, 1]}, "asks for more than twice the .* tensors"),
        ("lavt_tiny", {"window": 2**19}, "tensors differ, the first is "),
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(
    tmp_path: Path, model: str, changes: dict[str, object], expected: str
) -> None:
    checkpoint = build_model(TrainConfig(model=model, tokenizer="shapes"))
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    fields = json.loads((folder / "checkpoint.json").read_text())
    fields["model_config"] |= changes
    rewritten(folder, "checkpoint.json", json.dumps(fields).encode())
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError, match=rf"model\.safetensors does not fit .*{expected}"
    ) as caught:
        load_checkpoint(folder)
    assert str(caught.value).isprintable()
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_tokenizer_outside_of_the_manifest_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "one", checkpoint)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["tokenizer/tokenizer.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"has no tokenizer/tokenizer\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["/etc/hostname", "tokenizer/../../secret", "tokenizer/../a"])
def test_no_name_in_a_manifest_leaves_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("")
    folder = write_folder(tmp_path / "one", lambda place: (place / "a").touch())
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(ValueError, match=f"incomplete: {name} is missing"):
        verify_folder(folder)
