# SPDX-License-Identifier: Apache-2.0
"""Rules for the frames and masks of a data set: one frame size per video, masks that fit, known label ids."""

from pathlib import Path

import numpy as np

VOID_ID = 255


def check_frame_size(size: tuple[int, ...], path: Path, first_size: tuple[int, ...], first_path: Path) -> None:
    """Raise a `ValueError` unless a frame has the size of another one of its video."""
    if size != first_size:
        raise ValueError(
            f"All frames of a video must have one size (height, width). Got {size} for {path} after {first_size} for "
            f"{first_path}."
        )


def check_mask_size(size: tuple[int, ...], path: Path, size_of_frame: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless a mask has the size of its frame."""
    if size != size_of_frame:
        raise ValueError(
            f"Mask {path} must have its frame's size (height, width) {size_of_frame}. Got {size}; replace the mask or "
            "the frame."
        )


def check_label_ids(ids: np.ndarray, stored: np.ndarray, num_labels: int, path: Path) -> None:
    """Raise a `ValueError` unless the raw `ids` of a mask, `stored` as other values or as they are, are known."""
    wrong = id_out_of_range(ids, num_labels)
    if wrong is not None:
        allowed = f"raw ids from 0 to {num_labels} (0 is void) or {VOID_ID}"
        if stored is not ids:
            allowed = f"values that stand for one of the {num_labels} classes or for void"
        raise ValueError(
            f"Mask {path} must hold {allowed}. Got {stored[ids == wrong].max()}; correct the mask or the list of "
            "classes."
        )


def id_out_of_range(ids: np.ndarray, highest: int) -> int | None:
    """Return the highest id above `highest` that is not 255 (void), or `None`."""
    is_wrong = (ids > highest) & (ids != VOID_ID)
    return int(ids[is_wrong].max()) if is_wrong.any() else None
