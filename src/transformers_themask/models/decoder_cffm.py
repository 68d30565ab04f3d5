# SPDX-License-Identifier: Apache-2.0
"""The head of CFFM: fusion of a frame's feature maps, coarse-to-fine feature assembling, cross-frame feature mining.

Source: Sun et al., CVPR 2022, section 3. Where paper and released code differ, this is the code, as its checkpoints
need it: a layer is a Transformer layer with a feed-forward part; only the reference frames are the same in every
layer; the tokens of a source begin at the same place relative to the window for every kernel size, so that those of
small kernels lie up and to the left of it (`context_pooling="plain"` centres them); windows at the border see the
neighbours on the other side of the frame.

Axes: b clips, r reference frames, h w places at stride 8 padded to whole windows, c channels, n windows, q places of a
window, k tokens that a window sees. Maps of the mining layers are channels-last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_cffm import CFFMConfig, ContextSource

# Added to the attention to tokens outside the frame. Not infinite: as released.
OUTSIDE = -100.0


class FeatureFusion(nn.Module):
    """One map at stride 4 from the four of the backbone, as in SegFormer (Xie et al., NeurIPS 2021, section 3.2).

    Enlarging and projecting pixels commute, as bilinear weights add up to one. Each map is therefore projected and
    fused at its own size, before it is enlarged: exact, with a third of the operations.
    """

    def __init__(self, channels: Sequence[int], hidden_dim: int):
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(width, hidden_dim) for width in channels])
        self.convolution = nn.Conv2d(hidden_dim * len(channels), hidden_dim, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(hidden_dim)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps `(frames, channels, height, width)` into `(frames, hidden_dim, height / 4, width / 4)`."""
        # The coarsest comes first in the fused channels.
        shares = self.convolution.weight[:, :, 0, 0].chunk(len(self.projections), dim=1)[::-1]
        size = feature_maps[0].shape[-2:]
        fused = None
        for projection, share, feature_map in zip(self.projections, shares, feature_maps, strict=True):
            projected = nn.functional.linear(projection(feature_map.movedim(1, -1)), share).movedim(-1, 1)
            projected = resized(projected, size)
            fused = projected if fused is None else fused + projected
        return self.batch_norm(fused).relu()


class ContextPooling(nn.Module):
    """The low-resolution map of a frame in which windows see their surroundings (section 3.2, Eq. 2)."""

    def __init__(self, source: ContextSource, window_size: int):
        super().__init__()
        self.source = source
        self.window_size = window_size
        self.projection = nn.Linear(source.cell**2, 1)

    def forward(self, frame: Tensor) -> Tensor:
        """Pool a normed frame `(b, height, width, c)` to `(b, rows, columns, c)`, padded to whole windows or cells."""
        cell, cells = self.source.cell, self.source.cells
        if cells is None:
            frame = padded_to(cell, frame)
            rows, columns = (length // cell for length in frame.shape[1:3])
        else:
            frame = padded_to(self.window_size, frame)
            rows, columns = (length // self.window_size * cells for length in frame.shape[1:3])
            if cell * cells != self.window_size:
                frame = resized(frame.movedim(-1, 1), (rows * cell, columns * cell)).movedim(1, -1)
        places = frame.unflatten(2, (columns, cell)).unflatten(1, (rows, cell))
        return self.projection(places.permute(0, 1, 3, 5, 2, 4).flatten(-2)).squeeze(-1)


class CrossFrameAttention(nn.Module):
    """Attention of the places of each window to the window, its neighbourhood and its surroundings in all frames."""

    def __init__(self, config: CFFMConfig):
        super().__init__()
        self.window_size = config.window_size
        self.neighborhood = config.neighborhood
        self.sources = config.context_sources
        self.num_heads = config.num_attention_heads
        # The window itself comes first.
        self.kernels = [config.window_size, *(source.kernel for source in self.sources)]
        self.qkv = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.proj = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.position_biases = nn.ParameterList(
            [torch.empty(self.num_heads, (self.window_size + kernel - 1) ** 2) for kernel in self.kernels]
        )
        num_neighbours = len(neighbour_offsets(self.window_size, self.neighborhood))
        self.neighbour_bias = (
            nn.Parameter(torch.empty(self.num_heads, self.window_size**2, num_neighbours)) if num_neighbours else None
        )

    def forward(self, target: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Mine a normed target frame `(b, h, w, c)` of whole windows; `contexts` follow `config.context_sources`."""
        batch_size, height, width, channels = target.shape
        rows, columns = height // self.window_size, width // self.window_size
        sizes = [(context.shape[1], context.shape[2]) for context in contexts]
        tokens, is_outside = self.window_tokens(rows, columns, sizes, target.device)
        seen = torch.cat([target.flatten(1, 2), *(context.flatten(1, 2) for context in contexts)], dim=1)
        sources = (target.flatten(1, 2), seen, seen)
        wanted = (tokens[:, : self.window_size**2], tokens, tokens)
        queries, keys, values = map(self._heads, sources, self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), wanted)
        mined = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self._attention_bias(is_outside, batch_size).to(queries.dtype)
        )
        mined = self.proj(mined.transpose(1, 2).flatten(-2))  # (b n, q, c)
        mined = mined.view(batch_size, rows, columns, self.window_size, self.window_size, channels)
        return mined.transpose(2, 3).reshape(batch_size, height, width, channels)

    def window_tokens(
        self, rows: int, columns: int, sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Indices `(rows * columns, k)` of the tokens that every window sees, and a boolean, `True` outside the frame.

        Tokens are those of the target, of pooled maps of the given `sizes`, and one for the outside. A window has
        first its own places, then its neighbourhood, then the places of each pooled map.
        """
        window = self.window_size
        down = torch.arange(rows, device=device)[:, None, None]
        across = torch.arange(columns, device=device)[None, :, None]
        near = [*grid_offsets(window), *neighbour_offsets(window, self.neighborhood)]
        y, x = places_on(device, near).unbind(-1)
        height, width = window * rows, window * columns
        # The frame goes on at its other side.
        parts = [wrapped(window * down + y, height) * width + wrapped(window * across + x, width)]
        outside = [torch.zeros_like(parts[0], dtype=torch.bool)]
        first = height * width
        for source, (height, width) in zip(self.sources, sizes, strict=True):
            y, x = places_on(device, grid_offsets(source.kernel)).unbind(-1)
            y, x = first_tokens(source, window, down) + y, first_tokens(source, window, across) + x
            parts.append(first + y * width + x)
            outside.append((y < 0) | (y >= height) | (x < 0) | (x >= width))
            first = first + height * width
        tokens, is_outside = torch.cat(parts, dim=-1).flatten(0, 1), torch.cat(outside, dim=-1).flatten(0, 1)
        return tokens.where(~is_outside, first), is_outside

    def _attention_bias(self, is_outside: Tensor, batch_size: int) -> Tensor:
        """Position biases and the mask of the outside: `(b n, heads, q, k)`, added to the attention scores."""
        own, *pooled = (
            bias[:, relative_positions(self.window_size, kernel, bias.device)]
            for bias, kernel in zip(self.position_biases, self.kernels, strict=True)
        )
        near = [] if self.neighbour_bias is None else [self.neighbour_bias]
        bias = torch.cat([own, *near, *pooled], dim=-1)
        mask = torch.where(is_outside, OUTSIDE, 0.0).to(bias.dtype)[:, None, None]
        return (bias + mask).repeat(batch_size, 1, 1, 1)

    def _heads(self, sources: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor) -> Tensor:
        """Project tokens `(b, tokens, c)` and gather those of every window: `(b n, heads, wanted, c / heads)`."""
        # What is outside a frame is zero, without the bias of the projection.
        projected = nn.functional.pad(nn.functional.linear(sources, weight, bias), (0, 0, 0, 1))
        return projected[:, wanted].flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CrossFrameMiningLayer(GradientCheckpointingLayer):
    """Coarse-to-fine feature assembling and one step of cross-frame feature mining (section 3.2 and 3.3)."""

    def __init__(self, config: CFFMConfig):
        super().__init__()
        self.window_size = config.window_size
        self.layernorm_before = nn.LayerNorm(config.hidden_dim)
        self.poolings = nn.ModuleList(
            [ContextPooling(source, config.window_size) for source in config.context_sources]
        )
        self.attention = CrossFrameAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_dim)
        self.fc1 = nn.Linear(config.hidden_dim, config.mlp_ratio * config.hidden_dim)
        self.fc2 = nn.Linear(config.mlp_ratio * config.hidden_dim, config.hidden_dim)

    def forward(self, target: Tensor, references: Tensor) -> Tensor:
        """Mine a target frame `(b, height, width, c)` with reference frames `(b, r, height, width, c)`."""
        height, width = target.shape[1:3]
        # Padded after the norm: what is outside is zero.
        normed = [self.layernorm_before(frame) for frame in (target, *references.unbind(1))]
        contexts = [pooling(frame) for pooling, frame in zip(self.poolings, normed, strict=True)]
        mined = self.attention(padded_to(self.window_size, normed[0]), contexts)
        target = target + cropped(mined, (height, width))
        return target + self.fc2(nn.functional.gelu(self.fc1(self.layernorm_after(target))))


class CFFMHead(nn.Module):
    """The layers of CFFM after the backbone, whose feature maps have `channels`, the finest first."""

    def __init__(self, config: CFFMConfig, channels: Sequence[int]):
        super().__init__()
        self.fusion = FeatureFusion(channels, config.hidden_dim)
        self.layers = nn.ModuleList([CrossFrameMiningLayer(config) for _ in range(config.mining_layers or 0)])
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.auxiliary_classifier = nn.Conv2d(config.hidden_dim, config.num_labels, kernel_size=1)
        self.classifier = nn.Conv2d(2 * config.hidden_dim, config.num_labels, kernel_size=1)

    def at_stride_8(self, fused: Tensor) -> Tensor:
        """Features kept of a frame: `(frames, c, height, width)` to `(frames, height / 2, width / 2, c)`."""
        height, width = fused.shape[-2:]
        return resized(fused, (height // 2, width // 2)).movedim(1, -1).contiguous()

    def classify_frames(self, fused: Tensor) -> Tensor:
        """Class scores of frames by themselves: `(frames, c, height, width)` to `(frames, k, height, width)`."""
        return self.auxiliary_classifier(self.dropout(fused))

    def classify_targets(self, target: Tensor, references: Tensor, size: Sequence[int]) -> Tensor:
        """Class scores `(batch, num_labels, *size)` of targets, all maps being from [`~CFFMHead.at_stride_8`]."""
        mined = target
        for layer in self.layers:
            mined = layer(mined, references)
        both = torch.cat([target, mined], dim=-1).movedim(-1, 1)
        return resized(self.classifier(self.dropout(both)), size)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of maps `(maps, channels, height, width)`."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def padded_to(side: int, maps: Tensor) -> Tensor:
    """Channels-last maps with zeros below and to the right, up to whole squares of a side."""
    height, width = maps.shape[1:3]
    return nn.functional.pad(maps, (0, 0, 0, -width % side, 0, -height % side))


def cropped(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The upper left part of channels-last maps. An exported graph of a slice would not hold for every size."""
    for axis, length in enumerate(size, start=1):
        maps = maps.index_select(axis, torch.arange(length, device=maps.device))
    return maps


def grid_offsets(side: int) -> list[tuple[int, int]]:
    """Rows and columns of a square, row by row."""
    return [(y, x) for y in range(side) for x in range(side)]


def first_tokens(source: ContextSource, window_size: int, windows: Tensor) -> Tensor:
    """Along one axis, the index of the first token that each of some windows sees in a pooled map."""
    if source.cells is not None:
        return source.cells * windows - source.kernel // 2
    # Centred as nearly as whole tokens can be, halves rounded up. `kernel` is added for the division, which an
    # exported graph rounds towards zero, and taken off again.
    doubled = window_size * (2 * windows + 1) + source.cell * (source.kernel + 1)
    return doubled // (2 * source.cell) - source.kernel


def neighbour_offsets(window_size: int, neighborhood: int) -> list[tuple[int, int]]:
    """Places of a window's neighbourhood, relative to the window's first, some twice.

    It is what lies outside this window of four windows displaced by `neighborhood` down or up and right or left.
    """
    inside = range(window_size)
    places = [
        (y + down, x + across)
        for down in (neighborhood, -neighborhood)
        for across in (neighborhood, -neighborhood)
        for y, x in grid_offsets(window_size)
    ]
    return [(y, x) for y, x in places if y not in inside or x not in inside]


def places_on(device: torch.device, places: Sequence[tuple[int, int]]) -> Tensor:
    """Rows and columns `(places, 2)` on a device, without waiting for it."""
    return torch.tensor(places).to(device, non_blocking=True)


def wrapped(places: Tensor, length: int) -> Tensor:
    """Places that lie beyond an end of a frame by less than its length, counted from the other one."""
    return torch.where(places < 0, places + length, torch.where(places < length, places, places - length))


def relative_positions(window_size: int, kernel: int, device: torch.device) -> Tensor:
    """Position of each place of a window relative to each of `kernel` x `kernel` tokens, ignoring their distance."""
    places = places_on(device, grid_offsets(window_size))[:, None]
    tokens = places_on(device, grid_offsets(kernel))[None]
    down, across = (places - tokens + kernel - 1).unbind(-1)
    return down * (window_size + kernel - 1) + across
