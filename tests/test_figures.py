"""Overlays are right to the pixel; curves and sheets are drawn whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from masksd.kit.figures import BranchView, SheetRow, draw_curves, draw_sheet, overlay, png_bytes
from masksd.kit.storage.files import write_files


def picture_and_mask() -> tuple[Image.Image, np.ndarray]:
    picture = Image.new("RGB", (96, 96), (240, 235, 220))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 10, 40, 40), fill=(200, 30, 30))
    draw.rectangle((55, 50, 85, 80), fill=(30, 60, 200))
    mask = np.zeros((96, 96), dtype=bool)
    mask[50:81, 55:86] = True
    return picture, mask


def row(sentence: str, plain: bool = False) -> SheetRow:
    picture, mask = picture_and_mask()
    ranks = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    found = np.roll(mask, 6)
    if plain:
        return SheetRow(picture, sentence, mask, found, 0.62)
    branches = (
        BranchView("lmvsd", ranks > 0.8, None, found, 0.5),
        BranchView("vmlsd", None, "the □ circle", mask, 1.0),
    )
    return SheetRow(picture, sentence, mask, found, 0.62, ranks, branches)


def test_overlay_tints_inside_draws_the_edge_and_lightens_outside() -> None:
    picture = Image.new("RGB", (5, 4), (100, 100, 100))
    mask = np.zeros((4, 5), dtype=bool)
    mask[0:3, 1:4] = True
    shown = np.asarray(overlay(picture, mask, colour=(200, 0, 0)))
    assert shown.shape == (4, 5, 3)
    assert shown[1, 2].tolist() == [130, 70, 70]  # the only pixel with four neighbours inside
    edge = [(y, x) for y in range(3) for x in range(1, 4) if (y, x) != (1, 2)]
    assert all(shown[place].tolist() == [200, 0, 0] for place in edge)
    assert (shown[~mask] == 178).all()
    assert np.asarray(picture).tolist() == np.full((4, 5, 3), 100).tolist()


def test_overlay_refuses_another_size() -> None:
    picture, mask = picture_and_mask()
    with pytest.raises(ValueError, match=r"mask is \(90, 96\) and image \(96, 96\)"):
        overlay(picture, mask[:90])


def test_pictures_are_written_all_or_none(tmp_path: Path) -> None:
    picture, _ = picture_and_mask()
    write_files({tmp_path / "a.png": png_bytes(picture)})
    with Image.open(tmp_path / "a.png") as read:
        assert read.size == (96, 96)
        assert np.asarray(read).tolist() == np.asarray(picture).tolist()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "folder.png").mkdir()
    for wrong in (tmp_path / "missing" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OSError, match=r"missing|is a folder"):
            write_files({tmp_path / "a.png": b"another", wrong: png_bytes(picture)})
        assert (tmp_path / "a.png").read_bytes() == before
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "folder.png"]


def test_a_sentence_is_not_mathematics(tmp_path: Path) -> None:
    draw_sheet([row("the $5 bill \\frac{ of $")], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_a_letter_that_the_font_lacks_is_no_warning(tmp_path: Path) -> None:
    draw_sheet([row("左边的红色圆 🔴")], tmp_path / "sheet.png")  # a warning would be an error here
    assert (tmp_path / "sheet.png").exists()


def test_curves_and_sheet_are_pictures_with_something_on_them(tmp_path: Path) -> None:
    records = [
        {
            "step": step,
            "loss": 1 / step,
            "lr": 1e-3 * step,
            "losses": {"seg": 0.7 / step, "lmvsd": 0.3 / step},
        }
        for step in range(1, 50)
    ]
    rows = [row("the red circle"), row("the blue square that is far below the red circle"), row("")]
    full = draw_sheet(rows, tmp_path / "sheet.png")
    plain = draw_sheet([row("blue square", plain=True)], tmp_path / "plain.png")
    sizes = []
    scored = [*records, {"step": 25, "scores": {"own": {"mIoU": 0.3}}}]
    alone = [{**each, "losses": {"seg": each["loss"]}} for each in records]
    curves = [
        draw_curves(lines, tmp_path / f"curves-{len(lines)}-{len(lines[0]['losses'])}.png")
        for lines in (records, scored, alone)
    ]
    for path in (curves[0], full, plain, *curves[1:]):
        with Image.open(path) as read:
            pixels = np.asarray(read.convert("L"))
        assert (pixels < 100).mean() > 0.001
        sizes.append(pixels.shape)
    assert sizes[1][0] > 2 * sizes[2][0]  # three rows against one
    assert sizes[1][1] > sizes[2][1]  # three columns more
    assert sizes[3][0] > sizes[0][0] > sizes[4][0]  # panels of scores and of branches


def test_empty_sheet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        draw_sheet([], tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
