"""The grids that patches lie on: of an embedding, and of the cells that are drawn as one."""

from __future__ import annotations


def embedding_grid(positions: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of an image embedding whose positions are ``(h, w)`` or ``(N,)``."""
    if len(positions) == 2:
        return positions[0], positions[1]
    height, width = size
    rows = round((positions[0] * height / width) ** 0.5)
    if rows < 1 or positions[0] % rows or rows * width != positions[0] // rows * height:
        raise ValueError(
            f"the image embedding has {positions[0]} tokens, which form no grid of an image of "
            f"{height}x{width}; state prefix, or tap the module before tokens are added"
        )
    return rows, positions[0] // rows


def square_cells(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Return rows and columns of the square cells of an image, ``cell`` pixels wide.

    They are at most an eighth of the shorter side; where they do not divide the image, a little
    larger.
    """
    side = min(cell, max(1, min(size) // 8))
    return size[0] // side, size[1] // side


def cells(grid: tuple[int, int], size: tuple[int, int], cell: int | None) -> tuple[int, int]:
    """Return rows and columns of the cells of an embedding's grid; ``cell`` is that of ``Taps``."""
    height, width = size
    if cell is None:
        # large patches are cells already; 2 x 2 cells would leave nothing to choose from
        cell = 1 if height // grid[0] >= 8 else min(32, max(1, min(height, width) // 8))
    return min(grid[0], max(1, height // cell)), min(grid[1], max(1, width // cell))


def known_size(size: tuple[int, int] | None, path: str) -> tuple[int, int]:
    """Return the size of the images, or raise where no argument and no map at ``path`` tells it."""
    if size is None:
        raise ValueError(
            f"images=None takes the images' size from what {path} is given, but that is no map "
            "(B, C, H, W): name the argument, or a function of the call"
        )
    return size
