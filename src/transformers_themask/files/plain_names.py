# SPDX-License-Identifier: Apache-2.0
"""Names of videos and frames that come from files and become parts of paths."""

from pathlib import Path


def is_plain_name(name: str) -> bool:
    """Whether a name is one component of a path, the same on every system, and printable."""
    num_bytes = len(name.encode("utf-8", "surrogateescape"))
    return name not in ("", ".", "..") and not set("/\\") & set(name) and name.isprintable() and num_bytes <= 255


def check_plain_name(name: str, source: Path) -> None:
    """Raise a `ValueError` unless a name in the file `source` is one component of a path."""
    if not is_plain_name(name):
        raise ValueError(
            f"Every name in {source} must be one file name without separators. Got {name!r}; rename the video."
        )


def inside(folder: Path, path: Path) -> Path:
    """The path of a file to write; raises a `ValueError` if its names, or links on the way, lead out of a folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"Every file must be written inside {folder}. Got {path}, which leads to {path.resolve()}.")
    return path
