"""``masksd data ...``: what concerns data sets on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masksd.cli.options import checked, command, unchecked


def data_commands() -> dict[str, Any]:
    """Make the commands by name."""
    from masksd.data.shapes import ShapesConfig

    return {
        "shapes": command(_shapes, config=unchecked(ShapesConfig()), output=(Path | None, None))
    }


def _shapes(options: Any) -> None:
    """Generate the shapes data set in refer format.

    Attributes:
        output: folder; None takes the one in the cache that training uses.
    """
    from masksd.data.shapes import ShapesConfig, build_shapes
    from masksd.engine.sources import shapes_folder

    config = checked(ShapesConfig(), options.config)
    print(build_shapes(options.output or shapes_folder(config), config))
