# SPDX-License-Identifier: Apache-2.0
"""Sampling of mask logits and labels at points (PointRend, section 3.1; Mask2Former, section 3.3).

Points are `(x, y)` in [0, 1]. Every random coordinate of the package is drawn through one function, the point sampler.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

# float16 holds nothing larger; an overflowed logit counts as this large, so that the loss stays finite.
LARGEST_LOGIT = 65504.0


class PointSampler(Protocol):
    """Source of all random points; tests inject recorded ones."""

    def __call__(self, kind: str, layers: range, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Return coordinates in [0, 1].

        Args:
            kind: `"matching"`, or for a mask loss `"{video|frame}_{primary|secondary}_{candidates|uniform}"`: the
                candidates for uncertain points, and the uniform rest.
            layers: Prediction layers, 0 before the first decoder layer. For matching these are all; for losses they
                follow in ascending order, on a CPU one by one.
            shape: `(layers, batch, points, 2)` for matching, where one layer may stand for all: what layers that share
                their points read of the mask features is then read once. For losses `(layers, masks, points, 2)`,
                masks ordered by clip, then query, then frame.
            generator: Source of randomness.
        """


def uniform_points(kind: str, layers: range, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """The default [`PointSampler`]: uniform.

    All layers are matched at the same points, where Transformers and the official code draw new ones per layer: for
    each of them by itself the distribution is the same.
    """
    return torch.rand((1, *shape[1:]) if kind == "matching" else shape, generator=generator)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps `(batch, channels, height, width)` at points `(x, y)` in [0, 1], bilinearly, with zeros outside.

    Points are `(batch, num_points, 2)`, the result is `(batch, channels, num_points)`.
    """
    grid = 2 * points.to(maps.dtype)[:, :, None] - 1
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


def select_uncertain(logits: Tensor, candidates: Tensor, count: int, usable: Tensor | None = None) -> Tensor:
    """Keep the `count` candidates `(masks, num_candidates, 2)` with logits nearest to zero, the usable ones first.

    As in PointRend, section 3.1.
    """
    certainty = logits.abs()
    if usable is not None:
        certainty = certainty.masked_fill(~usable, float("inf"))
    chosen = certainty.topk(count, dim=1, largest=False, sorted=False).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))


class TargetMaps:
    """Target masks of frames, read at points and under the cells of mask logits of a `size`.

    `labels` `(frames, height, width)`; `classes` `(frames, most_targets)` are those asked for, ascending. With the
    `ignore_value` `None` every pixel counts.
    """

    def __init__(self, labels: Tensor, classes: Tensor, size: tuple[int, int], ignore_value: int | None):
        self.labels = labels
        self.classes = classes
        self.size = size
        self.ignore_value = ignore_value
        # Boolean, `(frames, most_targets, height, width)`.
        self.masks = labels[:, None] == classes[..., None, None]
        self._counts: Tensor | None = None

    def usable(self, frames: Tensor, points: Tensor) -> Tensor | None:
        """The points `(maps, num_points, 2)` of frames `(maps,)` that read no ignored pixel, in labels or logits.

        A logit is ignored if it has pixels and all of them are. Boolean `(maps, num_points)`, or `None` if every pixel
        counts.
        """
        if self.ignore_value is None:
            return None
        counts = self._pixel_counts(points.dtype).unflatten(2, self.size)
        ignored = (self.labels == self.ignore_value).to(points.dtype)
        blind = ((counts[:, :-1].sum(1) == 0) & (counts[:, -1] > 0)).to(points.dtype)
        touched = [sample_points(maps[frames][:, None], points)[:, 0] > 0 for maps in (ignored, blind)]
        return ~(touched[0] | touched[1])

    def pixels_under(self, frames: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Pixels `(maps, cells)` under the cells of masks: of some targets of some frames, and of all that count."""
        counts = self._pixel_counts(dtype)
        whole = counts[:, :-1].sum(1)
        # Without ignored pixels all frames have the same.
        whole = whole[:1].expand(len(frames), -1) if self.ignore_value is None else whole[frames]
        return counts[frames, targets], whole

    def _pixel_counts(self, dtype: torch.dtype) -> Tensor:
        """Pixels that nearest-neighbour enlarging fills from every cell: of each target, of none, and ignored."""
        if self._counts is None:
            num_frames, num_targets = self.classes.shape
            labels = self.labels.flatten(1)
            slots = torch.searchsorted(self.classes, labels).clamp(max=num_targets - 1)
            slots = torch.where(self.classes.gather(1, slots) == labels, slots, num_targets)
            if self.ignore_value is not None:
                slots = torch.where(labels == self.ignore_value, num_targets + 1, slots)
            (height, width), (rows, columns) = map_size(self.labels), self.size
            device = labels.device
            row_of, column_of = nearest_cells(height, rows, device), nearest_cells(width, columns, device)
            cells = column_of.add(row_of[:, None], alpha=columns).flatten()
            counts = torch.zeros(num_frames, (num_targets + 2) * rows * columns, dtype=dtype, device=device)
            counts.scatter_add_(1, cells.add(slots, alpha=rows * columns), torch.ones_like(labels, dtype=dtype))
            self._counts = counts.unflatten(1, (num_targets + 2, rows * columns))
        return self._counts


def nearest_cells(full: int, small: int, device: torch.device) -> Tensor:
    """The cell of a row of `small` that nearest-neighbour enlarging to `full` fills each pixel from: `(full,)`."""
    cells = torch.arange(small, device=device, dtype=torch.float32)
    return nn.functional.interpolate(cells[None, None], full, mode="nearest")[0, 0].long()


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, which would copy also where there is one part only."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def in_float32(values: Tensor) -> Tensor:
    """Bring values to (at least) float32."""
    return values if values.element_size() >= 4 else values.float()


def clamped(logits: Tensor) -> Tensor:
    """Bring logits within float16's range, which also turns infinities finite."""
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def as_float32(logits: Tensor) -> Tensor:
    """Bring logits to (at least) float32 and within float16's range."""
    return clamped(in_float32(logits))


def map_size(maps: Tensor) -> tuple[int, int]:
    """Height and width of maps `(..., height, width)`."""
    return maps.shape[-2], maps.shape[-1]
