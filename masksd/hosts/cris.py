"""CRIS (CVPR 2022) as its authors published it; a masked pass reuses what its mask leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from masksd.features import height_and_width
from masksd.hosts.arguments import Arguments
from masksd.hosts.layout import as_logits, as_loss, as_tokens, clip_words, name_of, pick
from masksd.segmenter import Given, ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.grids import cells
from masksd.tapping.hooks import CutPoint, Recorder
from masksd.tapping.modules import check_not_compiled, check_wrappable
from masksd.tapping.tap import EmbeddingTap

IMAGES, TOKENS, TRUTH = range(3)  # arguments of the host's forward

_PARTS = ("backbone.visual", "backbone.token_embedding", "neck", "decoder", "proj")
_IMAGE, _STEM = "backbone.visual.avgpool", "backbone.visual.conv3"
_TEXT = "backbone.token_embedding"
_RECORDED = ("neck", "decoder", "proj")
# where features come in: neck(maps, sentence), decoder(fused, words, padding), proj(x, sentence)
_CUT = {"neck": {0: "image", 1: "text"}, "decoder": {1: "text"}, "proj": {1: "text"}}


def recognise(host: nn.Module) -> bool:
    """Whether a host is built like CRIS, by the names of its parts."""
    backbone = getattr(host, "backbone", None)
    return all(_has(host, path) for path in _PARTS) and all(
        callable(getattr(backbone, method, None)) for method in ("encode_image", "encode_text")
    )


def segmenter(
    host: nn.Module,
    text_encoder: nn.Module | None = None,
    valid: Callable[[Tensor], Tensor] | None = None,
) -> CrisSegmenter:
    """Build the segmenter of a host that :func:`recognise` knows."""
    if text_encoder is not None:
        raise ValueError(
            "text_encoder is for hosts that keep it outside; CRIS has its own: leave it out"
        )
    return CrisSegmenter(host, valid or clip_words)


class CrisSegmenter(Segmenter):
    """CRIS as :class:`masksd.Segmenter`.

    The plain pass is the host's own ``forward(img, word, mask)``; a masked pass encodes only the
    masked modality again. Patches are the cells of the last stage of the ResNet, 32 pixels wide;
    their mask is laid over the stem's output, which has 8 x 8 places a cell.
    """

    # Only roughly: words and sentence pass CLIP's own projection, but CRIS keeps the attention
    # pool's dense map instead of its pooled vector, adds a convolution that starts at random, and
    # cuts it off at zero. Dots rank as in the paper, but they are not CLIP's cosines.
    shared_space = True
    splits = True

    kind = "CRIS, recognised by its parts"

    def __init__(self, host: nn.Module, valid: Callable[[Tensor], Tensor] = clip_words) -> None:
        check_wrappable(host, "host")
        super().__init__(host)
        self.reruns = {
            "image": "runs encode_image, neck, decoder and proj again; reuses words and sentence",
            "text": "runs encode_text, neck, decoder and proj again; reuses the image's maps",
        }
        self._call = Arguments(host)
        self._valid = valid
        self.sources = {"logits": "proj", "words": name_of(valid), "loss": "the host's own"}
        for name, position in (("images", IMAGES), ("tokens", TOKENS), ("target", TRUTH)):
            self._call.check(name, position)
        if not (_has(host, _IMAGE) and _has(host, _STEM)):
            raise ValueError(
                f"{type(host).__name__} is built like CRIS, but its image tower "
                f"{type(host.get_submodule('backbone.visual')).__name__} has no ResNet stem with "
                "conv3 and avgpool; name its modules: wrap(host, taps=masksd.Taps(...))"
            )
        if not isinstance(getattr(host.backbone, "text_projection", None), Tensor):
            raise ValueError(
                f"{type(host).__name__}.backbone has no text_projection, the tensor (width, D) "
                "that maps words to the sentence's space; wrap(host, taps=masksd.Taps(...))"
            )
        stem = host.get_submodule(_STEM)
        if not isinstance(stem, nn.Conv2d):
            raise ValueError(f"{_STEM} must be a Conv2d, got {type(stem).__name__}")
        modules = {path: host.get_submodule(path) for path in (_IMAGE, _TEXT, *_RECORDED)}
        for path, module in modules.items():
            check_not_compiled(host, module, path)
        self.taps = {
            "image": EmbeddingTap(
                modules[_IMAGE], _IMAGE, width=stem.out_channels, channels_first=True
            ),
            "text": EmbeddingTap(modules[_TEXT], _TEXT),
        }
        self._recorders = {path: Recorder(path) for path in _RECORDED}
        cuts = {path: CutPoint(arguments) for path, arguments in _CUT.items()}
        self.attach([(cut, modules[path]) for path, cut in cuts.items()])
        self.attach([(tap, modules[tap.path]) for tap in self.taps.values()])
        self.attach([(recorder, modules[path]) for path, recorder in self._recorders.items()])

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run CRIS once and take its features, its logits with their gradient, and its loss."""
        given = self.given(*args, **kwargs)
        images = self._call.get(IMAGES, args, kwargs)
        tokens = self._call.get(TOKENS, args, kwargs)
        target = self._call.find(TRUTH, args, kwargs)
        if target is None and self.wrapped.training:
            raise ValueError(
                "CRIS computes its own loss in training and takes the truth as its third argument: "
                "call sd(images, tokens, masks), not sd(..., target=masks)"
            )
        with self.recording():
            output = self.wrapped(*args, **kwargs)
            (maps, sentence), _ = self._recorders["neck"].taken()
            (_, words, padding), _ = self._recorders["decoder"].taken()
            _, logits = self._recorders["proj"].taken()
        grid = cells(height_and_width(maps[-1]), height_and_width(images), None)
        # to the space of the sentence: CRIS projects the end token only
        in_space = self.wrapped.backbone.text_projection.to(words.dtype)
        local = as_tokens(maps[-1], grid, prefix=0)
        return Pass(
            as_logits(logits),
            ImageFeatures(local, grid, local.mean(1), maps),
            TextFeatures(words @ in_space, sentence, given.valid()),
            host_output=output,
            inputs=(images, tokens, maps, words, sentence, padding),
            loss=None if isinstance(output, Tensor) else as_loss(pick(output, ":2", "loss")),
            target=target,
            size=given.size,
        )

    def given(self, *args: Any, **kwargs: Any) -> Given:
        """Return the images' size and the real words of a call."""
        tokens = self._call.get(TOKENS, args, kwargs)
        size = height_and_width(self._call.get(IMAGES, args, kwargs))
        return Given(size, lambda: self._valid(tokens))

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Encode again only what is masked, then run neck, decoder and projector again."""
        images, tokens, maps, words, sentence, padding = plain.inputs
        host = self.wrapped
        with self.masking(image, text):
            if image is not None:
                maps = host.backbone.encode_image(images)
            if text is not None:
                words, sentence = host.backbone.encode_text(tokens)
        fused = host.neck(maps, sentence)
        decoded = host.decoder(fused, words, padding).reshape(fused.shape)
        return as_logits(host.proj(decoded, sentence))


def _has(host: nn.Module, path: str) -> bool:
    module: Any = host
    for name in path.split("."):
        module = getattr(module, name, None)
    return isinstance(module, nn.Module)
