"""The grids that patches lie on: of an embedding, and of the cells that are drawn as one."""

from __future__ import annotations


def embedding_grid(positions: tuple[int, ...] | None, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of an image embedding whose positions are ``(h, w)`` or ``(N,)``.

    ``size`` is the height and width of the images.

    Example:
        >>> embedding_grid((600,), (320, 480))  # patches of 16
        (20, 30)
    """
    if positions is None:
        raise ValueError("the image embedding exists, but did not run in this pass")
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
    """Return rows and columns of the square cells of an image of a size, height and width.

    A cell of ``cell`` pixels, but at most an eighth of the shorter side; where it does not divide
    the image, cells are a little larger.

    Example:
        >>> square_cells((480, 640), 32), square_cells((64, 64), 32)
        ((15, 20), (8, 8))
    """
    side = min(cell, max(1, min(size) // 8))
    return size[0] // side, size[1] // side


def cells(grid: tuple[int, int], size: tuple[int, int], cell: int | None) -> tuple[int, int]:
    """Return rows and columns of the cells that patches are ranked and drawn in.

    Args:
        grid: of the image embedding.
        size: height and width of the images.
        cell: side of a cell in pixels; see :class:`Taps`.

    Example:
        >>> cells((120, 120), (480, 480), None)  # stride 4
        (15, 15)
        >>> cells((16, 16), (64, 64), None)
        (8, 8)
    """
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
