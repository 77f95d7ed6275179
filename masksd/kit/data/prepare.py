"""``masksd data prepare``: check a data set in refer format and write its index."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

from masksd.kit.data.bad import BadRecords, DataError
from masksd.kit.data.catalog import count_difference
from masksd.kit.data.gather import gather_index
from masksd.kit.data.index import METADATA, Index, describe_sources, load_index
from masksd.kit.data.layout import Layout, find_files, find_split_by
from masksd.kit.data.pictures import find_picture
from masksd.kit.data.records import ImageRecord
from masksd.kit.data.refer import read_recorded
from masksd.kit.data.survey import count_split
from masksd.kit.files import StagedFolder


def prepare_data(
    root: str | Path,
    name: str,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    output: str | Path | None = None,
    skip_bad: bool = False,
    check_pictures: bool = False,
    progress: bool = True,
) -> tuple[Layout, Index]:
    """Check refs, objects and pictures, and write the index that opens in milliseconds.

    Args:
        root: the folder that holds the data sets.
        name: the data set's folder in it.
        split_by: whose split it is; None takes the one papers use, or the only one there.
        images: the folder of the pictures; None takes ``<root>/images``.
        output: the index's folder; None takes ``<root>/<name>/index(<split_by>)``, where
            :class:`~masksd.kit.data.refer.ReferDataset` looks for it. An older index is replaced.
        skip_bad: leave out what is bad, with a warning that counts it; the index keeps every
            reason in ``left-out.json``.
        check_pictures: decode every picture and compare its size, instead of looking whether the
            file exists.
        progress: show a bar.

    Returns:
        The places of the files, and the index.

    Raises:
        DataError: missing files (with where copies of published data sets lie), and without
            ``skip_bad`` the first bad record or picture.
        ValueError: ``output`` holds something else, or cannot be written.

    Warns:
        UserWarning: what was left out; each split whose size differs from the published one.

    Example:
        >>> import tempfile
        >>> from masksd.kit.data.shapes.build import ShapesConfig, build_shapes
        >>> small = ShapesConfig(train=1, val=1, test_a=1, test_b=1)
        >>> root = build_shapes(tempfile.mkdtemp(), small, progress=False)
        >>> layout, index = prepare_data(root, "shapes", progress=False)
        >>> layout.index.name, len(index.images)
        ('index(masksd)', 4)
    """
    split_by = split_by or find_split_by(root, name)
    layout = find_files(root, name, split_by, images)
    if output is not None:
        layout = dataclasses.replace(layout, index=Path(output))

    def check_target() -> None:
        target = layout.index
        if target.exists() and not target.is_dir():
            raise ValueError(f"output {target} is a file; choose another folder")
        if target.is_dir() and any(target.iterdir()) and not (target / METADATA).is_file():
            raise ValueError(f"output {target} exists and is no index; choose another folder")

    def check_picture(image: ImageRecord) -> None:
        try:
            find_picture(layout.images / image.file_name)
        except DataError as error:
            raise DataError(
                f"picture {image.image_id}: {error}; name the folder of the pictures "
                "with --images, or leave its refs out with --skip-bad"
            ) from None
        if check_pictures:
            read_recorded(layout.images, image)

    bad = BadRecords() if skip_bad else None
    with contextlib.ExitStack() as stack:
        with _writing(layout.index):
            staged = stack.enter_context(StagedFolder(layout.index, check_target))
        sources = describe_sources(layout)
        gathered = gather_index(layout, bad, check_picture, progress)
        with _writing(layout.index):
            gathered.save(staged.path, layout, sources)
            staged.publish()
    index = load_index(layout.index)
    index.bad.warn()
    for split in index.splits:
        counts = count_split(index, split)
        difference = count_difference(name, split_by, split, counts.refs, counts.sentences)
        if difference:
            warnings.warn(difference, UserWarning, stacklevel=2)
    return layout, index


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Name the option where the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"output {output} cannot be written ({error.strerror}); choose another --output"
        ) from None
