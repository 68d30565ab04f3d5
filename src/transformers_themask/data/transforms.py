# SPDX-License-Identifier: Apache-2.0
"""Clip augmentation: one random draw of the geometry per clip, applied to every frame and its labels.

The steps and their default parameters are those of the official THE-Mask training pipeline on VSPW: resize, crop,
horizontal flip, photometric distortion (the latter drawn for every frame on its own).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from .photometric import distort_colors, draw_photometric

MAX_CROP_REDRAWS = 10


@dataclass(frozen=True)
class ClipAugmentation:
    """Random resize, crop, flip and photometric distortion of a clip.

    Args:
        base_size (`tuple[int, int]`, *optional*, defaults to `(853, 480)`): Longest and shortest edge that a ratio of
            1 resizes to; the aspect ratio is kept.
        ratio_range (`tuple[float, float]`, *optional*, defaults to `(0.5, 2.0)`): Range of the factor on `base_size`.
        crop_size (`tuple[int, int]`, *optional*, defaults to `(480, 480)`): Height and width of the crop. A smaller
            frame is not cropped along that edge, hence the result can be smaller.
        cat_max_ratio (`float`, *optional*, defaults to 0.75): A crop is drawn again while one class covers at least
            this share of the labelled pixels of the last frame; 1 accepts every crop.
        flip_probability (`float`, *optional*, defaults to 0.5): Probability of a horizontal flip.
        photometric (`bool`, *optional*, defaults to `True`): Whether to distort brightness, contrast, saturation and
            hue.
        void_ids (`tuple[int, ...]`, *optional*, defaults to `(0, 255)`): Raw label ids that are no class.
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
            raise ValueError(
                f"`base_size` and `crop_size` must be positive. Got {self.base_size} and {self.crop_size}."
            )
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"`ratio_range` must be (low, high) with 0 < low <= high. Got {self.ratio_range}.")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"`cat_max_ratio` must be above 0 and at most 1. Got {self.cat_max_ratio}.")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"`flip_probability` must be between 0 and 1. Got {self.flip_probability}.")

    def __call__(
        self, frames: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment one clip.

        Args:
            frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): RGB, `uint8`.
            masks (`np.ndarray` of shape `(num_frames, height, width)`): Raw label ids, `uint8`.
            rng (`np.random.Generator`): Source of every draw.

        Returns:
            The frames and masks, at most `crop_size` large.
        """
        height, width = resized_size(masks.shape[1:], self.base_size, rng.uniform(*self.ratio_range))
        masks = resize_masks(masks, height, width)
        proposals = crop_proposals((height, width), self.crop_size, rng)
        top, left = select_crop(masks[-1], self.crop_size, proposals, self.cat_max_ratio, self.void_ids)
        masks = crop(masks, top, left, self.crop_size)
        frames = crop(resize_frames(frames, height, width), top, left, self.crop_size)
        if rng.random() < self.flip_probability:
            frames, masks = frames[:, :, ::-1], masks[:, :, ::-1]
        if self.photometric:
            frames = np.stack([distort_colors(frame, draw_photometric(rng)) for frame in frames])
        return np.ascontiguousarray(frames), np.ascontiguousarray(masks)


def resized_size(size: tuple[int, ...], base_size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Height and width of a frame after the training resize.

    Args:
        size (`tuple[int, ...]`): Height and width before.
        base_size (`tuple[int, int]`): Longest and shortest edge to fit into at a ratio of 1.
        ratio (`float`): The drawn factor on `base_size`.
    """
    height, width = size
    longest, shortest = (int(edge * ratio) for edge in base_size)
    factor = min(longest / max(height, width), shortest / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames bilinearly and without antialiasing, as OpenCV does.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): RGB, `uint8`.
        height (`int`): Height after.
        width (`int`): Width after.
    """
    channels_first = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = functional.resize(channels_first, [height, width], antialias=False)
    return resized.permute(0, 2, 3, 1).numpy()


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize masks to the nearest label: pixel `x` takes the source pixel `floor(x * scale)`, OpenCV's rule.

    Args:
        masks (`np.ndarray` of shape `(num_frames, height, width)`): Raw label ids.
        height (`int`): Height after.
        width (`int`): Width after.
    """
    rows, columns = (
        np.minimum((np.arange(after) * (1 / (after / before))).astype(np.intp), before - 1)
        for before, after in zip(masks.shape[1:], (height, width), strict=True)
    )
    return masks[:, rows[:, None], columns]


def crop_proposals(
    size: tuple[int, int], crop_size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Draw top-left corners of crops for ever, each uniform over the corners that keep the crop inside the frame."""
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
    """Take the first proposal that shows more than one class and none of them too large, or the tenth re-draw.

    Args:
        last_mask (`np.ndarray` of shape `(height, width)`): Raw label ids of the clip's last frame.
        crop_size (`tuple[int, int]`): Height and width of the crop.
        proposals (`Iterator[tuple[int, int]]`): Top-left corners to try.
        cat_max_ratio (`float`): The largest class must cover less than this share of the labelled pixels.
        void_ids (`tuple[int, ...]`): Label ids that are no class.
    """
    corner = next(proposals)
    num_redraws = MAX_CROP_REDRAWS if cat_max_ratio < 1 else 0
    for _ in range(num_redraws):
        if _is_balanced(crop(last_mask[None], *corner, crop_size), cat_max_ratio, void_ids):
            break
        corner = next(proposals)
    return corner


def _is_balanced(masks: np.ndarray, cat_max_ratio: float, void_ids: tuple[int, ...]) -> bool:
    counts = np.bincount(masks.ravel(), minlength=256)
    counts[list(void_ids)] = 0
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio)


def crop(frames: np.ndarray, top: int, left: int, crop_size: tuple[int, int]) -> np.ndarray:
    """Cut one box out of every frame or mask; a box that reaches over the border is truncated."""
    return frames[:, top : top + crop_size[0], left : left + crop_size[1]]
