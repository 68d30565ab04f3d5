# SPDX-License-Identifier: Apache-2.0
"""A video written again with the class colours on top."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from transformers_themask.drawing.visualization import RecentClasses, check_alpha, draw_contours, draw_legend, overlay
from transformers_themask.videos.source import DEFAULT_FRAME_RATE, FrameSource
from transformers_themask.videos.video_writer import VideoWriter, check_mp4_path

from .sink import LabelledFrame

# A class that vanishes keeps its place in the legend for this long.
LEGEND_HOLD_SECONDS = 2
# In pictures with a shorter side than this, readable names would cover too much and few would fit.
MIN_LEGEND_SIDE = 200


class OverlayVideo:
    """Sink that writes the video again with the class colours on top, with the source's size, times and sound.

    Args:
        path (`str` or `Path`):
            The mp4 file to write; its folder is made if needed.
        source ([`FrameSource`]):
            Where the frames come from: gives frame rate, unit of time and sound.
        class_names (`Sequence[str]`):
            Name of each class.
        palette (`np.ndarray` of shape `(num_classes, 3)`):
            RGB colour of each class.
        alpha (`float`, *optional*, defaults to 0.5):
            Opacity of the colours, outlined at full opacity; 0 leaves the frames as they are.
        legend (`bool`, *optional*, defaults to `True`):
            Whether to name the colours along the bottom edge of pictures whose sides have at least 200 pixels.
        cut_sound (`bool`, *optional*, defaults to `False`):
            Whether the sound ends with the last frame, because the source is not read to its end.

    Attributes:
        has_legend (`bool`): Whether the frames name their colours.
    """

    def __init__(
        self,
        path: str | Path,
        source: FrameSource,
        class_names: Sequence[str],
        palette: np.ndarray,
        *,
        alpha: float = 0.5,
        legend: bool = True,
        cut_sound: bool = False,
    ):
        check_mp4_path(Path(path))
        check_alpha(alpha)
        self.path = Path(path)
        self.has_legend = False
        self._source = source
        self._frame_rate = source.frame_rate or DEFAULT_FRAME_RATE
        self._class_names = class_names
        self._palette = palette
        self._alpha = alpha
        self._legend = legend
        self._cut_sound = cut_sound
        self._recent_classes = RecentClasses(round(LEGEND_HOLD_SECONDS * self._frame_rate))
        self._seen_classes: set[int] = set()
        self._end = Fraction(0)
        self._writer: VideoWriter | None = None

    @property
    def class_colors(self) -> dict[str, str]:
        """Colour, as `#rrggbb`, of each class that has occurred, in order of class index."""
        seen = sorted(index for index in self._seen_classes if index < len(self._class_names))
        return {self._class_names[index]: "#" + bytes(self._palette[index]).hex() for index in seen}

    def write(self, frame: LabelledFrame) -> None:
        """Draw the next frame and write it."""
        if self._writer is None:
            self._writer = self._open()
        self._writer.write(self._draw(frame), frame.time)
        self._end = frame.time + 1 / self._frame_rate

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            end = self._end if self._source.end is None else self._source.end
            self._writer.close(sound_until=end if self._cut_sound else None, end=end)

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        if self._writer is not None:
            self._writer.abandon()

    def _open(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        audio_from = self._source.path if self._source.has_audio else None
        return VideoWriter(self.path, self._frame_rate, self._source.time_base, audio_from)

    def _draw(self, frame: LabelledFrame) -> np.ndarray:
        shown_classes = self._recent_classes.update(frame.label_map)
        self._seen_classes.update(shown_classes)
        picture = overlay(frame.picture, frame.label_map, self._palette, self._alpha)
        if self._alpha > 0:
            picture = draw_contours(picture, frame.label_map, self._palette)
        self.has_legend = self._legend and min(frame.label_map.shape) >= MIN_LEGEND_SIDE
        if self.has_legend:
            picture = draw_legend(picture, shown_classes, self._class_names, self._palette)
        return picture
