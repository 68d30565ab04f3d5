# SPDX-License-Identifier: Apache-2.0
"""A video written again with the class colours on top."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformers_themask.drawing.visualization import RecentClasses, draw_legend
from transformers_themask.videos.source import FrameSource

from .drawn_video import DrawnVideo, colored
from .sink import LabelledFrame

# In pictures with a shorter side than this, readable names would cover too much and few would fit.
MIN_LEGEND_SIDE = 200


class OverlayVideo(DrawnVideo):
    """Sink that writes the video again with the class colours on top, with the source's size, times and sound.

    Args:
        class_names: Name of each class.
        palette (`(num_classes, 3)`): RGB colour of each class.
        legend: Whether to name the colours along the bottom edge of pictures whose sides have at least 200 pixels;
            `has_legend` tells whether the frames do.
        path, source, alpha, cut_sound, argument: As in [`DrawnVideo`].
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
        argument: str = "path",
    ):
        super().__init__(path, source, alpha, cut_sound, argument)
        self.has_legend = False
        self._class_names = class_names
        self._palette = palette
        self._legend = legend
        self._recent_classes = RecentClasses(self._hold_frames)
        self._seen_classes: set[int] = set()

    @property
    def class_colors(self) -> dict[str, str]:
        """Colour, as `#rrggbb`, of each class that has occurred, in order of class index."""
        seen = sorted(index for index in self._seen_classes if index < len(self._class_names))
        return {self._class_names[index]: "#" + bytes(self._palette[index]).hex() for index in seen}

    def _draw(self, frame: LabelledFrame) -> np.ndarray:
        shown_classes = self._recent_classes.update(frame.label_map)
        self._seen_classes.update(shown_classes)
        picture = colored(frame.picture, frame.label_map, self._palette, self._alpha)
        self.has_legend = self._legend and min(frame.label_map.shape) >= MIN_LEGEND_SIDE
        if self.has_legend:
            picture = draw_legend(picture, shown_classes, self._class_names, self._palette)
        return picture
