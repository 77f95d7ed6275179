"""transformers' ``CLIPSegForImageSegmentation``: both CLIP towers and a light decoder.

Its own forward encodes under ``no_grad``, so the towers, and mask tokens put into them, learn
nothing there; :attr:`ClipSegSegmenter.train_encoder` runs the same parts with gradient.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from masksd.hooks import CutPoint, Recorder, find_module
from masksd.hosts.layout import pick
from masksd.hosts.taps import masking
from masksd.segmenter import FeatureCut, ImageFeatures, Pass, TextFeatures
from masksd.tap import EmbeddingTap, TokenMask

IMAGE_EMBEDDING = "clip.vision_model.embeddings.patch_embedding"
TEXT_EMBEDDING = "clip.text_model.embeddings.token_embedding"


def recognise(host: nn.Module) -> bool:
    """Say whether a model has CLIPSeg's parts.

    Example:
        >>> recognise(nn.ReLU())
        False
    """
    clip = getattr(host, "clip", None)
    return all(hasattr(clip, part) for part in ("vision_model", "text_model")) and all(
        hasattr(host, part) for part in ("decoder", "extract_layers", "get_conditional_embeddings")
    )


def segmenter(host: nn.Module, text_encoder: nn.Module | None = None) -> ClipSegSegmenter:
    """Build the segmenter of a CLIPSeg.

    Args:
        host: one that :func:`recognise` knows.
        text_encoder: must be None; CLIPSeg has its own.

    Raises:
        ValueError: a text encoder came.
    """
    if text_encoder is not None:
        raise ValueError(f"{type(host).__name__} has its own text tower: leave text_encoder out")
    return ClipSegSegmenter(host)


class ClipSegSegmenter(nn.Module):
    """A CLIPSeg as :class:`masksd.Segmenter`: what a mask does not change is not encoded again.

    A call takes what the host takes, ``input_ids`` and ``pixel_values`` among it. With ``labels``
    the truth is those, and the loss the host's own.

    Args:
        host: one that :func:`recognise` knows.

    Attributes:
        train_encoder: False, the host's own behaviour: both towers run without gradient. True runs
            them with it, in training only; values stay the same, and ``host_output`` is that of the
            decoder. Set it before you build the optimiser.

    Example:
        >>> from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
        >>> from masksd import CrossModalMaskedSelfDistill
        >>> tower = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2)
        >>> tower = dict(tower, num_hidden_layers=2)
        >>> config = CLIPSegConfig(
        ...     text_config=dict(tower, vocab_size=9, bos_token_id=7, eos_token_id=8,
        ...         pad_token_id=0, max_position_embeddings=6),
        ...     vision_config=dict(tower, image_size=32, patch_size=8),
        ...     extract_layers=[0, 1], reduce_dim=8, decoder_num_attention_heads=2,
        ...     decoder_intermediate_size=8, projection_dim=8)
        >>> sd = CrossModalMaskedSelfDistill.wrap(CLIPSegForImageSegmentation(config))
        >>> sd.segmenter.train_encoder = True
        >>> ids = torch.tensor([[7, 1, 2, 8, 8]])
        >>> out = sd(ids, torch.zeros(1, 3, 32, 32), target=torch.zeros(1, 32, 32))
        >>> out.logits.shape, sorted(out.losses)
        (torch.Size([1, 1, 32, 32]), ['lmvsd', 'seg', 'vmlsd'])
    """

    shared_space = True  # CLIP's own, of patches and words as of picture and sentence
    splits = False

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        modules = {
            "image": find_module(host, IMAGE_EMBEDDING, "image_embedding"),
            "text": find_module(host, TEXT_EMBEDDING, "text_embedding"),
        }
        recorded = {
            "image": find_module(host, "clip.vision_model", "patches"),
            "text": find_module(host, "clip.text_model", "words"),
            "decoder": find_module(host, "decoder", "logits"),
        }
        self.taps = {
            "image": EmbeddingTap(modules["image"], IMAGE_EMBEDDING),
            "text": EmbeddingTap(modules["text"], TEXT_EMBEDDING),
        }
        self._recorders = {name: Recorder(f"CLIPSeg's {name} model") for name in recorded}
        self._cut = CutPoint({0: "image", 1: "text"})  # of decoder(activations, sentence)
        self._signature = inspect.signature(host.forward)
        self.train_encoder = False
        self.wrapped: Any = host
        for modality, tap in self.taps.items():
            tap.attach(modules[modality])
        for name, recorder in self._recorders.items():
            recorder.attach(recorded[name])
        self._cut.attach(recorded["decoder"])

    @property
    def reruns(self) -> dict[str, str]:
        """A masked pass runs the tower of its modality, and the decoder."""
        return {
            "image": "runs the image tower and the decoder again; reuses the sentence's vector",
            "text": "runs the text tower and the decoder again; reuses the picture's features",
        }

    @property
    def notes(self) -> list[str]:
        """What a user should know, for ``describe()``."""
        if self.train_encoder:
            return ["both towers run with gradient in training (train_encoder is True)"]
        return [
            "this host encodes under no_grad: both towers stay as they are and the mask tokens "
            "learn nothing (their gradient is 0), only the decoder learns; to train the towers "
            "too, set sd.segmenter.train_encoder = True before you build the optimiser"
        ]

    def takes(self, argument: str) -> bool:
        """Whether the host has an argument of this name."""
        return argument in self._signature.parameters

    def host(self, *args: Any, **kwargs: Any) -> Any:
        """Run the host exactly as if it were not wrapped."""
        return self.wrapped(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the host once and keep both towers' features.

        Raises:
            ValueError: the call has no ``input_ids`` or no ``pixel_values``.
        """
        given = self._signature.bind(*args, **kwargs).arguments
        for name in ("input_ids", "pixel_values"):
            if given.get(name) is None:
                raise ValueError(
                    f"this call brought no {name}: sd(input_ids=..., pixel_values=...) of a "
                    "CLIPSeg takes both; prompts by picture or by embedding cannot be masked"
                )
        with contextlib.ExitStack() as stack:
            for recorder in self._recorders.values():
                stack.enter_context(recorder.recording())
            output = (
                self._with_gradient(given) if self.train_encoder else self.host(*args, **kwargs)
            )
            arguments, decoded = self._recorders["decoder"].taken()
            vision, text = (self._recorders[name].taken()[1] for name in ("image", "text"))
        activations, sentence = arguments
        ids = given["input_ids"]
        positions = self.taps["image"].positions
        if positions is None:
            raise ValueError("the patch embedding exists, but did not run in this pass")
        labels = given.get("labels")
        return Pass(
            decoded.logits[:, None],
            ImageFeatures(*self._patches(vision.last_hidden_state, positions), activations),
            TextFeatures(
                self._words(text.last_hidden_state), sentence, clipseg_words(ids, self._end_token)
            ),
            host_output=output,
            inputs=(given,),
            loss=None if labels is None or self.train_encoder else pick(output, ":loss", "labels"),
            target=labels,
        )

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
        with masking(self.taps, image, text), torch.set_grad_enabled(self._encoder_learns()):
            if image is not None:
                activations = self._encode_image(given)
            if text is not None:
                sentence = self._encode_text(given)
        logits: Tensor = self.wrapped.decoder(activations, sentence).logits
        return logits[:, None]

    def cutting(self, cut: FeatureCut) -> contextlib.AbstractContextManager[None]:
        """Cut the features of plain passes where they come into the decoder."""
        return self._cut.cutting(cut)

    def release(self) -> nn.Module:
        """Take every hook off and return the host, the very object."""
        host: nn.Module = self.wrapped
        hooks: list[EmbeddingTap | Recorder | CutPoint] = [self._cut, *self.taps.values()]
        hooks += self._recorders.values()
        for module in host.modules():
            for hook in hooks:
                hook.remove(module)
        return host

    @property
    def _end_token(self) -> int:
        end: int = self.wrapped.config.text_config.eos_token_id
        return end

    def _encoder_learns(self) -> bool:
        return self.train_encoder and torch.is_grad_enabled()

    def _with_gradient(self, given: dict[str, Any]) -> Any:
        """The host's forward, but for its ``no_grad``."""
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
        sentence: Tensor = self.wrapped.clip.get_text_features(
            **{name: given.get(name) for name in names}
        ).pooler_output
        return sentence

    @torch.no_grad()
    def _patches(
        self, hidden: Tensor, positions: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], Tensor]:
        """Return patches, their grid and the picture's vector, in the shared space."""
        clip = self.wrapped.clip
        shared = clip.visual_projection(clip.vision_model.post_layernorm(hidden))
        return shared[:, 1:], (positions[0], positions[1]), shared[:, 0]

    @torch.no_grad()
    def _words(self, hidden: Tensor) -> Tensor:
        words: Tensor = self.wrapped.clip.text_projection(hidden)
        return words


def clipseg_words(ids: Tensor, end_token: int) -> Tensor:
    """Mark real words: strictly between the start and the token that CLIPSeg pools at.

    Args:
        ids: ``(B, L)``.
        end_token: of the host's text config; with 2, as in old configs, transformers takes the
            largest id instead, and so does this.

    Returns:
        bool ``(B, L)``; a row without an end has no words.

    Example:
        >>> clipseg_words(torch.tensor([[7, 1, 3, 8, 8]]), end_token=8).tolist()
        [[False, True, True, False, False]]
    """
    end = ids if end_token == 2 else (ids == end_token).int()
    position = torch.arange(ids.shape[1], device=ids.device)
    return (position > 0) & (position < end.argmax(1, keepdim=True))
