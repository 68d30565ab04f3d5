# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video form a clip: pure functions of the video's length.

Frame indices are positions in a video's sorted list of frames, not seconds. `frame_offsets` are relative to the
clip's last frame, the target: `(-9, -6, -3, 0)` is a clip of four frames, three apart.
"""

import itertools
from collections.abc import Sequence

import numpy as np


def check_frame_offsets(frame_offsets: Sequence[int]) -> None:
    """Raise a `ValueError` unless the offsets increase strictly and end with 0, the target frame."""
    offsets = list(frame_offsets)
    is_increasing = all(earlier < later for earlier, later in itertools.pairwise(offsets))
    if not offsets or offsets[-1] != 0 or not is_increasing:
        raise ValueError(
            f"`frame_offsets` must increase strictly and end with 0. Got {tuple(offsets)}; "
            "four frames three apart are (-9, -6, -3, 0), a single frame is (0,)."
        )


def required_video_frames(frame_offsets: Sequence[int]) -> int:
    """Smallest number of frames a video needs to hold one clip with these offsets."""
    check_frame_offsets(frame_offsets)
    return 1 - frame_offsets[0]


def target_candidates(
    num_video_frames: int, frame_offsets: Sequence[int], labelled: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which labelled frames can end a clip, in the order in which the drawn direction of time meets them.

    Args:
        num_video_frames (`int`): Number of frames of the video.
        frame_offsets (`Sequence[int]`): Offsets of the clip's frames from its last frame; they end with 0.
        labelled (`Sequence[int]`): Increasing indices of the frames that have labels.

    Returns:
        Positions in the video as it is, and in the video played backwards, where its last frame has position 0.
    """
    num_required = required_video_frames(frame_offsets)
    forwards = np.asarray(labelled, dtype=np.intp)
    backwards = num_video_frames - 1 - forwards[::-1]
    return forwards[forwards >= num_required - 1], backwards[backwards >= num_required - 1]


def sample_clip(
    num_video_frames: int,
    frame_offsets: Sequence[int],
    rng: np.random.Generator,
    labelled: Sequence[int] | None = None,
) -> list[int]:
    """Draw one training clip: with probability 0.5 time runs backwards, the target frame is uniform.

    Args:
        num_video_frames (`int`): Number of frames of the video.
        frame_offsets (`Sequence[int]`): Offsets of the clip's frames from its last frame; they end with 0.
        rng (`np.random.Generator`): Source of the two draws.
        labelled (`Sequence[int]`, *optional*): Increasing indices of the frames that have labels, hence can be the
            target; all by default. Where only one direction of time has enough frames before a labelled one, it is
            taken.

    Returns:
        `list[int]`: Frame indices in the order in which the model sees them.
    """
    labelled = range(num_video_frames) if labelled is None else labelled
    candidates = target_candidates(num_video_frames, frame_offsets, labelled)
    if not any(map(len, candidates)):
        raise ValueError(
            f"`num_video_frames` must be at least {required_video_frames(frame_offsets)} for the frame offsets "
            f"{tuple(frame_offsets)}, with a labelled frame that many from the start or the end. Got "
            f"{num_video_frames} frames, {len(labelled)} of them labelled; use smaller offsets or leave the video out."
        )
    is_reversed = rng.random() < 0.5
    if len(candidates[is_reversed]) == 0:
        is_reversed = not is_reversed
    target = int(candidates[is_reversed][rng.integers(len(candidates[is_reversed]))])
    clip = [target + offset for offset in frame_offsets]
    return [num_video_frames - 1 - index for index in clip] if is_reversed else clip


def sample_pair(
    num_video_frames: int, max_distance: int, rng: np.random.Generator, labelled: Sequence[int] | None = None
) -> list[int]:
    """Draw a training clip of two frames: one uniformly, then another around it; the later one is the target.

    As the released code of MPVSS does; the paper (section 3.4) asks for a distance from 1 to `max_distance`.

    Args:
        num_video_frames (`int`): Number of frames of the video.
        max_distance (`int`): Largest distance of the two frames.
        rng (`np.random.Generator`): Source of the draws.
        labelled (`Sequence[int]`, *optional*): Increasing indices of the frames that have labels, hence can be the
            target; all by default.

    Returns:
        `list[int]`: The two frame indices, the earlier one first.

    Raises:
        ValueError: If there is no labelled frame after the first one.
    """
    labelled = range(num_video_frames) if labelled is None else labelled
    if len(labelled) == 0 or labelled[-1] == 0:
        raise ValueError(
            "`num_video_frames` must be at least 2, with a labelled frame after the first one. Got "
            f"{num_video_frames} frames, the labelled ones at {list(labelled)}. Leave the video out."
        )
    while True:
        one = int(rng.integers(num_video_frames))
        other = int(rng.integers(max(0, one - max_distance), min(num_video_frames - 1, one + max_distance)))
        other += other >= one
        if max(one, other) in labelled:
            return [min(one, other), max(one, other)]
