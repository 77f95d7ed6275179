"""``masksd evaluate``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from masksd.kit.cli.options import checked, command, early_option, unchecked
from masksd.kit.cli.shared import CHECKPOINT, data_title, device_name
from masksd.kit.config import DataConfig


def evaluate_command(arguments: list[str]) -> type:
    """Make the command; the checkpoint decides the defaults of the data that it is scored on.

    Args:
        arguments: of the command line, which may name a checkpoint.
    """
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

    The options of the data are those of its training, if none are given. Without a protocol, a
    short table of the scores at the original size is printed.

    Attributes:
        checkpoint: folder that training wrote.
        split: to score on: val, testA, testB.
        protocol: original, cris, lavt or caris: how to score, with all details; None is original,
            in short. The model runs at its own size.
        sentences: what the model is told: own (the right sentence), other (another object's), none,
            or all three, one after the other.
        limit: expressions scored, evenly spread over the split; 0 scores all.
        threshold: probability above which a pixel belongs to the object, in [0, 1]; None takes the
            protocol's or the checkpoint's.
        batch_size: pictures a forward pass.
        workers: processes that read pictures; 0 reads in this one.
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
    from masksd.kit.checkpoints import load_checkpoint
    from masksd.kit.evaluation.recall import relevance_recall
    from masksd.kit.evaluation.reports import check_report_place, write_report
    from masksd.kit.evaluation.scoring import check_scoring, score
    from masksd.kit.files import StagedFolder
    from masksd.kit.scores.protocols import choose_threshold, get_protocol
    from masksd.kit.sources import open_split

    kinds = _kinds(options.sentences)
    protocol = options.protocol or "original"
    rules = get_protocol(protocol)
    check_scoring(options.threshold, options.limit, options.batch_size, options.workers)
    data = checked(DataConfig(), options.data)
    with contextlib.ExitStack() as stack:
        staged = None
        if options.output is not None:
            place = options.output
            staged = StagedFolder(place, lambda: check_report_place(place, options.overwrite))
            stack.enter_context(staged)
        checkpoint = load_checkpoint(options.checkpoint, device_name(options.device))
        choose_threshold(rules, options.threshold, checkpoint.config.threshold)
        size = checkpoint.config.image_size
        dataset = open_split(
            data,
            options.split,
            checkpoint.tokenizer,
            size,
            fit=rules.fit or checkpoint.config.fit,
            cache=data.data_root is None and not options.workers,
            progress=options.progress,
        )
        reading = {
            "limit": options.limit,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "progress": options.progress,
        }
        results = {
            kind: score(
                checkpoint,
                dataset,
                protocol=protocol,
                sentences=kind,
                threshold=options.threshold,
                **reading,
            )
            for kind in kinds
        }
        relevance = relevance_recall(checkpoint, dataset, **reading) if options.relevance else None
        scored = "at the original size" if options.protocol is None else rules.title(size)
        title = data_title(data, options.split, scored)
        if staged is not None:
            write_report(
                staged.path,
                checkpoint,
                dataset,
                results,
                title=title.split(", per cent")[0],
                protocol=protocol,
                source=options.checkpoint,
                data=data.to_dict(),
                split=options.split,
                limit=options.limit,
                threshold=options.threshold,
                relevance=relevance,
            )
            staged.publish()
    _print(title, results, relevance, details=options.protocol is not None)
    if options.output is not None:
        print(f"{options.output}: report.md, report.json, a line a sample, worst and best")


def _kinds(sentences: str) -> list[str]:
    from masksd.errors import check_choice
    from masksd.kit.evaluation.scoring import SENTENCES

    check_choice("sentences", sentences, [*SENTENCES, "all"])
    return list(SENTENCES) if sentences == "all" else [sentences]


def _print(
    title: str, results: dict[str, Any], relevance: dict[str, float] | None, details: bool
) -> None:
    from masksd.kit.evaluation.tables import format_table
    from masksd.kit.scores.metrics import headline
    from masksd.kit.scores.report import split_comparisons

    print(title)
    print(format_table({kind: headline(found.scores["all"]) for kind, found in results.items()}))
    if details:
        kind, found = next(iter(results.items()))
        print()
        print(f"sentences: {kind}; over: predicted outside the truth, under: truth that is missed")
        for table in split_comparisons(found.scores):
            if table:
                print(format_table(table))
    if relevance is not None:
        print(
            "relevance: the top patches hold {recall:.1%} of the truth, by chance {chance:.1%} "
            "(mean over {samples} samples)".format(**relevance)
        )


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
        f"{found.samples} samples on {found.pictures} pictures, sentences: {kind}, per cent; "
        f"intervals from {found.resamples} draws of the pictures"
    )
    print(align_columns(format_comparison(found)))


def _stored_data(folder: str) -> DataConfig:
    """Return the data of a checkpoint's training; the default where it cannot be read."""
    from masksd.kit.checkpoints import read_config

    try:
        fields = read_config(folder).data
    except (ValueError, OSError):
        return DataConfig()  # the command itself will say what is wrong with the checkpoint
    return DataConfig.from_dict(fields)
