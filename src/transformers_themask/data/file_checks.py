# SPDX-License-Identifier: Apache-2.0
"""What the files of a data set must satisfy: every mask fits its frame and holds known ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .images import DamagedFileError
from .skip_list import SKIP_FILE
from .video_file import is_video_frame

if TYPE_CHECKING:
    from .labelled_videos import LabelledVideos

logger = logging.get_logger(__name__)

VOID_ID = 255
# Of a larger split a sample is checked: opening every file of VSPW's training split would take minutes.
MAX_CHECKED_FRAMES = 20_000
REMEDY = f"`themask data check` lists all such files, and frames named in {SKIP_FILE} are left out."


def check_files(
    videos: "LabelledVideos",
    *,
    max_frames: int | None = None,
    seed: int = 0,
    progress: bool = False,
    allow_damaged: bool = False,
    decode: bool = False,
) -> None:
    """Look over a split before a run, so that the run does not end at a bad file after hours.

    The headers tell whether files can be opened, are of the right kind, and of one size per video. Ids are looked at
    in the first and the last mask of each video only; whoever reads a mask later checks all of it again. Of a video
    file one frame is decoded.

    Args:
        videos ([`LabelledVideos`]): The split.
        max_frames (`int`, *optional*): How many frames to open at most, drawn at random; all by default.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
        allow_damaged (`bool`, *optional*, defaults to `False`): Whether a file that cannot be decoded gives a warning
            in place of the error, for a run that draws another clip when it meets one.
        decode (`bool`, *optional*, defaults to `False`): Whether to decode the frames and look at the ids of their
            masks as well, for a split that is read to the end after a training.

    Raises:
        ValueError: For a file of the wrong kind, size or content.
        OSError: For a file that cannot be read.
    """
    num_frames = videos.num_frames
    is_checked = np.ones(num_frames, dtype=bool)
    if max_frames is not None and num_frames > max_frames:
        is_checked[max_frames:] = False
        np.random.default_rng(seed).shuffle(is_checked)
    start = 0
    with logging.tqdm(total=num_frames, desc="Checking files", unit="frame", disable=not progress) as bar:
        for row in videos.rows:
            checked = np.flatnonzero(is_checked[start : start + row["num_frames"]])
            try:
                _check_video(videos, row, checked.tolist())
                if decode:
                    _decode_video(videos, row, checked.tolist())
            except DamagedFileError as error:
                if not allow_damaged:
                    raise DamagedFileError(f"{error} {REMEDY}") from error
                logger.warning(f"{error} Clips that need it are replaced by others. {REMEDY}")
            start += row["num_frames"]
            bar.update(row["num_frames"])


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


def check_label_ids(mask: np.ndarray, num_labels: int, path: Path) -> None:
    """Raise a `ValueError` unless a mask holds raw ids of the classes, or void."""
    wrong = id_out_of_range(mask, num_labels)
    if wrong is not None:
        raise ValueError(
            f"Mask {path} must hold raw ids from 0 to {num_labels} (0 is void) or {VOID_ID}. Got {wrong}; correct the "
            "mask or the list of classes."
        )


def check_mapped_ids(stored: np.ndarray, ids: np.ndarray, num_labels: int, path: Path) -> None:
    """Raise a `ValueError` unless the values of a mask file stand for classes, or void.

    Args:
        stored (`np.ndarray` of shape `(height, width)`): What the file holds.
        ids (`np.ndarray` of shape `(height, width)`): The raw ids that it stands for.
        num_labels (`int`): Number of classes.
        path (`Path`): The file.
    """
    wrong = id_out_of_range(ids, num_labels)
    if wrong is not None:
        raise ValueError(
            f"Mask {path} must hold values that stand for one of the {num_labels} classes or for void. Got "
            f"{stored[ids == wrong].max()}; correct the mask or the list of classes."
        )


def id_out_of_range(ids: np.ndarray, highest: int) -> int | None:
    """Return the highest id above `highest` that is not 255 (void), or `None`."""
    is_wrong = (ids > highest) & (ids != VOID_ID)
    return int(ids[is_wrong].max()) if is_wrong.any() else None


def _check_video(videos: "LabelledVideos", row: Mapping[str, Any], indices: list[int]) -> None:
    """Check the headers of some frames of one video, and the ids of its first and its last mask."""
    # All frames of a video file have one size.
    sized = indices[:1] if indices and is_video_frame(row["frames"][0]) else indices
    sizes = {index: videos.frame_size(row, index) for index in sized}
    for index in indices:
        first, size = indices[0], sizes.get(index, sizes[indices[0]])
        frame, first_frame = videos.root / row["frames"][index], videos.root / row["frames"][first]
        check_frame_size(size, frame, sizes[first], first_frame)
        labelled_size = videos.mask_size(row, index)
        if labelled_size is not None:
            check_mask_size(labelled_size, videos.root / row["masks"][index], size)
    labelled = [index for index, mask in enumerate(row["masks"]) if mask]
    for index in {*labelled[:1], *labelled[-1:]}:
        videos.read_mask(row, index)


def _decode_video(videos: "LabelledVideos", row: Mapping[str, Any], indices: list[int]) -> None:
    for index in indices:
        videos.read_frame(row, index)
        videos.read_mask(row, index)
