# SPDX-License-Identifier: Apache-2.0
"""The pixel decoder of Mask2Former, with a forward pass that compiles, checkpoints and runs in half precision.

Parameters and structure are Transformers' `Mask2FormerPixelDecoder` (Deformable DETR encoder over strides 32, 16 and
8, then one FPN level at stride 4). Its forward pass branches on `isfinite` in training and computes sampling
positions in the dtype of the features, which bfloat16 rounds to about half a cell; both are avoided here.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from .configuration_query_segmenter import QuerySegmenterConfig
from .deformable_attention import DeformableAttention, SamplingGrid, sampling_grid

# Positions that a cell attends to in each level, per head.
NUM_POINTS = 4


class DeformableEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and feed-forward network, post-norm; parameter names are Transformers'."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        width = config.feature_size
        self.dropout = config.dropout
        self.self_attn = DeformableAttention(width, config.num_attention_heads, n_levels=3, n_points=NUM_POINTS)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, grid: SamplingGrid) -> Tensor:
        """Update the cells of all levels; shapes as in [`DeformableAttention`]."""
        attended = self.self_attn(hidden_states, position_embeddings, grid)
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(attended))
        expanded = self._drop(self.fc1(hidden_states).relu_())
        return self.final_layer_norm(hidden_states + self._drop(self.fc2(expanded)))

    def _drop(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, self.dropout, self.training)


class PixelDecoder(Mask2FormerPixelDecoder):
    """Multi-scale features and per-pixel mask features from the backbone's four maps."""

    def __init__(self, config: QuerySegmenterConfig, feature_channels: list[int]):
        super().__init__(config, feature_channels)
        self.encoder.layers = nn.ModuleList(DeformableEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Decode backbone maps of frames to maps at strides 32, 16 and 8, and mask features at stride 4."""
        projected = [project(x) for project, x in zip(self.input_projections, features[:0:-1], strict=True)]
        level_shapes = [(x.shape[-2], x.shape[-1]) for x in projected]
        positions = [
            self.position_embedding((1, *x.shape[1:]), x.device, torch.promote_types(x.dtype, torch.float32))[0]
            .flatten(1)
            .T.to(x.dtype)
            + level
            for x, level in zip(projected, self.level_embed, strict=True)
        ]
        hidden_states = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)
        position_embeddings = torch.cat(positions)
        grid = sampling_grid(level_shapes, self.config.num_attention_heads, NUM_POINTS, hidden_states)
        for layer in self.encoder.layers:
            hidden_states = layer(hidden_states, position_embeddings, grid)

        levels = hidden_states.split([height * width for height, width in level_shapes], dim=1)
        maps = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(levels, level_shapes, strict=True)]
        fused = self.adapter_1(features[0])
        fused += nn.functional.interpolate(maps[-1], fused.shape[-2:], mode="bilinear", align_corners=False)
        return maps, self.mask_projection(self.layer_1(fused))
