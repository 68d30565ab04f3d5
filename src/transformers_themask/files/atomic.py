# SPDX-License-Identifier: Apache-2.0
"""Atomic files and folders: written under a hidden name beside their own, and renamed when they are complete."""

import hashlib
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class _Atomic(ABC):
    """A file or folder in the making. As a context manager it gives the hidden path; an error removes that."""

    def __init__(self, path: str | Path, suffix: str | None = None):
        self._path = Path(path)
        # Stands for the name, which may be as long as a file system allows.
        self._digest = hashlib.sha256(os.fsencode(self._path.name)).hexdigest()[:16]
        self._suffix = self._path.suffix if suffix is None else suffix
        self._hidden: Path | None = None

    def make(self) -> Path:
        """Make the parent folder if needed, then an empty file or folder of a name that nothing else has."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            hidden = self._path.with_name(f".{self._digest}.{secrets.token_hex(4)}{self._suffix}")
            with suppress(FileExistsError):
                self._create(hidden)
                self._hidden = hidden
                return hidden

    def finish(self) -> None:
        """Rename to the final path, if made."""
        if self._hidden is not None:
            self._publish(self._hidden)
            self._hidden = None

    def remove(self, close: Callable[[], object] | None = None) -> None:
        """Remove what was made and is not finished, after `close`, whose errors are ignored, as on a full disk."""
        if self._hidden is None:
            return
        try:
            if close is not None:
                with suppress(Exception):
                    close()
        finally:  # not even a second interruption leaves it behind
            if self._hidden.is_dir():
                shutil.rmtree(self._hidden, ignore_errors=True)
            else:
                self._hidden.unlink(missing_ok=True)
            self._hidden = None

    def __enter__(self) -> Path:
        return self.make()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish, or remove after an error in the block."""
        try:
            if error_type is None:
                self.finish()
        finally:
            self.remove()

    @abstractmethod
    def _create(self, hidden: Path) -> None:
        """Create; a `FileExistsError` where the name is taken."""

    @abstractmethod
    def _publish(self, hidden: Path) -> None: ...


class AtomicFile(_Atomic):
    """A file that appears under its name when it is complete, replacing an earlier one; the suffix is kept."""

    def _create(self, hidden: Path) -> None:
        hidden.touch(exist_ok=False)

    def _publish(self, hidden: Path) -> None:
        hidden.replace(self._path)


class AtomicFolder(_Atomic):
    """A folder like an [`AtomicFile`], which also removes what killed writers of it left behind.

    Without `replace`, finishing raises an `OSError` where a folder has content.
    """

    def __init__(self, path: str | Path, replace: bool = False):
        super().__init__(path, ".unfinished")
        self._replace = replace

    def make(self) -> Path:
        """Remove leftovers, make the parent folder if needed and an empty hidden folder."""
        for state in ("unfinished", "replaced"):
            for leftover in self._path.parent.glob(f".{self._digest}.*.{state}"):
                shutil.rmtree(leftover, ignore_errors=True)
        return super().make()

    def _create(self, hidden: Path) -> None:
        hidden.mkdir()

    def _publish(self, hidden: Path) -> None:
        replaced = hidden.with_suffix(".replaced")
        if self._path.exists() and self._replace:
            self._path.rename(replaced)
        elif self._path.exists():
            self._path.rmdir()
        hidden.rename(self._path)
        shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(written: Path, path: Path) -> None:
    """Move a folder, whose files are on the disk, to its path on the same file system, durably, replacing another."""
    shutil.rmtree(path, ignore_errors=True)
    written.rename(path)
    sync(path.parent)
