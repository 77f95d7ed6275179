"""The command line: ``masksd train | evaluate | predict | demo | runs | data | export | pretrain``.

Options come from the config dataclasses. A user's error is one line on stderr and exit code 2;
``MASKSD_TRACEBACK=1`` shows where it was raised.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

import masksd
from masksd.errors import check_choice, one_line
from masksd.kit.cli.data import data_commands
from masksd.kit.cli.demo import Demo
from masksd.kit.cli.evaluate import evaluate_command
from masksd.kit.cli.export import Export
from masksd.kit.cli.options import check_names, command
from masksd.kit.cli.predict import Predict
from masksd.kit.cli.pretrain import pretrain_command
from masksd.kit.cli.runs import Runs
from masksd.kit.cli.threads import settle_threads
from masksd.kit.cli.train import train_command
from masksd.kit.config import TrainingError, TrainingStopped
from masksd.kit.processes import LostProcess, check_one_process

EXPECTED = (ValueError, OSError, TrainingError, LostProcess)
"""Errors whose message says all; others are ours."""
DISTRIBUTED = ("train", "evaluate")
"""Commands that torchrun may start several times."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; None takes the arguments of ``sys.argv``.

    0, 2 after a user's error, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 where the
    reader of the output has left. Wrong options and ``--help`` leave by ``SystemExit``.
    """
    settle = arguments is None  # elsewhere threads and the program's start are the caller's
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        for category in (DeprecationWarning, FutureWarning):  # between libraries, not for users
            warnings.simplefilter("ignore", category)
        try:
            _run(arguments, settle)
        except BrokenPipeError:  # the reader has left, as head does
            _discard_output()
            return 141  # as a program that SIGPIPE ends
        except TrainingStopped as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(f"masksd: {stopped}", file=sys.stderr)
            return 128 + stopped.signal  # as a program that the signal ends
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if os.environ.get("MASKSD_TRACEBACK"):
                raise
            text = one_line(error) or type(error).__name__
            if not isinstance(error, EXPECTED):  # unexpected
                text += " (MASKSD_TRACEBACK=1 shows where)"
            sys.stderr.write(f"masksd: error: {text}\n")  # at once, beside other processes
            return 2
        except KeyboardInterrupt:
            print("masksd: interrupted", file=sys.stderr)
            return 130
    return 0


def _run(arguments: list[str], settle: bool) -> None:
    """Run a command and flush what it printed, after ``SystemExit`` too.

    Values are checked before torch is loaded, which takes seconds.
    """
    try:
        if arguments == ["--version"]:
            print(f"masksd {masksd.__version__}")
        else:
            if arguments[:1] not in [[name] for name in DISTRIBUTED]:
                check_one_process(" ".join(["masksd", *arguments[:1]]))
            chosen = _parse(arguments)
            if getattr(chosen, "check", None) is not None:
                chosen.check()
            if settle:
                settle_threads(arguments)
            chosen.run()
    finally:
        sys.stdout.flush()


def _parse(arguments: list[str]) -> Any:
    """Parse; values are checked later, so that a wrong one is one line and not a box."""
    if arguments[:1] == ["data"]:
        about = "Generate data sets, or look at those on disk."
        return _choose(data_commands(), arguments[1:], "masksd data", about)
    inside: dict[str, Any] = {}
    if arguments and arguments[0].startswith("--tyro"):  # a shell asks for all that may follow
        kinds = (
            Annotated[made, tyro.conf.subcommand(name)] for name, made in data_commands().items()
        )
        any_of: Any = Annotated[Union[tuple(kinds)], tyro.conf.arg(name="")]  # noqa: UP007
        inside["command"] = any_of, tyro.MISSING
    commands: dict[str, Any] = {
        "train": train_command(arguments),
        "evaluate": evaluate_command(arguments),
        "predict": Predict,
        "demo": Demo,
        "export": Export,
        "data": command(_data, **inside),
        "pretrain": pretrain_command(),
        "runs": Runs,
    }
    about = (
        "Cross-modality masked self-distillation for referring image segmentation.\n"
        "`masksd --version` prints the version."
    )
    return _choose(commands, arguments, "masksd", about)


def _choose(commands: dict[str, Any], arguments: list[str], program: str, about: str) -> Any:
    """Parse the command that the arguments begin with; show the help where there are none."""
    name, *options = arguments or ["--help"]
    if name.startswith("-"):
        parse = functools.partial(tyro.extras.subcommand_cli_from_dict, commands, description=about)
        return _parse_plainly(parse, [name, *options], program)
    check_choice("command", name, commands)
    check_names(options, commands[name])
    return _parse_plainly(functools.partial(tyro.cli, commands[name]), options, f"{program} {name}")


def _parse_plainly(parse: Any, arguments: list[str], program: str) -> Any:
    """Call tyro; what it says in a box, of a value that is missing or no number, is one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(prog=program, args=arguments)
    except SystemExit as left:
        if left.code != 2:
            raise
    lines = (line.strip("│ ") for line in said.getvalue().splitlines()[1:])
    text = " ".join(itertools.takewhile(lambda line: line and line[0] != "─", lines)).rstrip(" .")
    text = text.removeprefix("Error parsing ").replace("{None}|", "")
    wrong = r": no type matching (.*) could be instantiated from \[(.*)\]"
    text = re.sub(wrong, r" takes \1, got \2", text)
    raise ValueError(f"{text[:1].lower()}{text[1:]}; see {program} --help")


def _data(_: Any) -> None:
    """Generate data sets, or look at those on disk; see masksd data --help."""


def _discard_output() -> None:
    """Send what is still to be written nowhere, or leaving would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _show_warning(message: Warning | str, *_: Any) -> None:
    if os.environ.get("RANK", "0") == "0":  # every process of a job gives the same
        print(f"masksd: warning: {one_line(message)}", file=sys.stderr)
