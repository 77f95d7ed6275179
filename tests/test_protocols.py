"""Each protocol's numbers equal a straight transcription of its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.kit.data.transforms import letterbox_geometry
from masksd.kit.evaluation.scoring import score
from masksd.kit.scores.protocols import (
    PROTOCOLS,
    choose_threshold,
    get_protocol,
    predict_mask,
)
from masksd.kit.scores.resampling import resize, unletterbox
from tests.oracles import protocols as oracle
from tests.scored import SIZE, make_checkpoint, open_data, write_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("protocols"))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_numbers_equal_the_transcription(root: Path, name: str, channels: int) -> None:
    checkpoint = make_checkpoint(channels)
    dataset = open_data(root, PROTOCOLS[name].fit or "squash")
    samples = []
    for index in range(len(dataset)):
        item = dataset[index]
        with torch.no_grad():
            logits = checkpoint.model(item["image"][None].float() / 255, item["tokens"][None])[0]
        samples.append((logits.double().numpy(), dataset.truth(index) > 0))
    expected = oracle.scores(name, samples, SIZE, checkpoint.config.threshold)
    assert 0.05 < expected["mIoU"] < 0.95
    assert 0 < expected["Pr@0.5"] < 1
    found = score(checkpoint, dataset, protocol=name, batch_size=7).scores["all"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6), key


def test_the_protocols_differ_on_the_same_logits(root: Path) -> None:
    checkpoint = make_checkpoint()
    found = {
        name: score(checkpoint, open_data(root, rules.fit or "squash"), protocol=name)
        for name, rules in PROTOCOLS.items()
    }
    means = {name: result.scores["all"]["mIoU"] for name, result in found.items()}
    assert means["lavt"] == means["caris"]  # which differ in the nominal size and in Pr@X alone
    assert len(set(means.values())) == 3
    assert "Pr@0.6" not in found["caris"].scores["all"]
    assert "Pr@0.6 (>=)" in found["original"].scores["all"]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    size=st.integers(2, 40),
    border=st.sampled_from(["zero", "edge"]),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_letterbox_is_undone_as_its_geometry_says(
    height: int, width: int, size: int, border: str, mode: str
) -> None:
    values = np.random.default_rng([height, width, size]).normal(size=(size, size))
    scale, left, top = letterbox_geometry(height, width, size)
    found = unletterbox(torch.from_numpy(values)[None], (height, width), size, mode, border)
    pixel = oracle.or_zero if border == "zero" else oracle.clamped

    def at(y: int, x: int) -> float:
        if mode == "bicubic":
            return oracle.cubic_at(values, scale * y + top, scale * x + left, pixel)
        rows = range(int(np.floor(scale * y + top)), int(np.floor(scale * y + top)) + 2)
        columns = range(int(np.floor(scale * x + left)), int(np.floor(scale * x + left)) + 2)
        return sum(
            (1 - abs(scale * y + top - r)) * (1 - abs(scale * x + left - c)) * pixel(values, r, c)
            for r in rows
            for c in columns
        )

    assert found[0].numpy() == pytest.approx(oracle.sampled((height, width), at), abs=1e-5)


def test_a_smaller_map_of_a_letterbox_lies_where_the_input_does() -> None:
    # a map of half the size, whose left half is on: so is the left half of the picture
    values = torch.zeros(1, 8, 8)
    values[..., :4] = 1
    found = unletterbox(values, (10, 20), 16)
    assert found.shape == (1, 10, 20)
    assert (found[0, :, :9] > 0.5).all()
    assert (found[0, :, 11:] < 0.5).all()
    # and the picture of a checkpoint that was trained with letterboxes is cut out of it
    bands = torch.full((1, 8, 8), -5.0)
    bands[:, 2:6] = 5.0  # a picture twice as wide as high fills the middle half
    mask = predict_mask(
        PROTOCOLS["original"],
        bands,
        size=(20, 40),
        input_size=16,
        fit="letterbox",
        threshold=0.5,
    )
    assert mask[:17].all()  # the last rows already blend with the padding, as in CRIS


def test_resizing_to_the_same_size_changes_nothing() -> None:
    values = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    for mode in ("bilinear", "bicubic"):
        for corners in (True, False):
            assert torch.allclose(resize(values, (5, 7), mode, corners), values, atol=1e-6)


def test_argmax_of_equal_logits_is_background() -> None:
    mask = predict_mask(
        PROTOCOLS["lavt"],
        torch.zeros(1, 4, 4),
        size=(4, 4),
        input_size=4,
        fit="squash",
        threshold=0.5,
    )
    assert not mask.any()


def test_names_thresholds_and_fits_that_are_wrong_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown protocol 'cirs'; did you mean 'cris'"):
        get_protocol("cirs")
    with pytest.raises(ValueError, match=r"threshold 0\.5 contradicts protocol 'cris'.*at 0\.35"):
        choose_threshold(PROTOCOLS["cris"], 0.5, 0.4)
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0, 1\], got 35"):
        choose_threshold(PROTOCOLS["original"], 35, 0.4)
    assert choose_threshold(PROTOCOLS["lavt"], None, 0.35) == 0.5
    assert choose_threshold(PROTOCOLS["cris"], 0.35, 0.4) == 0.35
    assert choose_threshold(PROTOCOLS["original"], 0.2, 0.4) == 0.2
    with pytest.raises(ValueError, match=r"fit='squash', protocol 'cris' takes 'letterbox'; open"):
        score(make_checkpoint(), open_data(root), protocol="cris")
    with pytest.raises(ValueError, match=r"fit='squash', the checkpoint takes 'letterbox'"):
        score(make_checkpoint(fit="letterbox"), open_data(root))


def test_titles_say_what_is_different_from_the_authors() -> None:
    assert "at 64 px instead of 416, scored at the original size" in PROTOCOLS["cris"].title(64)
    assert "at 480 px, scored at the input size" in PROTOCOLS["lavt"].title(480)
    assert PROTOCOLS["lavt"].title(480).endswith("Pr@X is IoU >= X")
    assert PROTOCOLS["cris"].title(480).endswith("Pr@X is IoU > X")
