"""transformers' ``CLIPSegForImageSegmentation``: both CLIP towers and a light decoder.

Its own forward encodes under ``no_grad``, so neither the towers nor mask tokens in them learn
anything; :attr:`ClipSegSegmenter.train_encoder` runs the same parts with gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from masksd.features import height_and_width
from masksd.hosts.layout import name_of, pick
from masksd.segmenter import Given, ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.hooks import CutPoint, Recorder
from masksd.tapping.modules import find_module
from masksd.tapping.tap import EmbeddingTap

EMBEDDINGS = {
    "image": "clip.vision_model.embeddings.patch_embedding",
    "text": "clip.text_model.embeddings.token_embedding",
}


def recognise(host: nn.Module) -> bool:
    """Whether a model has CLIPSeg's parts."""
    clip = getattr(host, "clip", None)
    return all(hasattr(clip, part) for part in ("vision_model", "text_model")) and all(
        hasattr(host, part) for part in ("decoder", "extract_layers", "get_conditional_embeddings")
    )


def segmenter(
    host: nn.Module,
    text_encoder: nn.Module | None = None,
    valid: Callable[[Tensor], Tensor] | None = None,
) -> ClipSegSegmenter:
    """Build the segmenter of a CLIPSeg."""
    if text_encoder is not None:
        raise ValueError(f"{type(host).__name__} has its own text tower: leave text_encoder out")
    return ClipSegSegmenter(host, valid)


class ClipSegSegmenter(Segmenter):
    """A CLIPSeg as :class:`masksd.Segmenter`: what a mask does not change is not encoded again.

    A call takes what the host takes, including ``input_ids`` and ``pixel_values``. With ``labels``,
    these are the truth and the loss is the host's own.

    Attributes:
        train_encoder: False, the host's own behaviour: both towers run without gradients. True
            runs them with gradients, in training only; values stay the same, and ``host_output`` is
            the decoder's. Set it before you build the optimiser.
    """

    shared_space = True  # CLIP's own

    kind = "CLIPSeg, recognised by its parts"

    def __init__(self, host: nn.Module, valid: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(host)
        end_token: Any = host.config.text_config.eos_token_id  # type: ignore[union-attr]
        self._valid = valid or partial(clipseg_words, end_token=end_token)
        self.sources = {"logits": "decoder", "words": name_of(valid or clipseg_words)}
        self.reruns = {
            "image": "runs the image tower and the decoder again; reuses the sentence's vector",
            "text": "runs the text tower and the decoder again; reuses the image's features",
        }
        modules = {
            name: find_module(host, path, f"{name}_embedding") for name, path in EMBEDDINGS.items()
        }
        recorded = {
            "image": find_module(host, "clip.vision_model", "patches"),
            "text": find_module(host, "clip.text_model", "words"),
            "decoder": find_module(host, "decoder", "logits"),
        }
        self.taps = {name: EmbeddingTap(modules[name], path) for name, path in EMBEDDINGS.items()}
        self._recorders = {name: Recorder(f"CLIPSeg's {name} model") for name in recorded}
        cut = CutPoint({0: "image", 1: "text"})  # of decoder(activations, sentence)
        self._signature = inspect.signature(host.forward)
        self.train_encoder = False
        self.attach([(tap, modules[modality]) for modality, tap in self.taps.items()])
        self.attach([(recorder, recorded[name]) for name, recorder in self._recorders.items()])
        self.attach([(cut, recorded["decoder"])])

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """Say whether the towers learn."""
        if self.train_encoder:
            return ["both towers run with gradients in training (train_encoder is True)"]
        return [
            "this host encodes under no_grad: the towers and the mask tokens learn nothing, only "
            "the decoder does; to train the towers too, set sd.segmenter.train_encoder = True "
            "before you build the optimiser"
        ]

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the host once and keep both towers' features."""
        given = self._named(args, kwargs)
        with self.recording():
            learns = self.train_encoder
            output = self._with_gradient(given) if learns else self.host(*args, **kwargs)
            (activations, sentence), decoded = self._recorders["decoder"].taken()
            vision, text = (self._recorders[name].taken()[1] for name in ("image", "text"))
        clip, labels = self.wrapped.clip, given.get("labels")
        with torch.no_grad():  # patches, words and the image's vector in the shared space
            normed = clip.vision_model.post_layernorm(vision.last_hidden_state)
            shared = clip.visual_projection(normed)
            words = clip.text_projection(text.last_hidden_state)
        grid = self.taps["image"].positions
        return Pass(
            decoded.logits[:, None],
            ImageFeatures(shared[:, 1:], grid, shared[:, 0], activations),
            TextFeatures(words, sentence, self._valid(given["input_ids"])),
            host_output=output,
            inputs=(given,),
            loss=None if labels is None or self.train_encoder else pick(output, ":loss", "labels"),
            target=labels,
            size=height_and_width(given["pixel_values"]),
        )

    def given(self, *args: Any, **kwargs: Any) -> Given:
        """Return the images' size and the real words of a call."""
        named = self._named(args, kwargs)
        size = height_and_width(named["pixel_values"])
        return Given(size, lambda: self._valid(named["input_ids"]))

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = self._signature.bind(*args, **kwargs).arguments
        for name in ("input_ids", "pixel_values"):
            if given.get(name) is None:
                raise ValueError(
                    f"this call brought no {name}: a CLIPSeg's sd(input_ids=..., "
                    "pixel_values=...) takes both; prompts by image or embedding cannot be masked"
                )
        return given

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Encode again only what is masked, then decode."""
        (given,) = plain.inputs
        activations, sentence = plain.image.maps, plain.text.pooled
        learns = self.train_encoder and torch.is_grad_enabled()
        with self.masking(image, text), torch.set_grad_enabled(learns):
            if image is not None:
                activations = self._encode_image(given)
            if text is not None:
                sentence = self._encode_text(given)
        logits: Tensor = self.wrapped.decoder(activations, sentence).logits
        return logits[:, None]

    def _with_gradient(self, given: dict[str, Any]) -> Any:
        """Run the host's forward without its ``no_grad``."""
        return self.wrapped.decoder(self._encode_image(given), self._encode_text(given))

    def _encode_image(self, given: dict[str, Any]) -> list[Tensor]:
        """Return the hidden states that the decoder reads."""
        hidden = self.wrapped.clip.vision_model(
            pixel_values=given["pixel_values"],
            interpolate_pos_encoding=given.get("interpolate_pos_encoding", True),
            output_hidden_states=True,
        ).hidden_states
        return [hidden[layer + 1] for layer in self.wrapped.extract_layers]  # 0 is the embedding

    def _encode_text(self, given: dict[str, Any]) -> Tensor:
        """Return the sentence's vector ``(B, P)``."""
        names = ("input_ids", "attention_mask", "position_ids")
        return self.wrapped.clip.get_text_features(
            **{name: given.get(name) for name in names}
        ).pooler_output


def clipseg_words(ids: Tensor, end_token: int) -> Tensor:
    """Mark real words, bool ``(B, L)``: strictly between the start and the token pooled at.

    With an ``end_token`` of 2, as in old configs, transformers pools at the largest id instead. A
    row without an end has no words.
    """
    end = ids if end_token == 2 else (ids == end_token).int()
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < end.argmax(1, keepdim=True))
