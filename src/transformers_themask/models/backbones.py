# SPDX-License-Identifier: Apache-2.0
"""The backbones of the video models: four feature maps per frame, at strides 4, 8, 16 and 32."""

import math
from typing import Any

from torch import Tensor
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel

from .mit import MiTBackbone, MiTConfig

STRIDES = (4, 8, 16, 32)


def backbone_config_of(size: str | None, config: Any) -> PreTrainedConfig:
    """The configuration described by a model's fields `backbone` and `backbone_config`, not both; else MiT-B1."""
    if size is not None and config is not None:
        raise ValueError(
            f"`backbone` must not be given together with `backbone_config`. Got {size!r} and a "
            f"{type(config).__name__}. Keep one of the two."
        )
    if config is None:
        config = MiTConfig.from_size("mit-b1" if size is None else size)
    elif isinstance(config, dict):
        config = backbone_config_from_dict(config)
    request_four_stages(config)
    return config


def check_no_late_backbone(size: str | None) -> None:
    """Raise a `ValueError` for a `backbone` given to a configuration that already has its `backbone_config`."""
    if size is not None:
        raise ValueError(
            f"`backbone` must be given to a new configuration only. Got {size!r} for an existing one. "
            "Pass `backbone_config=MiTConfig.from_size(...)` instead."
        )


def smallest_side(config: PreTrainedConfig) -> int:
    """The smallest height and width of frames that a backbone can encode, as far as its configuration tells.

    The maps of the MiT must be as large as its kernels of key reduction, which have no padding.
    """
    if config.model_type != "mit":
        return 1
    kernels_and_strides = zip(config.sr_ratios, STRIDES, strict=True)
    return max((kernel - 1) * stride + 1 for kernel, stride in kernels_and_strides)


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a backbone from its configuration."""
    # By name, not by class: in remote code `AutoBackbone` does not know the MiT.
    return MiTBackbone(config) if config.model_type == "mit" else AutoBackbone.from_config(config)


def four_feature_maps(backbone: PreTrainedModel, pixel_values: Tensor) -> list[Tensor]:
    """Encode normalised frames `(frames, 3, height, width)` to maps of all `STRIDES`, sizes rounded up."""
    features = backbone(pixel_values).feature_maps
    height, width = pixel_values.shape[-2:]
    expected = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]
    sizes = [tuple(feature.shape[-2:]) for feature in features]
    if sizes != expected:
        raise ValueError(
            f"`backbone_config` must describe a backbone with strides {STRIDES}. Got feature maps {sizes} "
            f"for frames of {height}x{width}. Use 'mit', 'swin', 'resnet', 'convnext', 'pvt_v2' or "
            "'dinov3_convnext'."
        )
    return list(features)


def backbone_config_from_dict(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build the backbone's configuration from its saved fields."""
    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    if model_type == "mit":  # built here, because `AutoConfig` does not know it in a process without the package
        return MiTConfig(**fields)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`backbone_config` must name a known `model_type`. Got {model_type!r}. "
            "Use 'mit' or any Transformers backbone such as 'swin', 'resnet' or 'convnext'."
        ) from error


def request_four_stages(backbone_config: PreTrainedConfig) -> None:
    """Ask a backbone left at its default (its last stage only) for its last four stages."""
    stage_names = getattr(backbone_config, "stage_names", None)
    if stage_names is None:
        raise ValueError(
            f"`backbone_config` must describe a backbone with feature maps. Got {type(backbone_config).__name__}. "
            "Use 'mit' or any model of `AutoBackbone` with strides 4, 8, 16 and 32."
        )
    if list(backbone_config.out_features) == [stage_names[-1]] and len(stage_names) >= 4:
        backbone_config.set_output_features_output_indices(out_features=stage_names[-4:], out_indices=None)
    if len(backbone_config.out_features) != 4:
        raise ValueError(
            "`backbone_config.out_features` must name four stages, at strides 4, 8, 16 and 32. "
            f"Got {list(backbone_config.out_features)}."
        )
