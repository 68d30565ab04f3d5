# SPDX-License-Identifier: Apache-2.0
"""Files and folders that take their names when they are complete."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

# Characters of the final name in the hidden one, which may not be longer than a file system allows.
SHOWN_CHARACTERS = 20


def make_hidden(path: Path, make: Callable[[Path], object], suffix: str = "") -> Path:
    """Make something new next to `path`, under a hidden name that nothing else has.

    Args:
        path (`Path`):
            The final name. Its folder is made if needed.
        make (`Callable`):
            Makes the file or folder of the name it is given, with a `FileExistsError` where there is one.
        suffix (`str`, *optional*, defaults to `""`):
            How the hidden name ends.

    Returns:
        `Path`: What was made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        hidden = path.with_name(f".{path.stem[:SHOWN_CHARACTERS]}.{secrets.token_hex(4)}{suffix}")
        with suppress(FileExistsError):
            make(hidden)
            return hidden


class UnfinishedFile:
    """A file that is written under a hidden name in the same folder and takes its own when it is complete.

    As a context manager it gives the hidden name; an error in the block removes the file.

    Args:
        path (`Path`):
            The final name; what has it is replaced at the end. Its folder is made if needed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._hidden: Path | None = None

    def make(self) -> Path:
        """Make the file, empty, and return its hidden name, which has the same suffix."""
        self._hidden = make_hidden(self._path, lambda hidden: hidden.touch(exist_ok=False), self._path.suffix)
        return self._hidden

    def finish(self) -> None:
        """Give the file its name, if it has been made."""
        if self._hidden is not None:
            self._hidden.replace(self._path)
            self._hidden = None

    def remove(self, close: Callable[[], object] | None = None) -> None:
        """Remove the file, if it has been made and is not finished.

        Args:
            close (`Callable`, *optional*):
                Closes the file first. That may fail, as on a full disk: the file is removed all the same.
        """
        if self._hidden is None:
            return
        try:
            if close is not None:
                with suppress(Exception):
                    close()
        finally:  # not even a second interruption leaves it behind
            self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def __enter__(self) -> Path:
        return self.make()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file, or remove it when an error ended the block."""
        if error_type is None:
            self.finish()
        self.remove()
