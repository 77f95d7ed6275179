"""An exported folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import masksd
from masksd.errors import one_line


def check_hub(name: str) -> None:
    """Raise a ``ValueError`` unless a push to this repository may work, before all else is done."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise ValueError(f"hub must be OWNER/NAME, got {name!r}")
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(
            f"hub {name!r} is not a valid repository name: {one_line(error)}"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"hub {name}: HF_HUB_OFFLINE forbids the network; unset it or omit --hub")
    if get_token() is None:
        raise ValueError(
            f"hub {name}: no token; run `hf auth login` or set HF_TOKEN to one that may write"
        )


def push(folder: Path, name: str, step: int, public: bool) -> str:
    """Push a folder in one commit and return the address of its repository."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError  # of its HTTP library, network errors included

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    api = HfApi(library_name="masksd", library_version=masksd.__version__)
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        # upload_folder may make several commits, between which files do not fit the manifest
        api.create_commit(name, added, commit_message=f"Export of the checkpoint at step {step}")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"hub {name}: cannot be pushed to ({one_line(error)[:300]}); the export is complete at "
            f"{folder}, push it again with --overwrite"
        ) from None
    return str(url)
