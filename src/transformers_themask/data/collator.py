# SPDX-License-Identifier: Apache-2.0
"""Clips to a batch."""

from collections.abc import Sequence
from typing import Any

import torch

TENSOR_KEYS = ("pixel_values_videos", "labels")


class ClipCollator:
    """Stack the items of [`ClipDataset`] into a batch that a model's `forward` accepts.

    Only tensors enter the batch: `pixel_values_videos` of shape `(batch, num_frames, channels, height, width)` and
    `labels` of shape `(batch, num_frames, height, width)`. Nothing is padded here: a clip of another shape is an
    error.
    """

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack the tensors of `items`."""
        for key in TENSOR_KEYS:
            _check_shapes(key, items)
        return {key: torch.stack([item[key] for item in items]) for key in TENSOR_KEYS}


def _check_shapes(key: str, items: Sequence[dict[str, Any]]) -> None:
    first = items[0]
    for item in items:
        if item[key].shape != first[key].shape:
            raise ValueError(
                f"`{key}` of all clips in a batch must have one shape. Got {tuple(item[key].shape)} for video "
                f"{item['video_id']!r} (frames {', '.join(item['frame_names'])}) after {tuple(first[key].shape)} for "
                f"video {first['video_id']!r}; set `crop_size` or use a batch size of 1."
            )
