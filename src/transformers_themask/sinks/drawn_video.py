# SPDX-License-Identifier: Apache-2.0
"""A video written again as pictures of its labelled frames."""

from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path

import numpy as np

from transformers_themask.drawing.visualization import check_alpha, draw_contours, overlay
from transformers_themask.files.file_names import check_suffix
from transformers_themask.videos.source import DEFAULT_FRAME_RATE, FrameSource
from transformers_themask.videos.video_writer import VideoWriter

from .sink import LabelledFrame

# A class that vanishes keeps its place in the legend for this long.
LEGEND_HOLD_SECONDS = 2


class DrawnVideo(ABC):
    """Sink that writes a picture of each frame, with the source's times, length and sound.

    A subclass says in `_draw` what the picture is.

    Args:
        path: The mp4 file to write; its folder is made if needed.
        source: Where the frames come from: gives frame rate, unit of time, end and sound.
        alpha: Opacity of the colours, outlined at full opacity; 0 leaves the frames as they are.
        cut_sound: Whether the sound ends with the last frame, because the source is not read to its end.
        argument: Name of the argument that gives the path, for the errors.
    """

    def __init__(
        self,
        path: str | Path,
        source: FrameSource,
        alpha: float = 0.5,
        cut_sound: bool = False,
        argument: str = "path",
    ):
        self.path = Path(path)
        check_suffix(self.path, (".mp4",), argument)
        check_alpha(alpha)
        self._source = source
        self._frame_rate = source.frame_rate or DEFAULT_FRAME_RATE
        self._hold_frames = round(LEGEND_HOLD_SECONDS * self._frame_rate)
        self._alpha = alpha
        self._cut_sound = cut_sound
        self._end = Fraction(0)
        self._writer: VideoWriter | None = None

    def write(self, frame: LabelledFrame) -> None:
        """Draw the next frame and write it."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            audio_from = self._source.path if self._source.has_audio else None
            self._writer = VideoWriter(self.path, self._frame_rate, self._source.time_base, audio_from)
        self._writer.write(self._draw(frame), frame.time)
        self._end = frame.time + 1 / self._frame_rate if frame.end is None else frame.end

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close(sound_until=self._end if self._cut_sound else None, end=self._end)

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        if self._writer is not None:
            self._writer.abandon()

    @abstractmethod
    def _draw(self, frame: LabelledFrame) -> np.ndarray:
        """Turn a frame into a `uint8` RGB picture; called once for each, in order, and all pictures have one size."""


def colored(picture: np.ndarray, label_map: np.ndarray, palette: np.ndarray, alpha: float) -> np.ndarray:
    """A picture with the class colours on top, outlined at full opacity; with `alpha` 0 the picture."""
    blended = overlay(picture, label_map, palette, alpha)
    return draw_contours(blended, label_map, palette) if alpha > 0 else blended
