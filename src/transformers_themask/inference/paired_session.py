# SPDX-License-Identifier: Apache-2.0
"""Two models on the same video."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class PairedSession:
    """Two sessions that label the same video; goes wherever one goes in [`segment_video`].

    A frame's label map has the shape `(2, height, width)`. It comes when both sessions have answered; no more than the
    frames of the longer of their blocks wait.

    Args:
        first (`VideoSession`):
            The session of the first model.
        second (`VideoSession`):
            The session of the second.
    """

    def __init__(self, first: Any, second: Any):
        self._sessions = (first, second)
        # In the terms of a session: the frames that may be held back.
        self.num_frames = max(session.num_frames * session.frame_stride for session in self._sessions)
        self.frame_stride = 1
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a video."""
        self._label_maps: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = ({}, {})
        for session in self._sessions:
            session.reset()

    def prepare(self, frame: Any) -> tuple[Any, ...]:
        """Turn one frame into the input of both models."""
        return tuple(session.prepare(frame) for session in self._sessions)

    def advance(self, prepared: tuple[Any, ...] | None) -> Iterator[tuple[int, Any]]:
        """Run both models as far as the next frame allows, or for `None` to the end."""
        for position, session in enumerate(self._sessions):
            for clip in session.advance(None if prepared is None else prepared[position]):
                yield position, clip

    def label(self, clip: tuple[int, Any]) -> list[tuple[int, np.ndarray]]:
        """Turn outputs into the pairs of label maps that are complete with them; in one thread, in order."""
        position, outputs = clip
        self._label_maps[position].update(self._sessions[position].label(outputs))
        complete = sorted(self._label_maps[0].keys() & self._label_maps[1].keys())
        return [(index, np.stack([label_maps.pop(index) for label_maps in self._label_maps])) for index in complete]
