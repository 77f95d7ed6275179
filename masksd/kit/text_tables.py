"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Pad cells to columns, the first to the left and the others to the right.

    Example:
        >>> align_columns([["a", "10"], ["bb", "9"]])
        'a   10\\nbb   9'
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in cells]
        for cells in (enumerate(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
