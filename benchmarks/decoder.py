# SPDX-License-Identifier: Apache-2.0
"""Row 3: the Temporal Aggregation Decoder, and the computation of the released code."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from transformers_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.models.decoder_themask import (
    TemporalAggregationDecoder,
    TemporalAggregator,
)
from transformers_themask.models.masked_attention import frame_position_embedding

from .measuring import Bound, Case, Setting, faster
from .models import largest_difference, random_features, themask

NUM_FRAMES = 4
# Rounding can move a mask across the threshold of the attention masks.
TOLERANCE = 2e-3


class ClipPrediction(NamedTuple):
    """Classes `(num_queries, num_labels + 1)` and masks `(num_frames, num_queries, height / 4, width / 4)` of a clip.

    Classes of frame queries have shape `(num_frames, num_queries, num_labels + 1)`.
    """

    video_classes: Tensor
    video_masks: Tensor
    frame_classes: Tensor
    frame_masks: Tensor


def decoder_cases(setting: Setting) -> Iterator[Case]:
    """Row 3: the decoders on the features of one clip of four frames."""
    model = themask(setting, NUM_FRAMES)
    official = OfficialDecoder(model).eval()
    features = random_features(setting, model.config, NUM_FRAMES)
    with torch.no_grad():
        found = {"difference": clip_difference(official(*features)[-1], decode(model, *features))}
    bounds = (faster(2.5, 3.5), Bound("flops", 0.5), Bound("memory", 0.35), Bound("difference", TOLERANCE))
    yield Case("", partial(official, *features), partial(decode, model, *features), bounds, found)


def decode(
    model: THEMaskForVideoSemanticSegmentation, feature_maps: list[Tensor], mask_features: Tensor
) -> ClipPrediction:
    """Our decoder and heads on one clip."""
    (video,), (frame,) = model.model.transformer_module(feature_maps, mask_features, len(mask_features), False)
    assert model.frame_class_predictor is not None
    return ClipPrediction(
        model.class_predictor(video.queries)[0],
        video.mask_logits[0],
        model.frame_class_predictor(frame.queries)[0],
        frame.mask_logits[0],
    )


def clip_prediction(outputs: Any) -> ClipPrediction:
    """The prediction in our model's outputs for one clip."""
    return ClipPrediction(
        outputs.class_queries_logits[0],
        outputs.masks_queries_logits[0],
        outputs.frame_class_queries_logits[0],
        outputs.frame_masks_queries_logits[0],
    )


def clip_difference(one: ClipPrediction, other: ClipPrediction) -> float:
    """The largest difference of two predictions."""
    return max(largest_difference(*fields) for fields in zip(one, other, strict=True))


class OfficialDecoder(nn.Module):
    """The decoder as the released code computes it, written from its description, with the weights of our model.

    Both query sets predict classes and full masks before the first and after every layer. The video masks, resized,
    thresholded and repeated for every head, restrict the attention of the next layer. Attention is
    `nn.MultiheadAttention`, which averages and returns its weights; sequences come first.
    """

    transformer: Any
    decoder: TemporalAggregationDecoder
    aggregator: TemporalAggregator

    def __init__(self, model: THEMaskForVideoSemanticSegmentation):
        super().__init__()
        transformer, self.num_heads = model.model.transformer_module, model.config.num_attention_heads
        assert isinstance(transformer.decoder, TemporalAggregationDecoder) and model.frame_class_predictor is not None
        self.transformer, self.decoder = transformer, transformer.decoder
        self.class_heads = nn.ModuleList([model.class_predictor, model.frame_class_predictor])
        layers: Any = self.decoder.layers
        official = partial(official_attention, num_heads=self.num_heads)
        self.cross_attentions = nn.ModuleList(official(layer.cross_attn) for layer in layers)
        self.self_attentions = nn.ModuleList(official(layer.self_attn) for layer in layers)
        aggregator = self.aggregator = self.decoder.temporal_aggregator
        self.video_self_attn = official(aggregator.video_self_attn)
        self.frame_self_attn = official(aggregator.frame_self_attn)
        self.frame_cross_attn = official(aggregator.frame_cross_attn)
        self.to(model.device)

    def forward(self, feature_maps: list[Tensor], mask_features: Tensor) -> list[ClipPrediction]:
        """All ten predictions for one clip, from features whose first axis are its frames."""
        num_frames = len(mask_features)
        sizes = [(level.shape[-2], level.shape[-1]) for level in feature_maps]
        values, keys = self._read(feature_maps)
        positions = self.transformer.queries_embedder.weight[:, None]
        queries = self.transformer.queries_features.weight[:, None]
        video, frame = self._initial_queries(queries, positions, torch.cat(keys), torch.cat(values), num_frames)
        predictions = [self._predict(video, frame, mask_features)]
        layers: Any = self.decoder.layers
        for index, layer in enumerate(layers):
            level = index % len(values)
            blocked = self._blocked(predictions[-1].video_masks, sizes[level])
            placed = frame + positions
            attended, _ = self.cross_attentions[index](placed, keys[level], values[level], attn_mask=blocked)
            frame = layer.cross_attn_layer_norm(frame + attended)
            placed = frame + positions
            mixed, _ = self.self_attentions[index](placed, placed, frame)
            frame = layer.self_attn_layer_norm(frame + mixed)
            frame = layer.final_layer_norm(frame + layer.fc2(layer.fc1(frame).relu()))
            video = self._combine(video, frame)
            predictions.append(self._predict(video, frame, mask_features))
        return predictions

    def _read(self, feature_maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Values and keys `(cells, num_frames, hidden)` of every level."""
        values, keys = [], []
        for index, feature_map in enumerate(feature_maps):
            value = self.transformer.input_projections[index](feature_map).flatten(2)
            value = value + self.transformer.level_embed.weight[index][:, None]
            num_frames, width, _ = value.shape
            shape = (num_frames, width, *feature_map.shape[-2:])
            planar = self.transformer.position_embedder(shape, value.device, value.dtype).flatten(2)
            times = frame_position_embedding(num_frames, width, value.device, value.dtype)
            values.append(value.permute(2, 0, 1))
            keys.append((value + planar + times[..., None]).permute(2, 0, 1))
        return values, keys

    def _initial_queries(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        aggregator, placed = self.aggregator, queries + positions
        video = aggregator.video_self_attn_layer_norm(queries + self.video_self_attn(placed, placed, queries)[0])
        shared = aggregator.frame_self_attn_layer_norm(queries + self.frame_self_attn(placed, placed, queries)[0])
        frame = shared.repeat(1, num_frames, 1)
        attended, _ = self.frame_cross_attn(frame + positions, keys, values)
        frame = aggregator.frame_cross_attn_layer_norm(frame + attended)
        expanded = aggregator.frame_fc2(aggregator.frame_fc1(frame).relu())
        return video, aggregator.frame_final_layer_norm(frame + expanded)

    def _combine(self, video: Tensor, frame: Tensor) -> Tensor:
        aggregator = self.aggregator
        weights = aggregator.temporal_weights(frame).softmax(1)
        gathered = (weights * aggregator.temporal_projection(frame)).sum(1, keepdim=True)
        video = aggregator.video_aggregation_layer_norm(video + gathered)
        expanded = aggregator.video_fc2(aggregator.video_fc1(video).relu())
        return aggregator.video_final_layer_norm(video + expanded)

    def _predict(self, video: Tensor, frame: Tensor, mask_features: Tensor) -> ClipPrediction:
        video = self.decoder.layernorm(video).transpose(0, 1)
        frame = self.decoder.frame_layernorm(frame).transpose(0, 1)
        video_embeddings = self.decoder.mask_predictor(video)
        frame_embeddings = self.decoder.frame_mask_predictor(frame)
        return ClipPrediction(
            self.class_heads[0](video)[0],
            torch.einsum("qc,tchw->tqhw", video_embeddings[0], mask_features),
            self.class_heads[1](frame),
            torch.einsum("tqc,tchw->tqhw", frame_embeddings, mask_features),
        )

    def _blocked(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Cells `(num_frames * heads, num_queries, cells)` hidden from a query."""
        resized = nn.functional.interpolate(masks, size, mode="bilinear", align_corners=False)
        repeated = resized.sigmoid().flatten(2)[:, None].repeat(1, self.num_heads, 1, 1).flatten(0, 1)
        blocked = (repeated < 0.5).detach()
        if not blocked.is_meta:
            blocked[torch.where(blocked.sum(-1) == blocked.shape[-1])] = False
        return blocked


def official_attention(attention: nn.Module, num_heads: int) -> nn.MultiheadAttention:
    """PyTorch's module with the weights of ours, which are fused or one for queries, keys and values each."""
    weights = attention.state_dict()
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"{name}_proj.{kind}") for name in "qkv" if f"{name}_proj.{kind}" in weights]
        if parts:
            weights[f"in_proj_{kind}"] = torch.cat(parts)
    official = nn.MultiheadAttention(len(weights["out_proj.bias"]), num_heads)
    official.load_state_dict(weights)
    return official
