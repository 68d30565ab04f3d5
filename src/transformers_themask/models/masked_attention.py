# SPDX-License-Identifier: Apache-2.0
"""Mask2Former's transformer decoder: queries attend to the pixels inside their own masks (Cheng et al., CVPR 2022).

Parameter names are those of Transformers' Mask2Former, so its checkpoints load as they are. Attention masks are
computed from mask features resized to the level that uses them: resizing is linear, hence this equals resizing the
full-size mask logits, at a tenth of the work.

Einsum letters: `b` batch (clips), `t` frame, `q` query, `c` channel, `h w` map, `s` flattened map.

Lengths are read as `shape[0]`, for `len` makes them constants of an exported graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMLPPredictionHead,
    Mask2FormerSinePositionEmbedding,
)

from .configuration_query_segmenter import QuerySegmenterConfig


class QueryPrediction(NamedTuple):
    """The prediction of one set of queries after one decoder layer.

    `queries` are normalised query states, ready for the class head: `(batch, num_queries, hidden)`, or
    `(batch, num_frames, num_queries, hidden)` for frame queries. `mask_embeddings` are
    `(batch, num_frames, num_queries, mask_feature_size)`, where one frame may stand for all; `mask_features` are
    `(batch, num_frames, mask_feature_size, height / 4, width / 4)`.
    """

    queries: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor

    @property
    def mask_logits(self) -> Tensor:
        """Masks `(batch, num_frames, num_queries, height / 4, width / 4)`, made anew at each access.

        An einsum over one set of queries would copy the mask features, and keep a copy per layer for the backward
        pass.
        """
        height, width = self.mask_features.shape[-2:]
        return (self.mask_embeddings @ self.mask_features.flatten(3)).unflatten(3, (height, width))


class LevelFeatures(NamedTuple):
    """One scale of the pixel decoder, as the decoder layers read it.

    `keys` and `values` are `(batch, num_frames, cells, hidden)`; `mask_features` are
    `(batch, num_frames, mask_feature_size, cells)`, without gradient.
    """

    keys: Tensor
    values: Tensor
    mask_features: Tensor


class FrameFeatures(NamedTuple):
    """The decoder's input for frames that were encoded one by one; a stream keeps it instead of the frames.

    `values` and `mask_features` hold one tensor per scale, `(batch, num_frames, cells, hidden)` and
    `(batch, num_frames, mask_feature_size, cells)`. `frame_queries` `(batch, num_frames, num_queries, hidden)` are the
    queries of a decoder that looks at each frame by itself first; `None` in other decoders.
    """

    values: tuple[Tensor, ...]
    mask_features: tuple[Tensor, ...]
    frame_queries: Tensor | None = None

    def followed_by(self, later: "FrameFeatures") -> "FrameFeatures":
        """These frames and later ones."""
        return self._combined(lambda *parts: torch.cat(parts, dim=1), later)

    def frames(self, kept: slice) -> "FrameFeatures":
        """A selection of these frames."""
        return self._combined(lambda part: part[:, kept])

    def newest(self, num_frames: int) -> "FrameFeatures":
        """A copy of the last frames, or of all where there are fewer; it does not keep the others alive.

        An exported graph of slices of them would not hold for every number of frames.
        """
        newest = torch.arange(self.num_frames, device=self.values[0].device)[-num_frames:]
        return self._combined(lambda part: part.index_select(1, newest))

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.values[0].shape[1]

    def _combined(self, combine: Callable[..., Tensor], *others: "FrameFeatures") -> "FrameFeatures":
        sets = (self, *others)
        queries = [features.frame_queries for features in sets]
        return FrameFeatures(
            tuple(combine(*parts) for parts in zip(*(features.values for features in sets), strict=True)),
            tuple(combine(*parts) for parts in zip(*(features.mask_features for features in sets), strict=True)),
            None if queries[0] is None else combine(*queries),
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    num_heads: int,
    dropout: float,
    implementation: str | None,
) -> Tensor:
    """Multi-head attention over `(batch, sequence, hidden)`, where `allowed` `(batch, queries, keys)` is true."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if allowed is None else allowed[:, None]
    if implementation == "eager":
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        attended = nn.functional.dropout(scores.softmax(-1), dropout) @ value
    else:
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention among queries, with the separate projections of Transformers' Mask2Former."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        self.config = config
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_dim, config.hidden_dim) for _ in range(4)
        )

    def forward(self, queries: Tensor, query_position_embeddings: Tensor) -> Tensor:
        """Mix queries `(batch, num_queries, hidden)`; positions enter queries and keys only."""
        placed = queries + query_position_embeddings
        attended = attend(
            self.q_proj(placed),
            self.k_proj(placed),
            self.v_proj(queries),
            allowed=None,
            num_heads=self.config.num_attention_heads,
            dropout=self.config.dropout if self.training else 0.0,
            implementation=self.config._attn_implementation,
        )
        return self.out_proj(attended)


class FusedProjectionAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention`'s parameters with a batch-first forward pass that shares one mask among the heads."""

    def __init__(self, config: QuerySegmenterConfig, dropout: float):
        super().__init__(config.hidden_dim, config.num_attention_heads, dropout)
        self.config = config

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Attend from `query` to `key` and `value`, each `(batch, sequence, hidden)`; `allowed` as in [`attend`]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            nn.functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        attended = attend(
            query,
            key,
            value,
            allowed=allowed,
            num_heads=self.num_heads,
            dropout=self.dropout if self.training else 0.0,
            implementation=self.config._attn_implementation,
        )
        return self.out_proj(attended)


class MaskedAttentionLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and feed-forward network, post-norm (Mask2Former, Eq. 2)."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        width = config.hidden_dim
        self.dropout = config.dropout
        self.cross_attn = FusedProjectionAttention(config, config.dropout)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, query_position_embeddings: Tensor
    ) -> Tensor:
        """Update queries `(batch, num_queries, hidden)` with keys and values `(batch, cells, hidden)` of one scale.

        `allowed` `(batch, num_queries, cells)` is true inside each query's current mask.
        """
        attended = self.cross_attn(queries + query_position_embeddings, keys, values, allowed)
        queries = self.cross_attn_layer_norm(queries + self._drop(attended))
        mixed = self.self_attn(queries, query_position_embeddings)
        queries = self.self_attn_layer_norm(queries + self._drop(mixed))
        expanded = self._drop(self.fc1(queries).relu())
        return self.final_layer_norm(queries + self._drop(self.fc2(expanded)))

    def _drop(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, self.dropout, self.training)


class MaskPredictor(nn.Module):
    """Turns query states into mask embeddings; a mask is their product with the mask features."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        self.mask_embedder = Mask2FormerMLPPredictionHead(
            config.hidden_dim, config.hidden_dim, config.mask_feature_size
        )

    def forward(self, queries: Tensor) -> Tensor:
        """Map `(..., num_queries, hidden)` to `(..., num_queries, mask_feature_size)`."""
        return self.mask_embedder(queries)


class MaskedAttentionDecoder(nn.Module):
    """Mask2Former's decoder; a clip's queries attend to all its frames jointly."""

    # Whether one query attends to several frames, so that their positions in time matter.
    attends_to_clips = True

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(MaskedAttentionLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = MaskPredictor(config)

    def forward(
        self,
        query_features: Tensor,
        query_position_embeddings: Tensor,
        levels: list[LevelFeatures],
        mask_features: Tensor,
        all_predictions: bool,
        frame_queries: Tensor | None = None,
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Predictions of the video queries and of the frame queries, of which there are none here.

        Layer i reads level i mod 3 of the scales 1/32, 1/16 and 1/8. `mask_features` belong to the frames to predict
        masks for, the last ones of the clip or all. With `all_predictions` also before the first and after every
        layer.
        """
        queries = query_features.expand(mask_features.shape[0], -1, -1)
        predictions = []
        for index in range(len(self.layers) + 1):
            normalised = self.layernorm(queries)
            mask_embeddings = self.mask_predictor(normalised)
            if all_predictions or index == len(self.layers):
                predictions.append(QueryPrediction(normalised, mask_embeddings[:, None], mask_features))
            if index < len(self.layers):
                level = levels[index % len(levels)]
                inside = torch.einsum("bqc,btcs->bqts", mask_embeddings.detach(), level.mask_features) >= 0
                allowed = unblock_empty_rows(inside.flatten(2))
                queries = self.layers[index](
                    queries, level.keys.flatten(1, 2), level.values.flatten(1, 2), allowed, query_position_embeddings
                )
        return predictions, []


def unblock_empty_rows(inside: Tensor) -> Tensor:
    """Let a query whose mask covers no cell look everywhere: `(batch, num_queries, cells)` boolean."""
    return inside | ~inside.any(-1, keepdim=True)


class TransformerModule(nn.Module):
    """Learned queries, level embeddings and the decoder."""

    num_levels = 3

    def __init__(
        self, config: QuerySegmenterConfig, decoder_class: type[MaskedAttentionDecoder] = MaskedAttentionDecoder
    ):
        super().__init__()
        self.config = config
        self.position_embedder = Mask2FormerSinePositionEmbedding(config.hidden_dim // 2, normalize=True)
        self.queries_embedder = nn.Embedding(config.num_queries, config.hidden_dim)
        self.queries_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, config.hidden_dim)
        needs_projection = config.feature_size != config.hidden_dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, config.hidden_dim, kernel_size=1) if needs_projection else nn.Identity()
            for _ in range(self.num_levels)
        )
        self.decoder = decoder_class(config)

    def forward(
        self, feature_maps: list[Tensor], mask_features: Tensor, num_frames: int, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode clips, frames folded clip by clip into the first axis, to video- and frame-level predictions.

        Maps `(batch * num_frames, feature_size, h, w)` are at strides 32, 16 and 8, `mask_features` at stride 4. With
        `all_predictions` there is one per prediction layer, else only the last; either list may be empty.
        """
        clip_shape = (mask_features.shape[0] // num_frames, num_frames)
        features = self.read_maps(feature_maps, mask_features, clip_shape)
        return self.decode(
            features, level_sizes(feature_maps), mask_features.unflatten(0, clip_shape), all_predictions
        )

    def decode(
        self, features: FrameFeatures, sizes: list[tuple[int, int]], mask_features: Tensor, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode clips of frames that `read_maps` prepared, whose scales have these sizes."""
        return self.decoder(
            self.queries_features.weight,
            self.queries_embedder.weight,
            self.levels(features, sizes),
            mask_features,
            all_predictions,
            features.frame_queries,
        )

    def read_maps(
        self, feature_maps: list[Tensor], mask_features: Tensor, clip_shape: tuple[int, int]
    ) -> FrameFeatures:
        """Prepare the maps of frames; `clip_shape` is their number of clips and of frames per clip."""
        values, resized = [], []
        for index, feature_map in enumerate(feature_maps):
            level = self.input_projections[index](feature_map) + self.level_embed.weight[index][:, None, None]
            masks = nn.functional.interpolate(
                mask_features.detach(), feature_map.shape[-2:], mode="bilinear", align_corners=False
            )
            values.append(level.flatten(2).transpose(1, 2).unflatten(0, clip_shape))
            resized.append(masks.flatten(2).unflatten(0, clip_shape))
        return FrameFeatures(tuple(values), tuple(resized))

    def levels(self, features: FrameFeatures, sizes: list[tuple[int, int]]) -> list[LevelFeatures]:
        """Add positions, of which those in time depend on the clip."""
        return [
            LevelFeatures(values + self._positions(values, size), values, mask_features)
            for values, mask_features, size in zip(features.values, features.mask_features, sizes, strict=True)
        ]

    def _positions(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Sine positions `(num_frames, cells, hidden)` of one scale.

        Only for queries that attend to several frames the frame part matters; elsewhere it cancels in the softmax.
        """
        dtype = torch.promote_types(values.dtype, torch.float32)
        num_frames, width = values.shape[1], values.shape[-1]
        planar = self.position_embedder((1, width, *size), values.device, dtype)[0].flatten(1).T
        if num_frames == 1 or not self.decoder.attends_to_clips:
            return planar[None].to(values.dtype)
        times = frame_position_embedding(num_frames, width, values.device, dtype)
        return (planar[None] + times[:, None]).to(values.dtype)


def level_sizes(feature_maps: list[Tensor]) -> list[tuple[int, int]]:
    """Height and width of each scale."""
    return [(feature_map.shape[-2], feature_map.shape[-1]) for feature_map in feature_maps]


def frame_position_embedding(num_frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sine code of the frame index, normalised to 2π over the clip: `(num_frames, width)` (Mask2Former for video)."""
    frames = torch.arange(1, num_frames + 1, device=device, dtype=dtype) / (num_frames + 1e-6) * (2 * torch.pi)
    exponents = 2 * (torch.arange(width, device=device) // 2).to(dtype) / width
    angles = frames[:, None] / 10000**exponents
    return torch.where(torch.arange(width, device=device) % 2 == 0, angles.sin(), angles.cos())
