# SPDX-License-Identifier: Apache-2.0
"""Reading of frames and label maps from image files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

# "P" images hold ids too: their palette only says how to show them.
LABEL_MAP_MODES = ("L", "P")


class DamagedFileError(OSError):
    """A file that exists but cannot be decoded; missing files, permissions and disk failures are other errors."""


def read_frame(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a frame as RGB, `uint8` of shape `(height, width, 3)`."""
    with _opened_image(path) as image:
        return np.array(image.convert("RGB"))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the ids of a mask or a predicted label map as they are stored, `uint8` of shape `(height, width)`."""
    with _opened_image(path, LABEL_MAP_MODES) as image:
        image.load()
        return np.array(image)


def image_size(path: str | os.PathLike[str], modes: tuple[str, ...] = ()) -> tuple[int, int]:
    """Height and width of an image of one of the modes (or any), from the file's header alone."""
    with _opened_image(path, modes) as image:
        return image.height, image.width


@contextmanager
def _opened_image(path: str | os.PathLike[str], modes: tuple[str, ...] = ()) -> Iterator[Image.Image]:
    """Open an image; errors while opening it, or decoding it inside the `with` block, name the file."""
    try:
        with _open(path) as image:
            if modes and image.mode not in modes:
                raise ValueError(
                    f"Label map {path} must be an 8-bit single-channel image of ids (mode L or P). Got mode "
                    f"{image.mode}; save the ids themselves, not their colours."
                )
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"Image file {path} must exist; check the data folder.") from None
    except (OSError, SyntaxError) as error:  # Pillow reports a damaged PNG as either
        # The system's own errors have a number, a decoder's have none.
        kind = DamagedFileError if getattr(error, "errno", None) is None else OSError
        raise kind(f"Image file {path} must be readable. Got: {error}. Replace the broken file.") from error


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        return Image.open(path)
    except (ValueError, Image.DecompressionBombError) as error:  # a header cut short, or with an absurd size
        raise OSError(str(error)) from error
