"""``masksd export``: the bare model of a checkpoint, verified, in a folder and on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from masksd.kit.cli.shared import CHECKPOINT
from masksd.kit.printing import command_line


@dataclass(frozen=True)
class Export:
    """Write the bare model of a checkpoint, without optimiser and mask tokens, and a model card.

    The folder is a checkpoint that predict and evaluate take. Before it takes its place it is
    loaded and must give the same logits and masks as the checkpoint.

    Attributes:
        checkpoint: folder that training wrote.
        output: folder to write; None takes export beside the checkpoint.
        overwrite: replace an older export.
        hub: OWNER/NAME on the Hugging Face Hub: push the folder there, in one commit, with the
            token of hf auth login or $HF_TOKEN. The repository is made if need be.
        public: everybody can see the repository that is made; without it, it is private. One that
            exists stays as it is.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional] = CHECKPOINT
    output: Path | None = None
    overwrite: bool = False
    hub: str | None = None
    public: bool = False

    def check(self) -> None:
        """Refuse what is no checkpoint."""
        from masksd.kit.checkpoints import read_config

        read_config(self.checkpoint)

    def run(self) -> None:
        """Export and print where."""
        from masksd.kit.export.folder import export_checkpoint

        done = export_checkpoint(
            self.checkpoint,
            self.output,
            overwrite=self.overwrite,
            hub=self.hub,
            public=self.public,
        )
        size = sum(path.stat().st_size for path in done.folder.rglob("*") if path.is_file())
        print(
            f"{done.folder}: the bare model ({size / 1e6:.1f} MB); logits and masks are those of "
            f"{self.checkpoint}"
        )
        print(f"try it: {command_line('demo', done.folder)}")
        if done.url is not None:
            print(done.url)
