"""The command line: ``masksd train | evaluate | predict | data shapes``.

Options are made from the config dataclasses. An error of the user is one line on stderr and exit
code 2; ``MASKSD_TRACEBACK=1`` shows where it was raised.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import typing
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import masksd
from masksd.config import DistillConfig
from masksd.engine.config import DataConfig, TrainConfig, TrainingError
from masksd.engine.options import checked, command, unchecked

BRANCHES_OFF = {"both": (), "lmvsd": ("text",), "vmlsd": ("image",), "none": ("image", "text")}
CHECKPOINT = Path("runs/shapes-easy/checkpoint")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the entry point of the ``masksd`` program.

    Args:
        arguments: of the command line, without the program's name; None takes ``sys.argv``.

    Returns:
        The exit code: 0, or 2 after an error of the user. Wrong options and ``--help`` leave by
        ``SystemExit``, as command lines do.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            if arguments == ["--version"]:
                print(f"masksd {masksd.__version__}")
            else:
                _parse(arguments).run()
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if os.environ.get("MASKSD_TRACEBACK"):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, (ValueError, OSError, TrainingError)):  # not foreseen
                text += " (MASKSD_TRACEBACK=1 shows where)"
            print(f"masksd: error: {text}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("masksd: interrupted", file=sys.stderr)
            return 130
    return 0


@dataclass(frozen=True)
class Predict:
    """Find what an expression refers to in a picture; write an overlay and the mask as PNG.

    Attributes:
        image: a JPEG, PNG, WEBP or BMP file.
        expression: what to find, as in "the red circle".
        checkpoint: folder that training wrote.
        output: the overlay, a PNG; None takes IMAGE-prediction.png in the working folder. The mask
            goes beside it, as ...-mask.png.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
    """

    image: Annotated[Path, tyro.conf.Positional]
    expression: Annotated[str, tyro.conf.Positional]
    checkpoint: Path = CHECKPOINT
    output: Path | None = None
    threshold: float | None = None
    device: str | None = None

    def run(self) -> None:
        """Predict and write."""
        import numpy as np
        from PIL import Image

        from masksd.engine.figures import overlay, save_pictures
        from masksd.engine.predictor import Predictor

        output = self.output or Path(f"{self.image.stem}-prediction.png")
        if output.suffix.lower() != ".png":
            raise ValueError(f"output {output} must end in .png")
        if not output.parent.is_dir():
            raise ValueError(f"output {output}: there is no folder {output.parent}; make it first")
        mask_output = output.with_name(f"{output.stem}-mask.png")
        for path in (output, mask_output):
            if path.is_dir():
                raise ValueError(f"output {path} is a folder; choose another --output")
            if path.exists() and self.image.exists() and path.samefile(self.image):
                raise ValueError(f"output {path} is the picture itself; choose another --output")
        predictor = Predictor.from_checkpoint(self.checkpoint, _device(self.device))
        predictor.set_image(self.image)
        mask, _ = predictor.predict(self.expression, self.threshold)
        shown = overlay(typing.cast(Image.Image, predictor.picture), mask)
        save_pictures({output: shown, mask_output: Image.fromarray(mask.astype(np.uint8) * 255)})
        print(f"{output} and {mask_output.name}: {mask.sum()} pixels ({mask.mean():.1%}) found")


def _train(options: Any) -> None:
    """Train a model with CM-MaskSD and score it; with no option at all, in minutes on a CPU.

    Attributes:
        preset: named values of the distill options: cm-masksd.
        branches: the masked branches that are on.
    """
    from masksd.engine.evaluator import format_table
    from masksd.engine.trainer import train

    default = TrainConfig(distill=DistillConfig.preset(options.preset))
    config = checked(default, options.config)
    off: dict[str, Any] = dict.fromkeys(BRANCHES_OFF[options.branches])
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, **off))
    result = train(config)
    if os.environ.get("RANK", "0") == "0":
        print(_title(config.data, config.eval_split))
        print(format_table(result.scores))
        skipped = f", {result.skipped} steps skipped" if result.skipped else ""
        print(f"{result.folder}: {config.steps} steps in {result.seconds:.0f} s{skipped}")


def _evaluate(options: Any) -> None:
    """Score a checkpoint with the right sentence, another object's, and none.

    The options of the data are those of its training, if none are given.

    Attributes:
        checkpoint: folder that training wrote.
        split: to score on: val, testA, testB.
        limit: expressions scored, evenly spread over the split; 0 scores all.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            checkpoint's.
        batch_size: pictures a forward pass.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
        progress: show progress bars.
    """
    from masksd.engine.checkpoints import load_checkpoint
    from masksd.engine.evaluator import check_scoring, evaluate_all, format_table
    from masksd.engine.sources import open_split

    check_scoring(options.threshold, options.limit, options.batch_size)
    data = checked(DataConfig(), options.data)
    checkpoint = load_checkpoint(options.checkpoint, _device(options.device))
    dataset = open_split(
        data,
        options.split,
        checkpoint.tokenizer,
        checkpoint.config.image_size,
        progress=options.progress,
    )
    scores = evaluate_all(
        checkpoint,
        dataset,
        threshold=options.threshold,
        limit=options.limit,
        batch_size=options.batch_size,
        progress=options.progress,
    )
    print(_title(data, options.split))
    print(format_table(scores))


def _data(options: Any) -> None:
    """Generate a data set in refer format: masksd data shapes.

    Attributes:
        kind: what to generate.
        output: folder; None takes the one in the cache that training uses.
    """
    from masksd.data.shapes import ShapesConfig, build_shapes
    from masksd.engine.sources import shapes_folder

    config = checked(ShapesConfig(), options.config)
    print(build_shapes(options.output or shapes_folder(config), config))


def _parse(arguments: list[str]) -> Any:
    """Parse; values are checked later, so that a wrong one is one line and not a box."""
    from masksd.data.shapes import ShapesConfig

    # the preset decides the defaults that the other options show and replace
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", nargs="?", default="cm-masksd")
    early.add_argument("--checkpoint", nargs="?", default=CHECKPOINT)
    found = early.parse_known_args(arguments)[0]
    preset = found.preset or "cm-masksd"
    # and the checkpoint those of the data that it is scored on
    stored = _stored_data(found.checkpoint) if arguments[:1] == ["evaluate"] else DataConfig()
    training = unchecked(TrainConfig(distill=DistillConfig.preset(preset)))
    branches = Literal["both", "lmvsd", "vmlsd", "none"]
    path = Path | None
    train = command(_train, config=training, preset=(str, preset), branches=(branches, "both"))
    evaluate = command(
        _evaluate,
        data=unchecked(stored),
        checkpoint=(Path, CHECKPOINT),
        split=(str, "val"),
        limit=(int, 0),
        threshold=(float | None, None),
        batch_size=(int, 64),
        device=(str | None, None),
        progress=(bool, True),
    )
    kind = Annotated[Literal["shapes"], tyro.conf.Positional]
    shapes = unchecked(ShapesConfig())
    data = command(_data, kind=(kind, dataclasses.MISSING), config=shapes, output=(path, None))
    return tyro.extras.subcommand_cli_from_dict(
        {"train": train, "evaluate": evaluate, "predict": Predict, "data": data},
        prog="masksd",
        description="Cross-modality masked self-distillation for referring image segmentation.\n"
        "`masksd --version` prints the version.",
        args=arguments,
    )


def _stored_data(folder: Path | str | None) -> DataConfig:
    """Return the data of a checkpoint's training; the default where it cannot be read."""
    from masksd.engine.checkpoints import read_config

    try:
        fields = read_config(folder or CHECKPOINT).data
    except (ValueError, OSError):
        return DataConfig()  # the command itself will say what is wrong with the checkpoint
    return DataConfig.from_dict(fields)


def _title(data: DataConfig, split: str) -> str:
    place = "generated" if data.data_root is None else data.data_root
    return f"{data.title()} ({place}), {split}, per cent, at the original size"


def _device(name: str | None) -> str:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if gpus else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise ValueError(f"unknown device {name!r}; use cpu, cuda, cuda:1, ...")
    if name != "cpu" and int(match[1] or 0) >= gpus:
        raise ValueError(f"device {name!r} is asked for, but torch finds {gpus} CUDA GPUs; use cpu")
    return name


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"masksd: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
