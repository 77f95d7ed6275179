"""Data sets of the RefCOCO family on disk (the *refer format*), as a PyTorch data set.

Layout::

    <root>/<name>/instances.json          pictures and objects, COCO's layout
    <root>/<name>/refs(<split_by>).p      refs with their sentences (or .json, or refs.json)
    <images>/<file_name>                  pictures, by default in <root>/images
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from masksd.data.pictures import read_picture
from masksd.data.records import DataError as DataError
from masksd.data.records import Ref, read_instances, read_refs
from masksd.data.segmentation import check_segmentation, decode_mask
from masksd.data.transforms import resize_mask, resize_picture
from masksd.errors import check_choice, unknown_name


class Encoder(Protocol):
    """What a tokenizer must offer; :class:`masksd.data.tokenizers.Tokenizer` does."""

    def encode(self, sentence: str) -> Tensor:
        """Turn a sentence into ids ``(L,)`` int64."""
        ...


class ReferDataset(Dataset[dict[str, Any]]):
    """A split of a RefCOCO-family data set.

    Items are dictionaries of ``image`` uint8 ``(3, S, S)``, ``tokens`` int64 ``(L,)``, ``target``
    uint8 ``(S, S)`` of 0 and 1, and ``index`` int, where ``S`` is ``image_size`` and ``L`` the
    tokenizer's length. The picture is squashed (bilinear), its truth is resized nearest. A truth
    of several polygons is their union.

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

    Attributes:
        epoch: set by :meth:`set_epoch`; shared with the workers of a data loader.
        dropped_polygons: how many unusable polygons the split's objects had.

    Raises:
        DataError: missing files (with those wanted and the nearest names), records that are damaged
            or contradict each other, and, when an item is read, a damaged picture or one whose size
            differs from ``instances.json``.
        ValueError: an unknown split, ``text`` or ``train_items``.

    Example:
        >>> import tempfile
        >>> from masksd.data.shapes import ShapesConfig, build_shapes
        >>> from masksd.data.tokenizers import load_tokenizer
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
    ) -> None:
        check_choice("text", text, ["sent", "raw"])
        check_choice("train_items", train_items, ["refs", "sentences"])
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self._image_folder, refs_path, instances_path = _find(root, name, split_by, images)
        self._images, annotations = read_instances(instances_path)
        refs = read_refs(refs_path, annotations, text)
        splits = {ref.split for ref in refs}
        if split not in splits:
            raise unknown_name("split", split, splits)
        self._refs = [ref for ref in refs if ref.split == split]
        self._by_image: dict[int, list[Ref]] = {}
        self._masks: dict[int, Any] = {}
        self.dropped_polygons = 0
        for ref in self._refs:
            self._by_image.setdefault(ref.image_id, []).append(ref)
            if ref.ann_id not in self._masks:
                self._add_mask(ref, annotations[ref.ann_id].segmentation, instances_path)

        self._draw = training and train_items == "refs"
        # one (ref, sentence number) an item; the number of a drawn sentence is found when asked
        self._items = [
            (ref, number)
            for ref in self._refs
            for number in range(1 if self._draw else len(ref.sentences))
        ]
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._picture_cache: dict[int, Tensor] | None = {} if cache else None
        self._target_cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref, _ = self._item(index)
        return {
            "image": self._resized_picture(ref),
            "tokens": self.tokenizer.encode(self.sentence(index)),
            "target": self._resized_target(ref),
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
        ref, number = self._item(index)
        if self._draw:
            key = np.random.default_rng([self.seed, self.epoch, index])
            number = int(key.integers(len(ref.sentences)))
        return ref.sentences[number].text

    def other_sentence(self, index: int) -> str | None:
        """Return a sentence of another object of the same picture, always the same one.

        Args:
            index: of the item.

        Returns:
            The sentence, or None where no other object of the picture is referred to in this split.
        """
        ref, _ = self._item(index)
        others = [other for other in self._by_image[ref.image_id] if other.ann_id != ref.ann_id]
        if not others:
            return None
        # not by the seed: a split is scored alike whatever the training was seeded with
        key = np.random.default_rng([0, index])
        sentences = others[int(key.integers(len(others)))].sentences
        return sentences[int(key.integers(len(sentences)))].text

    def truth(self, index: int) -> NDArray[np.uint8]:
        """Return the truth of an item at the picture's own size, ``(H, W)`` uint8 of 0 and 1."""
        ref, _ = self._item(index)
        image = self._images[ref.image_id]
        return decode_mask(self._masks[ref.ann_id], image.height, image.width)

    def picture(self, index: int) -> Image.Image:
        """Return the picture of an item at its own size, mode ``"RGB"``."""
        return self._picture(self._item(index)[0])

    # -- inside -------------------------------------------------------------------------------
    def _item(self, index: int) -> tuple[Ref, int]:
        if not 0 <= index < len(self._items):
            raise IndexError(f"item {index} of a data set of {len(self._items)}")
        return self._items[index]

    def _add_mask(self, ref: Ref, segmentation: Any, path: Path) -> None:
        image = self._images[ref.image_id]
        try:
            checked, dropped = check_segmentation(segmentation, image.height, image.width)
        except DataError as error:
            raise DataError(f"{path}: annotation {ref.ann_id}: {error}") from None
        self._masks[ref.ann_id] = checked
        self.dropped_polygons += dropped

    def _picture(self, ref: Ref) -> Image.Image:
        image = self._images[ref.image_id]
        path = self._image_folder / image.file_name
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

    def _resized_picture(self, ref: Ref) -> Tensor:
        if self._picture_cache is None:
            return resize_picture(self._picture(ref), self.image_size)
        if ref.image_id not in self._picture_cache:
            resized = resize_picture(self._picture(ref), self.image_size)
            self._picture_cache[ref.image_id] = resized
        return self._picture_cache[ref.image_id].clone()  # the caller may write into an item

    def _resized_target(self, ref: Ref) -> Tensor:
        image = self._images[ref.image_id]
        checked = self._masks[ref.ann_id]
        if self._target_cache is None:
            return resize_mask(decode_mask(checked, image.height, image.width), self.image_size)
        if ref.ann_id not in self._target_cache:
            truth = decode_mask(checked, image.height, image.width)
            self._target_cache[ref.ann_id] = resize_mask(truth, self.image_size)
        return self._target_cache[ref.ann_id].clone()


def _find(
    root: str | Path, name: str, split_by: str, images: str | Path | None
) -> tuple[Path, Path, Path]:
    """Find picture folder, refs and instances, or say in one error what is missing."""
    root = Path(root)
    folder = root / name
    image_folder = root / "images" if images is None else Path(images)
    refs_names = [f"refs({split_by}).p", f"refs({split_by}).json", "refs.json"]
    refs_path = next((folder / each for each in refs_names if (folder / each).is_file()), None)
    missing = []
    if not folder.is_dir():
        found = [each.name for each in root.iterdir() if each.is_dir()] if root.is_dir() else []
        missing.append(f"no folder {folder} ({unknown_name('data set', name, found)})")
    elif refs_path is None:
        found = [path.name[5:].split(")")[0] for path in folder.glob("refs(*).*")]
        missing.append(f"no refs in {folder} ({unknown_name('split_by', split_by, found)})")
    if folder.is_dir() and not (folder / "instances.json").is_file():
        missing.append(f"no instances.json in {folder}")
    if not image_folder.is_dir():
        missing.append(f"no picture folder {image_folder} (pass images= if it is elsewhere)")
    if missing or refs_path is None:
        raise DataError(
            f"{'; '.join(missing)}. Wanted: {folder / 'instances.json'}, one of "
            f"{', '.join(refs_names)} beside it, and the pictures in {image_folder}"
        )
    return image_folder, refs_path, folder / "instances.json"
