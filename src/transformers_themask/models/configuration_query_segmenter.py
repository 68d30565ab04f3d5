# SPDX-License-Identifier: Apache-2.0
"""Configuration of a segmenter with queries: a Mask2Former of single frames."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbones import backbone_config_of, check_no_late_backbone

MINIMA = {
    "num_labels": 1,
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
}


@strict
class QuerySegmenterConfig(PreTrainedConfig):
    r"""Configuration of a [`QuerySegmenter`].

    The fields carry the names, meanings and defaults of [`Mask2FormerConfig`], so a Mask2Former configuration or
    checkpoint loads as it is.

    Args:
        backbone_config: Configuration of the backbone: a [`MiTConfig`], or that of any `AutoBackbone` with strides 4,
            8, 16, 32. Defaults to MiT-B1.
        backbone: A published MiT size, `"mit-b0"` … `"mit-b5"`, in place of `backbone_config`.
        decoder_layers: Predictions of the decoder: one before the first layer and one after each, hence layers plus
            one.
        ignored_pixels: Pixels labelled `ignore_value` belong to no mask: `"negative"`, so they are outside every mask
            (as released), or `"excluded"` from matching and mask losses altogether.
        ignore_value: Label of pixels without a class.
        feature_size, mask_feature_size, hidden_dim, encoder_feedforward_dim, encoder_layers, num_attention_heads,
        dropout, dim_feedforward, enforce_input_projection, num_queries, no_object_weight, class_weight, mask_weight,
        dice_weight, train_num_points, oversample_ratio, importance_sample_ratio, init_xavier_std: As in
            [`Mask2FormerConfig`].

    Raises:
        ValueError: For contradicting fields, values out of range or an unknown backbone.
        StrictDataclassError: For a field of the wrong type.
    """

    model_type = "query_segmenter"
    sub_configs = {"backbone_config": AutoConfig}
    attribute_map = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}

    # Architecture.
    backbone_config: Any = None
    backbone: str | None = None
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dropout: float | int = 0.0
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    activation_function: str = "relu"
    common_stride: int = 4
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    num_queries: int = 100

    # Matching and loss.
    ignored_pixels: Literal["negative", "excluded"] = "negative"
    ignore_value: int = 255
    no_object_weight: float | int = 0.1
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    # Initialisation.
    init_xavier_std: float | int = 1.0

    def __post_init__(self, **kwargs: Any):
        self.backbone_config = backbone_config_of(self.backbone, self.backbone_config)
        # Saved with the model as `backbone_config`; kept nowhere else, so the two can never disagree.
        self.backbone = None
        kwargs.pop("model_type", None)  # a Mask2Former configuration becomes this one
        super().__post_init__(**kwargs)
        self.check_fields()

    def check_fields(self) -> None:
        """Reject values no model can be built or trained with, also such as were set after construction."""
        check_no_late_backbone(self.backbone)
        for name, minimum in MINIMA.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}. Got {getattr(self, name)}.")
        for name in ("dropout", "importance_sample_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1]. Got {getattr(self, name)}.")
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
        # Settings of Mask2Former that are not supported.
        for name, value in {"pre_norm": False, "activation_function": "relu", "common_stride": 4}.items():
            if getattr(self, name) != value:
                raise ValueError(f"`{name}` must be {value!r}. Got {getattr(self, name)!r}.")
        if tuple(self.feature_strides) != (4, 8, 16, 32):
            raise ValueError(f"`feature_strides` must be (4, 8, 16, 32). Got {tuple(self.feature_strides)}.")


__all__ = ["QuerySegmenterConfig"]
