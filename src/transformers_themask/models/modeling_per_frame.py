# SPDX-License-Identifier: Apache-2.0
"""Any image segmentation model of Transformers as a video model that treats every frame on its own.

A baseline for the video models: it is trained, scored and used with the same data, schedule and metrics as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_per_frame import DECODERS_WITH_QUERIES, ENCODERS_WITH_QUERIES, PerFrameConfig
from .inputs import check_inputs
from .label_counts import averaged_over_processes, count_classes, loss_counts_of
from .loss_settings import LossSettings
from .matching import LevelPrediction
from .outputs import VideoSegmentationOutput
from .pretrained_model import VideoPreTrainedModel
from .query_loss import HierarchicalLoss
from .scores_to_labels import query_scores
from .step_context import StepContext
from .streaming import StreamingMixin

# Segmenters that take frames of another size than their configuration's only when asked to.
INTERPOLATE_WHEN_ASKED = ("beit", "data2vec-vision")

# Task prompt of OneFormer.
SEMANTIC_TASK = "the task is semantic"

# The options of `from_pretrained` that say where files come from.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class PerFrameForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    r"""Outputs of [`PerFrameForVideoSemanticSegmentation`].

    A segmenter that scores pixels fills `logits`, one with queries the other two, unless it saw the frames in parts.

    Args:
        loss (`()`, returned with `labels`): Total loss, the sum of `loss_terms`.
        loss_terms (returned with `labels`): `loss_pixels` of a segmenter that scores pixels, its auxiliary heads
            included; weighted `loss_class`, `loss_mask` and `loss_dice`, summed over the prediction layers, of one
            with queries.
        statistics (returned with `labels` by a segmenter with queries): `primary_query_share`: the share of the
            queries that received a target.
        logits (`(batch, num_frames, num_labels, logits_height, logits_width)`): Class scores of pixels, at the
            segmenter's own stride; of a segmenter with queries that saw the frames in parts, the mean over the parts,
            at the frames' size.
        frame_class_queries_logits: Classes of the queries, the last one "no object":
            `(batch, num_frames, num_queries, num_labels + 1)`.
        frame_masks_queries_logits: Masks of the queries: `(batch, num_frames, num_queries, height / 4, width / 4)`.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    statistics: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    frame_class_queries_logits: Tensor | None = None
    frame_masks_queries_logits: Tensor | None = None


class PerFrameForVideoSemanticSegmentation(StreamingMixin, VideoPreTrainedModel):
    r"""A Transformers segmentation model, applied to every frame of a clip.

    Segmenters that score pixels (SegFormer, UperNet, DPT, BEiT, …) keep their own loss, a mean over labelled pixels.
    Those with queries (Mask2Former, MaskFormer, OneFormer, EoMT) are trained with the mask classification loss of this
    package in one round, with the weights of their configuration, on the final and all auxiliary predictions:
    Transformers' own divides by the number of masks in one batch, and in distributed training by the number of
    processes twice, so that its scale depends on how a step is split. MaskFormer thereby gets the cross-entropy at
    points that Mask2Former has, not a focal loss over all pixels; OneFormer goes without its contrastive term. The
    losses of a step's batches add up to that of one large batch, except through batch norms, as in SegFormer's head:
    in training mode they see the frames of one batch on one device.

    EoMT takes square images. Outside training, frames with one edge of that length are cut along the other into
    overlapping squares and their scores are averaged, as its own image processor does for semantic segmentation.

    The image model is `segmenter`; `segmenter.save_pretrained` writes an ordinary checkpoint of it, and
    `from_pretrained` reads one.

    Example:
    ```python
    >>> import torch
    >>> from transformers_themask import PerFrameConfig, PerFrameForVideoSemanticSegmentation
    >>> config = PerFrameConfig(segmenter_config={"model_type": "segformer"}, num_labels=124)
    >>> model = PerFrameForVideoSemanticSegmentation(config)
    >>> model(pixel_values_videos=torch.randn(1, 2, 3, 64, 96)).logits.shape
    torch.Size([1, 2, 124, 16, 24])

    ```
    """

    config: PerFrameConfig
    config_class = PerFrameConfig
    base_model_prefix = ""

    def __init__(self, config: PerFrameConfig, segmenter: PreTrainedModel | None = None):
        super().__init__(config)
        config.share_classes()
        if config.is_semantic and config.num_labels < 2:
            raise ValueError(
                f"`num_labels` must be at least 2 for {config.segmenter_config.model_type} segmenters. "
                f"Got {config.num_labels}. Label the background as a class of its own."
            )
        if config.needs_task and len(config.task_inputs or []) != config.segmenter_config.task_seq_len:
            raise ValueError(
                f"`task_inputs` must be the {config.segmenter_config.task_seq_len} token ids of {SEMANTIC_TASK!r} for "
                f"{config.segmenter_config.model_type} segmenters. Got {config.task_inputs}. Load a checkpoint with "
                "its tokenizer."
            )
        if segmenter is None:
            segmenter = segmenter_class(config).from_config(config.segmenter_config)
        self.segmenter = segmenter
        self.loss_settings = None if config.is_semantic else loss_settings(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a saved model of this class, or the segmenter from an ordinary checkpoint of it.

        An ordinary checkpoint may also lack the head, such as that of an image classifier. Arguments are those of
        [`PreTrainedModel.from_pretrained`].
        """
        path = pretrained_model_name_or_path
        if path is None or saved_fields(path, kwargs).get("model_type") in (None, cls.config_class.model_type):
            return super().from_pretrained(path, *model_args, **kwargs)
        config = kwargs.pop("config", None)
        if not isinstance(config, cls.config_class):
            config = wrapped_config(config, path, kwargs)
        if config.needs_task and config.task_inputs is None:
            config.task_inputs = task_tokens(path, config.segmenter_config.task_seq_len, kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        segmenter, info = segmenter_class(config).from_pretrained(
            path, config=config.segmenter_config, output_loading_info=True, **kwargs
        )
        model = cls(config, segmenter).eval()
        return (model, info) if with_info else model

    @property
    def base_model(self) -> nn.Module:
        """The segmenter's encoder, where it has one without its heads; else the model itself."""
        encoder = self.segmenter.base_model
        return self if encoder is self.segmenter else encoder

    def get_input_embeddings(self) -> nn.Module:
        """Return the segmenter's input embedding."""
        return self.segmenter.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Nothing: all parameters are the segmenter's, whose class initialises them."""

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """Number of labelled pixels, or of targets and class weights of queries; see [`VideoPreTrainedModel`]."""
        config = self.config
        counts = count_classes(labels.flatten(0, 1)[:, None], config.num_labels, config.ignore_value)
        if self.loss_settings is None:
            return counts.sum().to(torch.float64)[None]
        return loss_counts_of((counts > 0).sum(1), self.loss_settings, matching_rounds=1)

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        context: StepContext | None = None,
        **kwargs: Any,
    ) -> PerFrameForVideoSemanticSegmentationOutput:
        r"""Segment clips and, given labels, compute the loss.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, height, width)`): Normalised frames, of a size that the
                segmenter takes: multiples of 32 suit all that do not fix it.
            labels (`(batch, num_frames, height, width)`): Class indices, `config.ignore_value` where there is none.
            context: The optimiser step that the batch is a part of.

        Raises:
            ValueError: If a shape or value is not as described.
        """
        check_inputs(pixel_values_videos, labels, kwargs, size_divisor=1)
        num_frames = pixel_values_videos.shape[1]
        frames = pixel_values_videos.flatten(0, 1)
        if labels is None and self._takes_in_parts(frames):
            logits = torch.stack([self._score_in_parts(frame) for frame in frames])
            return PerFrameForVideoSemanticSegmentationOutput(logits=logits.unflatten(0, (-1, num_frames)))
        self._check_square(frames)
        labels = None if labels is None else labels.flatten(0, 1)
        context = context or StepContext()
        if self.loss_settings is None:
            logits, loss = self._score_pixels(frames, labels, context.loss_counts)
            return PerFrameForVideoSemanticSegmentationOutput(
                loss=loss,
                loss_terms=None if loss is None else {"loss_pixels": loss.detach()},
                logits=logits.unflatten(0, (-1, num_frames)),
            )
        predictions = self._predict_with_queries(frames, all_predictions=labels is not None)
        outputs = PerFrameForVideoSemanticSegmentationOutput(
            frame_class_queries_logits=predictions[-1].class_logits.unflatten(0, (-1, num_frames)),
            frame_masks_queries_logits=predictions[-1].mask_logits[:, 0].unflatten(0, (-1, num_frames)),
        )
        if labels is not None:
            criterion = HierarchicalLoss(self.loss_settings, context.point_sampler, context.point_generator)
            with torch.autocast(labels.device.type, enabled=False):
                terms, shares = criterion(predictions, [], labels[:, None], 1, context.loss_counts)
            outputs.loss = torch.stack([term.sum() for term in terms.values()]).sum()
            outputs.loss_terms = {name: term.sum().detach() for name, term in terms.items()}
            outputs.statistics = {"primary_query_share": shares["primary_query_share"]}
        return outputs

    def _takes_in_parts(self, frames: Tensor) -> bool:
        config, (height, width) = self.config, frames.shape[-2:]
        if config.segmenter_config.model_type not in ENCODERS_WITH_QUERIES or height == width:
            return False
        return min(height, width) == config.segmenter_config.image_size

    def _score_in_parts(self, frame: Tensor) -> Tensor:
        """Class scores `(num_labels, height, width)` of a frame `(3, height, width)`: the mean over its squares."""
        edge, axis = min(frame.shape[1:]), 1 if frame.shape[1] > frame.shape[2] else 2
        # As for label maps: half precision has too few values for scores.
        dtype = torch.promote_types(frame.dtype, torch.float32)
        scores = frame.new_zeros(self.config.num_labels, *frame.shape[1:], dtype=dtype)
        num_parts = frame.new_zeros(frame.shape[1:])
        for start in part_starts(frame.shape[axis], edge):
            prediction = self._predict_with_queries(frame.narrow(axis, start, edge)[None], all_predictions=False)[-1]
            masks = nn.functional.interpolate(prediction.mask_logits[:, 0].to(dtype), (edge, edge), mode="bilinear")[0]
            scores.narrow(axis, start, edge).add_(query_scores(prediction.class_logits[0].to(dtype), masks))
            num_parts.narrow(axis - 1, start, edge).add_(1)
        return scores / num_parts

    def _check_square(self, frames: Tensor) -> None:
        config, (height, width) = self.config, frames.shape[-2:]
        wanted = config.square_input_size
        takes_any_square = config.is_semantic and height == width
        if wanted not in (None, {"height": height, "width": width}) and not takes_any_square:
            raise ValueError(
                f"`pixel_values_videos` must be square for {config.segmenter_config.model_type} segmenters, best "
                f"{wanted}. Got {height}x{width}. Give that as `size` to the video processor, and to training crops."
            )

    def _score_pixels(
        self, frames: Tensor, labels: Tensor | None, loss_counts: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Class scores of frames and, given labels, the share of the segmenter's own loss, a mean over pixels."""
        interpolates = self.config.segmenter_config.model_type in INTERPOLATE_WHEN_ASKED
        options = {"interpolate_pos_encoding": True} if interpolates else {}
        if labels is None:
            return self.segmenter(frames, **options).logits, None
        own_count = self.loss_counts(labels[:, None])
        if loss_counts is None:
            loss_counts = averaged_over_processes(own_count.clone().to(frames.device, non_blocking=True))
        own, whole = (count.to(frames.device, non_blocking=True) for count in (own_count, loss_counts))
        share = own / whole.clamp(min=1)
        labels = labels.long()
        # A mean over no pixel is NaN; with any label instead it is zero times something finite.
        labels = labels if own_count > 0 else torch.zeros_like(labels)
        outputs = self.segmenter(frames, labels=labels, **options)
        return outputs.logits, outputs.loss * share.to(outputs.loss.dtype).squeeze()

    def _predict_with_queries(self, frames: Tensor, all_predictions: bool) -> list[LevelPrediction]:
        """Predictions for frames, of the auxiliary layers first if they are asked for."""
        if self.config.segmenter_config.model_type in DECODERS_WITH_QUERIES:
            # Without hidden states they would miss what their auxiliary predictions are made of.
            outputs = self.segmenter(
                frames, output_auxiliary_logits=all_predictions, output_hidden_states=True, **self._task(frames)
            )
            layers = [*(outputs.get("auxiliary_logits") or outputs.get("auxiliary_predictions") or []), outputs]
            pairs = [(layer["class_queries_logits"], layer["masks_queries_logits"]) for layer in layers]
        else:
            pairs = self._predict_with_encoder_queries(frames, all_predictions)
        return [LevelPrediction(classes, masks[:, None]) for classes, masks in pairs]

    def _task(self, frames: Tensor) -> dict[str, Tensor]:
        """The task prompt of each frame, for segmenters that need one."""
        if not self.config.needs_task:
            return {}
        return {"task_inputs": torch.tensor(self.config.task_inputs, device=frames.device).expand(len(frames), -1)}

    def _predict_with_encoder_queries(self, frames: Tensor, all_predictions: bool) -> list[tuple[Tensor, Tensor]]:
        segmenter = self.segmenter
        if not all_predictions:
            outputs = segmenter(frames)
            return [(outputs.class_queries_logits, outputs.masks_queries_logits)]
        # Its output holds the last prediction only, though it learns from all of them.
        makers = (segmenter.class_predictor, segmenter.mask_head, segmenter.upscale_block)
        return [
            (classes, torch.einsum("bqc,bchw->bqhw", queries, pixels))
            for classes, queries, pixels in zip(*recorded_outputs(segmenter, frames, makers), strict=True)
        ]


def segmenter_class(config: PerFrameConfig) -> Any:
    """The auto class that builds a configuration's segmenter."""
    return AutoModelForSemanticSegmentation if config.is_semantic else AutoModelForUniversalSegmentation


def saved_fields(path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration saved at `path`, which may be that of a segmenter by itself."""
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    return PerFrameConfig.get_config_dict(path, **hub)[0]


def wrapped_config(
    segmenter_config: PreTrainedConfig | None, path: str | Path, options: dict[str, Any]
) -> PerFrameConfig:
    """The configuration of the video model for a checkpoint of an image model."""
    if segmenter_config is None:
        config = PerFrameConfig.from_dict(saved_fields(path, options))
    else:
        config = PerFrameConfig(segmenter_config=segmenter_config)
    config.name_or_path = str(path)
    return config


def task_tokens(path: str | Path, length: int, options: dict[str, Any]) -> list[int]:
    """Token ids of the semantic task, with zeros for padding as OneFormer's own processor makes them."""
    tokenizer = AutoTokenizer.from_pretrained(path, **{name: options[name] for name in HUB_OPTIONS if name in options})
    tokens = tokenizer(SEMANTIC_TASK, padding="max_length", max_length=length, truncation=True)
    # Without its files a tokenizer is built all the same, but knows no words.
    if tokenizer.decode(tokens["input_ids"], skip_special_tokens=True).split() != SEMANTIC_TASK.split():
        raise OSError(f"its tokenizer must know the words {SEMANTIC_TASK!r}. Add the tokenizer's files.")
    return [token * kept for token, kept in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)]


def part_starts(length: int, edge: int) -> list[int]:
    """Starts of squares that cover a length with equal overlaps, as in the image processor of EoMT."""
    num_parts = -(-length // edge)
    overlap = (num_parts * edge - length) / (num_parts - 1)
    return [int(part * (edge - overlap)) for part in range(num_parts)]


def loss_settings(config: PerFrameConfig) -> LossSettings:
    """The settings of the loss of queries that a segmenter's configuration asks for."""
    segmenter_config = config.segmenter_config
    settings = {"num_labels": config.num_labels, "ignore_value": config.ignore_value}
    if segmenter_config.model_type == "maskformer":
        settings["class_weight"] = segmenter_config.cross_entropy_weight
        settings["num_queries"] = segmenter_config.decoder_config.num_queries
    return LossSettings.from_config(segmenter_config, **settings)


def recorded_outputs(model: nn.Module, frames: Tensor, modules: Sequence[nn.Module]) -> list[list[Tensor]]:
    """Outputs of some modules, call by call, while a model processes frames: one list per module."""
    records: list[list[Tensor]] = [[] for _ in modules]
    handles = [
        module.register_forward_hook(lambda module, inputs, output, record=record: record.append(output))
        for module, record in zip(modules, records, strict=True)
    ]
    try:
        model(frames)
    finally:
        for handle in handles:
            handle.remove()
    return records


__all__ = [
    "PerFrameForVideoSemanticSegmentation",
    "PerFrameForVideoSemanticSegmentationOutput",
]
