"""Any model as a segmenter: named modules are tapped, and a masked pass runs it again.

Modules that are known to see one modality are replayed instead where only the other is masked.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksd.features import height_and_width
from masksd.hosts.arguments import Arguments
from masksd.hosts.layout import as_logits, as_loss, as_tokens, module_of, name_of, pick
from masksd.hosts.one_sided import replays
from masksd.hosts.pictures import by_sentence, check_pictures, rows_of_pictures
from masksd.hosts.taps import Taps, tap_embeddings
from masksd.segmenter import Given, ImageFeatures, Pass, Segmenter, TextFeatures
from masksd.tapping.embeddings import TokenMask
from masksd.tapping.grids import cells, embedding_grid, known_size
from masksd.tapping.hooks import Recorder
from masksd.tapping.kinds import TapGroup
from masksd.tapping.modules import check_not_compiled, check_wrappable, find_module
from masksd.tapping.tap import Place

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
        for field in ("images", "tokens", "target", "pictures"):
            self._call.check(field, getattr(taps, field))
        if not callable(taps.valid):
            self._call.check("valid", taps.valid)
        if taps.logits is None:
            raise ValueError("logits must be a path, or '' for the host's output; got None")
        modules: dict[str, list[nn.Module]] = {}
        for field in RECORDED:
            place = getattr(taps, field)
            path = "" if place is None else module_of(place, field)
            if path:
                modules[field] = [find_module(host, path, field)]
                check_not_compiled(host, modules[field][0], path)
        tapped = []
        for modality in ("image", "text"):
            if modality == "text" and taps.text_embedding is None:
                continue
            self.taps[modality], found = tap_embeddings(host, taps, modality)
            modules[f"{modality}_embedding"] = [module for _, module in found]
            tapped += found
        if taps.text_embedding is not None and taps.valid is None:
            raise ValueError(
                "valid is not known: name the argument that marks real words, or pass a "
                "callable that takes the ids, such as masksd.hosts.bert_words"
            )
        self._recorders = {
            field: Recorder(module_of(getattr(taps, field), field), taps.in_parts)
            for field in RECORDED
            if field in modules
        }
        self.where, self.cell = taps, taps.cell
        self._prefix = next(taps.embeddings("image")).prefix
        self.shared_space = taps.shared_space
        self.sources, self.reruns = {"logits": name_of(taps.logits) or "what the host returns"}, {}
        if taps.loss is not None:
            self.sources["loss"] = f"the host's own, {name_of(taps.loss) or 'what it returns'}"
        if taps.valid is not None:
            marks = taps.valid
            self.sources["words"] = name_of(marks) if callable(marks) else f"argument {marks!r}"
        named = {"image": taps.image_only, "text": taps.text_only}
        replayed = replays(host, named, modules)
        for modality in self.taps:
            reused = ", ".join(hook.path for hook, _ in replayed if hook.modality != modality)
            self.reruns[modality] = (
                f"runs the host again; replays {reused}"
                if reused
                else "runs the whole host again; reuses nothing"  # what depends on what is unknown
            )
        recorded = [(recorder, modules[name][0]) for name, recorder in self._recorders.items()]
        self.attach([*replayed, *recorded, *tapped])

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
        valid = self._real_words(args, kwargs, logits)
        embedded = [tap.seen for tap, _ in self.tapped("image")]
        pictures = self._argument("pictures", args, kwargs)
        if pictures is not None:
            pictures = check_pictures(pictures, len(logits), embedded).to(logits.device)
        size, places = self._places(args, kwargs, pictures)
        grid = cells(places[0].grid, size, taps.cell)
        if "patches" in found:
            found["patches"] = as_tokens(found["patches"], grid, self._prefix, size)
        for field, dims, shape in (
            ("sentence", 2, "(B, C)"),
            ("image_vector", 2, "(B, C)"),
            ("words", 3, "(B, L, C)"),
        ):
            if field in found and found[field].ndim != dims:
                raise ValueError(f"{field} must be {shape}, got {tuple(found[field].shape)}")
        if pictures is not None:
            for field in {"patches", "image_vector"} & set(found):
                found[field] = by_sentence(found[field], pictures, embedded, field)
        loss, target = None, None
        if taps.loss is not None and self.wrapped.training:
            loss = as_loss(pick(output, taps.loss, "loss"))
        if taps.target is not None:
            target = self._call.find(taps.target, args, kwargs, "target")
        return Pass(
            logits,
            ImageFeatures(found.get("patches"), grid, found.get("image_vector")),
            TextFeatures(found.get("words"), found.get("sentence"), valid),
            host_output=output,
            inputs=(args, kwargs, places, towers),
            loss=loss,
            target=target,
            size=size,
            pictures=pictures,
        )

    def given(self, *args: Any, **kwargs: Any) -> Given:
        """Return the images' size and the real words of a call."""
        if self.where.in_parts:
            raise ValueError(
                "one_pass=True draws masks for a whole batch before the model has run, but "
                "Taps(in_parts=True) embeds it in parts: use two passes"
            )
        pictures = self._argument("pictures", args, kwargs)
        return Given(self._size(args, kwargs), lambda: self._valid(args, kwargs), pictures)

    def masked(
        self,
        plain: Pass,
        image: TokenMask | None = None,
        text: TokenMask | None = None,
        **parts: nn.Module,
    ) -> Tensor:
        """Run the host again, with tokens masked; replay what sees only the other modality."""
        args, kwargs, places, towers = plain.inputs
        recorder = self._recorders.get("logits")
        recording = recorder.recording() if recorder else contextlib.nullcontext()
        unmasked = {"image": image is None, "text": text is None}
        replaying = self._entered(
            hook.replaying(output)
            for (hook, _), output in zip(self.replayed(), towers, strict=True)
            if unmasked[hook.modality]
        )
        place = places if isinstance(self.taps["image"], TapGroup) else places[0]
        with replaying, self.masking(image, text, place), recording:
            output = self.wrapped(*args, **kwargs)
            output = recorder.taken()[1] if recorder else output
        logits = as_logits(pick(output, self.where.logits, "logits"))
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise ValueError(
                f"logits: {self.sources['logits']} carries no gradient; name "
                "the module inside that makes them, before the host detaches them (and outside a "
                "reentrant checkpoint)"
            )
        return logits

    def _argument(self, field: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument that a tap names; None where it names none."""
        which = getattr(self.where, field)
        return None if which is None else self._call.get(which, args, kwargs, field)

    def _size(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
        """Return the size of the images, where an argument is named that has them."""
        images = self._argument("images", args, kwargs)
        if images is None:
            return None
        if not isinstance(images, Tensor) or images.ndim < 4:
            came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"images={name_of(self.where.images)!r} must be images (B, 3, H, W), got {came}; "
                "Taps(images=None) takes their size from what image_embedding is given"
            )
        return height_and_width(images)

    def _places(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], pictures: Tensor | None
    ) -> tuple[tuple[int, int], list[Place]]:
        """Return the size of the images, and where each image embedding takes its mask."""
        taps = [tap for tap, _ in self.tapped("image")]
        size = known_size(self._size(args, kwargs) or taps[0].size, taps[0].path)
        # towers may see the images at sizes of their own
        sizes = [size, *(tap.size or size for tap in taps[1:])]
        places = []
        for tap, own in zip(taps, sizes, strict=True):
            rows = None if pictures is None else rows_of_pictures(pictures, tap.seen)
            places.append(Place(embedding_grid(cast(tuple[int, ...], tap.positions), own), rows))
        return size, places

    def _valid(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        valid = self.where.valid
        if callable(valid):
            real = valid(self._argument("tokens", args, kwargs))
        else:
            real = self._argument("valid", args, kwargs) != 0
        if real.ndim < 2:
            raise ValueError(
                f"valid must be (B, L) as the ids are, nonzero at real words, got "
                f"{tuple(real.shape)}; lengths become one by torch.arange(L) < lengths[:, None]"
            )
        return real.flatten(1)  # some hosts take (B, L, 1)

    def _real_words(self, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Tensor) -> Tensor:
        """Return the real words, checked; none where the text branch is off."""
        if self.where.valid is None:
            return torch.ones(len(logits), 0, dtype=torch.bool, device=logits.device)
        valid = self._valid(args, kwargs)
        if valid.dtype != torch.bool or len(valid) != len(logits):
            raise ValueError(
                f"valid must be bool (B, L) with B={len(logits)}, True for real words, got "
                f"{valid.dtype} {tuple(valid.shape)}"
            )
        return valid
