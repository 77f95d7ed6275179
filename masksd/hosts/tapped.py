"""Any model as a segmenter: named modules are tapped, and a masked pass runs it again.

Modules that are known to see one modality are replayed instead where only the other is masked.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from masksd.grids import cells, embedding_grid
from masksd.hooks import Recorder
from masksd.hosts.arguments import Arguments
from masksd.hosts.layout import (
    as_logits,
    as_loss,
    as_tokens,
    describe_words,
    pick,
)
from masksd.hosts.one_sided import replays
from masksd.hosts.taps import Taps
from masksd.modules import check_not_compiled, check_wrappable, find_module
from masksd.segmenter import Given, ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.tap import EmbeddingTap, TokenMask

RECORDED = ("logits", "patches", "sentence", "words", "image_vector")


class TapSegmenter(Segmenter):
    """Any host as a :class:`masksd.Segmenter`, by hooks on named modules.

    Args:
        host: any module.
        taps: where things happen in it. Everything is checked before the first hook is registered.

    Raises:
        ValueError: a path or an argument that does not match, with the nearest name.

    Example:
        >>> host = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 1, 1))
        >>> segmenter = TapSegmenter(host, Taps("0", images="input", tokens="input"))
        >>> segmenter.plain(torch.zeros(1, 3, 32, 16)).image.grid
        (4, 2)
        >>> segmenter.release() is host
        True
    """

    kind = "a host by taps"

    def __init__(self, host: nn.Module, taps: Taps) -> None:
        check_wrappable(host, "host")
        super().__init__(host)
        self._call = Arguments(host)
        for field in ("images", "tokens", "target"):
            self._call.check(field, getattr(taps, field))
        if not callable(taps.valid):
            self._call.check("valid", taps.valid)
        if taps.logits is None:
            raise ValueError("logits must be a path, or '' for the host's output; got None")
        modules = {}
        for field in ("image_embedding", "text_embedding", *RECORDED):
            path = getattr(taps, field)
            if field in RECORDED:
                path = path.partition(":")[0] if isinstance(path, str) else path
            if path or field == "image_embedding":
                modules[field] = find_module(host, path, field)
                check_not_compiled(host, modules[field], path)
        self.taps = {
            "image": EmbeddingTap(
                modules["image_embedding"],
                taps.image_embedding,
                width=taps.image_width,
                channels_first=taps.channels_first,
                prefix=taps.prefix,
            )
        }
        if taps.text_embedding is not None:
            if taps.valid is None:
                raise ValueError(
                    "valid is not known: name the argument that marks real words, or pass a "
                    "callable that takes the ids, such as masksd.hosts.bert_words"
                )
            self.taps["text"] = EmbeddingTap(
                modules["text_embedding"], taps.text_embedding, width=taps.text_width
            )
        self._recorders = {
            field: Recorder(getattr(taps, field).partition(":")[0])
            for field in RECORDED
            if field in modules
        }
        self.where, self.cell = taps, taps.cell
        self.shared_space = taps.shared_space
        self.sources, self.reruns = {"logits": taps.logits or "what the host returns"}, {}
        if taps.loss is not None:
            self.sources["loss"] = f"the host's own, {taps.loss or 'what it returns'}"
        if taps.valid is not None:
            self.sources["words"] = describe_words(taps.valid)
        named = {"image": taps.image_only, "text": taps.text_only}
        replayed = replays(host, named, modules)
        for modality in self.taps:
            reused = ", ".join(hook.path for hook, _ in replayed if hook.modality != modality)
            self.reruns[modality] = (
                f"runs the host again; replays {reused}"
                if reused
                else "runs the whole host again; reuses nothing"  # what depends on what is unknown
            )
        self.attach(replayed)
        self.attach([(recorder, modules[name]) for name, recorder in self._recorders.items()])
        self.attach([(tap, modules[f"{name}_embedding"]) for name, tap in self.taps.items()])

    def plain(self, *args: Any, **kwargs: Any) -> Pass:
        """Run the host once and take what the taps name."""
        taps = self.where
        self._call.check_count(args)
        with self.recording():
            output = self.wrapped(*args, **kwargs)
            found = {
                field: pick(recorder.taken()[1], getattr(taps, field), field)
                for field, recorder in self._recorders.items()
            }
            towers = [hook.taken()[1] for hook, _ in self.replayed()]
        logits = as_logits(
            found["logits"] if "logits" in found else pick(output, taps.logits, "logits")
        )
        given = self.given(*args, **kwargs)
        images, valid = given.images, given.valid()
        self._check_valid(valid, logits)
        embedded = embedding_grid(self.taps["image"].positions, images)
        grid = cells(embedded, images, taps.cell)
        patches = found.get("patches")
        size = (images.shape[-2], images.shape[-1])
        local = None if patches is None else as_tokens(patches, grid, taps.prefix, size)
        for field, dims, shape in (
            ("sentence", 2, "(B, C)"),
            ("image_vector", 2, "(B, C)"),
            ("words", 3, "(B, L, C)"),
        ):
            if field in found and found[field].ndim != dims:
                raise ValueError(f"{field} must be {shape}, got {tuple(found[field].shape)}")
        return Pass(
            logits,
            ImageFeatures(local, grid, found.get("image_vector")),
            TextFeatures(found.get("words"), found.get("sentence"), valid),
            host_output=output,
            inputs=(args, kwargs, embedded, towers),
            loss=self._own_loss(output),
            target=None if taps.target is None else self._call.find(taps.target, args, kwargs),
            size=size,
        )

    def given(self, *args: Any, **kwargs: Any) -> Given:
        """Return the images and the real words of a call."""
        where = self.where.images
        images = self._call.get(where, args, kwargs)
        if not isinstance(images, Tensor) or images.ndim < 4:
            came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"images={where!r} must be images (B, 3, H, W), got {came}")
        return Given(images, lambda: self._valid(args, kwargs, images))

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Run the host again, with tokens masked; replay what sees only the other modality."""
        args, kwargs, grid, towers = plain.inputs
        recorder = self._recorders.get("logits")
        recording = recorder.recording() if recorder else contextlib.nullcontext()
        unmasked = {"image": image is None, "text": text is None}
        replaying = self._entered(
            hook.replaying(output)
            for (hook, _), output in zip(self.replayed(), towers, strict=True)
            if unmasked[hook.modality]
        )
        with replaying, self.masking(image, text, grid), recording:
            output = self.wrapped(*args, **kwargs)
            output = recorder.taken()[1] if recorder else output
        logits = as_logits(pick(output, self.where.logits, "logits"))
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise ValueError(
                f"logits: {self.where.logits or 'what the host returns'} carries no gradient; name "
                "the module inside that makes them, before the host detaches them (and outside a "
                "reentrant checkpoint)"
            )
        return logits

    def _own_loss(self, output: Any) -> Tensor | None:
        if self.where.loss is None or not self.wrapped.training:
            return None
        return as_loss(pick(output, self.where.loss, "loss"))

    def _valid(self, args: tuple[Any, ...], kwargs: dict[str, Any], images: Tensor) -> Tensor:
        valid = self.where.valid
        if valid is None:  # the text branch is off
            return torch.ones(len(images), 0, dtype=torch.bool, device=images.device)
        if callable(valid):
            real: Tensor = valid(self._call.get(self.where.tokens, args, kwargs))
        else:
            real = self._call.get(valid, args, kwargs) != 0
        return real.flatten(1)  # some hosts take (B, L, 1)

    def _check_valid(self, valid: Tensor, logits: Tensor) -> None:
        if self.where.valid is None:
            return
        if valid.dtype != torch.bool or len(valid) != len(logits):
            raise ValueError(
                f"valid must be bool (B, L) with B={len(logits)}, True for real words, got "
                f"{valid.dtype} {tuple(valid.shape)}"
            )
