"""``masksd train``."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from masksd.errors import check_choice, one_line
from masksd.kit.cli.options import checked, command, given_options, unchecked
from masksd.kit.cli.shared import CHECKPOINT, HEADINGS, data_title
from masksd.kit.cli.switched_off import options_without_effect
from masksd.kit.config import TrainConfig
from masksd.kit.printing import command_line
from masksd.kit.recipes import RECIPES, TOWERS, get_recipe
from masksd.models import list_models

if TYPE_CHECKING:
    from masksd.kit.training.trainer import RunResult

BRANCHES_OFF = {"both": (), "lmvsd": ("text",), "vmlsd": ("image",), "none": ("image", "text")}
PRESET = "cm-masksd"
FIRST = (
    *("data_root", "name", "level", "labels", "model", "image_size", "steps", "batch_size", "lr"),
    *("seed", "output"),
)
"""Settings that most runs need, which the help shows first."""
UNITS = (("steps", "epochs"), ("warmup", "warmup_epochs"))
TOWERS_FIT = {  # the values of options that keep the towers which come with masksd
    "--data-root": {"None"},
    "--name": {"shapes"},
    "--level": {"easy"},
    "--variant": {""},
    "--model": {"clip_cris_tiny", "clip_lda_tiny"},
    "--tokenizer": {"shapes", "None"},
    "--max-length": {"17"},
    "--image-size": {"64", "None"},
    "--pretrained": set(),
}


def train_command(arguments: list[str]) -> type:
    """Make the command; a preset or a run to resume is the default of the other options."""
    given = given_options(arguments)
    for option, known in (("--preset", RECIPES), ("--model", list_models())):
        if given.get(option) == "":
            raise ValueError(f"{option} takes one of {', '.join(known)}")
    resumed = arguments[:1] == ["train"] and given.get("--resume")
    start = _resumed(given) if resumed else _start(given)
    return command(
        _train,
        _check,
        given,
        preset=(str, given.get("--preset", PRESET)),
        branches=(Literal["both", "lmvsd", "vmlsd", "none"], "both"),
        config=(Path | None, None),
        resume=(Path | None, None),
        allow=(tuple[str, ...], ()),
        dry_run=(bool, False),
        settings=unchecked(start, FIRST, HEADINGS),
    )


def _resumed(given: Mapping[str, str]) -> TrainConfig:
    """Return the config of a run that goes on, which says all that its start said."""
    from masksd.kit.training.resuming import load_run_config

    for option in ("--preset", "--config", "--branches", "--output", "--overwrite", "--dry-run"):
        if option in given:
            raise ValueError(f"--resume goes on with the run's own config; leave {option} out")
    try:
        return load_run_config(given["--resume"])
    except ValueError:
        return TrainConfig()  # the command itself will say what is wrong with the run


def load_config(file: Path) -> TrainConfig:
    """Read the config of a run from JSON, such as the config.json of an earlier one, or YAML.

    Raises:
        ValueError: no such file, or one that holds no config.

    Example:
        >>> load_config(Path("runs/nowhere/config.json"))
        Traceback (most recent call last):
        ValueError: no config at runs/nowhere/config.json; give the config.json of a run, ...
    """
    import yaml  # type: ignore[import-untyped]  # which transformers brings

    if not file.is_file():
        near = file / "config.json"
        hint = (
            f"did you mean {near}?" if near.is_file() else "give the config.json of a run, or YAML"
        )
        raise ValueError(f"no config at {file}; {hint}")
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix in (".yaml", ".yml"):
            text = json.dumps(yaml.safe_load(text))
        return TrainConfig.from_json(text)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} holds no config of a run: {one_line(error)}") from None


def _start(given: Mapping[str, str]) -> Any:
    """Return a file's config, or a recipe, without the values that given options rule out."""
    file = given.get("--config")
    if file and "--preset" in given:
        raise ValueError("--preset and --config both say what the run is; give one of them")
    config: Any = load_config(Path(file)) if file else get_recipe(given.get("--preset", PRESET))
    if not file and config.encoder_weights == TOWERS and not _takes_towers(given):
        config = dataclasses.replace(TrainConfig(), distill=config.distill)  # takes more steps
    for pair in UNITS:
        named = [name for name in pair if f"--{name.replace('_', '-')}" in given]
        if len(named) == 1:
            [other] = set(pair) - set(named)
            # 1 is a placeholder for the value of the option
            config = dataclasses.replace(config, **{named[0]: 1, other: None})
    if given.get("--schedule", "multistep") != "multistep":
        config = dataclasses.replace(config, schedule="cosine", milestones=())
    return config


def _takes_towers(given: Mapping[str, str]) -> bool:
    """Return whether the towers that come with masksd suit the model and data of the options."""
    if given.get("--encoder-weights") == "None" or "--start-from" in given:
        return False
    return all(given.get(name) in {None, *values} for name, values in TOWERS_FIT.items())


def _chosen(options: Any) -> TrainConfig:
    """Return the run that the options describe, its values checked."""
    from masksd.kit.training.resuming import load_run_config

    if options.resume is not None:
        base = load_run_config(options.resume)
    elif options.config is not None:
        base = load_config(options.config)
    else:
        base = get_recipe(options.preset)
    config = checked(base, options.settings)
    off: dict[str, Any] = dict.fromkeys(BRANCHES_OFF[options.branches])
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, **off))


def _check(options: Any) -> None:
    """Refuse a run that cannot start; a dry run needs no data."""
    from masksd.kit.training.checks import check_start

    config = _chosen(options)
    lost = [*options_without_effect(config, options.given)]
    if "--branches" in options.given:  # what is meant is then unknown
        for each in lost:
            if each.startswith("--distill.") and "(--branches)" in each:
                raise ValueError(f"{each}; leave one of them out")
    if options.dry_run:
        check_choice("model", config.model, list_models())
    else:
        check_start(config, resume=options.resume is not None, allow=options.allow)


def _train(options: Any) -> None:
    """Train a model with CM-MaskSD and score it; without any option, in minutes on a CPU.

    The default run starts from small towers that come with masksd. With another model, other data
    or --encoder-weights None it starts from scratch, which takes 1000 steps.

    Most runs need no more than the options in the first box; for data of your own, --data-root and
    --name.

    Attributes:
        resume: go on with the run in this folder, where it was saved last; every other option is
            the run's own.
        allow: options of a resumed run that may be given anew, such as steps.
        config: a run's config.json, or YAML with the same fields, which the other options change.
        preset: a run by name, which the other options change: cm-masksd (the small default),
            paper-refcoco-vit-b, paper-refcoco-vit-l, paper-ablation-vit-b, cris-r50, lavt-swin-b;
            or masksd, augment, maskris, amlris, amlris-paper: the default run with that method.
        branches: the masked branches that are on; none trains the model alone.
        dry_run: only print every value of the run with its parameters, multiply-adds, memory and
            steps.
    """
    config = _chosen(options)
    for each in options_without_effect(config, options.given):
        warnings.warn(each, UserWarning, stacklevel=1)
    if options.dry_run:
        from masksd.kit.cli.dry_run import dry_run

        print(dry_run(options.preset, config))
        return
    from masksd.kit.costs.fits import check_fits
    from masksd.kit.evaluation.scoring import format_table
    from masksd.kit.training.trainer import train

    check_fits(config)

    result = train(config, resume=options.resume is not None, allow=options.allow)
    if os.environ.get("RANK", "0") == "0":
        print(f"{data_title(config.data, config.eval_split)}, per cent, at the original size")
        print(format_table(result.scores))
        skipped = f", {result.skipped} steps skipped" if result.skipped else ""
        start = {None: "", TOWERS: " from the towers that come with masksd"}
        weights = config.start_from or config.encoder_weights
        origin = start.get(weights, f" from {weights}")
        seconds = f"{result.seconds:.0f} s"
        print(f"{result.folder}: {result.steps} steps in {seconds}{origin}{skipped}")
        _print_next(config, result)


def _print_next(config: TrainConfig, result: RunResult) -> None:
    """Print what was not scored, where the images lie, and a call of ``masksd predict``."""
    from masksd.kit.data.text.tokenizers import load_tokenizer
    from masksd.kit.sources import open_split

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training said them
        tokenizer = load_tokenizer(result.checkpoint / "tokenizer", config.max_length)
        data = open_split(config.data, config.eval_split, tokenizer, 1, progress=False)
    place = None if result.checkpoint == CHECKPOINT else result.checkpoint
    scored = int(result.scores["own"]["samples"])
    if scored < len(data):
        every = command_line("evaluate", checkpoint=place)
        print(f"scored {scored} of {len(data)} expressions; for all: {every}")
    image = data.image_path(0)
    print(f"images: {image.parent}")
    print(f"try: {command_line('predict', image, data.sentence(0), checkpoint=place)}")
