# SPDX-License-Identifier: Apache-2.0
"""Two models on the same video."""

from collections.abc import Iterator

import numpy as np

from transformers_themask.models.protocols import PreparedFrame, SegmentedClip
from transformers_themask.models.streaming import VideoSession

PreparedPair = tuple[PreparedFrame, PreparedFrame]
ClipOfOne = tuple[int, SegmentedClip]


class PairedSession:
    """A session that labels every frame with two models.

    A frame's label map has the shape `(2, height, width)`. It comes when both models have answered; at most the frames
    of the longer of their blocks are held back.
    """

    def __init__(self, first: VideoSession, second: VideoSession):
        self._sessions = (first, second)
        self.max_held_frames = max(first.max_held_frames, second.max_held_frames)
        self.reset()

    def reset(self) -> None:
        """Drop all state: the next frame is the first of a video."""
        self._label_maps: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
        for session in self._sessions:
            session.reset()

    def prepare(self, frame: np.ndarray) -> PreparedPair:
        """Turn one frame into the input of both models."""
        first, second = self._sessions
        return first.prepare(frame), second.prepare(frame)

    def advance(self, prepared: PreparedPair | None) -> Iterator[ClipOfOne]:
        """Run both models as far as the next frame allows, or for `None` to the end."""
        for position, session in enumerate(self._sessions):
            for clip in session.advance(None if prepared is None else prepared[position]):
                yield position, clip

    def label(self, clip: ClipOfOne) -> list[tuple[int, np.ndarray]]:
        """The pairs of label maps that a clip completes; in one thread, in order."""
        position, outputs = clip
        self._label_maps[position].update(self._sessions[position].label(outputs))
        complete = sorted(self._label_maps[0].keys() & self._label_maps[1].keys())
        return [(index, np.stack([label_maps.pop(index) for label_maps in self._label_maps])) for index in complete]
