"""An encoder, a neck and a decoder as a segmenter, with the paper's own signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksd.features import height_and_width
from masksd.segmenter import FeatureCut, Given, ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.tapping.embeddings import TokenMask, mask_after_prefix
from masksd.tapping.hooks import Recorder
from masksd.tapping.modules import check_wrappable, find_module
from masksd.tapping.tap import EmbeddingTap


class Triple(Segmenter):
    """An encoder, a neck and a decoder with the paper's own signatures (Eq. 1 and 2).

    ``encoder.encode_image(images) -> ImageFeatures``, ``encoder.encode_text(tokens) ->
    TextFeatures``, ``neck(image.maps, text.pooled) -> fused`` and ``decoder(fused, text.local,
    text.attention_mask or text.valid) -> logits (B, 1, H, W)``.

    Args:
        encoder: module with the two methods. ``one_pass`` also needs ``real_words(tokens)``, bool
            ``(B, L)``, which returns what ``encode_text(tokens).valid`` would.
        neck: module. Where ``fused`` has an attribute ``spatial_attention (B, 1, h, w)``, relevance
            ``"neck"`` ranks the patches by it.
        decoder: module.
        image_embedding: dotted path, inside the encoder, of the module that embeds the patches,
            before positions are added; None takes ``encoder.image_embedding``.
        text_embedding: the same for the words.
        image_layer: the layer of ``encoder.image_layers`` (dotted path of a list of modules) after
            which patches are masked, from 1; 0 masks embeddings. The layer gives ``(B, P + N, C)``,
            where ``P`` is ``encoder.image_prefix`` (0 if it has none). The masked pass then calls
            ``encoder.resume_image(hidden, layer, plain)``, with the plain ``ImageFeatures``.

    Raises:
        ValueError: a method is missing, a path does not match, or there is no such layer; nothing
            has been touched then.

    Example:
        >>> from masksd.models import create_model
        >>> model = create_model("clip_cris_tiny")
        >>> triple = Triple(model.encoder, model.neck, model.decoder)
        >>> triple.taps["image"].path
        'vision.embeddings.patch_embedding'
        >>> triple.release() == (model.encoder, model.neck, model.decoder)
        True
    """

    kind = "an encoder, a neck and a decoder"
    shared_space = True
    splits = True

    def __init__(
        self,
        encoder: nn.Module,
        neck: nn.Module,
        decoder: nn.Module,
        *,
        image_embedding: str | None = None,
        text_embedding: str | None = None,
        image_layer: int = 0,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("neck", neck), ("decoder", decoder)):
            check_wrappable(part, name)
        for method in ("encode_image", "encode_text"):
            if not callable(getattr(encoder, method, None)):
                raise ValueError(
                    f"encoder {type(encoder).__name__} has no method {method}; give it one that "
                    "returns masksd.ImageFeatures or masksd.TextFeatures (a two-line adapter)"
                )
        embeddings = {}
        for modality, path in (("image", image_embedding), ("text", text_embedding)):
            argument = f"{modality}_embedding"
            path = getattr(encoder, argument, None) if path is None else path
            if path is None:
                raise ValueError(
                    f"{argument} is not known: pass the dotted path, inside the encoder, of the "
                    f"module that makes the embeddings, or set encoder.{argument}"
                )
            embeddings[modality] = path, find_module(encoder, path, argument)
        layer = _image_layer(encoder, image_layer) if image_layer else None
        self._layer = image_layer
        self._lower = Recorder(f"{encoder.image_layers}.{image_layer - 1}") if layer else None
        self._cut: FeatureCut | None = None
        self.encoder: Any = encoder
        self.neck = neck
        self.decoder = decoder
        self.taps = {
            modality: EmbeddingTap(module, path) for modality, (path, module) in embeddings.items()
        }
        image = f"the image tower above layer {image_layer}" if image_layer else "encode_image"
        self.reruns = {
            "image": f"runs {image}, neck and decoder again; reuses the sentence's features",
            "text": "runs encode_text, neck and decoder again; reuses the image's features",
        }
        self.attach([(self.taps[name], module) for name, (_, module) in embeddings.items()])
        if self._lower is not None and layer is not None:
            self.attach([(self._lower, layer)])

    def host(self, images: Tensor, tokens: Tensor, *more: Any) -> Tensor:
        """Return the logits ``(B, 1, H, W)``, exactly as the three parts give them."""
        _two_only(more)
        image, text = self.encoder.encode_image(images), self.encoder.encode_text(tokens)
        return self._decode(self.neck(image.maps, text.pooled), text, self.decoder)

    def plain(self, images: Tensor, tokens: Tensor, *more: Any) -> Pass:
        """Run all three parts (Eq. 1 and 2)."""
        _two_only(more)
        with self._lower.recording() if self._lower else contextlib.nullcontext():
            image = self.encoder.encode_image(images)
            lower = self._taken_below(image) if self._lower else None
        text = self.encoder.encode_text(tokens)
        if self._cut is not None:
            image, text = self._cut("image", image), self._cut("text", text)
        if image.local is not None and image.grid[0] * image.grid[1] != image.local.shape[1]:
            raise ValueError(
                f"encode_image returned a grid of {image.grid} for {image.local.shape[1]} patches"
            )
        _held, before = _seen(image, text)  # others could take the addresses of the released
        fused = self.neck(image.maps, text.pooled)
        logits = self._decode(fused, text, self.decoder)
        if _seen(image, text)[1] != before:
            raise ValueError(
                "neck or decoder wrote into the encoder's features in place, or put others into "
                "their list, and the masked passes use them again: let it work on a copy "
                "(x = x + y, x.clone(), list(maps))"
            )
        attention = getattr(fused, "spatial_attention", None)
        return Pass(
            logits,
            image,
            text,
            host_output=logits,
            inputs=(images, tokens, lower),
            size=height_and_width(images),
            neck=None if attention is None else attention.detach(),
        )

    @property
    def root(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def takes(self, argument: str) -> bool:
        """Whether this is one of a triple's two arguments."""
        return argument in ("images", "tokens")

    def _taken_below(self, image: ImageFeatures) -> Tensor:
        """Return the output of the layer after which patches are masked."""
        lower: Tensor = cast(Recorder, self._lower).taken()[1]
        prefix = getattr(self.encoder, "image_prefix", 0)
        wanted = (prefix + image.grid[0] * image.grid[1], self.taps["image"].width)
        if not isinstance(lower, Tensor) or lower.shape[1:] != wanted:
            came = tuple(lower.shape) if isinstance(lower, Tensor) else type(lower).__name__
            raise ValueError(
                f"image.layer={self._layer} masks tokens (B, {wanted[0]}, {wanted[1]}): those of "
                f"encoder.image_prefix={prefix}, then the patches of the grid {image.grid}; the "
                f"layer gives {came}"
            )
        return lower

    def given(self, images: Tensor, tokens: Tensor, *more: Any) -> Given:
        """Return the images' size and the words that ``encoder.real_words(tokens)`` marks."""
        _two_only(more)
        return Given(height_and_width(images), lambda: self._real_words(tokens))

    def _real_words(self, tokens: Tensor) -> Tensor:
        if not callable(getattr(self.encoder, "real_words", None)):
            raise ValueError(
                f"one_pass=True masks words before they are encoded, but encoder "
                f"{type(self.encoder).__name__} has no method real_words; give it one that returns "
                "bool (B, L) for tokens (B, L), True for real words, or set text=None"
            )
        return self.encoder.real_words(tokens)

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Encode again only what is masked, then decode (Eq. 5 and 8)."""
        images, tokens, lower = plain.inputs
        image_features, text_features = plain.image, plain.text
        if image is not None and lower is not None:
            hidden = mask_after_prefix(lower, image)
            image_features = self.encoder.resume_image(hidden, self._layer, plain.image)
        elif image is not None:
            with self.taps["image"].masking(image):
                image_features = self.encoder.encode_image(images)
        if text is not None:
            with self.taps["text"].masking(text):
                text_features = self.encoder.encode_text(tokens)
        neck, decoder = parts.get("neck", self.neck), parts.get("decoder", self.decoder)
        return self._decode(neck(image_features.maps, text_features.pooled), text_features, decoder)

    @contextlib.contextmanager
    def cutting(self, cut: FeatureCut) -> Iterator[None]:
        """Hand the features of plain passes inside to ``cut``, between encoder and neck."""
        self._cut = cut
        try:
            yield
        finally:
            self._cut = None

    def release(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Take every hook off and return ``(encoder, neck, decoder)``, the very objects."""
        super().release()
        return self.encoder, self.neck, self.decoder

    @staticmethod
    def _decode(fused: Any, text: TextFeatures, decoder: nn.Module) -> Tensor:
        attend = text.valid if text.attention_mask is None else text.attention_mask
        return decoder(fused, text.local, attend)


def _image_layer(encoder: nn.Module, number: int) -> nn.Module:
    path = getattr(encoder, "image_layers", None)
    if path is None or not callable(getattr(encoder, "resume_image", None)):
        raise ValueError(
            f"image.layer={number} masks inside the image tower, but encoder "
            f"{type(encoder).__name__} has no image_layers and resume_image to go on from there; "
            "use layer=0"
        )
    layers = cast(nn.ModuleList, find_module(encoder, path, "image_layers"))
    if number > len(layers):
        raise ValueError(
            f"image.layer must be at most {len(layers)}, the layers of {path}, got {number}"
        )
    return layers[number - 1]


def _two_only(more: tuple[Any, ...]) -> None:
    if more:
        raise ValueError(
            f"a triple takes images and tokens, got {2 + len(more)} arguments; the truth goes by "
            "name: sd(images, tokens, target=masks)"
        )


def _seen(image: ImageFeatures, text: TextFeatures) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """List the tensors of the features, with address and number of in-place writes of each."""
    if torch.compiler.is_compiling():  # compiled code writes into nothing of ours
        return [], []
    leaves = torch.utils._pytree.tree_leaves((image, text))
    tensors = [x for x in leaves if isinstance(x, Tensor) and not x.is_inference()]
    return tensors, [(id(x), x._version) for x in tensors]
