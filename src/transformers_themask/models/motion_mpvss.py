# SPDX-License-Identifier: Apache-2.0
"""The flow of MPVSS: for every query of a key frame, where its mask's pixels in another frame come from.

Source: Weng et al., NeurIPS 2023, section 3. Where paper and released code differ, this is the code: the flow network
runs at half the frame's size, so that flows have stride 8; masks are warped at stride 4; the learned query embedding
and the positions are added to the tokens in every layer.

Flows point from the current frame back to the key frame, channel 0 to the right and 1 down, in places of their grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMLPPredictionHead,
    Mask2FormerSinePositionEmbedding,
)

# FlowNetS (Dosovitskiy et al., ICCV 2015): kernels of the first convolution of each level, and their number.
KERNEL_SIZES = (7, 5, 5, 3, 3, 3)
NUM_CONVOLUTIONS = (1, 1, 2, 2, 2, 2)
NEGATIVE_SLOPE = 0.1
# The coarsest levels exchange information with the queries, in this order.
ATTENDED_LEVELS = (-1, -2, -3)

# The parts of the flow in each of Table 3's designs; `"copy"` has none.
WITH_QUERIES = ("full", "query_learned", "query_random", "query_for_pixel_flow")
WITH_QUERY_FLOW = ("full", "query_learned", "query_random")
WITH_PIXEL_FLOW = ("full", "query_for_pixel_flow", "optical_flow")


class Flows(NamedTuple):
    """Flows of a batch of frames, at stride 8.

    `pixel` `(batch, 1, 2, h, w)` is shared by the queries, `query` `(batch, num_queries, 2, h, w)` each one's own;
    designs without one have `None`. `fused`, shaped like one of them, is what masks are warped with.
    """

    pixel: Tensor | None
    query: Tensor | None
    fused: Tensor


class MotionEncoder(nn.Module):
    """The encoder of FlowNetS: from two frames to maps at strides 4 to 64, with `channels` in its six levels."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.levels = nn.ModuleList()
        width = 6
        for level_width, kernel_size, count in zip(channels, KERNEL_SIZES, NUM_CONVOLUTIONS, strict=True):
            level: list[nn.Module] = []
            for index in range(count):
                size, stride = (kernel_size, 2) if index == 0 else (3, 1)
                level += [nn.Conv2d(width, level_width, size, stride, padding=size // 2), nn.LeakyReLU(NEGATIVE_SLOPE)]
                width = level_width
            self.levels.append(nn.Sequential(*level))

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Encode `(batch, 6, height, width)`, the current frame and then the key frame; the finest map comes first."""
        maps = []
        for level in self.levels:
            frames = level(frames)
            maps.append(frames)
        return maps[1:]


class MotionLayer(GradientCheckpointingLayer):
    """Attention among the queries and the places of one map, and a feed-forward part; post-norm."""

    def __init__(self, hidden_dim: int, num_heads: int, feedforward_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.proj = nn.Linear(hidden_dim, hidden_dim)
        self.attention_norm = nn.LayerNorm(hidden_dim)
        self.fc1 = nn.Linear(hidden_dim, feedforward_dim)
        self.fc2 = nn.Linear(feedforward_dim, hidden_dim)
        self.final_norm = nn.LayerNorm(hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens `(batch, tokens, hidden_dim)`."""
        parts = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        tokens = self.attention_norm(tokens + self.proj(attended))
        return self.final_norm(tokens + self.fc2(self.fc1(tokens).relu()))


class PixelFlowDecoder(nn.Module):
    """The decoder of FlowNetS: a flow that all queries share, from coarse to fine; `channels` are finest first."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int]):
        super().__init__()
        self.flow_predictors = nn.ModuleList()
        self.flow_enlargers = nn.ModuleList()
        self.map_enlargers = nn.ModuleList()
        width = channels[-1]
        for finer, enlarged in zip(reversed(channels[:-1]), widths, strict=True):
            self.flow_predictors.append(nn.Conv2d(width, 2, 3, padding=1, bias=False))
            self.flow_enlargers.append(nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False))
            self.map_enlargers.append(nn.ConvTranspose2d(width, enlarged, 4, stride=2, padding=1, bias=False))
            width = finer + enlarged + 2
        self.flow_predictors.append(nn.Conv2d(width, 2, 3, padding=1, bias=False))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the five maps, the finest first, to a flow `(batch, 2, h, w)` of the finest one's size."""
        current = maps[-1]
        for finer, predictor, flow_enlarger, map_enlarger in zip(
            reversed(maps[:-1]), self.flow_predictors, self.flow_enlargers, self.map_enlargers, strict=False
        ):
            height, width = finer.shape[-2:]
            flow = flow_enlarger(predictor(current))[..., :height, :width]
            enlarged = nn.functional.leaky_relu(map_enlarger(current), NEGATIVE_SLOPE)[..., :height, :width]
            current = torch.cat([finer, enlarged, flow], dim=1)
        return self.flow_predictors[-1](current)


class QueryMotion(nn.Module):
    """Layers of joint attention among the key frame's queries and, in turn, the encoder's coarsest maps."""

    def __init__(
        self,
        channels: Sequence[int],
        hidden_dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
    ):
        super().__init__()
        self.input_projections = nn.ModuleList(
            [nn.Conv2d(channels[level], hidden_dim, kernel_size=1) for level in ATTENDED_LEVELS]
        )
        self.level_embed = nn.Embedding(len(ATTENDED_LEVELS), hidden_dim)
        self.queries_embedder = nn.Embedding(num_queries, hidden_dim)
        self.position_embedder = Mask2FormerSinePositionEmbedding(hidden_dim // 2, normalize=True)
        self.layers = nn.ModuleList([MotionLayer(hidden_dim, num_heads, feedforward_dim) for _ in range(num_layers)])

    def forward(self, queries: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mix queries `(batch, num_queries, hidden_dim)` and the encoder's maps, of which the finest comes first."""
        sources, positions, sizes = [], [], []
        for index, level in enumerate(ATTENDED_LEVELS):
            source = self.input_projections[index](maps[level]) + self.level_embed.weight[index][:, None, None]
            position = self.position_embedder(source.shape, source.device, source.dtype)
            sizes.append(source.shape[-2:])
            sources.append(source.flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
        for index, layer in enumerate(self.layers):
            level = index % len(sources)
            tokens = torch.cat([queries + self.queries_embedder.weight, sources[level] + positions[level]], dim=1)
            queries, sources[level] = layer(tokens).split([queries.shape[1], sources[level].shape[1]], dim=1)
        mixed = [source.transpose(1, 2).unflatten(2, size) for source, size in zip(sources, sizes, strict=True)]
        return queries, mixed[::-1]


class QueryFlowHead(nn.Module):
    """Each query's flow: its embedding times the two halves of a motion map, the second one for x."""

    def __init__(self, hidden_dim: int, map_channels: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(hidden_dim)
        self.motion_map = Mask2FormerMLPPredictionHead(map_channels, 2 * hidden_dim, 2 * hidden_dim)
        self.flow_embedder = Mask2FormerMLPPredictionHead(hidden_dim, 2 * hidden_dim, hidden_dim)

    def forward(self, queries: Tensor, finest: Tensor) -> Tensor:
        """Map queries `(batch, num_queries, hidden_dim)` and the finest map to `(batch, num_queries, 2, h, w)`."""
        motion = self.motion_map(finest.flatten(2).transpose(1, 2))  # (batch, places, 2 hidden)
        down, across = motion.chunk(2, dim=-1)
        embeddings = self.flow_embedder(self.layernorm(queries))
        flows = [embeddings @ part.transpose(1, 2) for part in (across, down)]
        return torch.stack(flows, dim=2).unflatten(-1, finest.shape[-2:])


class FlowEstimator(nn.Module):
    """From two frames and the key frame's queries to a flow for every query (section 3.3); see [`MPVSSConfig`]."""

    def __init__(
        self,
        hidden_dim: int,
        num_queries: int,
        propagation: str = "full",
        encoder_channels: Sequence[int] = (64, 128, 256, 512, 512, 1024),
        decoder_channels: Sequence[int] = (128, 128, 128, 64),
        num_layers: int = 9,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
    ):
        super().__init__()
        channels = list(encoder_channels[1:])
        self.starts_at_key_frame = propagation != "query_random"
        self.encoder = MotionEncoder(encoder_channels)
        self.query_motion, self.query_head, self.pixel_decoder, self.fusion = None, None, None, None
        if propagation in WITH_QUERIES:
            self.query_motion = QueryMotion(channels, hidden_dim, num_queries, num_layers, num_heads, feedforward_dim)
            channels[-len(ATTENDED_LEVELS) :] = [hidden_dim] * len(ATTENDED_LEVELS)
        if propagation in WITH_QUERY_FLOW:
            self.query_head = QueryFlowHead(hidden_dim, channels[0])
        if propagation in WITH_PIXEL_FLOW:
            self.pixel_decoder = PixelFlowDecoder(channels, decoder_channels)
        if self.query_head is not None and self.pixel_decoder is not None:
            self.fusion = nn.Conv2d(4, 2, 3, padding=1)

    @property
    def has_query_flow(self) -> bool:
        """True if every query has a flow of its own."""
        return self.query_head is not None

    def forward(self, frames: Tensor, queries: Tensor) -> Flows:
        """Estimate flows from [`flow_frames`] and the key frame's normed queries `(batch, num_queries, hidden)`."""
        maps = self.encoder(frames)
        finest = maps[0]
        if self.query_motion is not None:
            # Without the key frame's, the learned embeddings, which every layer adds, are all there is of the queries.
            start = queries if self.starts_at_key_frame else torch.zeros_like(queries)
            queries, mixed = self.query_motion(start, maps)
            maps = [*maps[: -len(mixed)], *mixed]
        pixel = None if self.pixel_decoder is None else self.pixel_decoder(maps)[:, None]
        query = None if self.query_head is None else self.query_head(queries, finest)
        if pixel is None or query is None or self.fusion is None:
            return Flows(pixel, query, pixel if query is None else query)  # type: ignore[arg-type]
        both = torch.cat([pixel.expand(-1, query.shape[1], -1, -1, -1), query], dim=2)
        return Flows(pixel, query, self.fusion(both.flatten(0, 1)).unflatten(0, both.shape[:2]))


def warp(maps: Tensor, flow: Tensor, corrected: bool = False) -> Tensor:
    """Fetch every pixel of maps `(maps, channels, h, w)` from where its flow points, bilinearly.

    The border continues outside. The flow `(maps, 2, flow_height, flow_width)` is resized by one factor, and so are
    its values. As released, positions are divided by the size while the sampling counts from pixel centre to pixel
    centre, so that zero flow fetches from up to a pixel further left and up; if `corrected`, it leaves masks in place.
    """
    height, width = maps.shape[-2:]
    scale = width / flow.shape[-1]
    # In half precision there would be no places between the pixels of a large map, and not all of these.
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    flow = nn.functional.interpolate(flow, (height, width), mode="bilinear", align_corners=False) * scale
    x = torch.arange(width, device=maps.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=maps.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    last_x, last_y = (width - 1, height - 1) if corrected else (width, height)
    grid = torch.stack([2 * x / max(last_x, 1) - 1, 2 * y / max(last_y, 1) - 1], dim=-1)
    undefined = grid.isnan().any(-1)[:, None] if grid.requires_grad else None
    if undefined is not None:  # torch's backward pass ends the process at them
        grid = grid.nan_to_num()
    warped = nn.functional.grid_sample(
        maps.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=True
    ).to(maps.dtype)
    return warped if undefined is None else warped.masked_fill(undefined, float("nan"))


def flow_frames(
    current: Tensor, key: Tensor, scales: Sequence[float], shifts: Sequence[float], is_picture: Tensor
) -> Tensor:
    """Concatenate two frames `(batch, 3, height, width)` for the motion encoder: `(batch, 6, height / 2, width / 2)`.

    Channels are multiplied by `scales`, and `shifts` are added; where `is_picture` `(batch, height, width)` is false,
    frames are padded and stay zero.
    """
    channels = [
        frame[:, channel] * scale + shift
        for frame in (current, key)
        for channel, (scale, shift) in enumerate(zip(scales, shifts, strict=True))
    ]
    return nn.functional.avg_pool2d(torch.stack(channels, dim=1) * is_picture[:, None], 2)
