# SPDX-License-Identifier: Apache-2.0
"""Configuration of THE-Mask."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbones import backbone_config_of, check_no_late_backbone

MINIMA = {
    "num_labels": 1,
    "num_frames": 1,
    "num_queries": 1,
    "num_attention_heads": 1,
    "hidden_dim": 1,
    "feature_size": 1,
    "mask_feature_size": 1,
    "encoder_feedforward_dim": 1,
    "dim_feedforward": 1,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "train_num_points": 1,
    "oversample_ratio": 1,
    "no_object_weight": 0,
    "class_weight": 0,
    "mask_weight": 0,
    "dice_weight": 0,
    "secondary_mask_weight": 0,
    "secondary_dice_weight": 0,
    "secondary_round_weight": 0,
    "frame_loss_weight": 0,
}


@strict
class THEMaskConfig(PreTrainedConfig):
    r"""Configuration of a [`THEMaskForVideoSemanticSegmentation`].

    The shared fields carry the names, meanings and defaults of [`Mask2FormerConfig`], so a Mask2Former configuration
    or checkpoint loads as it is. The rest is THE-Mask's (An et al., BMVC 2023; defaults as its released code
    computes).

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone: a [`MiTConfig`], or that of any `AutoBackbone` with strides 4, 8, 16, 32.
            Defaults to MiT-B1.
        backbone (`str`, *optional*):
            A published MiT size, `"mit-b0"` … `"mit-b5"`, in place of `backbone_config`.
        num_frames (`int`, *optional*, defaults to 1):
            Frames per training clip. 1 builds the Mask2Former decoder and treats every frame on its own; more builds
            the decoder chosen by `temporal_mode`. Any number of frames can be given at inference.
        temporal_mode (`str`, *optional*, defaults to `"video_frame"`):
            Decoder of a model with `num_frames > 1` (Table 3). `"video_frame"`: the Temporal Aggregation Decoder.
            `"one_to_frame"`: one query set, copied to every frame. `"one_to_video"`: one query set attends to all
            frames.
        matching_rounds (`int`, *optional*, defaults to 2):
            1 matches one query per class, 2 adds a secondary query per class (section 3.2).
        second_round_cost (`str`, *optional*, defaults to `"auto"`):
            Cost of the second round: `"mask"` cross-entropy only (paper), `"full"` as in the first round, `"auto"` the
            former for one-frame and the latter for longer clips (as released).
        secondary_loss (`str`, *optional*, defaults to `"soft"`):
            Mask loss of the secondary queries: `"soft"` (Eq. 5) or `"original"`, that of the primary ones (Table 4).
        secondary_target (`str`, *optional*, defaults to `"thresholded"`):
            The soft mask, predicted mask ∘ label: `"thresholded"` at 0.5 (as released) or `"soft"` (as printed).
        secondary_points (`str`, *optional*, defaults to `"dense"`):
            Where the soft loss is taken: `"dense"`, every pixel, or `"sampled"` points.
        attention_mask_source (`str`, *optional*, defaults to `"video"`):
            Whose masks restrict the temporal decoder's cross-attention: those of the `"video"` queries (as released)
            or of the `"frame"` queries (Eq. 8).
        ignored_pixels (`str`, *optional*, defaults to `"negative"`):
            Pixels labelled `ignore_value` belong to no mask: `"negative"`, so they are outside every mask (as
            released), or `"excluded"` from matching and mask losses altogether.
        frame_head_init (`str`, *optional*, defaults to `"fresh"`):
            Frame-level heads missing from a loaded checkpoint start `"fresh"` or as a `"copy"` of the video-level
            ones.
        aggregator_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the temporal aggregation module.
        secondary_mask_weight, secondary_dice_weight (`float`, *optional*, defaults to 0.5):
            Weights of the soft mask losses.
        secondary_round_weight (`float`, *optional*, defaults to 0.5):
            Weight α of the whole second round (Eq. 6).
        frame_loss_weight (`float`, *optional*, defaults to 0.25):
            Weight of every frame-level loss against its video-level counterpart.
        decoder_layers (`int`, *optional*, defaults to 10):
            Predictions of the decoder: one before the first layer and one after each, hence layers plus one.
        ignore_value (`int`, *optional*, defaults to 255):
            Label of pixels without a class.
        output_auxiliary_logits (`bool`, *optional*, defaults to `False`):
            Return the predictions of the intermediate decoder layers in evaluation mode too.
        feature_size, mask_feature_size, hidden_dim, encoder_feedforward_dim, encoder_layers, num_attention_heads,
        dropout, dim_feedforward, enforce_input_projection, num_queries, no_object_weight, class_weight, mask_weight,
        dice_weight, train_num_points, oversample_ratio, importance_sample_ratio, init_xavier_std:
            As in [`Mask2FormerConfig`].

    Raises:
        ValueError: For contradicting fields, values out of range or an unknown backbone.
        StrictDataclassError: For a field of the wrong type.
    """

    model_type = "themask"
    sub_configs = {"backbone_config": AutoConfig}
    attribute_map = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}

    # Architecture.
    backbone_config: Any = None
    backbone: str | None = None
    num_frames: int = 1
    temporal_mode: Literal["video_frame", "one_to_frame", "one_to_video"] = "video_frame"
    attention_mask_source: Literal["video", "frame"] = "video"
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dropout: float | int = 0.0
    aggregator_dropout: float | int = 0.1
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    activation_function: str = "relu"
    common_stride: int = 4
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    num_queries: int = 100
    output_auxiliary_logits: bool | None = None

    # Matching and loss.
    matching_rounds: int = 2
    second_round_cost: Literal["auto", "mask", "full"] = "auto"
    secondary_loss: Literal["soft", "original"] = "soft"
    secondary_target: Literal["thresholded", "soft"] = "thresholded"
    secondary_points: Literal["dense", "sampled"] = "dense"
    ignored_pixels: Literal["negative", "excluded"] = "negative"
    ignore_value: int = 255
    no_object_weight: float | int = 0.1
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    secondary_mask_weight: float | int = 0.5
    secondary_dice_weight: float | int = 0.5
    secondary_round_weight: float | int = 0.5
    frame_loss_weight: float | int = 0.25
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    # Initialisation.
    init_xavier_std: float | int = 1.0
    frame_head_init: Literal["fresh", "copy"] = "fresh"

    def __post_init__(self, **kwargs: Any):
        self.backbone_config = backbone_config_of(self.backbone, self.backbone_config)
        # Saved with the model as `backbone_config`; kept nowhere else, so the two can never disagree.
        self.backbone = None
        kwargs.pop("model_type", None)  # a Mask2Former configuration becomes this one
        super().__post_init__(**kwargs)
        self.check_fields()

    def check_fields(self) -> None:
        """Reject values no model can be built or trained with.

        Called at construction, and again by the model, since a loaded configuration's fields may have been overridden.

        Raises:
            ValueError: See the messages.
        """
        check_no_late_backbone(self.backbone)
        for name, minimum in MINIMA.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}. Got {getattr(self, name)}.")
        for name in ("dropout", "aggregator_dropout", "importance_sample_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1]. Got {getattr(self, name)}.")
        if self.matching_rounds not in (1, 2):
            raise ValueError(f"`matching_rounds` must be 1 or 2. Got {self.matching_rounds}.")
        if self.feature_size % 32:
            raise ValueError(
                f"`feature_size` must be a multiple of 32, for the pixel decoder's GroupNorm. Got {self.feature_size}."
            )
        if self.hidden_dim % 4:
            raise ValueError(f"`hidden_dim` must be a multiple of 4, for the position codes. Got {self.hidden_dim}.")
        for name in ("feature_size", "hidden_dim"):
            if getattr(self, name) % self.num_attention_heads:
                raise ValueError(
                    f"`{name}` must be a multiple of `num_attention_heads` ({self.num_attention_heads}). "
                    f"Got {getattr(self, name)}."
                )
        # Settings of Mask2Former that THE-Mask does not define.
        for name, value in {"pre_norm": False, "activation_function": "relu", "common_stride": 4}.items():
            if getattr(self, name) != value:
                raise ValueError(f"`{name}` must be {value!r} for THE-Mask. Got {getattr(self, name)!r}.")
        if tuple(self.feature_strides) != (4, 8, 16, 32):
            raise ValueError(f"`feature_strides` must be (4, 8, 16, 32). Got {tuple(self.feature_strides)}.")


__all__ = ["THEMaskConfig"]
