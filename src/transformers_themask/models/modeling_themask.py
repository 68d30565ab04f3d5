# SPDX-License-Identifier: Apache-2.0
"""THE-Mask: temporal-aware hierarchical object queries for video semantic segmentation (An et al., BMVC 2023)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_themask import THEMaskConfig
from .decoder_themask import TemporalAggregationDecoder, TemporalAggregator, THEMaskTransformerModule
from .inputs import check_inputs, check_single_frames
from .label_counts import count_classes, loss_counts_of
from .loss_settings import LossSettings
from .masked_attention import FrameFeatures, QueryPrediction
from .matching import EmbeddedLevel
from .modeling_query_segmenter import QuerySegmenterModel, QuerySegmenterPreTrainedModel
from .outputs import VideoSegmentationOutput
from .query_loss import HierarchicalLoss, LossTerms, Predictions
from .step_context import StepContext
from .streaming import BLOCK_MODES, StreamingMixin


@dataclass
class THEMaskForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    r"""Outputs of [`THEMaskForVideoSemanticSegmentation`].

    A level is `None` where the model has no such queries: the Temporal Aggregation Decoder fills both, `one_to_video`
    the video level, `one_to_frame` the frame level, and a one-frame model the video level for clips of one frame and
    the frame level for longer ones, whose frames it treats one by one.

    Args:
        loss (`()`, returned with `labels`): Total loss, the sum of `loss_terms`.
        loss_terms (returned with `labels`): Weighted terms `loss_class`, `loss_mask`, `loss_dice`,
            `loss_secondary_mask`, `loss_secondary_dice` and the same with the prefix `frame_`: scalars, or one value
            per prediction layer with `output_layer_loss_terms`.
        statistics (returned with `labels`): `primary_query_share` and `secondary_query_share`: the share of the
            queries that received a target.
        class_queries_logits (`(batch, num_queries, num_labels + 1)`): Classes of the video queries; the last one is
            "no object".
        masks_queries_logits: Masks of the video queries: `(batch, num_frames, num_queries, height / 4, width / 4)`.
        frame_class_queries_logits: Classes of the frame queries: `(batch, num_frames, num_queries, num_labels + 1)`.
        frame_masks_queries_logits: Masks of the frame queries:
            `(batch, num_frames, num_queries, height / 4, width / 4)`.
        auxiliary_logits (returned with `output_auxiliary_logits`): The four fields above for every prediction layer
            but the last.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    statistics: dict[str, Tensor] | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    frame_class_queries_logits: Tensor | None = None
    frame_masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None


class ClassifiedQueries(NamedTuple):
    """The prediction of one set of queries after one decoder layer, with its classes.

    `class_logits` are `(batch, num_queries, num_labels + 1)`, or of frame queries
    `(batch, num_frames, num_queries, num_labels + 1)`.
    """

    class_logits: Tensor
    prediction: QueryPrediction


class SlidingWindow(NamedTuple):
    """The state of a stream: `features` of the frames that later windows reach back to, or `None`.

    `num_frames` and `frame_stride` are those of the windows.
    """

    num_frames: int
    frame_stride: int
    features: FrameFeatures | None = None


class THEMaskPreTrainedModel(QuerySegmenterPreTrainedModel):
    """Loading, saving and initialisation of THE-Mask."""

    config: THEMaskConfig
    config_class = THEMaskConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the official code does (a pretrained backbone is initialised by its own class)."""
        copies_heads = self.config.frame_head_init == "copy"
        if isinstance(module, TemporalAggregator):
            self._init_linear_children(module)
        elif isinstance(module, TemporalAggregationDecoder):
            if copies_heads:
                copy_parameters(module.layernorm, module.frame_layernorm)
                copy_parameters(module.mask_predictor, module.frame_mask_predictor)
        elif isinstance(module, THEMaskForVideoSemanticSegmentation):
            if copies_heads and module.frame_class_predictor is not None:
                copy_parameters(module.class_predictor, module.frame_class_predictor)
        else:
            super()._init_weights(module)


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters between modules of one shape, leaving those already loaded from a checkpoint."""
    for source_parameter, target_parameter in zip(source.parameters(), target.parameters(), strict=True):
        init.copy_(target_parameter, source_parameter)


class THEMaskForVideoSemanticSegmentation(StreamingMixin, THEMaskPreTrainedModel):
    r"""THE-Mask with its prediction heads and, given labels, its hierarchical loss.

    `num_frames` of the configuration decides what is built: Mask2Former's decoder for one frame, the Temporal
    Aggregation Decoder (or an ablation, see `temporal_mode`) for more. Clips of any length can be given to either. A
    batch is always a batch: its clips never see one another, in training and in evaluation alike.

    Example:
    ```python
    >>> import torch
    >>> from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation
    >>> model = THEMaskForVideoSemanticSegmentation(THEMaskConfig(backbone="mit-b0", num_frames=2, num_labels=124))
    >>> outputs = model(pixel_values_videos=torch.randn(1, 2, 3, 64, 96))
    >>> outputs.masks_queries_logits.shape
    torch.Size([1, 2, 100, 16, 24])

    ```
    """

    has_matching_rounds = True
    freezable_parts = {"pixel_level": ("model.pixel_level_module",)}

    def __init__(self, config: THEMaskConfig):
        super().__init__(config)
        config.check_fields()
        self.model = QuerySegmenterModel(config, THEMaskTransformerModule)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        has_frame_head = self.model.transformer_module.has_frame_queries
        self.frame_class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1) if has_frame_head else None
        self.gradient_checkpointing = False  # of masks and loss; Transformers switches it along with the layers'
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's input embedding."""
        return self.model.pixel_level_module.encoder.get_input_embeddings()

    def freeze_pixel_level(self) -> None:
        """Freeze backbone and pixel decoder for the second training stage (section 4.1); see [`freeze`]."""
        self.freeze("pixel_level")

    @property
    def loss_settings(self) -> LossSettings:
        """The settings of the loss that the configuration asks for."""
        return loss_settings(self.config)

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """Number of targets, and class weights of all queries together; see [`VideoPreTrainedModel`]."""
        if self.config.num_frames == 1:
            labels = labels.flatten(0, 1)[:, None]  # every frame is a clip
        num_targets = (count_classes(labels, self.config.num_labels, self.config.ignore_value) > 0).sum(1)
        return loss_counts_of(num_targets, self.loss_settings, self._matching_rounds(context))

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        context: StepContext | None = None,
        output_auxiliary_logits: bool | None = None,
        output_layer_loss_terms: bool = False,
        **kwargs: Any,
    ) -> THEMaskForVideoSemanticSegmentationOutput:
        r"""Segment clips and, given labels, compute the loss.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, height, width)`): Normalised frames; height and width
                multiples of 32.
            labels (`(batch, num_frames, label_height, label_width)`): Class indices, `config.ignore_value` where there
                is none.
            context: The optimiser step that the batch is a part of.
            output_auxiliary_logits: Return the predictions of the intermediate layers. Defaults to
                `config.output_auxiliary_logits`.
            output_layer_loss_terms: Return every loss term as a vector with one value per prediction layer.

        Raises:
            ValueError: If a shape or value is not as described.
        """
        check_inputs(pixel_values_videos, labels, kwargs)
        num_frames = pixel_values_videos.shape[1]
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen("pixel_level")):
            feature_maps, mask_features = self.model.pixel_level_module(pixel_values_videos.flatten(0, 1))
        video, frame = self.model.transformer_module(
            feature_maps,
            mask_features,
            num_frames,
            all_predictions=output_auxiliary_logits or labels is not None,
        )
        video_layers, frame_layers = self._classified(video, frame)

        loss, loss_terms, statistics = None, None, None
        if labels is not None:
            loss_terms, statistics = self._loss_terms(video_layers, frame_layers, labels, context or StepContext())
            totals = torch.stack(list(loss_terms.values())).sum(1)
            loss = totals.sum()
            if not output_layer_loss_terms:
                loss_terms = dict(zip(loss_terms, totals.detach(), strict=True))
        last = max(len(video), len(frame)) - 1
        first = 0 if output_auxiliary_logits else last
        layers = [name_logits(video_layers, frame_layers, layer) for layer in range(first, last + 1)]
        return THEMaskForVideoSemanticSegmentationOutput(
            loss=loss,
            loss_terms=loss_terms,
            statistics=statistics,
            **layers[-1],
            auxiliary_logits=layers[:-1] if output_auxiliary_logits else None,
        )

    def initial_state(
        self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None
    ) -> SlidingWindow | None:
        """The state before the first frame of videos; see [`StreamingMixin`]."""
        return None if mode in BLOCK_MODES else SlidingWindow(num_frames, frame_stride)

    def clip_step(
        self, pixel_values_videos: Tensor, state: SlidingWindow | None
    ) -> tuple[THEMaskForVideoSemanticSegmentationOutput, SlidingWindow | None]:
        """Segment a clip or, with a [`SlidingWindow`], the newest frame of every video as the last of its window.

        The latter equals the last frame of `forward` on the window. Only what relates the frames to one another is
        computed for all of them; the features of backbone, pixel decoder and first decoder layer are kept. See
        [`StreamingMixin.clip_step`].

        Raises:
            ValueError: If there is not exactly one frame per video for a window, or as in `forward`.
        """
        if state is None:
            return self(pixel_values_videos), None
        check_inputs(pixel_values_videos, None, {})
        check_single_frames(pixel_values_videos)
        transformer: THEMaskTransformerModule = self.model.transformer_module
        if transformer.decodes_frames_alone:
            return self(pixel_values_videos), state
        feature_maps, mask_features = self.model.pixel_level_module(pixel_values_videos.squeeze(1))
        frames = transformer.read_frames(feature_maps, mask_features)
        if state.features is not None:
            frames = state.features.followed_by(frames)
        first = (frames.num_frames - 1) % state.frame_stride
        video, frame = transformer.decode_newest(
            frames.frames(slice(first, None, state.frame_stride)), feature_maps, mask_features
        )
        fields: dict[str, Any] = name_logits(*self._classified(video, frame), layer=-1)
        outputs = THEMaskForVideoSemanticSegmentationOutput(**fields)
        reach = (state.num_frames - 1) * state.frame_stride
        return outputs, state._replace(features=frames.newest(reach) if reach else None)

    def _classified(
        self, video: list[QueryPrediction], frame: list[QueryPrediction]
    ) -> tuple[list[ClassifiedQueries], list[ClassifiedQueries]]:
        frame_head = self.class_predictor if self.frame_class_predictor is None else self.frame_class_predictor
        return (
            [ClassifiedQueries(self.class_predictor(prediction.queries), prediction) for prediction in video],
            [ClassifiedQueries(frame_head(prediction.queries), prediction) for prediction in frame],
        )

    def _matching_rounds(self, context: StepContext | None) -> int:
        rounds = None if context is None else context.matching_rounds
        return self.config.matching_rounds if rounds is None else rounds

    def _loss_terms(
        self,
        video_layers: list[ClassifiedQueries],
        frame_layers: list[ClassifiedQueries],
        labels: Tensor,
        context: StepContext,
    ) -> LossTerms:
        recompute = self.gradient_checkpointing and self.training
        criterion = HierarchicalLoss(self.loss_settings, context.point_sampler, context.point_generator, recompute)
        videos: Predictions = stack_layers(video_layers) if video_layers else []
        frames: Predictions = stack_layers(frame_layers).per_frame() if frame_layers else []
        if self.config.num_frames == 1 and frames:  # a one-frame model: every frame is a clip
            videos, frames, labels = frames, [], labels.flatten(0, 1)[:, None]
        with torch.autocast(labels.device.type, enabled=False):
            return criterion(videos, frames, labels, self._matching_rounds(context), context.loss_counts)


def loss_settings(config: THEMaskConfig) -> LossSettings:
    """The settings of the loss that a configuration asks for."""
    cost: Any = config.second_round_cost
    if cost == "auto":
        cost = "mask" if config.num_frames == 1 else "full"
    return LossSettings.from_config(config, second_round_cost=cost)


def stack_layers(layers: list[ClassifiedQueries]) -> EmbeddedLevel:
    """One level's predictions of all layers, as the criterion takes them; its layers share their mask features."""
    return EmbeddedLevel(
        torch.stack([layer.class_logits for layer in layers]),
        torch.stack([layer.prediction.mask_embeddings for layer in layers]),
        layers[0].prediction.mask_features,
    )


def name_logits(
    video_layers: list[ClassifiedQueries], frame_layers: list[ClassifiedQueries], layer: int
) -> dict[str, Tensor]:
    """The output fields of one prediction layer."""
    fields: dict[str, Tensor] = {}
    if video_layers:
        fields["class_queries_logits"] = video_layers[layer].class_logits
        fields["masks_queries_logits"] = video_layers[layer].prediction.mask_logits
    if frame_layers:
        fields["frame_class_queries_logits"] = frame_layers[layer].class_logits
        fields["frame_masks_queries_logits"] = frame_layers[layer].prediction.mask_logits
    return fields


__all__ = [
    "THEMaskForVideoSemanticSegmentation",
    "THEMaskForVideoSemanticSegmentationOutput",
    "THEMaskPreTrainedModel",
]
