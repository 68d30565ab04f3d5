# SPDX-License-Identifier: Apache-2.0
"""Settings of the loss of queries, for any model with queries."""

from dataclasses import dataclass, fields
from typing import Literal

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LossSettings:
    """Weights and variants of a [`HierarchicalLoss`]; fields as in [`THEMaskConfig`] and [`Mask2FormerConfig`]."""

    num_labels: int
    num_queries: int
    ignore_value: int = 255
    ignored_pixels: Literal["negative", "excluded"] = "negative"
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    second_round_cost: Literal["full", "mask"] = "full"
    secondary_loss: Literal["soft", "original"] = "soft"
    secondary_target: Literal["thresholded", "soft"] = "thresholded"
    secondary_points: Literal["dense", "sampled"] = "dense"
    secondary_mask_weight: float = 0.5
    secondary_dice_weight: float = 0.5
    secondary_round_weight: float = 0.5
    frame_loss_weight: float = 0.25

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **overrides: int | float | str) -> "LossSettings":
        """Take the settings that a model's configuration has under the same names; `overrides` win."""
        names = [field.name for field in fields(cls) if hasattr(config, field.name)]
        return cls(**{**{name: getattr(config, name) for name in names}, **overrides})


__all__ = ["LossSettings"]
