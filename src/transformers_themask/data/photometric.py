# SPDX-License-Identifier: Apache-2.0
"""Photometric distortion of one frame, grey level by grey level as the reference's OpenCV pipeline.

Every step works on `uint8` and truncates, and hue has OpenCV's 180 levels: the quantisation is part of the reference
and moves a saturated pixel by up to nine grey levels, so a float implementation would not reproduce it.
"""

from dataclasses import dataclass

import numpy as np

MAX_BRIGHTNESS_SHIFT = 32.0
FACTOR_RANGE = (0.5, 1.5)
MAX_HUE_SHIFT = 18
HUE_LEVELS = 180
FIXED_POINT_BITS = 12


@dataclass(frozen=True)
class PhotometricDraw:
    """What happens to one frame; `None` leaves a property as it is.

    Args:
        brightness (`float`, *optional*): Added to every channel, in grey levels.
        contrast (`float`, *optional*): Factor on every channel.
        contrast_first (`bool`, *optional*, defaults to `True`): Whether contrast changes before the colours or last.
        saturation (`float`, *optional*): Factor on the saturation.
        hue (`int`, *optional*): Added to the hue, in steps of two degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = True
    saturation: float | None = None
    hue: int | None = None


def draw_photometric(rng: np.random.Generator) -> PhotometricDraw:
    """Draw the distortion of one frame; each property changes with probability 0.5."""
    return PhotometricDraw(
        brightness=rng.uniform(-MAX_BRIGHTNESS_SHIFT, MAX_BRIGHTNESS_SHIFT) if rng.random() < 0.5 else None,
        contrast=rng.uniform(*FACTOR_RANGE) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        saturation=rng.uniform(*FACTOR_RANGE) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-MAX_HUE_SHIFT, MAX_HUE_SHIFT)) if rng.random() < 0.5 else None,
    )


def distort_colors(frame: np.ndarray, draw: PhotometricDraw) -> np.ndarray:
    """Apply a drawn distortion: brightness, contrast (first or last), saturation, hue.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`): RGB, `uint8`.
        draw (`PhotometricDraw`): The drawn distortion.

    Returns:
        `np.ndarray`: The distorted frame, of the same shape and type.
    """
    if draw.brightness is not None:
        frame = _scale_levels(shift=draw.brightness)[frame]
    if draw.contrast is not None and draw.contrast_first:
        frame = _scale_levels(factor=draw.contrast)[frame]
    if draw.saturation is not None:
        hue, saturation, value = _rgb_to_hsv(frame)
        frame = _hsv_to_rgb(hue, _scale_levels(factor=draw.saturation)[saturation], value)
    if draw.hue is not None:
        hue, saturation, value = _rgb_to_hsv(frame)
        rotated = ((np.arange(HUE_LEVELS) + draw.hue) % HUE_LEVELS).astype(np.uint8)
        frame = _hsv_to_rgb(rotated[hue], saturation, value)
    if draw.contrast is not None and not draw.contrast_first:
        frame = _scale_levels(factor=draw.contrast)[frame]
    return frame


def _scale_levels(factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Table of `factor * level + shift` for the 256 grey levels, clipped and truncated to `uint8`."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return levels.clip(0, 255).astype(np.uint8)


def _fixed_point_reciprocals(scale: float) -> np.ndarray:
    """Table of `scale / n` in fixed point, 0 for `n = 0`."""
    denominators = np.arange(1, 256)
    reciprocals = np.rint((1 << FIXED_POINT_BITS) * scale / denominators)
    return np.concatenate([[0], reciprocals]).astype(np.int32)


def _hue_weights(offset: int) -> np.ndarray:
    """How much of the saturation a hue takes away from one channel: 0 at the channel's own hue, 1 at its opposite.

    `offset` is 5, 3, 1 for red, green, blue (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).
    """
    sixths = np.arange(HUE_LEVELS, dtype=np.float32) * np.float32(6 / HUE_LEVELS)
    fraction = sixths - np.trunc(sixths)
    rising, full, falling, none = fraction, np.ones_like(fraction), 1 - fraction, np.zeros_like(fraction)
    return np.choose((offset + sixths.astype(np.intp)) % 6, [rising, full, full, falling, none, none])


_SATURATION_RECIPROCALS = _fixed_point_reciprocals(255.0)
_HUE_RECIPROCALS = _fixed_point_reciprocals(HUE_LEVELS / 6)
_HUE_WEIGHTS = tuple(_hue_weights(offset) for offset in (5, 3, 1))


def _rgb_to_hsv(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in 0..179, saturation and value in 0..255, each `uint8` of shape `(height, width)`, rounded as by OpenCV."""
    red, green, blue = (np.ascontiguousarray(frame[..., channel]) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (FIXED_POINT_BITS - 1)
    saturation = (spread * _SATURATION_RECIPROCALS[value] + half) >> FIXED_POINT_BITS

    red, green, blue, wide_spread = (channel.astype(np.int16) for channel in (red, green, blue, spread))
    sector = np.where(value == green, blue - red + 2 * wide_spread, red - green + 4 * wide_spread)
    sector = np.where(value == red, green - blue, sector)
    hue = (sector * _HUE_RECIPROCALS[spread] + half) >> FIXED_POINT_BITS
    hue += HUE_LEVELS * (hue < 0)
    return hue.astype(np.uint8), saturation.astype(np.uint8), value


def _hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Inverse of [`_rgb_to_hsv`] up to its quantisation; OpenCV's vector code truncates here."""
    unit = np.float32(1 / 255)
    brightest, purity = value * unit, saturation * unit
    frame = np.empty((*hue.shape, 3), np.uint8)
    for channel, weights in enumerate(_HUE_WEIGHTS):
        frame[..., channel] = (brightest * (1 - purity * weights[hue])) * np.float32(255)
    return frame
