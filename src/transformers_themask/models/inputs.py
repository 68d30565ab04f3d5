# SPDX-License-Identifier: Apache-2.0
"""Checks of the inputs of every family's `forward`."""

from typing import Any

import torch
from torch import Tensor


def check_inputs(
    pixel_values_videos: Tensor,
    labels: Tensor | None,
    unknown: dict[str, Any],
    size_divisor: int = 32,
) -> None:
    """Raise a `ValueError` for inputs that `forward` cannot take."""
    unknown = {name: value for name, value in unknown.items() if name != "return_dict" or value is False}
    if unknown:
        raise ValueError(
            f"`forward` must be given arguments it knows. Got {', '.join(sorted(unknown))}. "
            "Videos go in as `pixel_values_videos`, label maps as `labels`; outputs are always a `ModelOutput`."
        )
    for name, value in (("pixel_values_videos", pixel_values_videos), ("labels", labels)):
        if not isinstance(value, Tensor) and not (name == "labels" and value is None):
            raise ValueError(f"`{name}` must be a tensor. Got a {type(value).__name__}. Use the video processor.")
    shape = tuple(pixel_values_videos.shape)
    if not pixel_values_videos.is_floating_point():
        raise ValueError(
            f"`pixel_values_videos` must be floating-point. Got {pixel_values_videos.dtype}. "
            "The video processor rescales and normalises 8-bit frames."
        )
    if len(shape) != 5 or shape[2] != 3:
        raise ValueError(
            "`pixel_values_videos` must have 5 dimensions (batch, num_frames, 3, height, width). "
            f"Got shape {shape}; add a batch and a frame axis for a single image."
        )
    if shape[3] % size_divisor or shape[4] % size_divisor or 0 in shape:
        raise ValueError(
            f"`pixel_values_videos` must hold at least one frame, with height and width multiples of {size_divisor}. "
            f"Got shape {shape}. The video processor resizes or pads frames accordingly."
        )
    if labels is not None and (labels.dim() != 4 or tuple(labels.shape[:2]) != shape[:2] or 0 in labels.shape):
        raise ValueError(
            "`labels` must have 4 dimensions (batch, num_frames, height, width), two as in `pixel_values_videos` "
            f"{shape}. Got shape {tuple(labels.shape)}."
        )
    if labels is not None and (labels.dtype == torch.bool or labels.is_floating_point()):
        raise ValueError(f"`labels` must be integers, class indices. Got {labels.dtype}. Convert them with `.long()`.")


def check_single_frames(pixel_values_videos: Tensor) -> None:
    """Raise a `ValueError` unless there is one frame per video."""
    if pixel_values_videos.shape[1] != 1:
        raise ValueError(
            "`pixel_values_videos` must hold one frame per video, the newest. "
            f"Got {pixel_values_videos.shape[1]}. Give clips to `forward`."
        )
