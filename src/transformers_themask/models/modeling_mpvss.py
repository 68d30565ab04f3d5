# SPDX-License-Identifier: Apache-2.0
"""MPVSS: mask propagation for efficient video semantic segmentation (Weng et al., NeurIPS 2023)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_mpvss import MPVSSConfig
from .inputs import check_inputs
from .key_frames_mpvss import unexplained_colors
from .label_counts import count_classes, loss_counts_of
from .loss_settings import LossSettings
from .matching import LevelPrediction
from .modeling_query_segmenter import QuerySegmenter
from .motion_mpvss import FlowEstimator, flow_frames, warp
from .outputs import VideoSegmentationOutput
from .pretrained_model import VideoPreTrainedModel
from .query_loss import HierarchicalLoss
from .step_context import StepContext
from .streaming import StreamingMixin

# Of the flows, in pixels of the frames.
FLOW_STRIDE = 8


@dataclass
class MPVSSForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    r"""Outputs of [`MPVSSForVideoSemanticSegmentation`].

    Args:
        loss (`()`, returned with `labels`): Total loss, the sum of `loss_terms`.
        loss_terms (returned with `labels`): Weighted `loss_class`, `loss_mask` and `loss_dice` of the frames after the
            key frame.
        frame_class_queries_logits: Classes of the queries, those of the key frame, the last one "no object":
            `(batch, num_frames, num_queries, num_labels + 1)`.
        frame_masks_queries_logits: Masks of the queries, warped but on key frames:
            `(batch, num_frames, num_queries, height / 4, width / 4)`.
        is_key_frame (`(batch, num_frames)`): Which frames were segmented, on the CPU.
        flows: For every query, or for all of them, and every place how far to the right and down its mask lies in the
            key frame, in places; zero on key frames.
            `(batch, num_frames, num_queries or 1, 2, height / 8, width / 8)`.
        unexplained (`(batch, num_frames)`, returned without `labels`): What `config.key_frame_threshold` is compared
            with: the share of a frame's colour variance that the propagated masks leave unexplained, above that of
            their key frame; 0 on frames that were due.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    frame_class_queries_logits: Tensor | None = None
    frame_masks_queries_logits: Tensor | None = None
    is_key_frame: Tensor | None = None
    flows: Tensor | None = None
    unexplained: Tensor | None = None


class KeyPrediction(NamedTuple):
    """The segmenter's prediction after one of its layers, both `(batch, num_keys, num_queries, ...)`."""

    class_logits: Tensor
    mask_logits: Tensor


class KeyFrames(NamedTuple):
    """The data of key frames that later frames need.

    Their `pixel_values` `(batch, num_keys, 3, height, width)`, their queries' normed states
    `(batch, num_keys, num_queries, hidden)`, and every prediction that is needed, the last one last.
    """

    pixel_values: Tensor
    queries: Tensor
    predictions: tuple[KeyPrediction, ...]

    def selected(self, key_of: list[int]) -> "KeyFrames":
        """The key frame of each of some frames, by its index."""
        if key_of == list(range(self.queries.shape[1])):
            return self
        predictions = tuple(KeyPrediction(*(frames_at(part, key_of) for part in each)) for each in self.predictions)
        return KeyFrames(frames_at(self.pixel_values, key_of), frames_at(self.queries, key_of), predictions)


class KeyFrameSchedule(NamedTuple):
    """The state of a stream: its last key frame, and `num_since` `(batch, 1)`, on the CPU.

    `num_since` counts the frames since then, that one included. Both are `None` before the first frame.
    """

    key_frames: KeyFrames | None = None
    num_since: Tensor | None = None


class MPVSSForVideoSemanticSegmentation(StreamingMixin, VideoPreTrainedModel):
    r"""A segmenter for key frames, and a flow per query that carries its masks to the frames between.

    Training teaches the flow, and of the segmenter its class and mask heads; the rest of it is frozen, and in
    evaluation mode always (in the released code drop path and batch statistics stay active there).

    Example:
    ```python
    >>> import torch
    >>> from transformers_themask import MPVSSConfig, MPVSSForVideoSemanticSegmentation
    >>> model = MPVSSForVideoSemanticSegmentation(MPVSSConfig(num_labels=124)).eval()
    >>> model(pixel_values_videos=torch.randn(1, 3, 3, 64, 96)).frame_masks_queries_logits.shape
    torch.Size([1, 3, 100, 16, 24])

    ```
    """

    config: MPVSSConfig
    config_class = MPVSSConfig
    base_model_prefix = "segmenter"
    # Sharded as one unit: key frames and others go through different layers, and processes must gather the same ones.
    _no_split_modules: list[str] = []
    stream_modes = ("recurrent",)
    step_kinds = ("key_frame", "later_frame")

    def __init__(self, config: MPVSSConfig):
        super().__init__(config)
        config.check_fields()
        segmenter_config = config.segmenter_config
        self.segmenter = QuerySegmenter(segmenter_config)
        self.flow = None
        if config.propagation != "copy":
            self.flow = FlowEstimator(
                segmenter_config.hidden_dim,
                segmenter_config.num_queries,
                config.propagation,
                config.motion_channels,
                config.motion_decoder_channels or (),
                config.motion_layers,
                config.motion_attention_heads,
                config.motion_feedforward_dim,
            )
        self._freeze_segmenter()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load a model, as any of Transformers; what training leaves alone is frozen."""
        loaded = super().from_pretrained(*arguments, **options)
        # Loading makes new parameters, which all learn.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_segmenter()
        return loaded

    def _freeze_segmenter(self) -> None:
        self.segmenter.requires_grad_(False)
        for head in (self.segmenter.class_predictor, self.segmenter.model.transformer_module.decoder.mask_predictor):
            head.requires_grad_(True)

    def get_input_embeddings(self) -> nn.Module:
        """Return the segmenter's input embedding."""
        return self.segmenter.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise the flow as the released code does; the segmenter is initialised by its own class."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, FlowEstimator) and module.fusion is not None:
            init.zeros_(module.fusion.weight)
            init.constant_(module.fusion.bias, 1.0 if self.config.flow_init == "released" else 0.0)

    def train(self, mode: bool = True) -> "MPVSSForVideoSemanticSegmentation":
        """Set the training mode, which the frozen segmenter does not take part in."""
        super().train(mode)
        self.segmenter.eval()
        return self

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """Number of targets, and class weights of all queries together; see [`VideoPreTrainedModel`]."""
        counts = count_classes(later_labels(labels), self.config.num_labels, self.config.ignore_value)
        return loss_counts_of((counts > 0).sum(1), self.loss_settings, matching_rounds=1)

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        context: StepContext | None = None,
        official_zeroing: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> MPVSSForVideoSemanticSegmentationOutput:
        r"""Segment videos as a stream does, or, given labels, compute the loss of the frames after the first.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, height, width)`): Normalised frames; height and width
                multiples of 32. Pixels that are zero in all channels are padding. With labels the first one is the key
                frame of all others, at any distance.
            labels (`(batch, num_frames, label_height, label_width)`): Class indices, `config.ignore_value` where there
                is none. Those of the key frame are not used.
            context: The optimiser step that the batch is a part of.
            official_zeroing: Height and width of the label maps to be made. The released code blanks what lies beyond
                them for the motion encoder, even if it is not padding. For comparisons with it; by default only
                padding is blank.

        Raises:
            ValueError: If a shape or value is not as described.
        """
        check_inputs(pixel_values_videos, labels, kwargs)
        num_frames = pixel_values_videos.shape[1]
        if labels is not None and num_frames == 1:
            raise ValueError("`pixel_values_videos` must hold a frame after the key frame to compute the loss. Got 1.")
        interval = self.config.key_frame_interval if labels is None else num_frames
        later = [index for index in range(num_frames) if index % interval]
        if labels is None and (self.config.key_frame_threshold is not None or not later):
            if official_zeroing is not None and later:
                raise ValueError(
                    "`official_zeroing` must be left out with a `key_frame_threshold`: as released there is none. "
                    f"Got {official_zeroing}."
                )
            return self.clip_step(pixel_values_videos, self.initial_state())[0]

        key_of = [index // interval for index in range(num_frames)]
        keys = self._segment(pixel_values_videos[:, ::interval], all_predictions=labels is not None)
        keys_of_later = keys.selected([key_of[index] for index in later])
        later_frames = frames_at(pixel_values_videos, later)
        warped, flows = self._propagate(keys_of_later, later_frames, official_zeroing)

        num_keys = keys.queries.shape[1]
        places = {index: place for place, index in enumerate([*range(0, num_frames, interval), *later])}
        order = [places[index] for index in range(num_frames)]
        key_classes, key_masks = keys.predictions[-1]
        outputs = MPVSSForVideoSemanticSegmentationOutput(
            frame_class_queries_logits=frames_at(key_classes, key_of),
            frame_masks_queries_logits=frames_at(torch.cat([key_masks, warped[-1]], dim=1), order),
            is_key_frame=torch.tensor([index not in later for index in range(num_frames)]).expand(len(key_masks), -1),
        )
        if flows is not None:
            still = torch.zeros_like(flows[:, :1]).expand(-1, num_keys, -1, -1, -1, -1)
            outputs.flows = frames_at(torch.cat([still, flows], dim=1), order)
        if labels is None:
            excess = self._unexplained(keys_of_later, later_frames, warped[-1])
            excess = torch.cat([excess.new_zeros(len(excess), num_keys), excess], dim=1)
            outputs.unexplained = frames_at(excess, order)
        else:
            terms = self._loss_terms(keys_of_later, warped, labels, context or StepContext())
            outputs.loss = torch.stack([term.sum() for term in terms.values()]).sum()
            outputs.loss_terms = {name: term.sum().detach() for name, term in terms.items()}
        return outputs

    def initial_state(self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None) -> KeyFrameSchedule:
        """The state before the first frame of videos; the key frames are all that it depends on."""
        return KeyFrameSchedule()

    def clip_step(
        self, pixel_values_videos: Tensor, state: KeyFrameSchedule | None
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule | None]:
        """Segment the next frames of every video as key frames or with the last one's masks.

        See [`StreamingMixin.clip_step`].

        Raises:
            ValueError: If a shape is not as described, or not that of the state.
        """
        if state is None:
            return self(pixel_values_videos), None
        check_inputs(pixel_values_videos, None, {})
        steps = []
        for frame in pixel_values_videos.split(1, dim=1):
            outputs, state = self._frame_step(frame, state)
            steps.append(outputs)
        return joined(steps, dim=1), state

    def _frame_step(
        self, pixel_values_videos: Tensor, state: KeyFrameSchedule
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule]:
        """Segment the newest frame `(batch, 1, 3, height, width)` of every video."""
        if state.key_frames is not None:
            check_same_videos(pixel_values_videos, state.key_frames.pixel_values)
        if state.num_since is not None and len(state.num_since) > 1:
            due = self._is_due(state.num_since)
            if self.config.key_frame_threshold is not None or due.any() != due.all():
                return self._steps_one_by_one(pixel_values_videos, state)
        return self.step_of_kind(self.step_kind(state), pixel_values_videos, state)

    def step_kind(self, state: KeyFrameSchedule) -> str:
        """`"key_frame"` or, if no video of a batch is due, `"later_frame"`."""
        is_later = state.num_since is not None and not self._is_due(state.num_since).any()
        return self.step_kinds[is_later]

    def step_of_kind(
        self, kind: str, pixel_values_videos: Tensor, state: KeyFrameSchedule
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule]:
        """See [`StreamingMixin`]."""
        if kind == "key_frame" or state.key_frames is None or state.num_since is None:
            return self._key_step(pixel_values_videos)
        return self._later_step(pixel_values_videos, state.key_frames, state.num_since)

    def _is_due(self, num_since: Tensor) -> Tensor:
        return num_since >= self.config.key_frame_interval

    def _steps_one_by_one(
        self, frames: Tensor, state: KeyFrameSchedule
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule]:
        """A step of videos whose key frames may come at different times."""
        steps = []
        for video, frame in enumerate(frames.split(1)):
            own_state = mapped(lambda part, own=slice(video, video + 1): part[own], state)
            steps.append(self._frame_step(frame, own_state))
        after = mapped(lambda *parts: torch.cat(parts), *(own_state for _, own_state in steps))
        return joined([outputs for outputs, _ in steps], dim=0), after

    def _key_step(
        self, frames: Tensor, unexplained: Tensor | None = None
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule]:
        """Segment key frames, due or, given how much was `unexplained`, before their time."""
        keys = self._segment(frames, all_predictions=False)
        ((classes, masks),) = keys.predictions
        batch_size = masks.shape[0]
        outputs = MPVSSForVideoSemanticSegmentationOutput(
            frame_class_queries_logits=classes,
            frame_masks_queries_logits=masks,
            is_key_frame=torch.ones(batch_size, 1, dtype=torch.bool),
            unexplained=masks.new_zeros(batch_size, 1, dtype=torch.float32) if unexplained is None else unexplained,
        )
        if self.flow is not None:
            num_flows = masks.shape[2] if self.flow.has_query_flow else 1
            height, width = frames.shape[-2:]
            outputs.flows = masks.new_zeros(batch_size, 1, num_flows, 2, height // FLOW_STRIDE, width // FLOW_STRIDE)
        return outputs, KeyFrameSchedule(keys, torch.ones(batch_size, 1, dtype=torch.long))

    def _later_step(
        self, frames: Tensor, keys: KeyFrames, num_since: Tensor
    ) -> tuple[MPVSSForVideoSemanticSegmentationOutput, KeyFrameSchedule]:
        threshold = self.config.key_frame_threshold
        if threshold is not None and torch.compiler.is_exporting():
            raise ValueError(
                f"`key_frame_threshold` must be None to export a step, which a frame cannot end. Got {threshold}."
            )
        (masks,), flows = self._propagate(keys, frames)
        unexplained = self._unexplained(keys, frames, masks)
        if threshold is not None and (unexplained > threshold).any():
            return self._key_step(frames, unexplained)
        outputs = MPVSSForVideoSemanticSegmentationOutput(
            frame_class_queries_logits=keys.predictions[-1].class_logits,
            frame_masks_queries_logits=masks,
            is_key_frame=torch.zeros(masks.shape[0], 1, dtype=torch.bool),
            flows=flows,
            unexplained=unexplained,
        )
        return outputs, KeyFrameSchedule(keys, num_since + 1)

    def _segment(self, frames: Tensor, all_predictions: bool) -> KeyFrames:
        """Segment key frames `(batch, num_keys, 3, height, width)`; only the heads learn."""
        segmenter, shape = self.segmenter, frames.shape[:2]
        with torch.no_grad():
            feature_maps, mask_features = segmenter.model.pixel_level_module(frames.flatten(0, 1))
        made, _ = segmenter.model.transformer_module(feature_maps, mask_features, 1, all_predictions)
        predictions = tuple(
            KeyPrediction(
                segmenter.class_predictor(prediction.queries).unflatten(0, shape),
                prediction.mask_logits.squeeze(1).unflatten(0, shape),
            )
            for prediction in made
        )
        return KeyFrames(frames, made[-1].queries.detach().unflatten(0, shape), predictions)

    def _propagate(
        self, keys: KeyFrames, frames: Tensor, official_zeroing: tuple[int, int] | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Warp every prediction's masks of key frames onto as many later frames; also returns the flows."""
        if self.flow is None:
            return [masks for _, masks in keys.predictions], None
        currents, shape = frames.flatten(0, 1), frames.shape[:2]
        # Pictures hold whole numbers before a mean that is none is subtracted: none of their pixels is zero.
        is_picture = (currents != 0).any(1)
        if official_zeroing is not None:
            height, width = official_zeroing
            is_picture[:, height:] = False
            is_picture[:, :, width:] = False
        config = self.config
        # To values from 0 to 1, less the mean of the motion encoder's training, at once.
        shifts = [mean - other for mean, other in zip(config.image_mean, config.flow_image_mean, strict=True)]
        pairs = flow_frames(currents, keys.pixel_values.flatten(0, 1), config.image_std, shifts, is_picture)
        flows = self.flow(pairs, keys.queries.flatten(0, 1)).fused
        warped = []
        for _, masks in keys.predictions:
            single, flow = masks.flatten(0, 2)[:, None], flows.expand(-1, masks.shape[2], -1, -1, -1).flatten(0, 1)
            warped.append(warp(single, flow, self.config.corrected_warp).view(masks.shape))
        return warped, flows.unflatten(0, shape)

    @property
    def loss_settings(self) -> LossSettings:
        """The settings of the segmenter's loss."""
        return LossSettings.from_config(self.config.segmenter_config)

    def _loss_terms(
        self, keys: KeyFrames, warped: list[Tensor], labels: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        """Mask2Former's loss of every frame after the key frame, with the key frame's classes, at every layer."""
        criterion = HierarchicalLoss(self.loss_settings, context.point_sampler, context.point_generator)
        predictions = [
            LevelPrediction(prediction.class_logits.flatten(0, 1), masks.flatten(0, 1)[:, None])
            for prediction, masks in zip(keys.predictions, warped, strict=True)
        ]
        with torch.autocast(labels.device.type, enabled=False):
            return criterion(predictions, [], later_labels(labels), 1, context.loss_counts).terms

    @torch.no_grad()
    def _unexplained(self, keys: KeyFrames, frames: Tensor, masks: Tensor) -> Tensor:
        """Colour variance unexplained on later frames, less that on their key frames: `(batch, num_frames)`."""
        classes, key_masks = keys.predictions[-1]
        parts = (keys.pixel_values, key_masks, frames, masks, classes)
        later, at_key_frame = unexplained_colors(*(part.flatten(0, 1) for part in parts))
        return (later - at_key_frame).unflatten(0, frames.shape[:2])


def frames_at(values: Tensor, indices: list[int]) -> Tensor:
    """Select frames of values `(batch, num_frames, ...)`, without waiting for the device."""
    return values.index_select(1, torch.tensor(indices).to(values.device, non_blocking=True))


def check_same_videos(frames: Tensor, key_frames: Tensor) -> None:
    """Raise a `ValueError` unless frames are as many and as large as the key frames."""
    if not torch.compiler.is_exporting() and frames.shape != key_frames.shape:  # exported, they may have any size
        raise ValueError(
            f"`pixel_values_videos` must have the shape of the state's key frames, {tuple(key_frames.shape)}. "
            f"Got {tuple(frames.shape)}. Begin other videos with `initial_state()`."
        )


def later_labels(labels: Tensor) -> Tensor:
    """The labels of the frames after the key frame, each a clip of one frame: `(frames, 1, height, width)`."""
    return labels[:, 1:].flatten(0, 1)[:, None]


def mapped(function: Callable[..., Tensor], *states: Any) -> Any:
    """A state of nested tuples made from the tensors at each place of some states."""
    if isinstance(states[0], Tensor):
        return function(*states)
    parts = [mapped(function, *each) for each in zip(*states, strict=True)]
    return type(states[0])(*parts) if hasattr(states[0], "_fields") else tuple(parts)


def joined(
    outputs: list[MPVSSForVideoSemanticSegmentationOutput], dim: int
) -> MPVSSForVideoSemanticSegmentationOutput:
    """Outputs of more videos (`dim` 0) or more frames (1), from several with the same fields."""
    if len(outputs) == 1:
        return outputs[0]
    fields: dict[str, Any] = {name: torch.cat([each[name] for each in outputs], dim=dim) for name in outputs[0]}
    return MPVSSForVideoSemanticSegmentationOutput(**fields)


__all__ = ["MPVSSForVideoSemanticSegmentation", "MPVSSForVideoSemanticSegmentationOutput"]
