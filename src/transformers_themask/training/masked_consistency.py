# SPDX-License-Identifier: Apache-2.0
"""Masked video consistency: the same clips once more with patches hidden (MVC, PVUW 2024, section 2.2).

The paper has no code; patches are hidden as in the method it builds on (MIC, Hoyer et al., CVPR 2023).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .batch_norms import BATCH_NORM


def draw_patches(
    clip_shape: Sequence[int], patch_size: int, tube_length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the uniform number v of each patch of a clip (Eq. 1), as `(num_frames, num_rows, num_columns)` in (0, 1].

    `clip_shape` is `(num_frames, height, width)`; the patch edge is rounded so that patches divide a frame evenly.
    `tube_length` frames share their numbers, 0 all. A mask ratio of 0 hides nothing and 1 everything.
    """
    num_frames, height, width = clip_shape
    tube_length = tube_length or num_frames
    num_tubes = math.ceil(num_frames / tube_length)
    rows, columns = (max(1, round(edge / patch_size)) for edge in (height, width))
    device = None if generator is None else generator.device
    numbers = 1 - torch.rand(num_tubes, rows, columns, generator=generator, device=device)
    return numbers.repeat_interleave(tube_length, dim=0)[:num_frames]


def hide_patches(pixel_values_videos: Tensor, patches: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Set the patches whose number is not above `mask_ratio` to 0, the mean colour (Eq. 1 and 2).

    Takes normalised frames `(batch, num_frames, channels, height, width)` and the numbers of [`draw_patches`] with a
    batch axis; returns the masked frames and the visible pixels `(batch, num_frames, height, width)`.
    """
    size = pixel_values_videos.shape[-2:]
    is_visible = nn.functional.interpolate((patches > mask_ratio).float(), size, mode="nearest").bool()
    # A product would let NaN through.
    return pixel_values_videos.masked_fill(~is_visible[:, :, None], 0), is_visible


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of batch norms, in training mode: evaluation never sees hidden patches."""
    layers = [layer for layer in model.modules() if isinstance(layer, BATCH_NORM) and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
