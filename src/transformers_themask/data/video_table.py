# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set, one per video: built from file names by every layout and kept as a table in memory."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .image_folder import check_stems, file_stem
from .skip_list import SKIP_FILE, read_skip_list, without_skipped

if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

# Mask path of a frame without labels.
UNLABELLED = ""
Classes = tuple[list[str], np.ndarray | None]
# Id of every video of a split, and the function that reads its row, or raises where the video cannot be listed.
Listing = Iterable[tuple[str, Callable[[], dict[str, Any]]]]


def video_table(listing: Listing, root: Path) -> "datasets.Dataset":
    """Rows of a split, in columns `video_id`, `num_frames`, `frames` and `masks`, without those in the skip list."""
    import datasets  # slow to import, and needed for data sets only

    rows, skipped = kept_rows(listing, root)
    if skipped is not None:
        logger.warning(skipped)
    if not rows:
        raise ValueError(f"A split must have at least one video. Got none in {root}; check the split and {SKIP_FILE}.")
    return datasets.Dataset.from_list(rows)


def kept_rows(
    listing: Listing, root: Path, on_error: Callable[[str, Exception], None] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Read the rows of a split without those in `skip.txt`, and describe how much is skipped, if anything.

    `on_error` takes the id and the error of a video that cannot be listed and is not skipped; by default it is raised.
    """
    skipped = read_skip_list(root)
    rows, num_unlisted = [], 0
    for video_id, read_row in listing:
        try:
            rows.append(read_row())
        except (ValueError, OSError) as error:
            if video_id in skipped:
                num_unlisted += 1
            elif on_error is None:
                raise
            else:
                on_error(video_id, error)
    kept = list(without_skipped(rows, skipped)) if skipped else rows
    num_frames = sum(row["num_frames"] for row in rows) - sum(row["num_frames"] for row in kept)
    if num_frames == num_unlisted == 0:
        return kept, None
    unlisted = f" and {num_unlisted} videos that cannot be listed" if num_unlisted else ""
    return kept, f"{root / SKIP_FILE} leaves out {num_frames} frames{unlisted}."


def video_row(video_id: str, frames: list[str], masks: list[str] | None) -> dict[str, Any]:
    """One row: paths of frames and masks relative to the root, `""` for a frame without a mask; `None`: no masks."""
    masks = [UNLABELLED] * len(frames) if masks is None else masks
    return {"video_id": video_id, "num_frames": len(frames), "frames": frames, "masks": masks}


def match_masks(frame_folder: Path, frames: list[str], mask_folder: Path, masks: list[str]) -> list[str]:
    """Name of the mask of every frame, found by its stem; `""` without one. Every mask must have a frame."""
    check_stems(frame_folder, frames)
    stems = [file_stem(name) for name in frames]
    mask_of_stem = {file_stem(name): name for name in masks}
    without_frame = sorted(mask_of_stem.keys() - set(stems))
    if without_frame:
        raise FileNotFoundError(
            f"Every mask in {mask_folder} must have a frame of the same stem. Got no frame for {without_frame[0]!r} "
            f"({len(without_frame)} masks without one); add the frame or remove the mask."
        )
    return [mask_of_stem.get(stem, UNLABELLED) for stem in stems]
