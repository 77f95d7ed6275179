"""Command-line options from config dataclasses.

tyro reports a value that a config refuses in a box. Our errors are one line, so options are parsed
into copies of the configs without their checks (:func:`unchecked`) and put into the real ones later
(:func:`checked`).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import tyro

ATTRIBUTES, BOX = "Attributes:\n", "box_"
OTHERWISE = {"--device": "--cpu", "--limit": "--eval-samples"}


def command(run: Any, check: Any = None, given: Collection[str] = (), **options: Any) -> type:
    """Make the dataclass of a command from a function, whose docstring is the help.

    An option is (type, default), or a dataclass whose fields become options. ``check`` takes the
    parsed options first and refuses what it can without loading torch. ``given`` are the names of
    those on the command line.

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
    own = {"check": check, "run": run, "given": given}
    made = dataclasses.make_dataclass(run.__name__, fields, namespace=own)
    made.__doc__ = run.__doc__
    return made


def unchecked(
    default: Any, first: Sequence[str] = (), headings: Mapping[str, str] = MappingProxyType({})
) -> type:
    """Copy a config's fields, values and help into a dataclass without its checks.

    Configs inside are treated alike; the data's fields stand among the others, and an optional one
    that is None has no options. In the help the fields named ``first`` come before all others, and
    a box of its own begins at each field that has a heading.

    Example:
        >>> from masksd.kit.config import DataConfig
        >>> unchecked(DataConfig())(pictures=-5).pictures
        -5
    """
    text = inspect.getdoc(type(default)) or ""
    hints = typing.get_type_hints(type(default))
    boxes: dict[str, list[Any]] = {"": []}
    title = ""
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        options: list[Any] = [(field.name, hints[field.name], dataclasses.field(default=value))]
        if dataclasses.is_dataclass(value):
            inner = unchecked(value)
            options = [(field.name, inner, dataclasses.field(default_factory=inner))]
            if field.name == "data":  # --level, not --data.level
                kinds = typing.get_type_hints(inner)
                options = [
                    (each.name, kinds[each.name], each) for each in dataclasses.fields(inner)
                ]
                lines = (inner.__doc__ or "").partition(ATTRIBUTES)[2].partition("\n\n")[0]
                text = text.replace(ATTRIBUTES, f"{ATTRIBUTES}{lines}\n", 1)
        for option in options:
            title = headings.get(option[0], title)
            boxes.setdefault("" if option[0] in first else title, []).append(option)
    boxes[""].sort(key=lambda option: [*first, option[0]].index(option[0]))
    shown = boxes.pop("")
    for number, (title, options) in enumerate(boxes.items()):
        bare: Any = tyro.conf.arg(prefix_name=False)
        box: Any = dataclasses.make_dataclass(
            "Box", [(name, Annotated[kind, bare], made) for name, kind, made in options]
        )
        box.__doc__ = text
        titled = Annotated[box, tyro.conf.arg(name=title, help="")]
        shown.append((f"{BOX}{number}", titled, dataclasses.field(default_factory=box)))
    made = dataclasses.make_dataclass(type(default).__name__, shown)
    made.__doc__ = text
    return made


def checked(default: Any, options: Any) -> Any:
    """Put :func:`unchecked` options into the config, which checks them.

    Example:
        >>> from masksd.kit.config import DataConfig
        >>> checked(DataConfig(), unchecked(DataConfig())(pictures=5)) == DataConfig(pictures=5)
        True
    """
    given = dict(vars(options))
    for name in [name for name in given if name.startswith(BOX)]:
        given |= vars(given.pop(name))
    values = {}
    for field in dataclasses.fields(default):
        before = getattr(default, field.name)
        value = given.get(field.name, options)  # the data's fields stand among the others
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
        if name in known or name.startswith("--tyro-"):
            continue
        guesses: Sequence[Iterable[str]] = (
            {OTHERWISE.get(name, "")} & known,
            (each for each in known if each.startswith(name)),
            (each for each in known if each.endswith(f".{name[2:]}")),
            # without the dashes, in which all are alike
            (f"--{each}" for each in difflib.get_close_matches(name[2:], bare, n=1)),
        )
        near = next((sorted(each) for each in map(list, guesses) if each), [])
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
        inner: Any = typing.get_args(kind)[0] if marks else kind
        name = name.replace("_", "-")
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            flat = any(getattr(mark, "name", None) is not None for mark in marks)
            yield from option_names(inner, before if flat else f"{before}{name}.")
        elif tyro.conf.Positional not in marks:
            yield before + name
            if inner is bool and tyro.conf.FlagCreatePairsOff not in marks:
                yield f"{before}no-{name}"


def given_options(arguments: list[str]) -> dict[str, str]:
    """Return the options in the arguments by name, with hyphens, and what follows each.

    Example:
        >>> given_options(["train", "--eval_samples=3", "--cpu", "--lr", "-1"])
        {'--eval-samples': '3', '--cpu': '', '--lr': '-1'}
    """
    given = {}
    options = itertools.takewhile("--".__ne__, arguments)  # what follows that is no option
    for argument, following in itertools.pairwise([*options, ""]):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            after = "" if following.startswith("--") else following
            given[name.replace("_", "-")] = value if equals else after
    return given
