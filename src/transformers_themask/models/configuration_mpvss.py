# SPDX-License-Identifier: Apache-2.0
"""Configuration of MPVSS."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_query_segmenter import QuerySegmenterConfig

# What the decoder of FlowNetS enlarges from level to level, the coarsest first (Dosovitskiy et al., ICCV 2015).
FLOWNETS_CHANNELS = (512, 256, 128, 64)

# The model types whose one-frame configurations describe a segmenter.
SEGMENTER_TYPES = ("query_segmenter", "themask", "mask2former")

# Fields of a THE-Mask that are without meaning for single frames in one matching round.
CLIP_FIELDS = (
    "num_frames",
    "temporal_mode",
    "attention_mask_source",
    "aggregator_dropout",
    "output_auxiliary_logits",
    "matching_rounds",
    "second_round_cost",
    "secondary_loss",
    "secondary_target",
    "secondary_points",
    "secondary_mask_weight",
    "secondary_dice_weight",
    "secondary_round_weight",
    "frame_loss_weight",
    "frame_head_init",
)


@strict
class MPVSSConfig(PreTrainedConfig):
    r"""Configuration of a [`MPVSSForVideoSemanticSegmentation`] (Weng et al., NeurIPS 2023).

    Args:
        segmenter_config: The model of the key frames; the configuration of a Mask2Former or of a one-frame THE-Mask
            also describes one. Defaults to a Mask2Former with MiT-B1.
        key_frame_interval: Every so many frames of a stream one is segmented; the masks of the others come from the
            one before.
        key_frame_threshold: A frame becomes a key frame before its time where the propagated masks explain so much
            less of its colours than on the key frame; see [`~key_frames_mpvss.unexplained_colors`]. By default only
            the interval counts.
        propagation: What masks are moved by (Table 3): `"full"`, a flow per query, refined with one that all share;
            `"query_learned"`, the former alone; `"query_random"`, the same without the key frame's queries;
            `"query_for_pixel_flow"`, the shared flow, which the queries take part in; `"optical_flow"`, the shared
            flow of FlowNetS; `"copy"`, nothing, they stay.
        motion_channels: Channels of the six levels of the motion encoder, FlowNetS.
        motion_decoder_channels: Channels that the shared flow's decoder enlarges from level to level, the coarsest
            first. Defaults to `(128, 128, 128, 64)`, and to FlowNetS' `(512, 256, 128, 64)` for `"optical_flow"`.
        motion_layers: Layers in which queries and motion meet.
        motion_attention_heads: Their attention heads.
        motion_feedforward_dim: Hidden channels of their feed-forward parts.
        flow_init: New flows of `"full"` are `"released"`, one place to the right and down everywhere, or `"identity"`,
            zero.
        corrected_warp: Whether zero flow leaves masks where they are; see [`~motion_mpvss.warp`].
        image_mean, image_std: How frames are normalised; the motion encoder takes them from 0 to 1.
        flow_image_mean: What is subtracted from those.

    Raises:
        ValueError: For values out of range, or a segmenter of clips.
        StrictDataclassError: For a field of the wrong type.

    Example:
    ```python
    >>> from transformers_themask import MPVSSConfig
    >>> config = MPVSSConfig(num_labels=124)
    >>> config.num_frames, config.segmenter_config.num_labels
    (2, 124)

    ```
    """

    model_type = "mpvss"
    clip_sampler = "pair"
    sub_configs = {"segmenter_config": QuerySegmenterConfig}

    segmenter_config: Any = None
    key_frame_interval: int = 5
    key_frame_threshold: float | int | None = None
    propagation: Literal["full", "query_learned", "query_random", "query_for_pixel_flow", "optical_flow", "copy"] = (
        "full"
    )
    motion_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512, 1024)
    motion_decoder_channels: list[int] | tuple[int, ...] | None = None
    motion_layers: int = 9
    motion_attention_heads: int = 8
    motion_feedforward_dim: int = 2048
    flow_init: Literal["released", "identity"] = "released"
    corrected_warp: bool = False
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    flow_image_mean: list[float] | tuple[float, ...] = (0.411, 0.432, 0.45)

    def __post_init__(self, **kwargs: Any):
        self.segmenter_config = segmenter_config_of(self.segmenter_config)
        if self.motion_decoder_channels is None:
            self.motion_decoder_channels = (
                FLOWNETS_CHANNELS if self.propagation == "optical_flow" else (128, 128, 128, 64)
            )
        if self.id2label is None and kwargs.get("num_labels") in (None, self.segmenter_config.num_labels):  # type: ignore[has-type]
            self.id2label = dict(self.segmenter_config.id2label)
        super().__post_init__(**kwargs)
        self.check_fields()

    @property
    def num_frames(self) -> int:
        """Frames of a training clip: the key frame and a later one."""
        return 2

    @num_frames.setter
    def num_frames(self, value: Any) -> None:
        raise ValueError(
            f"`num_frames` must be left out: a training clip has 2 frames, any other any number. Got {value!r}."
        )

    @property
    def fit(self) -> str:
        """The video processor's `fit`: as released, frames are padded, not stretched."""
        return "pad"

    @property
    def ignore_value(self) -> int:
        """Label of pixels without a class."""
        return self.segmenter_config.ignore_value

    @ignore_value.setter
    def ignore_value(self, value: Any) -> None:
        raise ValueError(
            f"`ignore_value` must be given as a field of `segmenter_config`. Got {value!r} for the whole model."
        )

    def check_fields(self) -> None:
        """Reject values no model can be built or trained with, and give the segmenter the classes.

        Called at construction, and again by the model, since a loaded configuration's fields may have been overridden.
        """
        self.label2id = {name: index for index, name in self.id2label.items()}
        if 0 <= self.ignore_value < self.num_labels:
            raise ValueError(
                f"`ignore_value` of `segmenter_config` must not be one of the {self.num_labels} class indices. "
                f"Got {self.ignore_value}."
            )
        self.segmenter_config.id2label, self.segmenter_config.label2id = dict(self.id2label), dict(self.label2id)
        for name in ("key_frame_interval", "motion_layers", "motion_attention_heads", "motion_feedforward_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Got {getattr(self, name)}.")
        if self.key_frame_threshold is not None and not 0 <= self.key_frame_threshold < math.inf:
            raise ValueError(f"`key_frame_threshold` must be a number of at least 0. Got {self.key_frame_threshold}.")
        for name, length in (("motion_channels", 6), ("motion_decoder_channels", 4)):
            if len(getattr(self, name)) != length or min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be {length} numbers of channels. Got {tuple(getattr(self, name))}.")
        for name in ("image_mean", "image_std", "flow_image_mean"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or (name == "image_std" and min(values) <= 0):
                raise ValueError(
                    f"`{name}` must be one {'positive ' * (name == 'image_std')}number per colour. Got {values}."
                )
        if self.segmenter_config.hidden_dim % self.motion_attention_heads:
            raise ValueError(
                "`motion_attention_heads` must divide the segmenter's `hidden_dim` "
                f"({self.segmenter_config.hidden_dim}). Got {self.motion_attention_heads}."
            )


def segmenter_config_of(config: Any) -> QuerySegmenterConfig:
    """The configuration of the segmenter: a new one, or from the fields of a Mask2Former or a one-frame THE-Mask."""
    if config is None:
        return QuerySegmenterConfig()
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    if not isinstance(fields, dict) or fields.get("model_type", SEGMENTER_TYPES[0]) not in SEGMENTER_TYPES:
        found = fields.get("model_type") if isinstance(fields, dict) else type(config).__name__
        raise ValueError(f"`segmenter_config` must be that of a THE-Mask or a Mask2Former. Got {found!r}.")
    if fields.get("num_frames", 1) != 1:
        raise ValueError(
            "`segmenter_config` must describe a model of single frames, with `num_frames` 1. "
            f"Got {fields['num_frames']}."
        )
    return QuerySegmenterConfig(**{name: value for name, value in fields.items() if name not in CLIP_FIELDS})


__all__ = ["MPVSSConfig"]
