# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention, on the CPU as one weighted gather."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad
from torch.utils.checkpoint import checkpoint
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    multi_scale_deformable_attention,
)

# Indices and weights of all corners of these queries take tens of megabytes at most.
QUERIES_AT_ONCE = 2048


class SamplingGrid(NamedTuple):
    """Positions of the cells of all levels; the same for every layer.

    `level_shapes` are height and width of each level. `centres` are `(x, y)` in [0, 1] of the cells of all levels,
    `(sequence, 2)`; `sizes` are width and height of each level, `(heads, levels, points, 2)`, as offsets are laid out.
    Both are in the precision in which positions are computed, float32 at least. For kernels there are the shapes as
    `shape_table` `(levels, 2)`, and where in the sequence levels begin as `level_starts` `(levels,)`, both int64.
    """

    level_shapes: list[tuple[int, int]]
    centres: Tensor
    sizes: Tensor
    shape_table: Tensor
    level_starts: Tensor


class DeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """Multi-scale deformable self-attention (Deformable DETR, Eq. 3), sampling in float32 at least.

    Elsewhere than on the CPU the sums are those of `attn`, Transformers' own module, which `use_kernels=True` of
    `from_pretrained` exchanges for a kernel of the Hub.
    """

    def __init__(self, embed_dim: int, num_heads: int, n_levels: int, n_points: int):
        super().__init__(embed_dim, num_heads, n_levels, n_points)
        self.attn = MultiScaleDeformableAttention()

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, grid: SamplingGrid) -> Tensor:
        """Attend from every cell `(batch, sequence, channels)` to a few learned positions of every level."""
        queries = hidden_states + position_embeddings
        per_head = (self.n_heads, self.n_levels, self.n_points)
        dtype = grid.centres.dtype
        offsets = self.sampling_offsets(queries).unflatten(-1, (*per_head, 2)).to(dtype)
        weights = self.attention_weights(queries).unflatten(-1, (self.n_heads, -1)).to(dtype).softmax(-1)
        values = self.value_proj(hidden_states).unflatten(-1, (self.n_heads, -1)).to(dtype)

        locations = grid.centres[:, None, None, None] + offsets / grid.sizes
        weights = weights.unflatten(-1, (self.n_levels, self.n_points))
        if values.device.type == "cpu":
            attended = deformable_attention(values, grid.level_shapes, locations, weights)
        else:
            shapes = (grid.shape_table, grid.level_shapes, grid.level_starts)
            # All images in one launch: a kernel takes no number that does not divide theirs.
            attended = self.attn(values, *shapes, locations, weights, len(values))
        return self.output_proj(attended.to(hidden_states.dtype))


def sampling_grid(level_shapes: list[tuple[int, int]], num_heads: int, num_points: int, like: Tensor) -> SamplingGrid:
    """Build the grid for levels of some heights and widths, on the device of features `like`, in their precision."""
    precision: dict[str, Any] = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
    centres, sizes, shapes, starts = [], [], [], []
    start = 0
    for height, width in level_shapes:
        rows = (torch.arange(height, **precision) + 0.5) / height
        columns = (torch.arange(width, **precision) + 0.5) / width
        centres.append(torch.cartesian_prod(rows, columns).flip(-1))
        # Filled where it lies: to copy numbers to a GPU would wait for it.
        sizes.append(torch.stack([torch.full((num_points,), edge, **precision) for edge in (width, height)], -1))
        shapes += [torch.full((), edge, device=like.device) for edge in (height, width)]
        starts.append(torch.full((), start, device=like.device))
        start += height * width
    # Contiguous, for long inner loops.
    all_sizes = torch.stack(sizes).expand(num_heads, -1, -1, -1).contiguous()
    return SamplingGrid(
        level_shapes, torch.cat(centres), all_sizes, torch.stack(shapes).view(-1, 2), torch.stack(starts)
    )


def deformable_attention(
    values: Tensor, level_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sums of bilinear samples of several levels (Deformable DETR, Eq. 3); outside a level there are zeros.

    From values `(batch, sequence, heads, head_channels)` and locations `(x, y)` in [0, 1],
    `(batch, queries, heads, levels, points, 2)`, to `(batch, queries, heads * head_channels)`. On the CPU they are
    gathered from one table and recomputed in the backward pass, without second derivatives and `torch.func.grad`.
    Exported graphs and other devices take Transformers' form: a quarter of the operations, known to every runtime.
    Both agree for finite values; an infinite location lies outside on the CPU and gives NaN elsewhere.
    """
    if values.device.type != "cpu" or torch.compiler.is_exporting() or not locations.numel():
        return multi_scale_deformable_attention(values, level_shapes, locations, weights)
    if torch.compiler.is_compiling():  # the compiler fuses the steps, and chooses what to keep for gradients
        return gathered_sums(padded_table(values, level_shapes), level_shapes, locations, weights)
    sums = []
    for image, *of_image in zip(values.split(1), locations.split(1), weights.split(1), strict=True):
        table = padded_table(image, level_shapes)
        for block in zip(*(x.split(QUERIES_AT_ONCE, 1) for x in of_image), strict=True):
            arguments = (table, level_shapes, *block)
            sums.append(checkpoint(gathered_sums, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(sums, 1).view(*locations.shape[:2], -1)


def padded_table(values: Tensor, level_shapes: list[tuple[int, int]]) -> Tensor:
    """Values padded with zeros, so that samples up to one cell outside a level are zero.

    `(batch, heads, cells, head_channels)`: a zero, then per level a row of zeros, its rows with two zeros at the end
    of each, and two rows of zeros.
    """
    levels = values.transpose(1, 2).split([height * width for height, width in level_shapes], 2)
    zero = values.new_zeros(values.shape[0], values.shape[2], 1, values.shape[3])
    padded = [
        pad(level.unflatten(2, shape), (0, 0, 0, 2, 1, 2)).flatten(2, 3)
        for level, shape in zip(levels, level_shapes, strict=True)
    ]
    return torch.cat([zero, *padded], 2)


def gathered_sums(table: Tensor, level_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The sums of `deformable_attention`, for some of the queries, from a padded table."""
    num_images, num_heads, num_cells, num_channels = table.shape
    num_points = weights.shape[-1]

    def per_tap(numbers: list[int]) -> Tensor:
        # Written out for all taps of a query: the inner loops are long, and what is compiled reads them as they are.
        repeated = [number for number in numbers for _ in range(num_points)] * num_heads
        return torch.tensor(repeated, dtype=torch.int32).view(num_heads, -1)

    widths = per_tap([width for _, width in level_shapes])
    heights = per_tap([height for height, _ in level_shapes])
    columns, x = cells_before(locations[..., 0].flatten(3), widths)
    rows, y = cells_before(locations[..., 1].flatten(3), heights)
    firsts = per_tap(first_cells(level_shapes)) + torch.arange(num_heads, dtype=torch.int32)[:, None] * num_cells
    images = torch.arange(num_images, dtype=torch.int32)[:, None, None, None] * (num_heads * num_cells)
    top_left = rows.mul_(widths + 2).add_(columns).add_(firsts).add_(images)
    bottom_left = top_left + (widths + 2)
    corners = torch.stack([top_left, top_left + 1, bottom_left, bottom_left + 1], -2)

    weights = weights.flatten(3)
    below = weights * y
    above = weights - below
    top_right, bottom_right = above * x, below * x
    shares = torch.stack([above - top_right, top_right, below - bottom_right, bottom_right], -2)
    sums = embedding_bag(
        corners.flatten(0, 2).flatten(1),  # a row for each query and head
        table.flatten(0, 2),
        mode="sum",
        per_sample_weights=shares.flatten(0, 2).flatten(1),
    )
    return sums.view(*weights.shape[:2], num_heads * num_channels)


def first_cells(level_shapes: list[tuple[int, int]]) -> list[int]:
    """Index in a padded table of the first cell of each level."""
    firsts, end = [], 1
    for height, width in level_shapes:
        firsts.append(end + width + 2)
        end += (height + 3) * (width + 2)
    return firsts


def cells_before(places: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Along an axis, the cell at or before each place, and the distance from its centre as a share of a cell."""
    places = (places * lengths).sub_(0.5).clamp_(min=-1).clamp_(max=lengths)
    cells = places.detach().floor()
    # NaN may become any index: the weight of its samples is NaN too.
    return cells.to(torch.int32).clamp_(min=-1), places.sub_(cells)
