# SPDX-License-Identifier: Apache-2.0
"""Photometric distortion of frames, grey level by grey level as the reference's OpenCV pipeline.

Steps truncate to `uint8` and hue has 180 levels, which moves a saturated pixel by up to nine grey levels. All are
float32 operations on exact integers, so a device does for a batch what the CPU does frame by frame.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_BRIGHTNESS_SHIFT = 32.0
FACTOR_RANGE = (0.5, 1.5)
MAX_HUE_SHIFT = 18
HUE_LEVELS = 180
FIXED_POINT_BITS = 12


@dataclass(frozen=True)
class PhotometricDraw:
    """Distortion of one frame; `None` leaves a property unchanged.

    Brightness is added in grey levels and hue in steps of two degrees; contrast and saturation are factors.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = True
    saturation: float | None = None
    hue: int | None = None

    def as_row(self) -> list[float]:
        """The five fields as numbers, NaN for `None`: a row of the draws for [`distort_batch`]."""
        return [math.nan if value is None else float(value) for value in dataclasses.astuple(self)]


def draw_photometric(rng: np.random.Generator) -> PhotometricDraw:
    """Draw the distortion of one frame; each property changes with probability 0.5."""
    return PhotometricDraw(
        brightness=rng.uniform(-MAX_BRIGHTNESS_SHIFT, MAX_BRIGHTNESS_SHIFT) if rng.random() < 0.5 else None,
        contrast=rng.uniform(*FACTOR_RANGE) if rng.random() < 0.5 else None,
        contrast_first=bool(rng.random() < 0.5),
        saturation=rng.uniform(*FACTOR_RANGE) if rng.random() < 0.5 else None,
        hue=int(rng.integers(-MAX_HUE_SHIFT, MAX_HUE_SHIFT)) if rng.random() < 0.5 else None,
    )


def distort_colors(frame: Tensor, draw: PhotometricDraw) -> Tensor:
    """Distort an RGB `uint8` frame of shape `(3, height, width)`: brightness, contrast, saturation, hue."""
    if draw.brightness is not None:
        frame = _scale_levels(frame, shift=draw.brightness)
    if draw.contrast is not None and draw.contrast_first:
        frame = _scale_levels(frame, factor=draw.contrast)
    if draw.saturation is not None:
        frame = _scale_saturation(frame, draw.saturation)
    if draw.hue is not None:
        frame = _rotate_hue(frame, draw.hue)
    if draw.contrast is not None and not draw.contrast_first:
        frame = _scale_levels(frame, factor=draw.contrast)
    return frame


def distort_batch(frames: Tensor, draws: Tensor) -> Tensor:
    """Apply [`distort_colors`] to `(num_frames, 3, height, width)`, on any device and without synchronising with it.

    `draws` `(num_frames, 5)` are float32 rows of [`PhotometricDraw.as_row`].
    """
    brightness, contrast, is_first, saturation, hue = draws[..., None, None].unbind(1)
    contrast, is_first = contrast.nan_to_num(1.0), is_first.bool()
    frames = _scale_levels(frames, shift=brightness.nan_to_num(0.0)[:, None])
    frames = _scale_levels(frames, factor=torch.where(is_first, contrast, 1.0)[:, None])
    saturated = _scale_saturation(frames, saturation.nan_to_num(1.0))
    frames = torch.where(saturation.isnan()[:, None], frames, saturated)
    rotated = _rotate_hue(frames, hue.nan_to_num(0.0))
    frames = torch.where(hue.isnan()[:, None], frames, rotated)
    return _scale_levels(frames, factor=torch.where(is_first, 1.0, contrast)[:, None])


def _scale_levels(levels: Tensor, factor: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> Tensor:
    """`factor * level + shift`, clipped and truncated to `uint8`."""
    return levels.float().mul_(factor).add_(shift).clamp_(0, 255).to(torch.uint8)


def _scale_saturation(frames: Tensor, factor: float | Tensor) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(frames)
    return _hsv_to_rgb(hue, saturation.mul_(factor).clamp_(0, 255).trunc_(), value)


def _rotate_hue(frames: Tensor, steps: float | Tensor) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(frames)
    return _hsv_to_rgb(hue.add_(steps).remainder_(HUE_LEVELS), saturation, value)


# Share of the saturation that each hue takes from red, green and blue
# (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).
_POSITIONS = (
    np.array([[5.0], [3.0], [1.0]]) + np.arange(HUE_LEVELS, dtype=np.float32) * np.float32(6 / HUE_LEVELS)
) % 6
_HUE_WEIGHTS = torch.from_numpy(np.minimum(_POSITIONS, 4 - _POSITIONS).clip(0, 1)).float()


def _rgb_to_hsv(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in 0..179, saturation and value in 0..255, integers in float32 without the channel axis, as by OpenCV."""
    red, green, blue = frames.float().unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = _fixed_point_ratio(spread, value, 255)
    sector = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    sector = torch.where(value == red, green - blue, sector)
    hue = _fixed_point_ratio(sector, spread, HUE_LEVELS // 6)
    hue += HUE_LEVELS * (hue < 0)
    return hue, saturation, value


def _fixed_point_ratio(numerator: Tensor, denominator: Tensor, scale: int) -> Tensor:
    """`scale * numerator / denominator` rounded as by OpenCV; 0 / 0 is 0, and products stay exact, below `2**24`."""
    one = 1 << FIXED_POINT_BITS
    reciprocal = torch.div(one * scale, denominator.clamp(min=1)).round_()
    return reciprocal.mul_(numerator).add_(one // 2).mul_(1 / one).floor_()


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of [`_rgb_to_hsv`] up to its quantisation; OpenCV's vector code truncates here."""
    unit = float(np.float32(1 / 255))
    brightest, purity = value * unit, saturation * unit
    levels = hue.flatten().int()
    channels = []
    for weights in _HUE_WEIGHTS.to(hue.device, non_blocking=True):
        share = weights.index_select(0, levels).view_as(hue)
        channels.append(share.mul_(purity).neg_().add_(1).mul_(brightest).mul_(255).to(torch.uint8))
    return torch.stack(channels, dim=-3)
