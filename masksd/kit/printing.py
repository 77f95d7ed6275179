"""What is printed: aligned columns for a terminal, markdown, and calls of the program to paste."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Pad cells to columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in cells]
        for cells in (enumerate(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write rows of cells as a markdown table, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def command_line(*words: object, **options: object) -> str:
    """Write a call of the program to paste; options that are None are left out.

    Example:
        >>> command_line("predict", "a b.png", "red", checkpoint="one", output=None)
        "masksd predict 'a b.png' red --checkpoint one"
    """
    named: list[object] = []
    for name, value in options.items():
        if value is not None:
            named += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return shlex.join(map(str, ["masksd", *words, *named]))
