# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set, one per video: built from file names by every layout and kept as a table in memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .image_folder import check_stems, file_stem
from .skip_list import SKIP_FILE, read_skip_list, without_skipped

if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

# Mask path of a frame without labels.
UNLABELLED = ""
# Called with the id and the error of a video that cannot be listed.
OnError = Callable[[str, Exception], None]


def video_table(list_videos: Callable[[OnError], Iterable[dict[str, Any]]], root: Path) -> "datasets.Dataset":
    """List the videos of a split, without the frames and videos that `skip.txt` names.

    `list_videos`: gives rows as from [`video_row`], and hands the error of a video that cannot be listed to its
    argument. `root`: folder of the data set. Returns columns `video_id`, `num_frames`, `frames` and `masks`; paths are
    relative to `root`.
    """
    import datasets  # slow to import, and needed for data sets only

    rows, skipped = kept_rows(list_videos, root, _raise_error)
    if skipped is not None:
        logger.warning(skipped)
    if not rows:
        raise ValueError(f"A split must have at least one video. Got none in {root}; check the split and {SKIP_FILE}.")
    return datasets.Dataset.from_list(rows)


def kept_rows(
    list_videos: Callable[[OnError], Iterable[dict[str, Any]]], root: Path, on_error: OnError
) -> tuple[list[dict[str, Any]], str | None]:
    """List the videos of a split without those in `skip.txt`, and describe how much is skipped, if anything.

    Errors of skipped videos are not reported: a damaged video may be skipped because it cannot be listed.
    """
    skipped = read_skip_list(root)
    num_unlisted = 0

    def handle(video_id: str, error: Exception) -> None:
        nonlocal num_unlisted
        if video_id not in skipped:
            on_error(video_id, error)
        num_unlisted += video_id in skipped

    rows = list(list_videos(handle))
    kept = list(without_skipped(rows, skipped)) if skipped else rows
    num_frames = sum(row["num_frames"] for row in rows) - sum(row["num_frames"] for row in kept)
    if num_frames == num_unlisted == 0:
        return kept, None
    unlisted = f" and {num_unlisted} videos that cannot be listed" if num_unlisted else ""
    return kept, f"{root / SKIP_FILE} leaves out {num_frames} frames{unlisted}."


def list_rows(
    video_ids: Iterable[str], read_row: Callable[[str], dict[str, Any]], on_error: OnError
) -> Iterator[dict[str, Any]]:
    """Read one row per video; a video that cannot be listed is reported to `on_error` and left out."""
    for video_id in video_ids:
        try:
            row = read_row(video_id)
        except (ValueError, OSError) as error:
            on_error(video_id, error)
            continue
        yield row


def video_row(video_id: str, frames: list[str], masks: list[str] | None) -> dict[str, Any]:
    """One row: paths of frames and masks relative to the root, `""` for a frame without a mask; `None`: no masks."""
    masks = [UNLABELLED] * len(frames) if masks is None else masks
    return {"video_id": video_id, "num_frames": len(frames), "frames": frames, "masks": masks}


def match_masks(frame_folder: Path, frames: list[str], mask_folder: Path, masks: list[str]) -> list[str]:
    """Find the mask of every frame by its stem.

    Returns for each frame the name of its mask, `""` for a frame without one. Raises `FileNotFoundError` if a mask has
    no frame. Raises `ValueError` if two frames have one stem.
    """
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


def _raise_error(video_id: str, error: Exception) -> None:
    raise error
