# SPDX-License-Identifier: Apache-2.0
"""Collator that stacks clips into a batch."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

TENSOR_KEYS = ("pixel_values_videos", "labels")
# Parameters of the photometric distortion, when it is applied on the device.
DEVICE_KEYS = ("photometric", "content_sizes")


class ClipCollator:
    """Stack the items of [`ClipDataset`], of equal shapes, into a batch of tensors, and of a list `sample_ids`."""

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack the tensors of `items`."""
        first = items[0]
        for key, item in itertools.product(TENSOR_KEYS, items):
            if item[key].shape != first[key].shape:
                raise ValueError(
                    f"`{key}` of all clips in a batch must have one shape. Got {tuple(item[key].shape)} for video "
                    f"{item['video_id']!r} (frames {', '.join(item['frame_names'])}) after {tuple(first[key].shape)} "
                    f"for video {first['video_id']!r}; set an augmentation or use a batch size of 1."
                )
        keys = [key for key in TENSOR_KEYS + DEVICE_KEYS if key in first]
        batch = {key: torch.stack([item[key] for item in items]) for key in keys}
        return {**batch, "sample_ids": [item["sample_id"] for item in items]}  # for the host, hence no tensor
