# SPDX-License-Identifier: Apache-2.0
"""Clip augmentation: one random geometry per clip, applied to every frame and its labels.

Steps and default parameters are those of the official THE-Mask training pipeline on VSPW.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from .photometric import PhotometricDraw, draw_photometric

MAX_CROP_REDRAWS = 10


@dataclass(frozen=True)
class ClipAugmentation:
    """Random resize, crop, flip and photometric distortion of a clip.

    A ratio of 1 resizes to `base_size`, the longest and the shortest edge, and keeps the aspect ratio. `crop_size` is
    (height, width); a smaller frame is not cropped along that edge. A crop is drawn again while one class covers at
    least `cat_max_ratio` of the labelled pixels of the last frame; 1 accepts every crop. `void_ids` are raw ids.
    """

    base_size: tuple[int, int] = (853, 480)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop_size: tuple[int, int] = (480, 480)
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    photometric: bool = True
    void_ids: tuple[int, ...] = (0, 255)

    def __post_init__(self):
        if min(*self.base_size, *self.crop_size) < 1:
            raise ValueError(f"`base_size` and `crop_size` must be positive. Got {self.base_size}, {self.crop_size}.")
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"`ratio_range` must be (low, high) with 0 < low <= high. Got {self.ratio_range}.")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"`cat_max_ratio` must be above 0 and at most 1. Got {self.cat_max_ratio}.")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"`flip_probability` must be between 0 and 1. Got {self.flip_probability}.")

    def __call__(
        self, frames: Sequence[np.ndarray], masks: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[Tensor, np.ndarray, list[PhotometricDraw]]:
        """Change the geometry of a clip, and draw the photometric distortion of every frame for later.

        `frames` are RGB `uint8` `(height, width, 3)`, `masks` raw label ids `uint8` `(height, width)`. Returns frames
        `(num_frames, 3, height, width)` and masks `(num_frames, height, width)`, at most `crop_size` large.
        """
        size = resized_size(masks[-1].shape, self.base_size, rng.uniform(*self.ratio_range))
        proposals = crop_proposals(size, self.crop_size, rng)
        last_mask = resize_mask(masks[-1], size)
        top, left = select_crop(last_mask, self.crop_size, proposals, self.cat_max_ratio, self.void_ids)
        box = (slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1]))
        is_flipped = rng.random() < self.flip_probability
        draws = [draw_photometric(rng) if self.photometric else PhotometricDraw() for _ in frames]
        columns = slice(None, None, -1 if is_flipped else 1)
        cropped_masks = [resize_mask(mask, size, box)[:, columns] for mask in masks]
        cropped_frames = [resize_frame(frame, size)[box][:, columns].transpose(2, 0, 1) for frame in frames]
        return torch.from_numpy(np.stack(cropped_frames)), np.stack(cropped_masks), draws


def resized_size(size: tuple[int, ...], base_size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Height and width that fit a frame into `ratio` times `base_size`, its longest and shortest edge."""
    height, width = size
    longest, shortest = (int(edge * ratio) for edge in base_size)
    factor = min(longest / max(height, width), shortest / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a `uint8` frame of shape `(height, width, 3)` bilinearly and without antialiasing, as OpenCV does."""
    channels_first = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    return functional.resize(channels_first, list(size), antialias=False).permute(1, 2, 0).numpy()


def resize_mask(
    mask: np.ndarray, size: tuple[int, int], box: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """Resize raw label ids to the nearest: pixel `x` takes source pixel `floor(x * scale)`, OpenCV's rule.

    `box`: rows and columns to return.
    """
    rows, columns = (
        np.minimum((np.arange(after)[part] * (1 / (after / before))).astype(np.intp), before - 1)
        for before, after, part in zip(mask.shape, size, box, strict=True)
    )
    # Rows are copied whole: the axis that is made longer comes last.
    return mask.take(columns, axis=1).take(rows, axis=0)


def crop_proposals(
    size: tuple[int, int], crop_size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Endless top-left corners of crops, each uniform over the corners that keep the crop inside the frame."""
    margin_height, margin_width = (max(edge - crop_edge, 0) for edge, crop_edge in zip(size, crop_size, strict=True))
    while True:
        yield int(rng.integers(margin_height + 1)), int(rng.integers(margin_width + 1))


def select_crop(
    last_mask: np.ndarray,
    crop_size: tuple[int, int],
    proposals: Iterator[tuple[int, int]],
    cat_max_ratio: float,
    void_ids: tuple[int, ...],
) -> tuple[int, int]:
    """First proposal with more than one class, all below `cat_max_ratio` of the labels, or the tenth redraw."""
    for top, left in islice(proposals, MAX_CROP_REDRAWS if cat_max_ratio < 1 else 0):
        if _is_balanced(last_mask[top : top + crop_size[0], left : left + crop_size[1]], cat_max_ratio, void_ids):
            return top, left
    return next(proposals)


def _is_balanced(mask: np.ndarray, cat_max_ratio: float, void_ids: tuple[int, ...]) -> bool:
    counts = np.array(Image.fromarray(np.ascontiguousarray(mask)).histogram())  # four times as fast as `bincount`
    counts[list(void_ids)] = 0
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio)
