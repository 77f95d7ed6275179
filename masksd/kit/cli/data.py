"""``masksd data ...``: what concerns data sets on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from masksd.kit.cli.options import checked, command, unchecked


def data_commands() -> dict[str, Any]:
    """Make the commands by name."""
    from masksd.kit.data.shapes import ShapesConfig

    name: Any = Annotated[str, tyro.conf.Positional], tyro.MISSING
    root: Any = Annotated[Path, tyro.conf.Positional], tyro.MISSING
    flag: Any = Annotated[bool, tyro.conf.FlagCreatePairsOff], False
    split_by, images = (str | None, None), (Path | None, None)
    return {
        "shapes": command(_shapes, config=unchecked(ShapesConfig()), output=(Path | None, None)),
        "prepare": command(
            _prepare,
            name=name,
            root=root,
            split_by=split_by,
            images=images,
            output=(Path | None, None),
            skip_bad=flag,
            check_pictures=flag,
        ),
        "inspect": command(
            _inspect,
            root=root,
            name=(Annotated[str | None, tyro.conf.Positional], None),
            split_by=split_by,
            images=images,
            index=(Path | None, None),
            text=(Literal["sent", "raw"], "sent"),
            samples=(int, 16),
            seed=(int, 0),
            output=(Path | None, None),
        ),
    }


def _shapes(options: Any) -> None:
    """Generate the shapes data set in refer format.

    Attributes:
        output: folder; None takes the one in the cache that training uses.
    """
    from masksd.kit.data.shapes import ShapesConfig, build_shapes
    from masksd.kit.sources import shapes_folder

    config = checked(ShapesConfig(), options.config)
    print(build_shapes(options.output or shapes_folder(config), config))


def _prepare(options: Any) -> None:
    """Check a data set in refer format and write the index that makes it open at once.

    Where files are missing, says which are wanted and, for refcoco, refcoco+ and refcocog, where
    copies of them lie.

    Attributes:
        name: of the data set, the folder in ROOT: refcoco, refcoco+, refcocog or your own.
        root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p.
        split_by: whose split: unc, google, umd; None takes the one papers use, or the only one.
        images: folder of the pictures; None takes ROOT/images.
        output: file of the index; None takes ROOT/NAME/index(SPLIT_BY).safetensors, where training
            looks.
        skip_bad: leave out bad records and refs of bad pictures, and count them.
        check_pictures: decode every picture, instead of looking whether its file exists.
    """
    from masksd.kit.data.prepare import prepare_data
    from masksd.kit.data.survey import count_split, format_counts

    layout, index = prepare_data(
        options.root,
        options.name,
        split_by=options.split_by,
        images=options.images,
        output=options.output,
        skip_bad=options.skip_bad,
        check_pictures=options.check_pictures,
    )
    counts = {split: count_split(index, split) for split in index.splits}
    print(format_counts(layout.name, layout.split_by, counts))
    dropped = int(index.objects["dropped"].sum())
    if dropped:
        print(f"polygons that cannot be drawn, dropped from objects that have others: {dropped}")
    size = layout.index.stat().st_size
    images = "decoded" if options.check_pictures else "found"
    print(f"refs of {layout.refs}")
    print(f"{len(index.images)} images {images} in {layout.images}")
    print(f"{layout.index} ({size / 1e6:.1f} MB)")


def _inspect(options: Any) -> None:
    """Print what a data set in refer format holds, and draw a sheet of it.

    Attributes:
        root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p.
        name: of the data set; may be left out where ROOT holds one.
        split_by: whose split: unc, google, umd; None takes the one papers use, or the only one.
        images: folder of the pictures; None takes ROOT/images.
        index: file that masksd data prepare wrote; None takes the one beside the refs file, and
            reads the sources where there is none.
        text: which form of the sentences: sent (cleaned) or raw (as written).
        samples: refs on the sheet.
        seed: of the refs drawn.
        output: the sheet, a PNG; None takes NAME-SPLIT_BY.png in the working folder.
    """
    from masksd.kit.data.layout import data_sets, find_files, find_split_by
    from masksd.kit.data.prepare import find_index
    from masksd.kit.data.survey import (
        count_split,
        draw_data_sheet,
        draw_refs,
        format_counts,
        format_surveys,
        read_cell,
        survey_split,
    )

    found = data_sets(options.root)
    if options.name is None and len(found) != 1:
        what = f"holds {', '.join(found)}" if found else "holds no data set"
        raise ValueError(f"{options.root} {what}; name one: masksd data inspect ROOT NAME")
    name = options.name or found[0]
    split_by = options.split_by or find_split_by(options.root, name)
    output = options.output or Path(f"{name}-{split_by}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"output {output} must end in .png")
    if not output.parent.is_dir():
        raise ValueError(f"output {output}: there is no folder {output.parent}; make it first")
    layout = find_files(options.root, name, split_by, options.images, options.index)
    index = find_index(layout)
    index.bad.warn()
    drawn = draw_refs(index, options.seed, options.samples)
    counts = {split: count_split(index, split) for split in index.splits}
    print(format_counts(name, split_by, counts))
    surveys = {
        split: survey_split(index, split, options.text, progress=True) for split in index.splits
    }
    print(f"\n{format_surveys(surveys)}")
    cells = [read_cell(layout, index, row, options.text) for row in drawn]
    print(f"\n{draw_data_sheet(cells, output)}")
