"""``masksd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.kit.cli.options import checked, command, early_option, unchecked
from masksd.kit.cli.shared import CHECKPOINT, data_title, device_name
from masksd.kit.config import DataConfig

if TYPE_CHECKING:
    from masksd.kit.evaluation.report_folder import Evaluated


def evaluate_command(arguments: list[str]) -> type:
    """Make the command; its data defaults to that of the checkpoint that the arguments name."""
    stored = _stored_data(early_option(arguments, "--checkpoint", str(CHECKPOINT)))
    return command(
        _evaluate,
        data=unchecked(stored),
        checkpoint=(Path, CHECKPOINT),
        split=(str, "val"),
        protocol=(str | None, None),
        sentences=(str, "all"),
        limit=(int, 0),
        threshold=(float | None, None),
        batch_size=(int, 64),
        workers=(int, 0),
        relevance=(bool, False),
        output=(Path | None, None),
        overwrite=(bool, False),
        compare=(tuple[Path, Path] | None, None),
        device=(str | None, None),
        progress=(bool, True),
    )


def _evaluate(options: Any) -> None:
    """Score a checkpoint, or compare two reports.

    The options of the data default to those of its training. Without a protocol, a short table of
    the scores at the original size is printed.

    Attributes:
        checkpoint: folder that training wrote.
        split: to score on: val, testA, testB.
        protocol: original, cris, lavt or caris: how to score, with all details; None is original,
            in short. The model runs at its own size.
        sentences: what the model is given: own (the right sentence), other (another object's),
            none, or all three, one after the other.
        limit: expressions scored, evenly spread over the split; 0 scores all.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            protocol's or the checkpoint's.
        batch_size: images a forward pass.
        workers: processes that read images; 0 reads in this one.
        relevance: also measure how much of the object lies in the patches that the method ranks
            highest.
        output: folder for a report: report.json, report.md, a line a sample, and a sheet of the
            worst and best; None writes nothing.
        overwrite: replace an older report there.
        compare: folders A and B of two reports: print what B gains over A, with intervals, and
            score nothing.
        device: cpu, cuda, cuda:1; None takes a GPU where there is one.
        progress: show progress bars.
    """
    if options.compare is not None:
        _compare(options)
        return
    from masksd.kit.evaluation.report_folder import evaluate_checkpoint

    data = checked(DataConfig(), options.data)
    found = evaluate_checkpoint(
        options.checkpoint,
        data,
        options.split,
        title=data_title(data, options.split, "").removesuffix(", per cent, "),
        protocol=options.protocol or "original",
        sentences=_kinds(options.sentences),
        threshold=options.threshold,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        relevance=options.relevance,
        output=options.output,
        overwrite=options.overwrite,
        device=device_name(options.device),
        progress=options.progress,
    )
    _print(options, data, found)


def _print(options: Any, data: DataConfig, found: Evaluated) -> None:
    from masksd.kit.evaluation.scoring import format_table
    from masksd.kit.scores.metrics import headline
    from masksd.kit.scores.protocols import get_protocol
    from masksd.kit.scores.report import split_comparisons

    scored = "at the original size"
    if options.protocol is not None:
        scored = get_protocol(options.protocol).title(found.input_size)
    print(data_title(data, options.split, scored))
    scores = {kind: result.scores for kind, result in found.results.items()}
    print(format_table({kind: headline(groups["all"]) for kind, groups in scores.items()}))
    if options.protocol is not None:
        kind, groups = next(iter(scores.items()))
        print(
            f"\nsentences: {kind}; over: predicted outside the truth, under: truth that is missed"
        )
        for table in split_comparisons(groups):
            if table:
                print(format_table(table))
    if found.relevance is not None:
        print(
            "relevance: the top patches hold {recall:.1%} of the truth, by chance {chance:.1%} "
            "(mean over {samples} samples)".format(**found.relevance)
        )
    if options.output is not None:
        print(f"{options.output}: report.md, report.json, a line a sample, worst and best")


def _compare(options: Any) -> None:
    from masksd.kit.scores.compare import compare_reports, format_comparison
    from masksd.kit.text_tables import align_columns

    if options.output is not None:
        raise ValueError("--compare prints and writes nothing; leave --output out")
    kind = _kinds(options.sentences)[0]  # of all, the right sentence
    found = compare_reports(*options.compare, sentences=kind)
    for side, folder, checkpoint in zip("AB", options.compare, found.checkpoints, strict=True):
        print(f"{side}: {folder}, checkpoint {checkpoint}")
    for note in found.notes:
        print(f"differs in {note}")
    print(
        f"{found.samples} samples on {found.images} images, sentences: {kind}, per cent; "
        f"intervals from {found.resamples} draws of the images"
    )
    print(align_columns(format_comparison(found)))


def _kinds(sentences: str) -> list[str]:
    from masksd.errors import check_choice
    from masksd.kit.evaluation.reading import SENTENCES

    check_choice("sentences", sentences, [*SENTENCES, "all"])
    return list(SENTENCES) if sentences == "all" else [sentences]


def _stored_data(folder: str) -> DataConfig:
    """Return the data of a checkpoint's training; the default where it cannot be read."""
    from masksd.kit.checkpoints import read_config

    try:
        fields = read_config(folder).data
    except (ValueError, OSError):
        return DataConfig()  # the command itself will say what is wrong with the checkpoint
    return DataConfig.from_dict(fields)
