# SPDX-License-Identifier: Apache-2.0
"""The Temporal Aggregation Decoder of THE-Mask (TAD, section 3.3) and its choice between decoders.

Einsum letters and the shared layers are those of `masked_attention`.
"""

import torch
from torch import Tensor, nn

from .configuration_themask import THEMaskConfig
from .masked_attention import (
    FrameFeatures,
    FusedProjectionAttention,
    LevelFeatures,
    MaskedAttentionDecoder,
    MaskPredictor,
    QueryPrediction,
    TransformerModule,
    level_sizes,
    unblock_empty_rows,
)


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
        """The first video queries `(batch, num_queries, hidden)`, which have seen no frame."""
        queries = query_features.expand(batch_size, -1, -1)
        placed = queries + query_position_embeddings
        return self.video_self_attn_layer_norm(queries + self._drop(self.video_self_attn(placed, placed, queries)))

    def initial_frame_queries(
        self, query_features: Tensor, query_position_embeddings: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """First frame queries, by looking at all scales of each frame `(batch, num_frames, cells, hidden)` (Eq. 7)."""
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

    attends_to_clips = False

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
        frame_queries: Tensor | None = None,
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Predictions of video and frame queries, from those of `first_look`; see [`MaskedAttentionDecoder`]."""
        batch_size, num_answered = mask_features.shape[:2]
        aggregator = self.temporal_aggregator
        video_queries = aggregator.initial_video_queries(query_features, query_position_embeddings, batch_size)
        have_looked = frame_queries is not None
        if frame_queries is None:
            frame_queries = self._initial_frame_queries(query_features, query_position_embeddings, levels)
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
                if index > 0 or not have_looked:
                    guide = self._guide(video_embeddings, frame_embeddings)
                    frame_queries = self._look(index, frame_queries, guide, levels, query_position_embeddings)
                video_queries = aggregator.aggregate(video_queries, frame_queries)
        return video_predictions, frame_predictions

    def first_look(
        self, query_features: Tensor, query_position_embeddings: Tensor, levels: list[LevelFeatures]
    ) -> Tensor:
        """Frame queries `(batch, num_frames, num_queries, hidden)` after the first layer.

        None depends on another frame: the video queries that guide this layer are still the learned ones.
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


class THEMaskTransformerModule(TransformerModule):
    """[`TransformerModule`] with the decoder of the configured `temporal_mode`."""

    config: THEMaskConfig

    def __init__(self, config: THEMaskConfig):
        has_frame_queries = config.num_frames > 1 and config.temporal_mode == "video_frame"
        super().__init__(config, TemporalAggregationDecoder if has_frame_queries else MaskedAttentionDecoder)
        self.has_frame_queries = has_frame_queries
        # Without video queries nothing crosses frames: each frame is decoded as a clip of its own.
        self.decodes_frames_alone = config.num_frames == 1 or config.temporal_mode == "one_to_frame"

    def forward(
        self, feature_maps: list[Tensor], mask_features: Tensor, num_frames: int, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode the frames of a batch of clips; see [`TransformerModule`]."""
        if not self.decodes_frames_alone:
            return super().forward(feature_maps, mask_features, num_frames, all_predictions)
        video, _ = super().forward(feature_maps, mask_features, 1, all_predictions)
        if num_frames == 1 and self.config.num_frames == 1:
            return video, []
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
        """Read the newest frame of every stream by itself; maps as in [`TransformerModule`], one frame per clip."""
        features = self.read_maps(feature_maps, mask_features, (mask_features.shape[0], 1))
        if not isinstance(self.decoder, TemporalAggregationDecoder):
            return features
        levels = self.levels(features, level_sizes(feature_maps))
        queries = self.decoder.first_look(self.queries_features.weight, self.queries_embedder.weight, levels)
        return features._replace(frame_queries=queries)

    def decode_newest(
        self, window: FrameFeatures, feature_maps: list[Tensor], mask_features: Tensor
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """Decode a clip of frames read before; predict, at most once per level, for the last, whose maps are given."""
        return self.decode(window, level_sizes(feature_maps), mask_features[:, None], all_predictions=False)
