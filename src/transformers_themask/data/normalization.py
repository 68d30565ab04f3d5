# SPDX-License-Identifier: Apache-2.0
"""Normalisation of 8-bit frames, with the same arithmetic in worker processes and on the model's device."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .photometric import distort_batch


class ClipProcessor(Protocol):
    """The part of a video processor that training clips need."""

    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]
    do_reduce_labels: bool
    ignore_index: int

    def reduce_labels(self, raw: Tensor) -> Tensor:
        """Class indices of raw label ids."""

    def __call__(self, videos: np.ndarray, **options: Any) -> Mapping[str, Tensor]:
        """Resize and normalise the frames of a video, and reduce its labels."""


def prepare_on_device(batch: Mapping[str, Any], processor: ClipProcessor) -> dict[str, Any]:
    """Distort and normalise a batch of `photometric_on="device"`, 0 outside a clip's content; others are unchanged."""
    if "photometric" not in batch:
        return dict(batch)
    batch = dict(batch)
    draws, content_sizes = batch.pop("photometric"), batch.pop("content_sizes")
    frames = batch["pixel_values_videos"]  # (batch, num_frames, 3, height, width)
    distorted = distort_batch(frames.flatten(0, 1), draws.flatten(0, 1)).view_as(frames)
    pixel_values = normalize_frames(distorted, processor)
    rows, columns = (
        torch.arange(length, device=frames.device) < content_sizes[:, axis, None]
        for axis, length in enumerate(frames.shape[-2:])
    )
    is_inside = rows[:, :, None] & columns[:, None, :]
    pixel_values.masked_fill_(~is_inside[:, None, None], 0)
    batch["pixel_values_videos"] = pixel_values
    return batch


def normalize_frames(frames: Tensor, processor: ClipProcessor) -> Tensor:
    """Rescale and normalise RGB frames `(..., 3, height, width)` like a video processor, without checks and copies."""
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean = torch.tensor(processor.image_mean if processor.do_normalize else [0.0] * 3) / scale
    deviation = torch.tensor(processor.image_std if processor.do_normalize else [1.0] * 3) / scale
    mean, deviation = (values[:, None, None].to(frames.device, non_blocking=True) for values in (mean, deviation))
    return frames.float().sub_(mean).div_(deviation)
