# SPDX-License-Identifier: Apache-2.0
"""Reading of frames and label maps from image files."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from transformers_themask.files.media_files import MAX_PIXELS
from transformers_themask.models.frame_arrays import rgb_of_image

# "P" images hold ids too: their palette only says how to show them.
LABEL_MAP_MODES = ("L", "P")
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
ORIENTATION = 0x0112
UPRIGHT = (None, 1)


class DamagedFileError(OSError):
    """A file that exists but cannot be decoded; missing files, permissions and disk failures are other errors."""


def read_frame(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a frame as RGB, upright, `uint8` of shape `(height, width, 3)`; 16 bits per channel become 8."""
    with _opened_image(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        try:
            return rgb_of_image(image)
        except ValueError as error:
            raise ValueError(f"Image file {path}: {error}") from error


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the ids of a mask or a predicted label map as they are stored, `uint8` of shape `(height, width)`."""
    with _opened_image(path) as image:
        _check_label_map(image, path)
        image.load()
        _check_label_map(image, path)  # again: EXIF data may come behind the pixels
        return np.array(image)


def image_size(path: str | os.PathLike[str], is_label_map: bool = False) -> tuple[int, int]:
    """Height and width of an upright frame, or of a label map, from the file's header alone."""
    with _opened_image(path) as image:
        if is_label_map:
            _check_label_map(image, path)
        is_turned = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if is_turned else (image.height, image.width)


def _check_label_map(image: Image.Image, path: str | os.PathLike[str]) -> None:
    # Grey of 2 or 4 bits, which Pillow spreads over 0 ... 255.
    is_scaled = image.mode == "L" and any(
        str(part[3]).startswith(("L;2", "L;4")) for part in getattr(image, "tile", ())
    )
    if image.mode not in LABEL_MAP_MODES or is_scaled:
        raise ValueError(
            f"Label map {path} must be an 8-bit single-channel image of ids (mode L or P). Got mode "
            f"{image.mode}{' of less than 8 bits' if is_scaled else ''}; save the ids themselves, not their colours."
        )
    if image.format in LOSSY_FORMATS:
        raise ValueError(
            f"Label map {path} must be stored without loss, as PNG. Got {image.format}, which changes ids."
        )
    if _orientation(image) not in UPRIGHT:
        raise ValueError(
            f"Label map {path} must be stored upright. Got the EXIF orientation {_orientation(image)}; turn the ids "
            "and remove it."
        )


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation as far as it has been read: Pillow decodes a PNG to look for it behind the pixels."""
    is_read = image.format != "PNG" or "exif" in image.info
    return image.getexif().get(ORIENTATION) if is_read else None


@contextmanager
def _opened_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image; errors while opening it, or decoding it inside the `with` block, name the file."""
    try:
        with _open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"Image file {path} must exist; check the data folder.") from None
    except (OSError, SyntaxError) as error:  # Pillow reports a damaged PNG as either
        # The system's own errors have a number, a decoder's have none.
        kind = DamagedFileError if getattr(error, "errno", None) is None else OSError
        raise kind(f"Image file {path} must be readable. Got: {error}. Replace the broken file.") from error


def _open(path: str | os.PathLike[str]) -> Image.Image:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "not a regular file")
    try:
        image = Image.open(path)
    except (ValueError, Image.DecompressionBombError) as error:  # a header cut short, or with an absurd size
        raise OSError(str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise OSError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
    return image
