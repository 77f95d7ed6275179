"""``masksd evaluate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksd.kit.checkpoints import read_config
from masksd.kit.cli.options import checked, command, given_options, unchecked
from masksd.kit.cli.shared import CHECKPOINT, data_title
from masksd.kit.config import DataConfig
from masksd.kit.evaluation.settings import SENTENCES, EvaluateConfig
from masksd.kit.processes import (
    check_one_process,
    check_same_everywhere,
    launched,
    start_processes,
    watch_others,
)

if TYPE_CHECKING:
    from masksd.kit.evaluation.report_folder import Evaluated


def evaluate_command(arguments: list[str]) -> type:
    """Make the command; data and split default to those of the checkpoint that is named."""
    config, data = EvaluateConfig(CHECKPOINT), DataConfig()
    if arguments[:1] == ["evaluate"]:
        try:
            trained = read_config(given_options(arguments).get("--checkpoint", CHECKPOINT))
        except (ValueError, OSError):
            pass  # the command itself will say what is wrong with the checkpoint
        else:
            config = dataclasses.replace(config, split=trained.eval_split)
            data = DataConfig.from_dict(trained.data)
    return command(
        _evaluate,
        _check,
        config=unchecked(config),
        data=unchecked(data, headings={"data_root": "data"}),
        compare=(tuple[Path, Path] | None, None),
        cpu=(bool, False),
    )


def _check(options: Any) -> None:
    config = checked(EvaluateConfig(CHECKPOINT), options.config)
    checked(DataConfig(), options.data)
    if options.compare is None:
        read_config(config.checkpoint)


def _evaluate(options: Any) -> None:
    """Score a checkpoint, or compare two reports.

    Data and split default to those on which its training was scored. Without a protocol, a short
    table of the scores at the original size is printed. Under torchrun the processes share the
    samples.

    Attributes:
        compare: folders A and B of two reports: print what B gains over A, with intervals, and
            score nothing.
        cpu: stay on the CPU even if there is a GPU.
    """
    config = checked(EvaluateConfig(CHECKPOINT), options.config)
    if options.compare is not None:
        check_one_process("masksd evaluate --compare")
        _compare(config, *options.compare)
        return
    data = checked(DataConfig(), options.data)
    if launched() == 1:
        from masksd.kit.devices import default_device

        _print(config, data, _score(config, data, str(default_device(cpu=options.cpu))))
        return
    accelerator = start_processes(cpu=options.cpu)
    with watch_others(accelerator, kept="nothing was written"):
        check_same_everywhere(accelerator, {**dataclasses.asdict(config), **data.to_dict()})
        found = _score(config, data, str(accelerator.device))
    if accelerator.is_main_process:
        _print(config, data, found)


def _score(config: EvaluateConfig, data: DataConfig, device: str) -> Evaluated:
    from masksd.kit.evaluation.report_folder import evaluate_checkpoint

    return evaluate_checkpoint(config, data, title=data_title(data, config.split), device=device)


def _print(config: EvaluateConfig, data: DataConfig, found: Evaluated) -> None:
    from masksd.kit.evaluation.scoring import format_table
    from masksd.kit.scores.metrics import headline
    from masksd.kit.scores.report import kind_title, left_out, split_comparisons

    scored = "at the original size"
    if config.protocol is not None:
        scored = config.rules.title(found.input_size)
    print(f"{data_title(data, config.split)}, per cent, {scored}")
    scores = {kind: result.scores for kind, result in found.results.items()}
    titles = {kind: kind_title(kind, config.hide, config.drop_words, SENTENCES) for kind in scores}
    print(format_table({titles[kind]: headline(groups["all"]) for kind, groups in scores.items()}))
    for line in left_out(scores, config.drop_words):
        print(line)
    if config.protocol is not None:
        kind, groups = next(iter(scores.items()))
        print()
        print(f"sentences: {kind}; over: predicted outside the truth, under: truth that is missed")
        for table in split_comparisons(groups):
            if table:
                print(format_table(table))
    if found.relevance is not None:
        print(
            "relevance: the top patches hold {recall:.1%} of the truth, by chance {chance:.1%} "
            "(mean over {samples} samples)".format(**found.relevance)
        )
    if config.output is not None:
        print(f"{config.output}: report.md, report.json, one line per sample, worst and best")


def _compare(config: EvaluateConfig, a: Path, b: Path) -> None:
    from masksd.kit.printing import align_columns
    from masksd.kit.scores.compare import compare_reports, format_comparison

    if config.output is not None:
        raise ValueError("--compare prints and writes nothing; leave --output out")
    kind = config.kinds[0]  # of all, the right sentence
    found = compare_reports(a, b, sentences=kind)
    for side, folder, checkpoint in zip("AB", (a, b), found.checkpoints, strict=True):
        print(f"{side}: {folder}, checkpoint {checkpoint}")
    for note in found.notes:
        print(f"differs in {note}")
    print(
        f"{found.samples} samples on {found.images} images, sentences: {kind}, per cent; "
        f"intervals from {found.resamples} draws of the images"
    )
    print(align_columns(format_comparison(found)))
