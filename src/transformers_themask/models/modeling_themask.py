# SPDX-License-Identifier: Apache-2.0
"""THE-Mask: temporal-aware hierarchical object queries for video semantic segmentation (An et al., BMVC 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import build_backbone, four_feature_maps
from .configuration_themask import THEMaskConfig
from .decoder_themask import (
    FrameFeatures,
    FusedProjectionAttention,
    MaskedAttentionLayer,
    QueryPrediction,
    SelfAttention,
    TemporalAggregationDecoder,
    TemporalAggregator,
    TransformerModule,
)
from .deformable_attention import DeformableAttention
from .inputs import check_inputs, check_single_frames
from .matching import EmbeddedLevel
from .pixel_decoder import PixelDecoder
from .point_sampling import PointSampler, uniform_points
from .pretrained_model import VideoPreTrainedModel
from .query_loss import HierarchicalLoss, LossTerms, Predictions, count_classes, loss_counts_of
from .streaming import StreamingMixin


@dataclass
class THEMaskForVideoSemanticSegmentationOutput(ModelOutput):
    r"""Outputs of [`THEMaskForVideoSemanticSegmentation`].

    A level is `None` where the model has no such queries: the Temporal Aggregation Decoder fills both, `one_to_video`
    the video level, `one_to_frame` the frame level, and a one-frame model the video level for clips of one frame and
    the frame level for longer ones, whose frames it treats one by one.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with `labels`):
            Total loss, the sum of `loss_terms`.
        loss_terms (`dict[str, torch.Tensor]`, *optional*, returned with `labels`):
            Weighted terms `loss_class`, `loss_mask`, `loss_dice`, `loss_secondary_mask`, `loss_secondary_dice` and the
            same with the prefix `frame_`: scalars, or one value per prediction layer with `output_layer_loss_terms`.
        statistics (`dict[str, torch.Tensor]`, *optional*, returned with `labels`):
            `primary_query_share` and `secondary_query_share`: the share of the queries that received a target.
        class_queries_logits (`torch.Tensor` of shape `(batch, num_queries, num_labels + 1)`, *optional*):
            Classes of the video queries; the last one is "no object".
        masks_queries_logits (`torch.Tensor`, *optional*):
            Masks of the video queries: `(batch, num_frames, num_queries, height / 4, width / 4)`.
        frame_class_queries_logits (`torch.Tensor`, *optional*):
            Classes of the frame queries: `(batch, num_frames, num_queries, num_labels + 1)`.
        frame_masks_queries_logits (`torch.Tensor`, *optional*):
            Masks of the frame queries: `(batch, num_frames, num_queries, height / 4, width / 4)`.
        auxiliary_logits (`list[dict[str, torch.Tensor]]`, *optional*, returned with `output_auxiliary_logits`):
            The four fields above for every prediction layer but the last.
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
    """What one set of queries predicts after one decoder layer, and its classes.

    `class_logits` are `(batch, num_queries, num_labels + 1)`, or of frame queries
    `(batch, num_frames, num_queries, num_labels + 1)`.
    """

    class_logits: Tensor
    prediction: QueryPrediction


class SlidingWindow(NamedTuple):
    """What a stream remembers: `features` of the frames that windows to come reach back to, or `None`.

    `num_frames` and `frame_stride` are those of the windows.
    """

    num_frames: int
    frame_stride: int
    features: FrameFeatures | None = None


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder: everything that sees one frame at a time."""

    def __init__(self, config: THEMaskConfig):
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


class THEMaskModel(nn.Module):
    """Pixel level and transformer module, under the names of Transformers' `Mask2FormerModel`."""

    def __init__(self, config: THEMaskConfig):
        super().__init__()
        self.pixel_level_module = PixelLevelModule(config)
        self.transformer_module = TransformerModule(config)


class THEMaskPreTrainedModel(VideoPreTrainedModel):
    """Loading, saving and initialisation of THE-Mask."""

    config: THEMaskConfig
    config_class = THEMaskConfig
    base_model_prefix = "model"
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
        elif isinstance(module, (MaskedAttentionLayer, TemporalAggregator)):
            for linear in (child for child in module.children() if isinstance(child, nn.Linear)):
                init.xavier_uniform_(linear.weight, gain=self.config.init_xavier_std)
        elif isinstance(module, PixelDecoder):
            self._init_pixel_decoder(module)
        elif isinstance(module, TransformerModule):
            for convolution in (child for child in module.input_projections if isinstance(child, nn.Conv2d)):
                init.xavier_uniform_(convolution.weight, gain=self.config.init_xavier_std)
                init.zeros_(convolution.bias)
        elif isinstance(module, TemporalAggregationDecoder):
            if self.config.frame_head_init == "copy":
                copy_parameters(module.layernorm, module.frame_layernorm)
                copy_parameters(module.mask_predictor, module.frame_mask_predictor)
        elif isinstance(module, THEMaskForVideoSemanticSegmentation):
            if module.frame_class_predictor is not None and self.config.frame_head_init == "copy":
                copy_parameters(module.class_predictor, module.frame_class_predictor)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)

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

    def __init__(self, config: THEMaskConfig):
        super().__init__(config)
        config.check_fields()
        self.model = THEMaskModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        has_frame_head = self.model.transformer_module.has_frame_queries
        self.frame_class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1) if has_frame_head else None
        self._pixel_level_is_frozen = False
        self.gradient_checkpointing = False  # of masks and loss; Transformers switches it along with the layers'
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's input embedding."""
        return self.model.pixel_level_module.encoder.get_input_embeddings()

    def freeze_pixel_level(self) -> None:
        """Freeze backbone and pixel decoder for the second training stage (section 4.1).

        They take no gradient and stay in evaluation mode under `train()`, so that drop path is off.
        """
        self._pixel_level_is_frozen = True
        self.model.pixel_level_module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "THEMaskForVideoSemanticSegmentation":
        """Set the training mode, of the pixel level only where it is not frozen."""
        super().train(mode)
        if self._pixel_level_is_frozen:
            self.model.pixel_level_module.eval()
        return self

    def loss_counts(self, labels: Tensor, matching_rounds: int | None = None) -> Tensor:
        """What the loss of a batch is divided by; the sum over the batches of a step makes their losses shares of one.

        Args:
            labels (`torch.Tensor` of shape `(batch, num_frames, height, width)`): Class indices.
            matching_rounds (`int`, *optional*): As in `forward`.

        Returns:
            `torch.Tensor` of shape `(2,)`: number of targets, and class weights of all queries together.
        """
        if self.config.num_frames == 1:
            labels = labels.flatten(0, 1)[:, None]  # every frame is a clip
        rounds = self.config.matching_rounds if matching_rounds is None else matching_rounds
        num_targets = (count_classes(labels, self.config.num_labels, self.config.ignore_value) > 0).sum(1)
        return loss_counts_of(num_targets, self.config, rounds)

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        loss_counts: Tensor | None = None,
        matching_rounds: int | None = None,
        output_auxiliary_logits: bool | None = None,
        output_layer_loss_terms: bool = False,
        point_sampler: PointSampler = uniform_points,
        point_generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> THEMaskForVideoSemanticSegmentationOutput:
        r"""Segment clips and, given labels, compute the loss.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch, num_frames, 3, height, width)`):
                Normalised frames; height and width multiples of 32.
            labels (`torch.Tensor` of shape `(batch, num_frames, label_height, label_width)`, *optional*):
                Class indices, `config.ignore_value` where there is none.
            loss_counts (`torch.Tensor` of shape `(2,)`, *optional*):
                Sum of `loss_counts(labels)` over all batches of an optimiser step and all processes. The loss is then
                this batch's share: the losses of the step add up to what one large batch would give. Defaults to the
                counts of this batch, averaged over the processes.
            matching_rounds (`int`, *optional*):
                Overrides `config.matching_rounds` for this call: 1 is the loss of the warm-up (section 4.1).
            output_auxiliary_logits (`bool`, *optional*):
                Return the predictions of the intermediate layers. Defaults to `config.output_auxiliary_logits`.
            output_layer_loss_terms (`bool`, *optional*, defaults to `False`):
                Return every loss term as a vector with one value per prediction layer.
            point_sampler ([`PointSampler`], *optional*):
                Source of the random points of matching and losses.
            point_generator (`torch.Generator` or a sequence of them, *optional*):
                Passed on to `point_sampler`. With one per clip the points of a clip do not depend on its batch.

        Raises:
            ValueError: If a shape or value is not as described.
        """
        check_inputs(pixel_values_videos, labels, kwargs)
        if matching_rounds not in (None, 1, 2):
            raise ValueError(f"`matching_rounds` must be 1 or 2. Got {matching_rounds}.")
        num_frames = pixel_values_videos.shape[1]
        if output_auxiliary_logits is None:
            output_auxiliary_logits = bool(self.config.output_auxiliary_logits)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._pixel_level_is_frozen):
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
            rounds = self.config.matching_rounds if matching_rounds is None else matching_rounds
            recompute = self.gradient_checkpointing and self.training
            criterion = HierarchicalLoss(self.config, point_sampler, point_generator, recompute)
            loss_terms, statistics = self._loss_terms(
                criterion, video_layers, frame_layers, labels, rounds, loss_counts
            )
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

    def initial_state(self, num_frames: int, frame_stride: int) -> SlidingWindow:
        """The state before the first frame of videos; see [`StreamingMixin`].

        Args:
            num_frames (`int`): Frames that the answer to a frame is based on.
            frame_stride (`int`): Their distance.
        """
        return SlidingWindow(num_frames, frame_stride)

    def streaming_step(
        self, pixel_values_videos: Tensor, state: SlidingWindow
    ) -> tuple[THEMaskForVideoSemanticSegmentationOutput, SlidingWindow]:
        """Segment the newest frame of every video of a batch, as the last frame of its window.

        Equals the last frame of `forward` on the window. Only what relates the frames to one another is computed for
        all of them; what backbone, pixel decoder and the first decoder layer see in one frame is kept.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch, 1, 3, height, width)`): The frames.
            state ([`SlidingWindow`]): What `initial_state` or the step before returned; it is left as it is.

        Returns:
            The outputs for these frames, and the state for the next ones.

        Raises:
            ValueError: If there is not exactly one frame per video, or as in `forward`.
        """
        check_inputs(pixel_values_videos, None, {})
        check_single_frames(pixel_values_videos)
        transformer = self.model.transformer_module
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

    def _loss_terms(
        self,
        criterion: HierarchicalLoss,
        video_layers: list[ClassifiedQueries],
        frame_layers: list[ClassifiedQueries],
        labels: Tensor,
        matching_rounds: int,
        loss_counts: Tensor | None,
    ) -> LossTerms:
        videos: Predictions = stack_layers(video_layers) if video_layers else []
        frames: Predictions = stack_layers(frame_layers).per_frame() if frame_layers else []
        if self.config.num_frames == 1 and frames:  # a one-frame model: every frame is a clip
            videos, frames, labels = frames, [], labels.flatten(0, 1)[:, None]
        with torch.autocast(labels.device.type, enabled=False):
            return criterion(videos, frames, labels, matching_rounds, loss_counts)


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
