# SPDX-License-Identifier: Apache-2.0
"""Flicker of labels between frames: its places, and its share of the pixels."""

import numpy as np
from PIL import Image, ImageFont

from .heat_map import draw_heat_map, heat_bar

# Frames after which a change counts half.
HALF_LIFE = 8
# The share of changes that gets the hottest colour; a pixel that changes now and then has to be seen, too.
HOTTEST_SHARE = 0.5


class FlickerMap:
    """How often each pixel's label changed between consecutive frames lately, and what share of the pixels changes.

    A change is any: that of a pixel an object moves over as well as that of one which wavers. Two models on the same
    video share the former. After `half_life` frames a change counts half in the map.

    Attributes:
        change_rate `(height, width)`: Exponentially weighted share of frames whose label differs from the one before;
            before the video begins nothing changes. `None` before the first frame.
        last_changed_share: Share of the pixels whose label differs from the frame before; `None` before the second.
        num_steps: How many pairs of consecutive frames there were.
    """

    def __init__(self, half_life: float = HALF_LIFE):
        if not half_life > 0:
            raise ValueError(f"`half_life` must be positive. Got {half_life}.")
        self._decay = np.float32(0.5 ** (1 / half_life))
        self._last_label_map: np.ndarray | None = None
        self._sum_of_shares = 0.0
        self.change_rate: np.ndarray | None = None
        self.last_changed_share: float | None = None
        self.num_steps = 0

    @property
    def mean_changed_share(self) -> float | None:
        """Mean of `last_changed_share` over the video so far; `None` before the second frame."""
        return self._sum_of_shares / self.num_steps if self.num_steps else None

    def update(self, label_map: np.ndarray) -> None:
        """Take in the next frame's label map `(height, width)`, of one size for the whole video."""
        if self._last_label_map is None or self.change_rate is None:
            self.change_rate = np.zeros(label_map.shape, dtype=np.float32)
        elif label_map.shape != self._last_label_map.shape:
            raise ValueError(
                f"`label_map` must have the size of the one before, {self._last_label_map.shape}. Got "
                f"{label_map.shape}."
            )
        else:
            has_changed = label_map != self._last_label_map
            self.change_rate *= self._decay
            self.change_rate[has_changed] += 1 - self._decay
            self.last_changed_share = float(has_changed.mean())
            self._sum_of_shares += self.last_changed_share
            self.num_steps += 1
        self._last_label_map = label_map

    def draw(self, frame: np.ndarray) -> np.ndarray:
        """Draw the map as heat over the last frame, `uint8` RGB, in dark grey; [`flicker_bar`] explains the colours.

        The frame may have been made smaller than its label map.
        """
        if self.change_rate is None:
            raise ValueError("`update` must be called with a label map before `draw`.")
        heat = self.change_rate / np.float32(HOTTEST_SHARE)
        height, width = frame.shape[:2]
        if heat.shape != (height, width):
            heat = np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))
        return draw_heat_map(frame, heat)


def flicker_bar(width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw what the colours of a [`FlickerMap`] mean, as [`heat_bar`] does."""
    return heat_bar("label never changes", f"in {100 * HOTTEST_SHARE:.0f} % or more of the last frames", width, font)
