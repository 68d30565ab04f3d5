# SPDX-License-Identifier: Apache-2.0
"""Checks of output folders before the work starts."""

import tempfile
from pathlib import Path


def check_output_folder(argument: str, folder: str | Path) -> None:
    """Raise a `ValueError` unless files can be written to a folder, which need not exist yet; leave nothing behind."""
    existing = Path(folder).absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}` must lie in a folder that can be written to. Got {folder} ({error.strerror}: {existing})."
        ) from error


def check_new_folder(argument: str, folder: str | Path) -> None:
    """Raise a `ValueError` unless a folder can be written to and holds nothing yet that new files could mix with."""
    check_output_folder(argument, folder)
    if any(Path(folder).glob("*")):
        raise ValueError(
            f"`{argument}` must be a new or empty folder. Got {folder}, which holds files that would mix with the new "
            "ones. Remove them or name another folder."
        )
