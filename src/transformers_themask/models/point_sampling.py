# SPDX-License-Identifier: Apache-2.0
"""Sampling of mask logits and labels at points (PointRend, section 3.1; Mask2Former, section 3.3).

Points are `(x, y)` in [0, 1]. Every random coordinate of the package is drawn through one function, the point sampler.
"""

from typing import Protocol

import torch
from torch import Tensor, nn


class PointSampler(Protocol):
    """Where random points come from; tests and trainers may put their own in its place."""

    def __call__(self, kind: str, layer: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Return coordinates in [0, 1].

        Args:
            kind (`str`): What the points are for: `"matching"`, or for a mask loss
                `"{video|frame}_{primary|secondary}_{candidates|uniform}"`, the candidates for uncertain points and the
                uniform rest.
            layer (`int`): Prediction layer, 0 before the first decoder layer.
            shape (`tuple[int, ...]`): `(batch, points, 2)` for matching; `(masks, points, 2)` for losses, masks
                ordered by clip, then query, then frame.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """


def uniform_points(kind: str, layer: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """The default [`PointSampler`]: uniform, independent of kind and layer."""
    return torch.rand(shape, generator=generator)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly, with zeros outside.

    Args:
        maps (`torch.Tensor` of shape `(batch, channels, height, width)`): Maps.
        points (`torch.Tensor` of shape `(batch, num_points, 2)`): `(x, y)` in [0, 1].

    Returns:
        `torch.Tensor` of shape `(batch, channels, num_points)`.
    """
    grid = 2 * points.to(maps.dtype)[:, :, None] - 1
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


def select_uncertain(logits: Tensor, candidates: Tensor, count: int, usable: Tensor | None = None) -> Tensor:
    """Keep the candidates whose logits are nearest to zero (PointRend, section 3.1).

    Args:
        logits (`torch.Tensor` of shape `(masks, num_candidates)`): Mask logits at the candidates.
        candidates (`torch.Tensor` of shape `(masks, num_candidates, 2)`): Their coordinates.
        count (`int`): How many to keep.
        usable (`torch.Tensor` of shape `(masks, num_candidates)`, *optional*): `False` puts a candidate last.

    Returns:
        `torch.Tensor` of shape `(masks, count, 2)`.
    """
    uncertainty = -logits.abs()
    if usable is not None:
        uncertainty = uncertainty.masked_fill(~usable, float("-inf"))
    chosen = uncertainty.topk(count, dim=1).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
