"""Command-line options from config dataclasses.

tyro reports a value that a config refuses in a box. Our errors are one line, so options are parsed
into copies of the configs without their checks (:func:`unchecked`) and put into the real ones later
(:func:`checked`).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

OTHERWISE = {"--device": "--cpu", "--limit": "--eval-samples"}


def command(run: Any, check: Any = None, **options: Any) -> type:
    """Make the dataclass of a command from a function, whose docstring is the help.

    An option is (type, default), or a dataclass whose fields become options. ``check`` takes the
    parsed options first and refuses what it can without loading torch.

    Example:
        >>> command(print, steps=(int, 3))().steps
        3
    """
    fields: list[Any] = []
    for name, option in options.items():
        if isinstance(option, type):
            flat: Any = Annotated[option, tyro.conf.arg(name="")]
            fields.append((name, flat, dataclasses.field(default_factory=option)))
        else:
            fields.append((name, option[0], dataclasses.field(default=option[1])))
    made = dataclasses.make_dataclass(run.__name__, fields, namespace={"check": check, "run": run})
    made.__doc__ = run.__doc__
    return made


def unchecked(default: Any, first: Sequence[str] = ()) -> type:
    """Copy a config's fields, values and help into a dataclass without its checks.

    Configs inside are treated alike; an optional one that is None has no options. The help shows
    the fields named ``first`` before the others.

    Example:
        >>> from masksd.kit.config import DataConfig
        >>> unchecked(DataConfig())(pictures=-5).pictures
        -5
    """
    hints = typing.get_type_hints(type(default))
    fields: list[Any] = []
    given = {field.name: field for field in dataclasses.fields(default)}
    for field in (given[name] for name in dict.fromkeys([*first, *given])):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            inner: Any = unchecked(value)
            # --level, not --data.level
            kind: Any = Annotated[inner, tyro.conf.arg(name="")] if field.name == "data" else inner
            fields.append((field.name, kind, dataclasses.field(default_factory=inner)))
        else:
            fields.append((field.name, hints[field.name], dataclasses.field(default=value)))
    made = dataclasses.make_dataclass(type(default).__name__, fields)
    made.__doc__ = type(default).__doc__
    return made


def checked(default: Any, options: Any) -> Any:
    """Put :func:`unchecked` options into the config, which checks them.

    Example:
        >>> from masksd.kit.config import DataConfig
        >>> checked(DataConfig(), unchecked(DataConfig())(pictures=5)) == DataConfig(pictures=5)
        True
    """
    values = {}
    for field in dataclasses.fields(options):
        value, before = getattr(options, field.name), getattr(default, field.name)
        values[field.name] = checked(before, value) if dataclasses.is_dataclass(value) else value
    return dataclasses.replace(default, **values)


def check_names(arguments: list[str], made: type) -> None:
    """Raise a ``ValueError`` for an option that a command does not have, with the nearest it has.

    Example:
        >>> from masksd.kit.config import DataConfig
        >>> check_names(["--levl=hard"], unchecked(DataConfig()))
        Traceback (most recent call last):
        ValueError: unknown option --levl; did you mean --level?
    """
    known = {"--help", *option_names(made)}
    bare = [each[2:] for each in known]
    for name in given_options(arguments):
        if name in known:
            continue
        guesses = (
            {OTHERWISE.get(name)} & known,
            (each for each in known if each.startswith(name)),
            (each for each in known if each.endswith(f".{name[2:]}")),
            # without the dashes, in which all are alike
            (f"--{each}" for each in difflib.get_close_matches(name[2:], bare, n=1)),
        )
        near = next(filter(None, map(sorted, guesses)), [])
        hint = f"did you mean {' or '.join(near[:3])}?" if near else "see --help"
        raise ValueError(f"unknown option {name}; {hint}")


def option_names(made: type, before: str = "--") -> Iterator[str]:
    """Yield the names of the options of a command.

    Example:
        >>> list(option_names(command(print, lr=(float, 0.1), cpu=(bool, False))))
        ['--lr', '--cpu', '--no-cpu']
    """
    for name, kind in typing.get_type_hints(made, include_extras=True).items():
        marks = getattr(kind, "__metadata__", ())
        inner = typing.get_args(kind)[0] if marks else kind
        name = name.replace("_", "-")
        if dataclasses.is_dataclass(inner):
            flat = any(getattr(mark, "name", None) is not None for mark in marks)
            yield from option_names(inner, before if flat else f"{before}{name}.")
        elif tyro.conf.Positional not in marks:
            yield before + name
            if inner is bool and tyro.conf.FlagCreatePairsOff not in marks:
                yield f"{before}no-{name}"


def given_options(arguments: list[str]) -> list[str]:
    """Return the names of the options in the arguments, with hyphens, each once.

    Example:
        >>> given_options(["train", "--eval_samples=3", "--lr", "-1"])
        ['--eval-samples', '--lr']
    """
    names = (each.partition("=")[0].replace("_", "-") for each in arguments)
    return list(dict.fromkeys(name for name in names if name.startswith("--")))


def early_option(arguments: list[str], name: str, default: str) -> str:
    """Read one option before the others, whose defaults depend on it.

    Example:
        >>> early_option(["train", "--preset", "mine"], "--preset", "ours")
        'mine'
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(name, nargs="?", default=default, dest="value")
    return parser.parse_known_args(arguments)[0].value or default
