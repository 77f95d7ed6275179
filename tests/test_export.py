"""An export gives what its checkpoint gives, or it is not there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from masksd import DistillConfig
from masksd.kit import checkpoints
from masksd.kit.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from masksd.kit.cli import main
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.export.folder import export_checkpoint
from masksd.kit.feeding import predict_logits
from masksd.kit.sources import build_model
from tests.hub import Hub, running_hub

NAMES = ["README.md", "checkpoint.json", "manifest.json", "model.safetensors", "tokenizer"]
OWN_SCORES = {"mIoU": 0.5, "oIoU": 0.25, "samples": 8}
METRICS = [
    {"step": 10, "loss": 1.0},
    {"step": 10, "scores": {"own": {**OWN_SCORES, "mIoU": 0.125}}},
    {"step": 20, "scores": {"own": OWN_SCORES, "none": {**OWN_SCORES, "mIoU": 0.0625}}},
    {"step": 30, "scores": {"own": {**OWN_SCORES, "mIoU": 0.75}}},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint, its training state, and metrics."""
    run = tmp_path_factory.mktemp("runs") / "one"
    data = DataConfig(data_root=Path("/home/alice/secret/shapes-mine"))
    config = TrainConfig(dropout=0.0, data=data, tokenizer="shapes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_model(config)
    trained = built._replace(config=replace(built.config, step=20))
    moments = {"optimizer.a": torch.zeros(200_000), "distill.token": torch.ones(4)}
    save_checkpoint(run / "checkpoint", trained, moments)
    (run / "config.json").write_text(config.to_json())
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in METRICS))
    return run


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "one"))


def logits(checkpoint: Checkpoint) -> Tensor:
    random = torch.Generator().manual_seed(5)
    size = checkpoint.config.image_size
    images = torch.randint(256, (2, 3, size, size), generator=random, dtype=torch.uint8)
    sentences = ("the red circle", "small square on the left")
    tokens = torch.stack([checkpoint.tokenizer.encode(sentence) for sentence in sentences])
    with torch.inference_mode():
        return predict_logits(checkpoint, images, tokens)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run_blocks(card: str) -> None:
    """Run the Python of a model card in the working folder."""
    Image.new("RGB", (60, 40)).save("IMAGE.jpg")
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_an_export_is_the_bare_host(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert main(["export", str(run / "checkpoint")]) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith(f"{run / 'export'}: the bare model (")
    assert printed.err == ""
    assert sorted(path.name for path in (run / "export").iterdir()) == NAMES
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []
    assert {k: v for k, v in files(run).items() if not k.startswith("export/")} == before
    original, exported = (load_checkpoint(run / name) for name in ("checkpoint", "export"))
    assert torch.equal(logits(exported), logits(original))
    assert exported.model.state_dict().keys() == original.model.state_dict().keys()
    with pytest.raises(ValueError, match=r"has no training\.safetensors"):
        checkpoints.load_training_state(run / "export")
    sizes = [sum(map(len, files(run / name).values())) for name in ("checkpoint", "export")]
    assert sizes[1] < sizes[0] - 790_000  # the moments


def test_an_export_does_not_say_where_the_data_lie(run: Path) -> None:
    folder = export_checkpoint(run / "checkpoint").folder
    trained = load_checkpoint(run / "checkpoint").config.data
    assert load_checkpoint(folder).config.data == {**trained, "data_root": "shapes-mine"}
    assert not any(b"alice" in content for content in files(folder).values())


@pytest.mark.parametrize("model", ["lavt_tiny", "clip_cris_tiny"])
def test_other_models_and_vocabularies(tmp_path: Path, model: str) -> None:
    """LAVT takes an attention mask and gives two channels; byte pairs of CLIP join to words."""
    if model == "lavt_tiny":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "##s", "left"]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    else:
        pieces = [*"abcder", *(f"{each}</w>" for each in "abcder"), "re", "red</w>"]
        pieces += ["<|startoftext|>", "<|endoftext|>"]
        (tmp_path / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(pieces)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    off = DistillConfig(image=None, text=None)
    built = build_model(TrainConfig(model=model, tokenizer=str(tmp_path), distill=off))
    source = save_checkpoint(tmp_path / "run/checkpoint", built)
    folder = export_checkpoint(source).folder
    assert torch.equal(logits(load_checkpoint(folder)), logits(load_checkpoint(source)))
    card = (folder / "README.md").read_text()
    assert f"# {model}, trained on shapes-easy" in card
    assert "without masked self-distillation" in card


def test_predict_and_evaluate_take_an_export(run: Path, tmp_path: Path) -> None:
    folder = export_checkpoint(run / "checkpoint", tmp_path / "bare").folder
    Image.new("RGB", (60, 40), (200, 190, 180)).save(tmp_path / "picture.png")
    output = tmp_path / "found.png"
    options = ("--checkpoint", str(folder), "--cpu", "--output", str(output))
    assert main(["predict", str(tmp_path / "picture.png"), "the red circle", *options]) == 0
    assert output.exists()
    shapes = ShapesConfig(train=1, val=2, test_a=1, test_b=1)
    data = build_shapes(tmp_path / "data", shapes, progress=False)
    scored = ("--data-root", str(data), "--no-progress", "--cpu")
    assert main(["evaluate", "--checkpoint", str(folder), *scored]) == 0


@pytest.mark.parametrize("fault", ["weight", "tokenizer", "settings", "disk"])
def test_a_written_model_that_differs_is_refused(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """Faults that the manifest does not see: what is written is wrong from the start."""
    save = checkpoints.save_checkpoint

    def wrong(folder: Path, checkpoint: Checkpoint) -> Path:
        if fault == "disk":
            raise OSError(28, "No space left on device")
        if fault == "weight":
            checkpoint = load_checkpoint(run / "checkpoint")._replace(config=checkpoint.config)
            with torch.no_grad():
                next(p for p in checkpoint.model.parameters() if p.ndim == 4)[0] += 1e-3
        elif fault == "tokenizer":
            other = load_checkpoint(run / "checkpoint").tokenizer
            ids = json.loads(other._backend.to_str())
            vocab = ids["model"]["vocab"]
            words = sorted(vocab, key=vocab.get)
            vocab.update(zip(words[2:-2], [vocab[w] for w in words[-3:1:-1]], strict=True))
            other._backend = type(other._backend).from_str(json.dumps(ids))
            checkpoint = checkpoint._replace(tokenizer=other)
        else:
            checkpoint = checkpoint._replace(config=replace(checkpoint.config, threshold=0.9))
        return save(folder, checkpoint)

    monkeypatch.setattr("masksd.kit.export.folder.save_checkpoint", wrong)
    before = files(run)
    assert main(["export", str(run / "checkpoint")]) == 2
    expected = {
        "weight": "would give other logits",
        "tokenizer": "would give other tokens",
        "settings": "settings than the checkpoint, so nothing was written there",
        "disk": "No space left on device",
    }
    error = capfd.readouterr().err
    assert expected[fault] in error
    assert error.count("\n") == 1
    assert files(run) == before
    assert not (run / "export").exists()


def test_a_place_that_is_taken_is_refused(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(run / "checkpoint")
    assert main(["export", checkpoint]) == 0
    (run / "export/README.md").write_text("mine")  # not in the manifest
    load_checkpoint(run / "export")
    before = files(run)
    for wrong, expected in {
        (checkpoint,): "holds a bare model already; choose another --output or pass --overwrite",
        (checkpoint, "--output", str(run)): "holds 'checkpoint', which no export writes",
        (checkpoint, "--output", checkpoint, "--overwrite"): "is the checkpoint or in it",
        (checkpoint, "--output", f"{checkpoint}/bare"): "is the checkpoint or in it",
        (str(run), "--output", str(run.parent / "new")): f"did you mean {checkpoint}?",
        (str(run / "nothing"), "--output", str(run.parent / "a/b")): "no checkpoint at",
        (checkpoint, "--public"): "name it with --hub",
    }.items():
        capfd.readouterr()
        assert main(["export", *wrong]) == 2
        error = capfd.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert files(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["one"]
    monkeypatch.chdir(checkpoint)
    assert main(["export", ".", "--overwrite"]) == 0
    assert (run / "export/README.md").read_text() != "mine"


def test_the_card_holds_the_scores_of_its_step_and_its_blocks_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_checkpoint(run / "checkpoint").folder
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: masksd\n")
    assert "license:" not in card.split("---")[1]
    assert "# clip_cris_tiny, trained on shapes" in card
    assert "Trained for 20 steps\nwith masked self-distillation" in card
    assert "Scores on val, per cent" in card
    assert "| the right sentence | 50.00 | 25.00 | 8 |" in card
    assert "| no sentence | 6.25 | 25.00 | 8 |" in card
    assert not {"12.50", "75.00"} & set(card.split())  # of other lines and steps
    monkeypatch.chdir(folder)
    run_blocks(card)


def test_a_run_without_scores_has_a_card_without_them(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 20, "scores": {"own"')
    with pytest.warns(UserWarning, match="the model card has no scores: .*metrics.jsonl cannot"):
        folder = export_checkpoint(run / "checkpoint").folder
    assert "Scores" not in (folder / "README.md").read_text()
    (run / "metrics.jsonl").unlink()  # no warning
    export_checkpoint(run / "checkpoint", overwrite=True)
    assert "Scores" not in (folder / "README.md").read_text()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(monkeypatch) as server:
        yield server


def test_a_push_sends_the_folder_in_one_commit(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["export", str(run / "checkpoint"), "--hub", "alice/circles"]) == 0
    following = f"try it: masksd demo {run / 'export'}"
    assert capfd.readouterr().out.splitlines()[1:] == [following, f"{hub.address}/alice/circles"]
    assert hub.private == {"alice/circles": True}
    [commit] = hub.commits["alice/circles"]
    assert commit == files(run / "export")
    assert "model.safetensors" in commit
    received = hub.write("alice/circles", tmp_path / "received")
    loaded = load_checkpoint(received)
    assert torch.equal(logits(loaded), logits(load_checkpoint(run / "checkpoint")))

    downloads = {"alice/circles": str(received)}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloads.__getitem__)
    monkeypatch.chdir(tmp_path)
    run_blocks(commit["README.md"].decode())

    again = export_checkpoint(run / "checkpoint", overwrite=True, hub="alice/circles", public=True)
    assert again.url == f"{hub.address}/alice/circles"
    assert len(hub.commits["alice/circles"]) == 2
    assert hub.private == {"alice/circles": True}  # one that exists stays as it is
    export_checkpoint(run / "checkpoint", tmp_path / "b", hub="alice/public", public=True)
    assert not hub.private["alice/public"]


PUSH_FAULTS = {
    "name": "hub 'alice/--' is not a valid repository name: ",
    "no owner": "hub must be OWNER/NAME, got 'circles'",
    "offline": "HF_HUB_OFFLINE forbids the network; unset it or omit --hub",
    "no token": "hub alice/circles: no token; run `hf auth login` or set HF_TOKEN",
    "owner": "You don't have the rights under bob/circles",
    "token": "Invalid username or password",
    "network": "hub alice/circles: cannot be pushed to (",
}


@pytest.mark.parametrize("fault", PUSH_FAULTS)
def test_a_push_that_fails_is_one_line(
    run: Path,
    hub: Hub,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    names = {"name": "alice/--", "no owner": "circles", "owner": "bob/circles"}
    name = names.get(fault, "alice/circles")
    if fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif fault == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "none"))
    elif fault == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_another")
    elif fault == "network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["export", str(run / "checkpoint"), "--hub", name]) == 2
    error = capfd.readouterr().err
    assert PUSH_FAULTS[fault] in error
    assert error.count("\n") == 1
    written = fault in ("owner", "token", "network")
    assert (run / "export").exists() == written
    assert (f"the export is complete at {run / 'export'}" in error) == written
    assert not any(hub.commits.values())
