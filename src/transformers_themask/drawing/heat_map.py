# SPDX-License-Identifier: Apache-2.0
"""Values between 0 and 1 as colours over a darkened grey frame, and the bar that explains them."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .legend import PANEL_COLOR, TEXT_COLOR, line_height_of

# Of matplotlib: perceptually uniform, begins at black and so leaves the frame alone where there is nothing to show.
COLOR_MAP = "inferno"
# How bright the frame stays: enough to recognise what is where, too little to be taken for a value.
FRAME_BRIGHTNESS = 0.4


def draw_heat_map(frame: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Show a value per pixel, clipped to 0 ... 1, as heat over a `uint8` RGB frame in dark grey."""
    if values.shape != frame.shape[:2]:
        raise ValueError(f"`values` must have the frame's size {frame.shape[:2]}. Got {values.shape}.")
    levels = (values.clip(0, 1) * np.float32(255)).round().astype(np.uint8)
    return _blended_colors()[levels, np.asarray(Image.fromarray(frame).convert("L"))]


def heat_bar(low: str, high: str, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw the colours from 0 to 1 between two texts, one line high; without the texts where `width` is too small."""
    height = line_height_of(font)
    strip = Image.new("RGB", (width, height), PANEL_COLOR[:3])
    draw = ImageDraw.Draw(strip)
    gap = height // 2
    bar_width = round(width - font.getlength(low) - font.getlength(high)) - 4 * gap
    has_texts = bar_width >= 2 * height
    left = gap + round(font.getlength(low)) + gap if has_texts else gap
    right = left + bar_width if has_texts else width - gap
    if has_texts:
        draw.text((gap, height // 2), low, fill=TEXT_COLOR[:3], font=font, anchor="lm")
        draw.text((right + gap, height // 2), high, fill=TEXT_COLOR[:3], font=font, anchor="lm")
    levels = np.linspace(0, 255, max(1, right - left)).round().astype(np.uint8)
    bar = np.broadcast_to(_blended_colors()[levels, 0], (gap, len(levels), 3))
    strip.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, (height - gap) // 2))
    draw.rectangle((left - 1, (height - gap) // 2 - 1, right, (height + gap) // 2), outline=TEXT_COLOR[:3])
    return strip


@lru_cache(maxsize=1)
def _blended_colors() -> np.ndarray:
    """Colour for every value and every brightness of the frame: `(256, 256, 3)`."""
    # Loading it takes a second, which commands that draw no heat need not wait for.
    from matplotlib import colormaps

    share = np.linspace(0, 1, 256)
    heat = 255 * colormaps[COLOR_MAP](share)[:, None, :3]
    grey = FRAME_BRIGHTNESS * np.arange(256)[None, :, None] * (1 - share)[:, None, None]
    return (heat + grey).clip(0, 255).round().astype(np.uint8)
