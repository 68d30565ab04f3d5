# SPDX-License-Identifier: Apache-2.0
"""Check of a split's files before a run, so that a bad file does not end it after hours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers.utils import logging

from .frame_checks import check_frame_size, check_mask_size
from .images import DamagedFileError
from .labelled_videos import LabelledVideos
from .skip_list import SKIP_FILE
from .video_file import is_video_frame

logger = logging.get_logger(__name__)

# Of a larger split a random sample is checked: opening every file of VSPW's training split would take minutes.
MAX_CHECKED_FRAMES = 20_000
REMEDY = f"`themask data check` lists all such files, and frames named in {SKIP_FILE} are left out."


def check_files(
    videos: LabelledVideos,
    *,
    max_frames: int | None = None,
    seed: int = 0,
    progress: bool = False,
    allow_damaged: bool = False,
    decode: bool = False,
) -> None:
    """Check the headers of a split's files, and the ids of the first and last mask of each video.

    Of a video file one frame is decoded. `max_frames` are drawn at random. With `allow_damaged` a file that cannot be
    decoded gives a warning, for a run that replaces clips. `decode` reads frames and all ids, for a split that is
    first read in full at the end of a training. Raises `ValueError` for a wrong file, `OSError` for an unreadable one.
    """
    num_frames = videos.num_frames
    is_checked = np.ones(num_frames, dtype=bool)
    if max_frames is not None and num_frames > max_frames:
        is_checked[max_frames:] = False
        np.random.default_rng(seed).shuffle(is_checked)
    start = 0
    with logging.tqdm(total=num_frames, desc="Checking files", unit="frame", disable=not progress) as bar:
        for row in videos.rows:
            checked = np.flatnonzero(is_checked[start : start + row["num_frames"]]).tolist()
            try:
                _check_video(videos, row, checked)
                for index in checked if decode else ():
                    videos.read_frame(row, index)
                    videos.read_mask(row, index)
            except DamagedFileError as error:
                if not allow_damaged:
                    raise DamagedFileError(f"{error} {REMEDY}") from error
                logger.warning(f"{error} Clips that need it are replaced by others. {REMEDY}")
            start += row["num_frames"]
            bar.update(row["num_frames"])


def _check_video(videos: LabelledVideos, row: Mapping[str, Any], indices: list[int]) -> None:
    """Check the headers of some frames of one video, and the ids of its first and last mask."""
    # All frames of a video file have one size.
    sized = indices[:1] if indices and is_video_frame(row["frames"][0]) else indices
    sizes = {index: videos.frame_size(row, index) for index in sized}
    for index in indices:
        first, size = indices[0], sizes.get(index, sizes[indices[0]])
        check_frame_size(size, videos.root / row["frames"][index], sizes[first], videos.root / row["frames"][first])
        labelled_size = videos.mask_size(row, index)
        if labelled_size is not None:
            check_mask_size(labelled_size, videos.root / row["masks"][index], size)
    labelled = [index for index, mask in enumerate(row["masks"]) if mask]
    for index in {*labelled[:1], *labelled[-1:]}:
        videos.read_mask(row, index)
