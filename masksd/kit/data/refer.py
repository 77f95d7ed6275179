"""Data sets of the RefCOCO family on disk (the *refer format*), as a PyTorch data set.

Layout::

    <root>/<name>/instances.json          pictures and objects, COCO's layout
    <root>/<name>/refs(<split_by>).p      refs with their sentences (or .json, or refs.json alone)
    <root>/<name>/index(<split_by>)/      from ``masksd data prepare``; without it sources are read
    <images>/<file_name>                  pictures, by default in <root>/images
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from masksd.errors import check_choice
from masksd.kit.data.bad import BadRecords
from masksd.kit.data.bad import DataError as DataError
from masksd.kit.data.catalog import count_difference
from masksd.kit.data.gather import find_index
from masksd.kit.data.layout import find_files
from masksd.kit.data.pictures import read_picture
from masksd.kit.data.records import ImageRecord
from masksd.kit.data.selection import select_split
from masksd.kit.data.transforms import FITS, fit_mask, fit_picture


class Encoder(Protocol):
    """What a tokenizer must offer; :class:`masksd.kit.data.tokenizers.Tokenizer` does."""

    def encode(self, sentence: str) -> Tensor:
        """Turn a sentence into ids ``(L,)`` int64."""
        ...


class ReferDataset(Dataset[dict[str, Any]]):
    """A split of a RefCOCO-family data set.

    Items are dictionaries of ``image`` uint8 ``(3, S, S)``, ``tokens`` int64 ``(L,)``, ``target``
    uint8 ``(S, S)`` of 0 and 1, and ``index`` int, where ``S`` is ``image_size`` and ``L`` the
    tokenizer's length. The picture is squashed or letterboxed, its truth likewise (nearest). A
    truth of several polygons is their union.

    In training with ``train_items="refs"`` an item is a ref with one of its sentences, drawn by
    (seed, epoch, index) alone. Otherwise every sentence is an item.

    Args:
        root: the folder that holds the data sets.
        name: the data set's folder in it: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"``,
            ``"shapes"``.
        split: the split as its refs name it: ``"train"``, ``"val"``, ``"testA"``, ``"testB"``.
        tokenizer: an object with ``encode(sentence) -> (L,) int64``.
        image_size: side of the square picture in pixels.
        split_by: whose split it is: ``"unc"``, ``"google"``, ``"umd"``, or ``"masksd"`` for shapes.
        images: the folder of the pictures; None takes ``<root>/images``.
        text: ``"sent"`` (cleaned, as CRIS) or ``"raw"`` (as written, as LAVT).
        train_items: ``"refs"`` or ``"sentences"``; only training looks at it.
        training: whether the items are for training.
        seed: of the sentences drawn in training, at least 0.
        cache: keep resized pictures and truths in memory, ``4 * S * S`` bytes or less an item.
            Every worker process of a data loader keeps a copy of its own: use it without workers.
        fit: ``"squash"`` (to the square, whatever the proportions) or ``"letterbox"`` (CRIS).
        skip_bad: leave out bad records, sentences that are blank in ``text``, and refs whose
            picture file does not exist, and go on; one warning counts them.
        index: folder of the index, which must exist; None takes
            ``<root>/<name>/index(<split_by>)``, which need not.

    Attributes:
        epoch: set by :meth:`set_epoch`; shared with the workers of a data loader.
        dropped_polygons: how many unusable polygons the split's objects had.
        bad: what was left out, with file, id and reason.

    Raises:
        DataError: missing files (with those wanted and the nearest names), records that are damaged
            or contradict each other, an index that is older than its sources, and, when an item is
            read, a damaged picture or one whose size differs from ``instances.json``.
        ValueError: an unknown split, ``text``, ``train_items`` or ``fit``.

    Warns:
        UserWarning: records were left out, here or when the index was made; or a published split
            has another number of refs or sentences than it was published with.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> from masksd.kit.data.tokenizers import load_tokenizer
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
        self._image_folder = layout.images
        self._index = find_index(layout, BadRecords() if skip_bad else None)
        self.bad = BadRecords(self._index.bad.reasons, self._index.bad.count)
        self._text = text
        selection = select_split(self._index, split, text, layout, self.bad if skip_bad else None)
        self._rows, self._sentences, counts = selection
        self.bad.warn()
        difference = count_difference(name, split_by, split, len(self._rows), len(self._sentences))
        if difference:
            warnings.warn(difference, UserWarning, stacklevel=2)

        self._draw = training and train_items == "refs"
        self._firsts = np.concatenate([[0], np.cumsum(counts)])  # of each ref's sentences
        self._owners = np.repeat(np.arange(len(counts)), counts)  # the ref of each sentence
        self._images = self._index.refs["image"][self._rows]
        self._objects = self._index.refs["object"][self._rows]
        self._by_image = np.argsort(self._images, kind="stable")
        self._sorted_images = self._images[self._by_image]
        objects = self._index.objects[np.unique(self._objects)]
        self.dropped_polygons = int(objects["dropped"].sum())
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.fit = fit
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._picture_cache: dict[int, Tensor] | None = {} if cache else None
        self._target_cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._rows) if self._draw else len(self._sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref, sentence = self._item(index)
        return {
            "image": self._fitted_picture(ref),
            "tokens": self.tokenizer.encode(self._index.sentence(sentence, self._text)),
            "target": self._fitted_target(ref),
            "index": index,
        }

    @property
    def epoch(self) -> int:
        """The epoch whose sentences are drawn, 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose sentences are drawn; call it before iterating.

        Args:
            epoch: at least 0.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    def sentence(self, index: int) -> str:
        """Return the expression of an item (in training with refs: this epoch's)."""
        return self._index.sentence(self._item(index)[1], self._text)

    def other_sentence(self, index: int) -> str | None:
        """Return a sentence of another object of the same picture, always the same one.

        Args:
            index: of the item.

        Returns:
            The sentence, or None where no other object of the picture is referred to in this split.
        """
        ref, _ = self._item(index)
        image = self._images[ref]
        start = np.searchsorted(self._sorted_images, image, side="left")
        end = np.searchsorted(self._sorted_images, image, side="right")
        others = self._by_image[start:end]
        others = others[self._objects[others] != self._objects[ref]]
        if not len(others):
            return None
        # not by the seed: a split is scored alike whatever the training was seeded with
        key = np.random.default_rng([0, index])
        other = int(others[int(key.integers(len(others)))])
        first, last = self._firsts[other], self._firsts[other + 1]
        row = self._sentences[first + int(key.integers(last - first))]
        return self._index.sentence(int(row), self._text)

    def truth(self, index: int) -> NDArray[np.uint8]:
        """Return the truth of an item at the picture's own size, ``(H, W)`` uint8 of 0 and 1."""
        return self._index.mask(int(self._objects[self._item(index)[0]]))

    def picture(self, index: int) -> Image.Image:
        """Return the picture of an item at its own size, mode ``"RGB"``."""
        return self._picture(self._item(index)[0])

    def record(self, index: int) -> dict[str, int | None]:
        """Return what identifies an item.

        Args:
            index: of the item.

        Returns:
            ``ref_id``, ``ann_id``, ``image_id``, ``sent_id`` (in training with refs: this
            epoch's), ``category_id`` (None where the ref has none), ``height`` and ``width`` of
            the picture in pixels.
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

    # -- inside -------------------------------------------------------------------------------
    def _item(self, index: int) -> tuple[int, int]:
        """Return the position of the item's ref in the split, and the row of its sentence."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)}")
        if not self._draw:
            return int(self._owners[index]), int(self._sentences[index])
        key = np.random.default_rng([self.seed, self.epoch, index])
        first, last = self._firsts[index], self._firsts[index + 1]
        return index, int(self._sentences[first + int(key.integers(last - first))])

    def _picture(self, ref: int) -> Image.Image:
        return read_recorded(self._image_folder, self._index.image(int(self._images[ref])))

    def _fitted_picture(self, ref: int) -> Tensor:
        if self._picture_cache is None:
            return fit_picture(self._picture(ref), self.image_size, self.fit)
        key = int(self._images[ref])
        if key not in self._picture_cache:
            fitted = fit_picture(self._picture(ref), self.image_size, self.fit)
            self._picture_cache[key] = fitted
        return self._picture_cache[key].clone()  # the caller may write into an item

    def _fitted_target(self, ref: int) -> Tensor:
        key = int(self._objects[ref])
        if self._target_cache is None:
            return fit_mask(self._index.mask(key), self.image_size, self.fit)
        if key not in self._target_cache:
            self._target_cache[key] = fit_mask(self._index.mask(key), self.image_size, self.fit)
        return self._target_cache[key].clone()


def read_recorded(folder: Path, image: ImageRecord) -> Image.Image:
    """Read a picture of a data set and check that it is the one that is meant.

    Args:
        folder: of the pictures.
        image: its record in ``instances.json``.

    Returns:
        The picture, mode ``"RGB"``, at its own size.

    Raises:
        DataError: a missing or damaged file, or one of another size, with id, file and reason.

    Example:
        >>> read_recorded(Path("none"), ImageRecord(7, "a.jpg", 640, 480))
        Traceback (most recent call last):
        ...
        masksd.kit.data.bad.DataError: picture 7: none/a.jpg: no such file
    """
    path = folder / image.file_name
    try:
        picture = read_picture(path)
    except DataError as error:
        raise DataError(f"picture {image.image_id}: {error}") from None
    if picture.size != (image.width, image.height):
        raise DataError(
            f"picture {image.image_id}: {path}: {picture.width}x{picture.height} pixels, "
            f"instances.json says {image.width}x{image.height}"
        )
    return picture
