"""``masksd demo`` as people use it: in a real browser, two models, hostile pictures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masksd.config import DistillConfig
from masksd.kit.checkpoints import load_checkpoint, save_checkpoint
from masksd.kit.config import DataConfig, TrainConfig
from masksd.kit.data.shapes import ShapesConfig, build_shapes
from masksd.kit.demo.drawing import CELLS, Asked, draw_mask, draw_step, draw_words, figures
from masksd.kit.demo.explorer import Explorer, read_examples, read_picture
from masksd.kit.demo.server import SWITCHED_OFF, load_gradio, serve
from masksd.kit.sources import build_model
from tests.test_broken_pictures import cmyk, encoded, noise, png

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM and DRIVER else ["chromium with chromedriver"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
FOLDERS = ("runs/new/checkpoint", "runs/old/checkpoint")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, two runs, of which one is older, and pictures good and bad."""
    folder = tmp_path_factory.mktemp("demo")
    shapes = ShapesConfig(train=1, val=4, test_a=1, test_b=1)
    build_shapes(folder / "data", shapes, progress=False)
    data = DataConfig(data_root=folder / "data").to_dict()
    methods = (DistillConfig(), DistillConfig(image=None, text=None))
    for number, (name, method) in enumerate(zip(FOLDERS, methods, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            new = build_model(TrainConfig())
        # a threshold that about half of the pixels are above, or untrained models find all or none
        explorer = Explorer(new, name)
        picture = read_picture(next((folder / "data/images").glob("*val*")))
        middle = float(np.median(explorer.find(picture, (), "the red circle").probabilities))
        config = dataclasses.replace(
            new.config,
            data=data,
            distill=dataclasses.asdict(method),
            threshold=round(middle, 2),
        )
        saved = save_checkpoint(folder / name, new._replace(config=config))
        os.utime(saved / "manifest.json", (1000 - number, 1000 - number))
    for name, contents in {
        "bomb.png": png(60_000, 60_000, b""),
        "cut.jpg": encoded(noise(), "JPEG")[:300],
        "page.png": b"<html>",
        "cmyk.jpg": cmyk()[0],
        "one.png": encoded(noise(1, 1), "PNG"),
    }.items():
        (folder / name).write_bytes(contents)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    Image.fromarray(noise(40, 90)).save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def explorers(place: Path) -> list[Explorer]:
    """The two models of the page, loaded a second time to say what it must show."""
    return [Explorer(load_checkpoint(place / name), name) for name in FOLDERS]


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    """Where the page is; the server takes the newest run by itself."""
    command = [sys.executable, "-m", "masksd", "demo", "--no-open", "--beside", FOLDERS[1]]
    environment = {**os.environ, "MASKSD_CACHE": str(place / "cache"), "TMPDIR": str(place)}
    errors = place / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as server,
    ):
        assert server.stdout is not None
        try:
            waiting, line = server.stdout.readline(), server.stdout.readline()
            found = re.match(r"(http://127.0.0.1:\d+/) shows (.*);", line)
            assert waiting.startswith("loading"), waiting
            assert found, errors.read_text()
            assert found[2] == " and ".join(FOLDERS)
            yield found[1]
        finally:
            server.terminate()
    assert server.returncode == 128 + signal.SIGTERM
    assert errors.read_text() == ""
    assert list(place.glob("masksd-demo-*")) == []  # what was uploaded


class Page:
    """What a user sees and does."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def part(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def until(self, condition: Callable[[], bool]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        stale = (StaleElementReferenceException,)
        WebDriverWait(self.browser, 60, 0.05, stale).until(lambda _: condition())

    def notes(self) -> str:
        return str(self.part("#notes textarea").get_property("value"))

    def until_notes(self, expected: str, whole: bool = True) -> None:
        from selenium.common.exceptions import TimeoutException

        def said() -> bool:
            return self.notes() == expected if whole else expected in self.notes()

        try:
            self.until(said)
        except TimeoutException:
            pytest.fail(f"expected {expected!r}, but the page says {self.notes()!r}")

    def sources(self, css: str) -> list[str]:
        found = self.browser.find_elements("css selector", css)
        return [each.get_attribute("src") for each in found]

    def type_into(self, label: str, text: str) -> None:
        """Replace what stands in a text field, at once as by pasting."""
        from selenium.webdriver import Keys

        field = self.part(f"{label} textarea, {label} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        self.browser.execute_cdp_cmd("Input.insertText", {"text": text})

    def upload(self, path: Path) -> None:
        self.until(lambda: bool(self.browser.find_elements("css selector", "#upload input")))
        self.part("#upload input").send_keys(str(path))

    def click_at(self, css: str, x: float, y: float) -> None:
        """Click a picture at shares of its width and height."""
        from selenium.webdriver import ActionChains

        image = self.part(css)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        width, height = (image.size[side] for side in ("width", "height"))
        to = (round((x - 0.5) * width), round((y - 0.5) * height))
        ActionChains(self.browser).move_to_element_with_offset(image, *to).click().perform()


@pytest.fixture(scope="module")
def page(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        browser.get(url)
        found = Page(browser)
        found.until_notes("of the picture found", whole=False)
        yield found
    finally:
        browser.quit()


def notes(explorers: list[Explorer], asked: Asked) -> str:
    lines = [(each.name, line) for each in explorers for line in draw_mask(each, asked)[1]]
    return "\n".join(f"{name}: {line}" for name, line in lines)


def drawn(explorers: list[Explorer], draw: Callable[[Explorer], Any]) -> list[str]:
    text = "".join(figures(draw(each), each.name) for each in explorers)
    return re.findall('src="([^"]*)"', text)


def test_the_page_answers(page: Page, explorers: list[Explorer]) -> None:
    """One visit: sentence, threshold, patch, step, example; each is shown at once."""
    (picture, first), (other, second) = read_examples(explorers[0].checkpoint)[:2]
    threshold = explorers[0].checkpoint.config.threshold
    asked = Asked(picture, first, (), threshold)
    page.until_notes(notes(explorers, asked))
    page.until(lambda: len(page.sources(".mask img")) == 2)
    before = page.sources(".mask img")

    asked = asked._replace(sentence="the big blue square")
    page.type_into("#sentence", asked.sentence)
    page.until_notes(notes(explorers, asked))
    assert set(page.sources(".mask img")).isdisjoint(before)
    words = drawn(explorers, lambda each: draw_words(each, asked))
    assert len(words) == 8
    page.until(lambda: page.sources(".words img") == words)
    page.until(
        lambda: page.sources(".step img") == drawn(explorers, lambda e: draw_step(e, asked, 0))
    )

    page.part("#next").click()
    step = drawn(explorers, lambda each: draw_step(each, asked, 1))
    page.until(lambda: page.sources(".step img") == step)

    for value, share in (("0", "100.0%"), ("1", "0.0%"), (str(threshold), None)):
        page.type_into("#threshold", value + "\t")
        expected = "\n".join(f"{each.name}: {share} of the picture found" for each in explorers)
        page.until_notes(expected if share else notes(explorers, asked))

    page.click_at(".mask img", 2.5 / 8, 4.5 / 8)
    hidden = asked._replace(hidden=(CELLS.index("C5"),))
    assert notes(explorers, hidden) != notes(explorers, asked)
    page.until_notes(notes(explorers, hidden))
    assert "C5" in page.part("#hidden").text
    page.part("#everything").click()
    page.until_notes(notes(explorers, asked))

    page.part(
        "#examples button:nth-of-type(2), #examples .gallery-item:nth-child(2) button"
    ).click()
    page.until_notes(notes(explorers, Asked(other, second, (), threshold)))
    assert page.part("#sentence textarea").get_property("value") == second


def test_long_and_unknown_sentences(page: Page, explorers: list[Explorer]) -> None:
    for sentence, said in (
        (("red circle " * 1000)[:10_000], "too long; only its first 15 words are used"),
        ("wombat " * 1429, "the model knows no word of"),
        ("<b>circle</b> & red", "the model does not know"),
        ("", "the expression is empty"),
        ("the red circle", "of the picture found"),
    ):
        page.type_into("#sentence", sentence or "\b")
        page.until_notes(said, whole=False)
        assert len(page.notes()) < 1500
    assert page.browser.find_elements("css selector", ".words b") == []


def test_pictures_that_are_no_pictures(page: Page, explorers: list[Explorer], place: Path) -> None:
    threshold = explorers[0].checkpoint.config.threshold
    asked = Asked(*read_examples(explorers[0].checkpoint)[0], (), threshold)
    page.browser.refresh()
    page.until_notes(notes(explorers, asked))
    page.until(lambda: len(page.sources(".step img")) == 4)  # the last part of an answer
    shown = page.sources(".mask img")
    for name, said in {
        "bomb.png": "bomb.png: cannot be decoded: Image size (3600000000 pixels) exceeds limit",
        "cut.jpg": "cut.jpg: cannot be decoded: ",
        "page.png": "page.png: not a readable JPEG, PNG, WEBP, BMP, GIF, TIFF image; it looks",
    }.items():
        page.upload(place / name)
        page.until_notes(said, whole=False)
        assert page.sources(".mask img") == shown  # the picture before stays
    for name in ("cmyk.jpg", "one.png", "turned.jpg"):
        page.upload(place / name)
        page.until_notes(notes(explorers, asked._replace(picture=read_picture(place / name))))
    page.until(lambda: page.part(".mask img").get_property("naturalHeight") == 640)
    assert page.part(".mask img").get_property("naturalWidth") == round(640 * 40 / 90)


def test_the_page_fits_a_telephone(page: Page) -> None:
    size = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    inside = "return document.documentElement.scrollWidth <= innerWidth"
    page.until(lambda: page.browser.execute_script(inside))
    assert page.part(".mask img").size["width"] >= 200
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name_and_can_be_reached(page: Page) -> None:
    for css in ("input", "textarea", "button"):
        for control in page.browser.find_elements("css selector", css):
            if not control.is_displayed():
                continue
            assert control.accessible_name, control.get_attribute("outerHTML")
            assert int(control.get_property("tabIndex")) >= 0


def test_a_taken_port_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*SWITCHED_OFF, "GRADIO_TEMP_DIR"]:  # which stay as they were
        monkeypatch.setenv(name, "")
    gradio = load_gradio(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other, gradio.Blocks() as blocks:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken; choose another --port"):
            serve(gradio, blocks, port)


def test_nothing_is_asked_of_other_machines(page: Page, url: str) -> None:
    sent = [json.loads(each["message"])["message"] for each in page.browser.get_log("performance")]
    wanted = [
        each["params"]["request"]["url"]
        for each in sent
        if each["method"] == "Network.requestWillBeSent"
    ]
    own = [each for each in wanted if each.startswith(url)]
    assert len(own) > 10
    inside = (url, "data:", "blob:", "chrome:", "about:")
    assert [each for each in wanted if not each.startswith(inside)] == []
