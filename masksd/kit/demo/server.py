"""The page's server: on this machine alone, without a call to any other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

LARGEST_FILE = 64 * 2**20
HOST = "127.0.0.1"
SWITCHED_OFF = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Variables that keep gradio from calling other machines and from keeping what was asked."""
_FONTS = ["system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_CSS = """
.gradio-container {max-width: min(1200px, 100vw) !important; margin: auto}
.gradio-container .main, .gradio-container .wrap, main.contain {min-width: 0; max-width: 100%}
input, textarea, figcaption, #examples .caption-label {font-size: 16px !important}
.mask img {cursor: crosshair; width: 100%}
.figures {display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr))}
.step .figures {grid-template-columns: repeat(auto-fit, minmax(240px, 1fr))}
.figures img {width: 100%}
figure {margin: 0}
#examples .grid-wrap {min-height: 0; height: auto}
#examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(100px, 1fr))}
#examples .thumbnail-item {aspect-ratio: auto; height: auto; display: block}
#examples .thumbnail-item img {height: auto; aspect-ratio: 1}
#examples .caption-label {position: static; width: 100%; max-width: 100%; opacity: 1}
#examples .caption-label {white-space: normal}
"""


def load_gradio(uploads: str | Path) -> Any:
    """Import gradio with all that calls other machines switched off; uploads stay in a folder.

    Raises:
        ValueError: it is not installed.
    """
    os.environ.update(SWITCHED_OFF, GRADIO_TEMP_DIR=str(uploads))
    try:
        import gradio
    except ImportError:
        raise ValueError("the page needs gradio; pip install 'masksd[demo]'") from None
    return gradio


class OnlyHere:
    """Tells the browser to load nothing from other machines, whatever a page of gradio asks for."""

    policy = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the policy to the headers of an answer."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", self.policy),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve(gradio: Any, page: Any, port: int | None = None, *, browser: bool = False) -> str:
    """Serve a page on this machine alone and return where.

    Raises:
        ValueError: the port is taken.
    """
    from starlette.middleware import Middleware

    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=LARGEST_FILE,
            app_kwargs={"middleware": [Middleware(OnlyHere)]},
            theme=gradio.themes.Default(font=_FONTS, font_mono=["monospace"]).set(
                block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
            ),
            css=_CSS,
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise ValueError(f"port {port} is taken; choose another --port") from None
    return str(url)
