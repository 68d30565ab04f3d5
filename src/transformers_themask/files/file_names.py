# SPDX-License-Identifier: Apache-2.0
"""Names of files to write."""

from pathlib import Path


def check_suffix(path: Path, suffixes: tuple[str, ...], argument: str = "path") -> None:
    """Raise a `ValueError` that names `argument` unless the path can be that of a file with one of the suffixes."""
    if path.suffix not in suffixes or path.is_dir():
        raise ValueError(f"`{argument}` must be a file whose name ends in {' or '.join(suffixes)}. Got {path}.")
