# SPDX-License-Identifier: Apache-2.0
"""Frames and masks from image files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image


def read_frame(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a frame as RGB, `uint8` of shape `(height, width, 3)`."""
    with _opened_image(path) as image:
        return np.array(image.convert("RGB"))


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mask's raw label ids, `uint8` of shape `(height, width)`."""
    with _opened_image(path) as image:
        if image.mode != "L":
            raise ValueError(
                f"Mask {path} must be an 8-bit single-channel image of label ids (mode L). Got mode {image.mode}; "
                "save the ids themselves, not their colours."
            )
        return np.array(image)


@contextmanager
def _opened_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open and decode an image; every failure to do so names the file."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"Image file {path} must exist. Got no such file; check the data folder.") from None
    except (OSError, SyntaxError) as error:
        raise OSError(f"Image file {path} must be readable. Got: {error}. Replace the broken file.") from error
    with image:
        yield image
