# SPDX-License-Identifier: Apache-2.0
"""Images of a folder in the order of the numbers in their names."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)


def list_images(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the images in a folder in the order of the numbers in them: `9.jpg` before `10.jpg`."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(suffixes) and not name.startswith("."))
    return sorted(names, key=in_order_of_numbers)


def file_stem(name: str) -> str:
    """Name of a file without its suffix; a fifth of the time of `Path(name).stem`."""
    return os.path.splitext(name)[0]


def in_order_of_numbers(name: str) -> tuple[list[str | int], str]:
    """Sort key that compares digits as numbers; padded names keep their alphabetical order."""
    parts = re.split("([0-9]+)", file_stem(name))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def check_stems(folder: Path, frames: Sequence[str]) -> None:
    """Raise a `ValueError` unless every frame has a stem of its own, which identifies its mask or label map."""
    num_stems = len({file_stem(name) for name in frames})
    if num_stems < len(frames):
        raise ValueError(
            f"Every frame in {folder} must have a stem of its own. Got {len(frames)} frames with {num_stems} stems; "
            "remove the copies that differ only in suffix."
        )
