"""The page: a picture, a sentence, and what one model or two make of them.

It imports gradio; :func:`masksd.kit.demo.server.load_gradio` comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from masksd.kit.demo.drawing import (
    CELLS,
    Asked,
    about,
    draw_mask,
    draw_step,
    draw_words,
    enlarged,
    figures,
    shortened,
    toggled,
)
from masksd.kit.demo.explorer import Explorer, Picture, read_picture

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def build_page(explorers: Sequence[Explorer], examples: Sequence[tuple[Picture, str]]) -> Any:
    """Build the page of one model, or of two side by side.

    Args:
        explorers: of the models; the threshold at the start is that of the first.
        examples: pictures to choose from, with a sentence each; the first is shown at the start.
    """
    first, sentence = examples[0] if examples else (None, "")
    with gr.Blocks(title="masksd", analytics_enabled=False) as page:
        gr.Markdown("# What does the model see?")
        picture = gr.State(first)
        text = gr.Textbox(
            sentence,
            label="Sentence",
            info="What to find, as in “the red circle”",
            elem_id="sentence",
        )
        with gr.Row():
            with gr.Column(scale=len(explorers) + 1, min_width=280), gr.Row():
                found = [_model(each) for each in explorers]
            with gr.Column(scale=1, min_width=280):
                threshold = gr.Slider(
                    0,
                    1,
                    explorers[0].checkpoint.config.threshold,
                    step=0.01,
                    label="Threshold",
                    info="Pixels of a higher probability belong to the object",
                    elem_id="threshold",
                )
                hidden = gr.Dropdown(
                    CELLS,
                    value=[],
                    multiselect=True,
                    label="Hidden patches",
                    info="Click the picture to hide one or show it again, or name it here",
                    elem_id="hidden",
                )
                everything = gr.Button("Show all patches", elem_id="everything")
                notes = gr.Textbox(label="Notes", interactive=False, lines=2, elem_id="notes")
                upload = gr.File(
                    label="Your picture: JPEG, PNG, WEBP, BMP, TIFF or GIF",
                    height=150,
                    elem_id="upload",
                )
        if examples:
            gr.Markdown("## Examples")
            gallery = gr.Gallery(
                [(enlarged(each.image, 192), line) for each, line in examples],
                label="Examples",
                show_label=False,
                columns=len(examples),
                height="auto",
                object_fit="contain",
                allow_preview=False,
                buttons=[],
                elem_id="examples",
            )
        gr.Markdown("## Without each word")
        with gr.Row():
            words = [_figures("words") for _ in explorers]
        gr.Markdown("## What a training step masks")
        with gr.Row():
            step = gr.Number(0, label="Step", precision=0, minimum=0, min_width=140)
            following = gr.Button("Next step", min_width=140, elem_id="next")
        with gr.Row():
            steps = [_figures("step") for _ in explorers]

        asked = [picture, text, hidden, threshold]

        def masks(*values: Any) -> dict[Any, Any]:
            drawn = [draw_mask(each, Asked.of(*values)) for each in explorers]
            lines = [
                line if len(explorers) == 1 else f"{each.name}: {line}"
                for each, (_, said) in zip(explorers, drawn, strict=True)
                for line in said
            ]
            shown = {part: image for part, (image, _) in zip(found, drawn, strict=True)}
            return {**shown, notes: "\n".join(lines)}

        def every_word(*values: Any) -> dict[Any, str]:
            drawn = (figures(draw_words(each, Asked.of(*values)), each.name) for each in explorers)
            return dict(zip(words, drawn, strict=True))

        def one_step(number: int | None, *values: Any) -> dict[Any, str]:
            drawn = (
                figures(draw_step(each, Asked.of(*values), max(0, number or 0)), each.name)
                for each in explorers
            )
            return dict(zip(steps, drawn, strict=True))

        def toggle(now: Picture | None, cells: list[str], event: gr.SelectData) -> list[str]:
            return toggled(now, cells, event.index)

        def take(path: str) -> dict[Any, Any]:
            try:
                return {picture: read_picture(path), hidden: [], upload: None}
            except (ValueError, OSError) as error:
                return {notes: shortened(error), upload: None}

        def choose(event: gr.SelectData) -> tuple[Picture, str, list[str]]:
            return *examples[event.index], []

        gr.on(
            [page.load, *(part.change for part in asked)],
            masks,
            asked,
            [*found, notes],
            trigger_mode="always_last",
            **_QUIET,
        ).then(every_word, asked, words, **_QUIET).then(one_step, [step, *asked], steps, **_QUIET)
        step.change(one_step, [step, *asked], steps, trigger_mode="always_last", **_QUIET)
        following.click(lambda number: int(number or 0) + 1, step, step, **_QUIET)
        everything.click(lambda: [], None, hidden, **_QUIET)
        upload.upload(take, upload, [picture, hidden, notes, upload], **_QUIET)
        for each in found:
            each.select(toggle, [picture, hidden], hidden, **_QUIET)
        if examples:
            gallery.select(choose, None, [picture, text, hidden], **_QUIET)
    return page


def _model(explorer: Explorer) -> Any:
    """Lay out what a model is and its mask, which is returned."""
    with gr.Column(min_width=280):
        gr.Markdown(about(explorer))
        return gr.Image(
            alt_text="The picture with the mask; a click hides a patch",
            show_label=False,
            interactive=False,
            buttons=[],
            elem_classes="mask",
        )


def _figures(kind: str) -> Any:
    with gr.Column(min_width=280):
        return gr.HTML(elem_classes=kind)
