# SPDX-License-Identifier: Apache-2.0
"""A segmenter of single frames with queries: Mask2Former (Cheng et al., CVPR 2022), and the parts that it shares."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .backbones import build_backbone, four_feature_maps
from .configuration_query_segmenter import QuerySegmenterConfig
from .deformable_attention import DeformableAttention
from .masked_attention import (
    FusedProjectionAttention,
    MaskedAttentionLayer,
    SelfAttention,
    TransformerModule,
)
from .pixel_decoder import PixelDecoder
from .pretrained_model import VideoPreTrainedModel


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder: the layers that see one frame at a time."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__()
        self.encoder = build_backbone(config.backbone_config)
        self.decoder = PixelDecoder(config, list(self.encoder.channels))

    def forward(self, pixel_values: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode frames `(frames, 3, height, width)`; returns what [`PixelDecoder`] does.

        In inference on the CPU frames are encoded one by one: in the same time, with what one needs on the way.
        """
        is_plain_inference = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not is_plain_inference or pixel_values.device.type != "cpu" or len(pixel_values) < 2:
            return self.decoder(four_feature_maps(self.encoder, pixel_values))
        results: list[Tensor] = []
        for index, frame in enumerate(pixel_values.split(1)):
            maps, mask_features = self.decoder(four_feature_maps(self.encoder, frame))
            results = results or [x.new_empty(len(pixel_values), *x.shape[1:]) for x in (*maps, mask_features)]
            for result, of_frame in zip(results, (*maps, mask_features), strict=True):
                result[index] = of_frame[0]
        return results[:-1], results[-1]


class QuerySegmenterModel(nn.Module):
    """Pixel level and transformer module, under the names of Transformers' `Mask2FormerModel`."""

    pixel_level_module: PixelLevelModule
    transformer_module: Any

    def __init__(self, config: QuerySegmenterConfig, transformer_module: type[TransformerModule] = TransformerModule):
        super().__init__()
        self.pixel_level_module = PixelLevelModule(config)
        self.transformer_module = transformer_module(config)


class QuerySegmenterPreTrainedModel(VideoPreTrainedModel):
    """Loading, saving and initialisation of models with the parts of a [`QuerySegmenter`]."""

    config: QuerySegmenterConfig
    config_class = QuerySegmenterConfig
    base_model_prefix = "model"
    embedding_path = "model.pixel_level_module.encoder"
    _no_split_modules = ["MaskedAttentionLayer", "DeformableEncoderLayer"]
    # A constant of Mask2Former's loss; here it follows from the configuration.
    _keys_to_ignore_on_load_unexpected = [r"^criterion\.empty_weight$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the official code does (a pretrained backbone is initialised by its own class)."""
        if isinstance(module, DeformableAttention):
            self._init_deformable_attention(module)
        elif isinstance(module, FusedProjectionAttention):
            init.xavier_uniform_(module.in_proj_weight, gain=self.config.init_xavier_std)
            init.xavier_uniform_(module.out_proj.weight, gain=self.config.init_xavier_std)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, SelfAttention):
            # Three slices of one (3 x hidden, hidden) matrix in the official code, hence the smaller gain.
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.xavier_uniform_(projection.weight, gain=self.config.init_xavier_std / math.sqrt(2))
                init.zeros_(projection.bias)
            init.xavier_uniform_(module.out_proj.weight, gain=self.config.init_xavier_std)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, MaskedAttentionLayer):
            self._init_linear_children(module)
        elif isinstance(module, PixelDecoder):
            self._init_pixel_decoder(module)
        elif isinstance(module, TransformerModule):
            for convolution in (child for child in module.input_projections if isinstance(child, nn.Conv2d)):
                init.xavier_uniform_(convolution.weight, gain=self.config.init_xavier_std)
                init.zeros_(convolution.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)

    def _init_linear_children(self, module: nn.Module):
        for linear in (child for child in module.children() if isinstance(child, nn.Linear)):
            init.xavier_uniform_(linear.weight, gain=self.config.init_xavier_std)

    def _init_deformable_attention(self, module: DeformableAttention):
        # Heads look in directions spread around the circle, points further and further out.
        angles = torch.arange(module.n_heads, dtype=torch.float32) * (2 * math.pi / module.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, module.n_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[:, None]  # (heads, 1, points, 2)
        init.zeros_(module.sampling_offsets.weight)
        init.copy_(module.sampling_offsets.bias, offsets.expand(-1, module.n_levels, -1, -1).flatten())
        init.zeros_(module.attention_weights.weight)
        init.zeros_(module.attention_weights.bias)
        for projection in (module.value_proj, module.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def _init_pixel_decoder(self, module: PixelDecoder):
        init.normal_(module.level_embed)
        for projection, norm in module.input_projections:
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)
            init.ones_(norm.weight)
        for layer in module.encoder.layers:
            init.xavier_uniform_(layer.fc1.weight)
            init.xavier_uniform_(layer.fc2.weight)
        for convolution in (module.adapter_1[0], module.layer_1[0], module.mask_projection):
            init.kaiming_uniform_(convolution.weight, a=1)
        init.zeros_(module.mask_projection.bias)


class QuerySegmenter(QuerySegmenterPreTrainedModel):
    """Mask2Former with its class head, for models that segment single frames with it."""

    def __init__(self, config: QuerySegmenterConfig):
        super().__init__(config)
        config.check_fields()
        self.model = QuerySegmenterModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()


__all__ = ["QuerySegmenter", "QuerySegmenterPreTrainedModel"]
