"""``masksd demo``."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Demo:
    """Open a page in the browser on which a trained model is tried.

    It shows the mask of a sentence at once, and what becomes of it without a word or a patch, and
    what a training step would mask. The page is for this machine alone and needs no network.

    Attributes:
        checkpoint: folder that training wrote; None takes the newest run in runs/, and trains the
            default one if there is none.
        beside: a second checkpoint, which is shown the same.
        port: of the page; None takes the first free one from 7860 on.
        open: open the browser, where there is a display.
        cpu: stay on the CPU even if there is a GPU.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    beside: Path | None = None
    port: int | None = None
    open: bool = True
    cpu: bool = False

    def run(self) -> None:
        """Serve the page until Ctrl-C."""
        from masksd.kit.checkpoints import load_checkpoint
        from masksd.kit.demo.explorer import Explorer, read_examples
        from masksd.kit.demo.server import load_gradio, serve
        from masksd.kit.devices import default_device

        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ValueError(
                f"port must be from 1 to 65535, got {self.port}; choose another --port"
            )
        with tempfile.TemporaryDirectory(prefix="masksd-demo-") as uploads:
            print("loading the page and the model ...", flush=True)
            gradio = load_gradio(uploads)
            from masksd.kit.demo.page import build_page

            device = default_device(cpu=self.cpu)
            folders = [self.checkpoint or _newest_or_new()]
            folders += [] if self.beside is None else [self.beside]
            explorers = [Explorer(load_checkpoint(each, device), str(each)) for each in folders]
            examples = []
            try:
                examples = read_examples(explorers[0].checkpoint)
            except (ValueError, OSError) as error:
                warnings.warn(f"the page has no examples: {error}", UserWarning, stacklevel=1)
            page = build_page(explorers, examples)
            url = serve(gradio, page, self.port, browser=self.open and _has_display())
            # as Ctrl-C does, it lets the uploads be deleted
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            print(f"{url} shows {' and '.join(map(str, folders))}; Ctrl-C ends it", flush=True)
            try:
                page.block_thread()
            finally:
                page.close(verbose=False)  # before the uploads are deleted


def _newest_or_new() -> Path:
    """Return the checkpoint of the newest run; train the default one if there is none."""
    from masksd.kit.storage.files import MANIFEST

    found = Path("runs").glob(f"*/checkpoint/{MANIFEST}")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        return newest.parent
    from masksd.kit.recipes import get_recipe
    from masksd.kit.training.trainer import train

    print("no run in runs/ yet: training the default one, which takes minutes", flush=True)
    return train(get_recipe("cm-masksd")).checkpoint


def _has_display() -> bool:
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
