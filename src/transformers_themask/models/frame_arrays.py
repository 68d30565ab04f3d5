# SPDX-License-Identifier: Apache-2.0
"""Frames as `uint8` RGB arrays: one rule for pictures of any mode and depth."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def rgb_of_image(image: Image.Image) -> np.ndarray:
    """An image as `uint8` RGB of shape `(height, width, 3)`.

    16 bits of grey become 8 by division by 257; transparency is dropped. Raises a `ValueError` for 32-bit integers and
    floats, of which nothing says which value is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        levels = np.asarray(image).astype(np.uint32)
        grey = ((levels + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"a picture must have 8 or 16 bits per channel. Got mode {image.mode}, 32 bits; save it with 8 or 16."
        )
    return np.array(image.convert("RGB"))


def rgb_array(frame: Any) -> np.ndarray:
    """One frame as a `uint8` RGB array `(height, width, 3)`.

    `frame` is such an array, a `uint8` tensor of shape `(3, height, width)`, or an image of 8 or 16 bits per channel.
    Raises a `ValueError` for anything else.
    """
    if isinstance(frame, Image.Image):
        return rgb_of_image(frame)
    if isinstance(frame, Tensor) and frame.ndim == 3 and frame.shape[0] == 3:
        frame = frame.permute(1, 2, 0).cpu().numpy()
    is_picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not is_picture or frame.shape[2] != 3 or 0 in frame.shape:
        kind = f"{frame.dtype} of shape {tuple(frame.shape)}" if hasattr(frame, "dtype") else type(frame).__name__
        raise ValueError(
            "A frame must be a PIL image, a uint8 array of shape (height, width, 3) or a uint8 tensor of shape "
            f"(3, height, width). Got {kind}; values from 0 to 1 become uint8 as "
            "`(255 * frame).round().astype(np.uint8)`."
        )
    return frame
