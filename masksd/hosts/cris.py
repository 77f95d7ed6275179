"""CRIS (CVPR 2022) as its authors published it, with what a masked pass does not change reused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from masksd.hooks import CutPoint, Recorder
from masksd.hosts.arguments import Arguments
from masksd.hosts.layout import as_logits, as_loss, as_tokens, cells, clip_words, pick
from masksd.hosts.taps import check_not_compiled, masking
from masksd.segmenter import FeatureCut, ImageFeatures, Pass, TextFeatures, check_wrappable
from masksd.tap import EmbeddingTap, TokenMask

IMAGES, TOKENS, TRUTH = range(3)  # arguments of the host's forward

_PARTS = ("backbone.visual", "backbone.token_embedding", "neck", "decoder", "proj")
_IMAGE, _STEM = "backbone.visual.avgpool", "backbone.visual.conv3"
_TEXT = "backbone.token_embedding"
_RECORDED = ("neck", "decoder", "proj")
# where features come in: neck(maps, sentence), decoder(fused, words, padding), proj(x, sentence)
_CUT = {"neck": {0: "image", 1: "text"}, "decoder": {1: "text"}, "proj": {1: "text"}}


def recognise(host: nn.Module) -> bool:
    """Say whether a host is built as CRIS is, by the names of its parts.

    Args:
        host: any module.

    Example:
        >>> recognise(nn.Linear(2, 2))
        False
    """
    backbone = getattr(host, "backbone", None)
    return all(_has(host, path) for path in _PARTS) and all(
        callable(getattr(backbone, method, None)) for method in ("encode_image", "encode_text")
    )


def segmenter(host: nn.Module, text_encoder: nn.Module | None = None) -> CrisSegmenter:
    """Build the segmenter of a host that :func:`recognise` knows.

    Args:
        host: CRIS, with a ResNet of CLIP as its image tower.
        text_encoder: must be None: CRIS has its own.

    Raises:
        ValueError: a part is missing; the host has not been touched then.

    Example:
        >>> segmenter(nn.Linear(2, 2), nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        ValueError: text_encoder is for hosts that keep it outside; CRIS has its own: leave it out
    """
    if text_encoder is not None:
        raise ValueError(
            "text_encoder is for hosts that keep it outside; CRIS has its own: leave it out"
        )
    return CrisSegmenter(host)


class CrisSegmenter(nn.Module):
    """CRIS as :class:`masksd.Segmenter`.

    The plain pass is the host's own ``forward(img, word, mask)``, so output, loss and random stream
    are its own. A masked pass encodes again only the modality that is masked.

    Patches are the cells of the last stage of the ResNet, 32 pixels wide; their mask is laid over
    the stem's output, which has 8 x 8 places a cell.

    Args:
        host: CRIS. Everything is checked before the first hook is registered.

    Raises:
        ValueError: a part that is not where CRIS has it, or a host that is compiled or distributed.
    """

    # Only roughly: words and sentence pass CLIP's own projection, but CRIS keeps the attention
    # pool's dense map instead of its pooled vector, adds to it a convolution that starts at random,
    # and cuts it off at zero. Dots rank as in the paper; they are no cosine of CLIP's.
    shared_space = True
    splits = True
    reruns: ClassVar[Mapping[str, str]] = {
        "image": "runs encode_image, neck, decoder and proj again; reuses words and sentence",
        "text": "runs encode_text, neck, decoder and proj again; reuses the picture's maps",
    }

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        check_wrappable(host, "host")
        self._arguments = Arguments(host)
        for name, position in (("images", IMAGES), ("tokens", TOKENS), ("target", TRUTH)):
            self._arguments.check(name, position)
        if not (_has(host, _IMAGE) and _has(host, _STEM)):
            raise ValueError(
                f"{type(host).__name__} is built as CRIS is, but its image tower "
                f"{type(host.get_submodule('backbone.visual')).__name__} has no ResNet stem with "
                "conv3 and avgpool; name where it does what: wrap(host, taps=masksd.Taps(...))"
            )
        if not isinstance(getattr(host.backbone, "text_projection", None), Tensor):
            raise ValueError(
                f"{type(host).__name__}.backbone has no text_projection, the tensor (width, D) "
                "that brings words where the sentence is; wrap(host, taps=masksd.Taps(...))"
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
        self._cuts = {path: CutPoint(arguments) for path, arguments in _CUT.items()}
        self.wrapped = host
        for path, hook in self._hooks():
            hook.attach(modules[path])

    def takes(self, argument: str) -> bool:
        """Whether CRIS has an argument of this name."""
        return self._arguments.has(argument)

    def host(self, *args: Any, **kwargs: Any) -> Any:
        """Run CRIS exactly as if it were not wrapped."""
        return self.wrapped(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run CRIS once and take its features, its logits with their gradient, and its loss.

        Args:
            args: ``images (B, 3, H, W)``, ``tokens (B, L)`` of CLIP, padded by 0, and in training
                the truth ``(B, 1, H, W)`` in [0, 1].
            kwargs: the same by CRIS's names.

        Raises:
            ValueError: no truth in training, where CRIS computes its own loss.
        """
        images = self._arguments.get(IMAGES, args, kwargs)
        tokens = self._arguments.get(TOKENS, args, kwargs)
        target = self._arguments.find(TRUTH, args, kwargs)
        if target is None and self.wrapped.training:
            raise ValueError(
                "CRIS computes its own loss in training and takes the truth as its third argument: "
                "call sd(images, tokens, masks), not sd(..., target=masks)"
            )
        with contextlib.ExitStack() as stack:
            for recorder in self._recorders.values():
                stack.enter_context(recorder.recording())
            output = self.wrapped(*args, **kwargs)
            (maps, sentence), _ = self._recorders["neck"].taken()
            (_, words, padding), _ = self._recorders["decoder"].taken()
            _, logits = self._recorders["proj"].taken()
        grid = cells(maps[-1].shape[-2:], images, None)
        local = as_tokens(maps[-1].detach(), grid, prefix=0)  # it only ranks
        return Pass(
            as_logits(logits),
            ImageFeatures(local, grid, local.mean(1), maps),
            TextFeatures(self._ranking(words), sentence, clip_words(tokens)),
            host_output=output,
            inputs=(images, tokens, maps, words, sentence, padding),
            loss=None if isinstance(output, Tensor) else as_loss(pick(output, ":2", "loss")),
            target=target,
        )

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Encode again only what is masked, then run neck, decoder and projector again."""
        images, tokens, maps, words, sentence, padding = plain.inputs
        host: Any = self.wrapped
        with masking(self.taps, image, text):
            if image is not None:
                maps = host.backbone.encode_image(images)
            if text is not None:
                words, sentence = host.backbone.encode_text(tokens)
        fused = host.neck(maps, sentence)
        decoded = host.decoder(fused, words, padding).reshape(fused.shape)
        return as_logits(host.proj(decoded, sentence))

    def cutting(self, cut: FeatureCut) -> contextlib.AbstractContextManager[Any]:
        """Cut the features of plain passes where they come into neck, decoder and projector."""
        stack = contextlib.ExitStack()
        for point in self._cuts.values():
            stack.enter_context(point.cutting(cut))
        return stack

    def release(self) -> nn.Module:
        """Take every hook off and return CRIS, the very object."""
        for path, hook in self._hooks():
            hook.remove(self.wrapped.get_submodule(path))
        return self.wrapped

    def _hooks(self) -> list[tuple[str, EmbeddingTap | Recorder | CutPoint]]:
        hooks: list[tuple[str, EmbeddingTap | Recorder | CutPoint]] = list(self._cuts.items())
        hooks += [(tap.path, tap) for tap in self.taps.values()]
        return hooks + list(self._recorders.items())

    @torch.no_grad()
    def _ranking(self, words: Tensor) -> Tensor:
        """Bring words ``(B, L, C)`` where the sentence is: CRIS projects the end token only."""
        backbone: Any = self.wrapped.backbone
        return words @ backbone.text_projection.to(words.dtype)


def _has(host: nn.Module, path: str) -> bool:
    module: Any = host
    for name in path.split("."):
        module = getattr(module, name, None)
    return isinstance(module, nn.Module)
