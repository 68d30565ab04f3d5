# SPDX-License-Identifier: Apache-2.0
"""The transformer decoders of THE-Mask: Mask2Former's, and the Temporal Aggregation Decoder (TAD, section 3.3).

Parameter names of the shared part are those of Transformers' Mask2Former, so its checkpoints load as they are.
Attention masks are computed from mask features resized to the level that uses them: resizing is linear, hence this
equals resizing the full-size mask logits, at a tenth of the work.

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

from .configuration_themask import THEMaskConfig


class QueryPrediction(NamedTuple):
    """What one set of queries predicts after one decoder layer.

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
    """What the decoder reads of frames, each seen by itself; a stream remembers it instead of the frames.

    `values` and `mask_features` hold one tensor per scale, `(batch, num_frames, cells, hidden)` and
    `(batch, num_frames, mask_feature_size, cells)`. `frame_queries` are those of the TAD after its first layer, which
    depend on no other frame: `(batch, num_frames, num_queries, hidden)`; `None` in other decoders.
    """

    values: tuple[Tensor, ...]
    mask_features: tuple[Tensor, ...]
    frame_queries: Tensor | None = None

    def followed_by(self, later: "FrameFeatures") -> "FrameFeatures":
        """The same of these frames and later ones."""
        return self._combined(lambda *parts: torch.cat(parts, dim=1), later)

    def frames(self, kept: slice) -> "FrameFeatures":
        """The same of some of these frames."""
        return self._combined(lambda part: part[:, kept])

    def newest(self, num_frames: int) -> "FrameFeatures":
        """The same of the last frames, or of all where there are fewer: a copy, which does not keep the others alive.

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
    """Multi-head attention over `(batch, sequence, hidden)` projections.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, sequence, hidden)`): Projected inputs.
        allowed (`torch.Tensor` of shape `(batch, queries, keys)`, *optional*): Boolean, `True` where a query may look.
        num_heads (`int`): Number of attention heads.
        dropout (`float`): Dropout probability of the attention weights.
        implementation (`str`, *optional*): `"eager"`, or anything else for PyTorch's fused attention.
    """
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

    def __init__(self, config: THEMaskConfig):
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

    def __init__(self, config: THEMaskConfig, dropout: float):
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

    def __init__(self, config: THEMaskConfig):
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
        """Update queries.

        Args:
            queries (`torch.Tensor` of shape `(batch, num_queries, hidden)`): Query states.
            keys, values (`torch.Tensor` of shape `(batch, cells, hidden)`): One scale, with and without positions.
            allowed (`torch.Tensor` of shape `(batch, num_queries, cells)`): Cells inside each query's current mask.
            query_position_embeddings (`torch.Tensor` of shape `(num_queries, hidden)`): Learned positions.
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

    def __init__(self, config: THEMaskConfig):
        super().__init__()
        self.mask_embedder = Mask2FormerMLPPredictionHead(
            config.hidden_dim, config.hidden_dim, config.mask_feature_size
        )

    def forward(self, queries: Tensor) -> Tensor:
        """Map `(..., num_queries, hidden)` to `(..., num_queries, mask_feature_size)`."""
        return self.mask_embedder(queries)


class MaskedAttentionDecoder(nn.Module):
    """Mask2Former's decoder. Several frames are attended jointly: the one-to-video ablation of Table 3."""

    def __init__(self, config: THEMaskConfig):
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
        first_look: Tensor | None = None,
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode clips.

        Args:
            query_features (`torch.Tensor` of shape `(num_queries, hidden)`): Learned initial queries.
            query_position_embeddings (`torch.Tensor` of shape `(num_queries, hidden)`): Learned query positions.
            levels (`list[LevelFeatures]`): The scales 1/32, 1/16 and 1/8; layer `i` reads scale `i mod 3`.
            mask_features (`torch.Tensor` of shape `(batch, num_answered, mask_feature_size, height / 4, width / 4)`):
                Per-pixel features of the frames to predict masks for, the last ones of the clip or all.
            all_predictions (`bool`): Predict before the first and after every layer instead of after the last only.
            first_look (`torch.Tensor`, *optional*): What [`TemporalAggregationDecoder.first_look`] returned.

        Returns:
            Predictions of the video queries and, here empty, of frame queries.
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


class TemporalAggregator(nn.Module):
    """The exchange between one set of video queries and a set of frame queries per frame (Eq. 7 and 9).

    Where paper and released code differ the code is followed: both query sets pass a self-attention first, the frame
    queries a feed-forward network, and Eq. 9 gains a linear map, two norms and a feed-forward network. One module
    serves every layer.
    """

    def __init__(self, config: THEMaskConfig):
        super().__init__()
        width, dropout = config.hidden_dim, float(config.aggregator_dropout)
        self.dropout = dropout
        # Initial queries.
        self.video_self_attn = FusedProjectionAttention(config, dropout)
        self.video_self_attn_layer_norm = nn.LayerNorm(width)
        self.frame_self_attn = FusedProjectionAttention(config, dropout)
        self.frame_self_attn_layer_norm = nn.LayerNorm(width)
        self.frame_cross_attn = FusedProjectionAttention(config, dropout)
        self.frame_cross_attn_layer_norm = nn.LayerNorm(width)
        self.frame_fc1 = nn.Linear(width, config.dim_feedforward)
        self.frame_fc2 = nn.Linear(config.dim_feedforward, width)
        self.frame_final_layer_norm = nn.LayerNorm(width)
        # Aggregation.
        self.temporal_weights = nn.Linear(width, 1)
        self.temporal_projection = nn.Linear(width, width)
        self.video_aggregation_layer_norm = nn.LayerNorm(width)
        self.video_fc1 = nn.Linear(width, config.dim_feedforward)
        self.video_fc2 = nn.Linear(config.dim_feedforward, width)
        self.video_final_layer_norm = nn.LayerNorm(width)

    def initial_video_queries(
        self, query_features: Tensor, query_position_embeddings: Tensor, batch_size: int
    ) -> Tensor:
        """Make the first video queries `(batch, num_queries, hidden)`, which know no frame yet.

        Args:
            query_features, query_position_embeddings (`torch.Tensor` of shape `(num_queries, hidden)`): Learned
            queries.
            batch_size (`int`): Number of clips.
        """
        queries = query_features.expand(batch_size, -1, -1)
        placed = queries + query_position_embeddings
        return self.video_self_attn_layer_norm(queries + self._drop(self.video_self_attn(placed, placed, queries)))

    def initial_frame_queries(
        self, query_features: Tensor, query_position_embeddings: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Make the first frame queries `(batch, num_frames, num_queries, hidden)` by looking at each frame (Eq. 7).

        Args:
            query_features, query_position_embeddings (`torch.Tensor` of shape `(num_queries, hidden)`): Learned
            queries.
            keys, values (`torch.Tensor` of shape `(batch, num_frames, cells, hidden)`): All scales of every frame.
        """
        batch_size, num_frames = keys.shape[:2]
        queries = query_features.expand(batch_size, -1, -1)
        placed = queries + query_position_embeddings
        shared = self.frame_self_attn_layer_norm(queries + self._drop(self.frame_self_attn(placed, placed, queries)))
        # (batch * num_frames, num_queries, hidden); ONNX gets `repeat_interleave` wrong for batches.
        frame_queries = shared[:, None].expand(-1, num_frames, -1, -1).flatten(0, 1)
        attended = self.frame_cross_attn(
            frame_queries + query_position_embeddings, keys.flatten(0, 1), values.flatten(0, 1)
        )
        frame_queries = self.frame_cross_attn_layer_norm(frame_queries + self._drop(attended))
        expanded = self._drop(self.frame_fc1(frame_queries).relu())
        frame_queries = self.frame_final_layer_norm(frame_queries + self._drop(self.frame_fc2(expanded)))
        return frame_queries.unflatten(0, (batch_size, num_frames))

    def aggregate(self, video_queries: Tensor, frame_queries: Tensor) -> Tensor:
        """Fold frame queries `(batch, num_frames, num_queries, hidden)` into the video queries (Eq. 9)."""
        temporal_weights = self.temporal_weights(frame_queries).softmax(dim=1)
        gathered = (temporal_weights * self.temporal_projection(frame_queries)).sum(dim=1)
        video_queries = self.video_aggregation_layer_norm(video_queries + self._drop(gathered))
        expanded = self._drop(self.video_fc1(video_queries).relu())
        return self.video_final_layer_norm(video_queries + self._drop(self.video_fc2(expanded)))

    def _drop(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, self.dropout, self.training)


class TemporalAggregationDecoder(MaskedAttentionDecoder):
    """TAD: frame queries look at their own frame only; after every layer they are folded into the video queries."""

    def __init__(self, config: THEMaskConfig):
        super().__init__(config)
        self.frame_layernorm = nn.LayerNorm(config.hidden_dim)
        self.frame_mask_predictor = MaskPredictor(config)
        self.temporal_aggregator = TemporalAggregator(config)

    def forward(
        self,
        query_features: Tensor,
        query_position_embeddings: Tensor,
        levels: list[LevelFeatures],
        mask_features: Tensor,
        all_predictions: bool,
        first_look: Tensor | None = None,
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode clips; arguments as in [`MaskedAttentionDecoder`]. Returns video and frame predictions."""
        batch_size, num_answered = mask_features.shape[:2]
        aggregator = self.temporal_aggregator
        video_queries = aggregator.initial_video_queries(query_features, query_position_embeddings, batch_size)
        if first_look is None:
            frame_queries = self._initial_frame_queries(query_features, query_position_embeddings, levels)
        else:
            frame_queries = first_look
        video_predictions, frame_predictions = [], []
        for index in range(len(self.layers) + 1):
            video_normalised, frame_normalised = self.layernorm(video_queries), self.frame_layernorm(frame_queries)
            video_embeddings = self.mask_predictor(video_normalised)
            frame_embeddings = self.frame_mask_predictor(frame_normalised)
            if all_predictions or index == len(self.layers):
                answered = frame_normalised[:, -num_answered:], frame_embeddings[:, -num_answered:]
                video_predictions.append(QueryPrediction(video_normalised, video_embeddings[:, None], mask_features))
                frame_predictions.append(QueryPrediction(*answered, mask_features))
            if index < len(self.layers):
                if index > 0 or first_look is None:
                    guide = self._guide(video_embeddings, frame_embeddings)
                    frame_queries = self._look(index, frame_queries, guide, levels, query_position_embeddings)
                video_queries = aggregator.aggregate(video_queries, frame_queries)
        return video_predictions, frame_predictions

    def first_look(
        self, query_features: Tensor, query_position_embeddings: Tensor, levels: list[LevelFeatures]
    ) -> Tensor:
        """Frame queries `(batch, num_frames, num_queries, hidden)` after the first layer.

        None depends on another frame: the video queries that guide this layer are still the learned ones.

        Args:
            query_features, query_position_embeddings (`torch.Tensor` of shape `(num_queries, hidden)`): Learned
            queries.
            levels (`list[LevelFeatures]`): The scales of the frames.
        """
        frame_queries = self._initial_frame_queries(query_features, query_position_embeddings, levels)
        video_queries = self.temporal_aggregator.initial_video_queries(
            query_features, query_position_embeddings, frame_queries.shape[0]
        )
        guide = self._guide(
            self.mask_predictor(self.layernorm(video_queries)),
            self.frame_mask_predictor(self.frame_layernorm(frame_queries)),
        )
        return self._look(0, frame_queries, guide, levels, query_position_embeddings)

    def _initial_frame_queries(
        self, query_features: Tensor, query_position_embeddings: Tensor, levels: list[LevelFeatures]
    ) -> Tensor:
        return self.temporal_aggregator.initial_frame_queries(
            query_features,
            query_position_embeddings,
            torch.cat([level.keys for level in levels], dim=2),
            torch.cat([level.values for level in levels], dim=2),
        )

    def _guide(self, video_embeddings: Tensor, frame_embeddings: Tensor) -> Tensor:
        """Mask embeddings `(batch, num_frames or 1, num_queries, channels)` of the masks that restrict attention."""
        # The released code restricts attention by the video masks, the paper (Eq. 8) by the frame masks.
        return frame_embeddings if self.config.attention_mask_source == "frame" else video_embeddings[:, None]

    def _look(
        self,
        index: int,
        frame_queries: Tensor,
        guide: Tensor,
        levels: list[LevelFeatures],
        query_position_embeddings: Tensor,
    ) -> Tensor:
        """Let the frame queries look at their own frames, in one layer."""
        level = levels[index % len(levels)]
        allowed = unblock_empty_rows(guide.detach() @ level.mask_features >= 0)
        return self.layers[index](
            frame_queries.flatten(0, 1),
            level.keys.flatten(0, 1),
            level.values.flatten(0, 1),
            allowed.flatten(0, 1),
            query_position_embeddings,
        ).unflatten(0, frame_queries.shape[:2])


class TransformerModule(nn.Module):
    """Learned queries, level embeddings and the decoder of the configured `temporal_mode`."""

    num_levels = 3

    def __init__(self, config: THEMaskConfig):
        super().__init__()
        self.config = config
        self.has_frame_queries = config.num_frames > 1 and config.temporal_mode == "video_frame"
        # Without video queries nothing crosses frames: each frame is decoded as a clip of its own.
        self.decodes_frames_alone = config.num_frames == 1 or config.temporal_mode == "one_to_frame"
        self.position_embedder = Mask2FormerSinePositionEmbedding(config.hidden_dim // 2, normalize=True)
        self.queries_embedder = nn.Embedding(config.num_queries, config.hidden_dim)
        self.queries_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.level_embed = nn.Embedding(self.num_levels, config.hidden_dim)
        needs_projection = config.feature_size != config.hidden_dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, config.hidden_dim, kernel_size=1) if needs_projection else nn.Identity()
            for _ in range(self.num_levels)
        )
        decoder_class = TemporalAggregationDecoder if self.has_frame_queries else MaskedAttentionDecoder
        self.decoder = decoder_class(config)

    def forward(
        self, feature_maps: list[Tensor], mask_features: Tensor, num_frames: int, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode the frames of a batch of clips, frames folded clip by clip into the first axis.

        Args:
            feature_maps (`list[torch.Tensor]`): Maps `(batch * num_frames, feature_size, h, w)` at strides 32, 16 and
            8.
            mask_features (`torch.Tensor` of shape `(batch * num_frames, mask_feature_size, height / 4, width / 4)`):
                Per-pixel features.
            num_frames (`int`): Frames per clip.
            all_predictions (`bool`): Also return the predictions before the last layer.

        Returns:
            Video-level and frame-level predictions, one per prediction layer; either list may be empty.
        """
        clip_length = 1 if self.decodes_frames_alone else num_frames
        clip_shape = (mask_features.shape[0] // clip_length, clip_length)
        features = self._read_maps(feature_maps, mask_features, clip_shape)
        video, frame = self._decode(
            features, level_sizes(feature_maps), mask_features.unflatten(0, clip_shape), all_predictions
        )
        if not self.decodes_frames_alone or (num_frames == 1 and self.config.num_frames == 1):
            return video, frame
        # A query that sees one frame is a frame query, also when a one-frame model is given longer clips.
        batch_shape = (mask_features.shape[0] // num_frames, num_frames)
        folded = [
            QueryPrediction(
                queries.unflatten(0, batch_shape),
                embeddings.squeeze(1).unflatten(0, batch_shape),
                features.squeeze(1).unflatten(0, batch_shape),
            )
            for queries, embeddings, features in video
        ]
        return [], folded

    def read_frames(self, feature_maps: list[Tensor], mask_features: Tensor) -> FrameFeatures:
        """Read the newest frame of every stream, by itself.

        Args:
            feature_maps (`list[torch.Tensor]`): Maps `(batch, feature_size, h, w)` at strides 32, 16 and 8.
            mask_features (`torch.Tensor` of shape `(batch, mask_feature_size, height / 4, width / 4)`): Per-pixel
                features.
        """
        features = self._read_maps(feature_maps, mask_features, (mask_features.shape[0], 1))
        if not isinstance(self.decoder, TemporalAggregationDecoder):
            return features
        levels = self._levels(features, level_sizes(feature_maps))
        queries = self.decoder.first_look(self.queries_features.weight, self.queries_embedder.weight, levels)
        return features._replace(frame_queries=queries)

    def decode_newest(
        self, window: FrameFeatures, feature_maps: list[Tensor], mask_features: Tensor
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode a clip of frames read before, and predict for the last of them.

        Args:
            window ([`FrameFeatures`]): The frames of every clip.
            feature_maps (`list[torch.Tensor]`): Of the last frame, as for `read_frames`.
            mask_features (`torch.Tensor`): Of the last frame, as for `read_frames`.

        Returns:
            Video-level and frame-level predictions, one of each or none.
        """
        return self._decode(window, level_sizes(feature_maps), mask_features[:, None], all_predictions=False)

    def _decode(
        self, features: FrameFeatures, sizes: list[tuple[int, int]], mask_features: Tensor, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        return self.decoder(
            self.queries_features.weight,
            self.queries_embedder.weight,
            self._levels(features, sizes),
            mask_features,
            all_predictions,
            features.frame_queries,
        )

    def _read_maps(
        self, feature_maps: list[Tensor], mask_features: Tensor, clip_shape: tuple[int, int]
    ) -> FrameFeatures:
        values, resized = [], []
        for index, feature_map in enumerate(feature_maps):
            level = self.input_projections[index](feature_map) + self.level_embed.weight[index][:, None, None]
            masks = nn.functional.interpolate(
                mask_features.detach(), feature_map.shape[-2:], mode="bilinear", align_corners=False
            )
            values.append(level.flatten(2).transpose(1, 2).unflatten(0, clip_shape))
            resized.append(masks.flatten(2).unflatten(0, clip_shape))
        return FrameFeatures(tuple(values), tuple(resized))

    def _levels(self, features: FrameFeatures, sizes: list[tuple[int, int]]) -> list[LevelFeatures]:
        """Add positions, of which those in time depend on the clip."""
        return [
            LevelFeatures(values + self._positions(values, size), values, mask_features)
            for values, mask_features, size in zip(features.values, features.mask_features, sizes, strict=True)
        ]

    def _positions(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Sine positions `(num_frames, cells, hidden)` of one scale.

        The frame part matters only where one query attends to several frames; elsewhere it would shift all keys of an
        attention alike and cancel in the softmax.
        """
        dtype = torch.promote_types(values.dtype, torch.float32)
        num_frames, width = values.shape[1], values.shape[-1]
        planar = self.position_embedder((1, width, *size), values.device, dtype)[0].flatten(1).T
        if self.has_frame_queries or num_frames == 1:
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
