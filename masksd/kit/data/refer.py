"""Data sets of the RefCOCO family for torch; :mod:`masksd.kit.data.layout` says where files lie."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from masksd.errors import check_choice
from masksd.kit.data.images import read_recorded_image
from masksd.kit.data.layout import count_difference, find_files
from masksd.kit.data.prepare import find_index
from masksd.kit.data.records import BadRecords
from masksd.kit.data.selection import mislabel, select_split
from masksd.kit.data.transforms import fit_image, fit_mask
from masksd.kit.data_config import FITS


class Encoder(Protocol):
    """What a tokenizer must offer; :class:`masksd.kit.data.text.tokenizers.Tokenizer` does."""

    def encode(self, sentence: str) -> Tensor:
        """Turn a sentence into ids ``(L,)`` int64."""
        ...


class ReferDataset(Dataset[dict[str, Any]]):
    """A split of a RefCOCO-family data set.

    Items are dictionaries of ``image`` uint8 ``(3, S, S)``, ``tokens`` int64 ``(L,)``, ``target``
    uint8 ``(S, S)`` of 0 and 1, and ``index`` int, where ``S`` is ``image_size`` and ``L`` the
    tokenizer's length. A truth of several polygons is their union.

    In training with ``train_items="refs"`` an item is a ref with one of its expressions, drawn by
    (seed, epoch, index) alone. Otherwise every expression is an item.

    Args:
        root: the folder that holds the data sets.
        name: the data set's folder in it: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"``,
            ``"shapes"``.
        split: the split as its refs name it: ``"train"``, ``"val"``, ``"testA"``, ``"testB"``.
        tokenizer: an object with ``encode(sentence) -> (L,) int64``.
        image_size: side of the square image in pixels.
        split_by: whose split it is: ``"unc"``, ``"google"``, ``"umd"``, or ``"masksd"`` for shapes.
        images: the folder of the images; None takes ``<root>/images``.
        text: ``"sent"`` (cleaned, as CRIS) or ``"raw"`` (as written, as LAVT).
        train_items: ``"refs"`` or ``"sentences"``; only training looks at it.
        training: whether the items are for training.
        seed: of the expressions drawn in training, at least 0.
        cache: keep resized images and truths in memory, ``4 * S * S`` bytes or less an item.
            Every worker process of a data loader keeps a copy of its own: use it without workers.
        fit: ``"squash"`` (to the square, whatever the proportions) or ``"letterbox"`` (CRIS).
        skip_bad: leave out bad records, expressions that are blank in ``text``, and refs whose
            image file does not exist; one warning counts them.
        index: file of the index, which must exist; None takes
            ``<root>/<name>/index(<split_by>).safetensors``, which need not.

    Attributes:
        layout: where its files lie.
        epoch: set by :meth:`set_epoch`; shared with the workers of a data loader.
        dropped_polygons: how many unusable polygons the split's objects had.
        has_masks: False where every target is 0; see :meth:`part`.
        bad: what was left out, with file, id and reason.

    Raises:
        DataError: missing files, damaged records, an index that is older than its sources, and,
            when an item is read, an image that is damaged or not of the size on record.
        ValueError: an unknown split, ``text``, ``train_items`` or ``fit``.

    Warns:
        UserWarning: records were left out, here or when the index was made; or a published split
            has another size than it was published with.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.shapes import ShapesConfig, build_shapes
        >>> from masksd.kit.data.text.tokenizers import load_tokenizer
        >>> small = ShapesConfig(train=2, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> data = ReferDataset(root, "shapes", "val", split_by="masksd", image_size=64,
        ...                     tokenizer=load_tokenizer("shapes", 17))
        >>> {key: tuple(value.shape) for key, value in data[0].items() if key != "index"}
        {'image': (3, 64, 64), 'tokens': (17,), 'target': (64, 64)}
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        split: str,
        *,
        tokenizer: Encoder,
        image_size: int,
        split_by: str = "unc",
        images: str | Path | None = None,
        text: str = "sent",
        train_items: str = "refs",
        training: bool = False,
        seed: int = 0,
        cache: bool = False,
        fit: str = "squash",
        skip_bad: bool = False,
        index: str | Path | None = None,
    ) -> None:
        check_choice("text", text, ["sent", "raw"])
        check_choice("train_items", train_items, ["refs", "sentences"])
        check_choice("fit", fit, FITS)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        layout = find_files(root, name, split_by, images, index)
        self.layout = layout
        self._index = find_index(layout, BadRecords() if skip_bad else None)
        self.bad = BadRecords(self._index.bad.reasons, self._index.bad.count)
        self._text = text
        rows, sentences, counts = select_split(
            self._index, split, text, layout, self.bad if skip_bad else None
        )
        self.bad.warn()
        difference = count_difference(name, split_by, split, len(rows), len(sentences))
        if difference:
            warnings.warn(difference, UserWarning, stacklevel=2)

        self._draw = training and train_items == "refs"
        self._hold(rows, sentences, counts)
        self.has_masks = True
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.fit = fit
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._cache: dict[tuple[str, int], Tensor] | None = {} if cache else None

    def _hold(
        self, rows: NDArray[np.int64], sentences: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Hold these refs and expressions, as :func:`select_split` returns them."""
        self._rows, self._sentences = rows, sentences
        self._firsts = np.concatenate([[0], np.cumsum(counts)])  # of each ref's expressions
        self._owners = np.repeat(np.arange(len(counts)), counts)  # the ref of each expression
        self._images = self._index.refs["image"][rows]
        self._objects = self._index.refs["object"][rows]
        objects = self._index.objects[np.unique(self._objects)]
        self.dropped_polygons = int(objects["dropped"].sum())

    @property
    def refs(self) -> int:
        """How many refs there are."""
        return len(self._rows)

    def part(
        self, refs: NDArray[np.int64], *, masks: bool = True, seed: int | None = None
    ) -> ReferDataset:
        """Return the data set of the refs at some positions, with an epoch of its own.

        Without ``masks`` none is drawn, and every target is 0. ``seed`` is that of the expressions
        drawn in training; None takes this one's.
        """
        part = copy.copy(self)
        counts = np.diff(self._firsts)[refs]
        part._hold(self._rows[refs], self._sentences[np.isin(self._owners, refs)], counts)
        part._objects = self._objects[refs]  # which may be wrong, see mislabelled
        part.has_masks = masks
        part.seed = self.seed if seed is None else seed
        part._epoch = self._epoch.clone().share_memory_()
        return part

    def mislabelled(self, share: float, seed: int) -> ReferDataset:
        """Return the data set with about this share of its refs' masks on a neighbouring object.

        What a small share gets wrong, a larger one gets wrong too. Refs of one object stay right.
        """
        wrong = copy.copy(self)
        wrong._objects = mislabel(self._images, self._objects, share, seed)
        return wrong

    def __len__(self) -> int:
        return len(self._rows) if self._draw else len(self._sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref, sentence = self._item(index)
        return {
            "image": self._fitted_image(ref),
            "tokens": self.tokenizer.encode(self._index.sentence(sentence, self._text)),
            "target": self._fitted_target(ref),
            "index": index,
        }

    @property
    def epoch(self) -> int:
        """The epoch whose expressions are drawn, 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose expressions are drawn; call it before iterating."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    def sentence(self, index: int) -> str:
        """Return the expression of an item (in training with refs: this epoch's)."""
        return self._index.sentence(self._item(index)[1], self._text)

    def other_sentence(self, index: int) -> str | None:
        """Return an expression of another object of the image, if any: always the same one."""
        ref, _ = self._item(index)
        same_image, same_object = (of == of[ref] for of in (self._images, self._objects))
        others = np.flatnonzero(same_image & ~same_object)
        if not len(others):
            return None
        # not by the seed: a split is scored alike whatever the training was seeded with
        random = np.random.default_rng([0, index])
        other = int(others[int(random.integers(len(others)))])
        return self._index.sentence(self._draw_sentence(other, random), self._text)

    def truth(self, index: int) -> NDArray[np.uint8]:
        """Return the truth of an item at the image's own size, ``(H, W)`` uint8 of 0 and 1."""
        return self._index.mask(int(self._objects[self._item(index)[0]]))

    def image(self, index: int) -> Image.Image:
        """Return the image of an item at its own size, mode ``"RGB"``."""
        return self._image(self._item(index)[0])

    def image_path(self, index: int) -> Path:
        """Return the image file of an item."""
        image = self._index.image(int(self._images[self._item(index)[0]]))
        return self.layout.images / image.file_name

    def file_names(self) -> set[str]:
        """Return the names of the image files."""
        return self._index.file_names(self._rows)

    def paths(self) -> list[Path]:
        """Return the image file of every ref."""
        names = {row: self._index.image(row).file_name for row in set(self._images.tolist())}
        return [self.layout.images / names[row] for row in self._images.tolist()]

    def held_out(self) -> set[Path]:
        """Return the image files of all other splits."""
        splits = self._index.refs["split"]
        others = np.flatnonzero(splits != splits[self._rows[0]])
        return {self.layout.images / name for name in self._index.file_names(others)}

    def record(self, index: int) -> dict[str, int | None]:
        """Return what identifies an item.

        The keys are ``ref_id``, ``ann_id``, ``image_id``, ``sent_id`` (in training with refs: this
        epoch's), ``category_id`` (None where the ref has none), ``height`` and ``width``.
        """
        ref, sentence = self._item(index)
        entry = self._index.refs[self._rows[ref]]
        image = self._index.image(int(self._images[ref]))
        return {
            "ref_id": int(entry["ref_id"]),
            "ann_id": int(self._index.objects["ann_id"][self._objects[ref]]),
            "image_id": image.image_id,
            "sent_id": int(self._index.sentences["sent_id"][sentence]),
            "category_id": int(entry["category_id"]) if entry["has_category"] else None,
            "height": image.height,
            "width": image.width,
        }

    def _item(self, index: int) -> tuple[int, int]:
        """Return the position of the item's ref in the split, and the row of its sentence."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)}")
        if not self._draw:
            return int(self._owners[index]), int(self._sentences[index])
        random = np.random.default_rng([self.seed, self.epoch, index])
        return index, self._draw_sentence(index, random)

    def _draw_sentence(self, ref: int, random: np.random.Generator) -> int:
        first, last = self._firsts[ref], self._firsts[ref + 1]
        return int(self._sentences[first + int(random.integers(last - first))])

    def _image(self, ref: int) -> Image.Image:
        return read_recorded_image(self.layout.images, self._index.image(int(self._images[ref])))

    def _fitted_image(self, ref: int) -> Tensor:
        return self._cached(
            ("image", int(self._images[ref])),
            lambda: fit_image(self._image(ref), self.image_size, self.fit),
        )

    def _fitted_target(self, ref: int) -> Tensor:
        if not self.has_masks:
            return torch.zeros(self.image_size, self.image_size, dtype=torch.uint8)
        row = int(self._objects[ref])
        return self._cached(
            ("target", row), lambda: fit_mask(self._index.mask(row), self.image_size, self.fit)
        )

    def _cached(self, key: tuple[str, int], make: Callable[[], Tensor]) -> Tensor:
        if self._cache is None:
            return make()
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key].clone()  # the caller may write into an item
