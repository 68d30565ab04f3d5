# SPDX-License-Identifier: Apache-2.0
"""Samplers of training clips: which frames of a video, by their positions in its sorted list, form a clip.

`frame_offsets` are relative to the last frame, the target, which always has labels: `(-9, -6, -3, 0)` for example.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrameSampler(ABC):
    """Draws the frames of training clips; `frame_offsets` are the largest ones if they vary."""

    frame_offsets: tuple[int, ...]

    def __post_init__(self):
        offsets = self.frame_offsets
        if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets)):
            raise ValueError(
                f"`frame_offsets` must increase strictly and end with 0. Got {offsets}; "
                "four frames three apart are (-9, -6, -3, 0), a single frame is (0,)."
            )

    @property
    def min_video_frames(self) -> int:
        """Smallest number of frames of a video that holds a clip."""
        return 1 - self.frame_offsets[0]

    @abstractmethod
    def has_clip(self, num_video_frames: int, labelled: Sequence[int]) -> bool:
        """Whether a video holds a clip; `labelled` are the increasing indices of its frames with labels."""

    def draw(self, num_video_frames: int, labelled: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw frame indices, in the order in which the model sees them; an error if the video holds no clip."""
        if not self.has_clip(num_video_frames, labelled):
            raise ValueError(
                f"`num_video_frames` must be at least {self.min_video_frames} for the frame offsets "
                f"{self.frame_offsets}, with a labelled frame that many from the start or the end. Got "
                f"{num_video_frames} frames, {len(labelled)} of them labelled; use smaller offsets or leave the video "
                "out."
            )
        return self._draw(num_video_frames, labelled, rng)

    @abstractmethod
    def _draw(self, num_video_frames: int, labelled: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw a clip of a video that holds one."""


class OffsetSampler(FrameSampler):
    """Frames at fixed offsets from a uniformly drawn target; with probability 0.5 time runs backwards.

    Where only one direction of time has enough frames before a labelled one, it is taken.
    """

    def has_clip(self, num_video_frames: int, labelled: Sequence[int]) -> bool:  # noqa: D102
        return any(map(len, self._targets(num_video_frames, labelled)))

    def _draw(self, num_video_frames: int, labelled: Sequence[int], rng: np.random.Generator) -> list[int]:
        targets = self._targets(num_video_frames, labelled)
        is_reversed = rng.random() < 0.5
        if len(targets[is_reversed]) == 0:
            is_reversed = not is_reversed
        target = int(targets[is_reversed][rng.integers(len(targets[is_reversed]))])
        clip = [target + offset for offset in self.frame_offsets]
        return [num_video_frames - 1 - index for index in clip] if is_reversed else clip

    def _targets(self, num_video_frames: int, labelled: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Positions of possible targets in the video, and in the video played backwards (its last frame is 0)."""
        forwards = np.asarray(labelled, dtype=np.intp)
        backwards = num_video_frames - 1 - forwards[::-1]
        first = self.min_video_frames - 1
        return forwards[forwards >= first], backwards[backwards >= first]


class PairSampler(FrameSampler):
    """Two frames at a random distance: one drawn uniformly, then another around it; the later one is the target.

    As in the released code of MPVSS; the paper (section 3.4) asks for a distance from 1 to the largest one.
    """

    def __post_init__(self):
        super().__post_init__()
        if len(self.frame_offsets) != 2:
            raise ValueError(
                "`frame_offsets` must have two entries for clips of two frames at a random distance. Got "
                f"{self.frame_offsets}; up to ten frames apart is (-10, 0)."
            )

    @property
    def min_video_frames(self) -> int:
        """Smallest number of frames of a video that holds a clip."""
        return 2

    def has_clip(self, num_video_frames: int, labelled: Sequence[int]) -> bool:  # noqa: D102
        return len(labelled) > 0 and labelled[-1] > 0

    def _draw(self, num_video_frames: int, labelled: Sequence[int], rng: np.random.Generator) -> list[int]:
        max_distance = -self.frame_offsets[0]
        while True:
            one = int(rng.integers(num_video_frames))
            other = int(rng.integers(max(0, one - max_distance), min(num_video_frames - 1, one + max_distance)))
            other += other >= one
            if max(one, other) in labelled:
                return [min(one, other), max(one, other)]


# By the name that a model's configuration gives as `clip_sampler`.
SAMPLERS: dict[str, type[FrameSampler]] = {"offsets": OffsetSampler, "pair": PairSampler}


def frame_sampler(name: str, frame_offsets: Sequence[int]) -> FrameSampler:
    """Build a sampler by its name: `"offsets"` for fixed distances, `"pair"` for two frames at a random one."""
    if name not in SAMPLERS:
        raise ValueError(f"`clip_sampler` must be one of {', '.join(SAMPLERS)}. Got {name!r}.")
    return SAMPLERS[name](tuple(frame_offsets))
