# SPDX-License-Identifier: Apache-2.0
"""Folders for results: whether they can be written, asked before the work, and written as a whole."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output_folder(argument: str, folder: str | Path) -> None:
    """Raise a `ValueError` unless files can be written to a folder, which need not exist yet; leave nothing behind.

    Args:
        argument (`str`):
            Name of the argument that asks for the folder, for the error.
        folder (`str` or `Path`):
            The folder.
    """
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
    """Raise a `ValueError` unless a folder can be written to and holds nothing yet that new files could mix with.

    Args:
        argument, folder: As in [`check_output_folder`].
    """
    check_output_folder(argument, folder)
    if any(Path(folder).glob("*")):
        raise ValueError(
            f"`{argument}` must be a new or empty folder. Got {folder}, which holds files that would mix with the new "
            "ones. Remove them or name another folder."
        )


@contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write to, which takes the name `folder` at the end of the `with` block, all at once.

    What was there before is replaced only then. After an error the hidden folder is removed, and so is what earlier
    runs left behind that were killed.

    Args:
        folder (`Path`): Where the results shall be.
    """
    # Not with the name itself in it, which may be as long as a file system allows.
    name = hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:16]
    unfinished, replaced = (folder.with_name(f".{name}.{state}") for state in ("unfinished", "replaced"))
    for leftover in (unfinished, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        for leftover in (unfinished, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
