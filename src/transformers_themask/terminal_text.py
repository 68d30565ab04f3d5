# SPDX-License-Identifier: Apache-2.0
"""Errors, file names and counts as text for a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def error_line(error: Exception) -> str:
    """The message of an error on one line; the name of its class if it has no message."""
    message = str(error).strip()
    # Workers of a `DataLoader` pass errors on with their traceback.
    if "Original Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return printable(" ".join(message.split())) or type(error).__name__


def printable(name: str) -> str:
    """A file name, as Python holds it, whose bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `1 frame` or `2 frames`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Prefix errors about the content of a file with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
