"""``masksd data shapes | prepare | inspect | words``: data sets on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from masksd.kit.cli.options import checked, command, unchecked
from masksd.kit.printing import command_line

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def data_commands() -> dict[str, Any]:
    """Return the commands by name."""
    from masksd.kit.data.shapes.build import ShapesConfig

    shapes = command(_shapes, config=unchecked(ShapesConfig()), output=(Path | None, None))
    return {"shapes": shapes, "prepare": Prepare, "inspect": Inspect, "words": Words}


def _shapes(options: Any) -> None:
    """Generate the shapes data set in refer format.

    Attributes:
        output: folder; None takes the one in the cache that training uses.
    """
    from masksd.kit.data.shapes import ShapesConfig, build_shapes, shapes_folder

    config = checked(ShapesConfig(), options.config)
    print(build_shapes(options.output or shapes_folder(config), config))


@dataclass(frozen=True)
class Prepare:
    """Check a data set and write the index with which it opens at once; say what was found.

    It may be in refer format, parquet files of the Hugging Face Hub, JSON of labelme (as
    ReasonSeg), or a table of picture, sentence and mask. If files are missing, the error says
    which and, for refcoco, refcoco+ and refcocog, where to get them.

    Attributes:
        root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p, or other files in NAME.
        name: of the data set, the folder in ROOT: refcoco, refcoco+, refcocog or your own.
        split_by: whose split: unc, google, umd; unc-reviewed leaves out what files
            *_reviewed.json call wrong; None takes the one that papers use, or the only one.
        images: folder of the images; None takes ROOT/images, or ROOT/NAME where the files are not
            in refer format.
        output: file of the index; None takes ROOT/NAME/index(SPLIT_BY).safetensors, where training
            looks.
        skip_bad: leave out, and count, bad records and refs of bad images.
        check_pictures: decode every image instead of only looking for its file.
    """

    root: Annotated[Path, tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    split_by: str | None = None
    images: Path | None = None
    output: Path | None = None
    skip_bad: Flag = False
    check_pictures: Flag = False

    def check(self) -> None:
        """Refuse the two in the other order."""
        if not self.root.is_dir() and Path(self.name).is_dir():
            raise ValueError(
                f"no folder {self.root}; did you mean masksd data prepare {self.name} {self.root}?"
            )

    def run(self) -> None:
        """Write the index and print what it holds."""
        from masksd.kit.data.prepare import prepare_data
        from masksd.kit.data.survey import count_split, format_counts

        layout, index = prepare_data(
            self.root,
            self.name,
            split_by=self.split_by,
            images=self.images,
            output=self.output,
            skip_bad=self.skip_bad,
            check_pictures=self.check_pictures,
        )
        counts = {split: count_split(index, split) for split in index.splits}
        print(format_counts(layout.name, layout.split_by, counts))
        if index.no_object.any():
            print(f"refs of no object, an empty truth: {int(index.no_object.sum())}")
        dropped = int(index.objects["dropped"].sum())
        if dropped:
            print(
                f"polygons that cannot be drawn, dropped from objects that have others: {dropped}"
            )
        size = layout.index.stat().st_size
        images = "decoded" if self.check_pictures else "found"
        more = f" and {len(layout.files) - 1} more" if len(layout.files) > 1 else ""
        print(f"{layout.kind.title}: {layout.refs}{more}")
        print(f"{len(index.images)} images {images} in {layout.images}")
        print(f"{layout.index} ({size / 1e6:.1f} MB)")
        options = {"split_by": self.split_by, "images": self.images, "index": self.output}
        print(f"next: {command_line('data', 'inspect', self.root, self.name, **options)}")


@dataclass(frozen=True)
class Inspect:
    """Print what a data set in refer format holds, and draw a sheet of it.

    Attributes:
        root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p.
        name: of the data set; may be left out if ROOT holds only one.
        split_by: whose split: unc, google, umd; None takes the one that papers use, or the only
            one.
        images: folder of the images; None takes ROOT/images.
        index: file that masksd data prepare wrote; None takes the one beside the refs file, or the
            source files if there is none.
        text: which form of the expressions: sent (cleaned) or raw (as written).
        samples: refs on the sheet.
        seed: of the refs drawn.
        output: the sheet, a PNG; None takes NAME-SPLIT_BY.png in the working folder.
    """

    root: Annotated[Path, tyro.conf.Positional]
    name: Annotated[str | None, tyro.conf.Positional] = None
    split_by: str | None = None
    images: Path | None = None
    index: Path | None = None
    text: Literal["sent", "raw"] = "sent"
    samples: int = 16
    seed: int = 0
    output: Path | None = None

    def run(self) -> None:
        """Print counts and surveys, then draw."""
        from masksd.kit.data.layout import (
            data_sets,
            find_files,
            find_split_by,
            warn_of_shared_images,
        )
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

        found = data_sets(self.root)
        if self.name is None and len(found) != 1:
            if not found:
                raise ValueError(f"{self.root} holds no data set, as ROOT/NAME/instances.json")
            named = command_line("data", "inspect", self.root, found[0])
            raise ValueError(f"{self.root} holds {', '.join(found)}; name one, as in: {named}")
        name = self.name or found[0]
        split_by = self.split_by or find_split_by(self.root, name)
        output = self.output or Path(f"{name}-{split_by}.png")
        if output.suffix.lower() != ".png":
            raise ValueError(f"output {output} must end in .png")
        if not output.parent.is_dir():
            raise ValueError(f"output {output}: there is no folder {output.parent}; make it first")
        layout = find_files(self.root, name, split_by, self.images, self.index)
        index = find_index(layout)
        index.bad.warn()
        names = {split: index.file_names(index.rows(split)) for split in index.splits}
        warn_of_shared_images(names)
        drawn = draw_refs(index, self.seed, self.samples)
        counts = {split: count_split(index, split) for split in index.splits}
        print(format_counts(name, split_by, counts))
        surveys = {
            split: survey_split(index, split, self.text, progress=True) for split in index.splits
        }
        print(f"\n{format_surveys(surveys)}")
        cells = [read_cell(layout, index, row, self.text) for row in drawn]
        print(f"\n{draw_data_sheet(cells, output)}")
        options = {"split_by": self.split_by, "images": self.images, **_unusual(text=self.text)}
        print(f"next: {command_line('data', 'words', self.root, name, **options)}")


@dataclass(frozen=True)
class Words:
    """Make a tokenizer of the words of a data set, for models that are trained from scratch.

    Attributes:
        root: folder with NAME/instances.json and NAME/refs(SPLIT_BY).p, or other files in NAME.
        name: of the data set.
        split_by: whose split: unc, google, umd; None takes the one that papers use, or the only
            one.
        images: folder of the images; None takes ROOT/images.
        split: whose words are taken.
        text: which form of the expressions: sent (cleaned) or raw (as written).
        least: a rarer word is left out and will be unknown, as the words of other splits are.
        output: folder of the tokenizer, for --tokenizer; None takes ROOT/NAME/words.
    """

    root: Annotated[Path, tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    split_by: str | None = None
    images: Path | None = None
    split: str = "train"
    text: Literal["sent", "raw"] = "sent"
    least: int = 1
    output: Path | None = None

    def run(self) -> None:
        """Read the sentences, write the tokenizer and say how to use it."""
        from masksd.kit.data.layout import find_files, find_split_by
        from masksd.kit.data.prepare import find_index
        from masksd.kit.data.text.tokenizers import DEFAULT_LENGTH, Tokenizer
        from masksd.kit.data.text.vocabularies import word_vocabulary, words_of

        split_by = self.split_by or find_split_by(self.root, self.name)
        index = find_index(find_files(self.root, self.name, split_by, self.images))
        spans = index.refs[index.rows(self.split)]["sentences"].tolist()
        sentences = [
            index.sentence(row, self.text) for first, last in spans for row in range(first, last)
        ]
        words = words_of(sentences, self.least)
        if not words:
            raise ValueError(f"no word occurs {self.least} times; lower --least")
        output = self.output or self.root / self.name / "words"
        Tokenizer(word_vocabulary(words), DEFAULT_LENGTH).save(output)
        print(f"{output}: {len(words)} words of {len(sentences)} sentences of split {self.split}")
        start = command_line(
            "train",
            data_root=self.root,
            name=self.name,
            split_by=self.split_by,
            images=self.images,
            tokenizer=output,
            **_unusual(text=self.text, train_split=self.split),
            eval_split=None if "val" in index.splits else self.split,
        )
        print(f"next: {start}")


def _unusual(**options: str) -> dict[str, str]:
    """Return the options that differ from those of ``masksd train``."""
    usual = {"text": "sent", "train_split": "train"}
    return {name: value for name, value in options.items() if value != usual[name]}
