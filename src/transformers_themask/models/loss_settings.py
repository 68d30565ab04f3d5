# SPDX-License-Identifier: Apache-2.0
"""Settings of the loss of queries, for any model with queries."""

from dataclasses import dataclass, fields
from typing import Literal

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LossSettings:
    r"""Weights and variants of a [`HierarchicalLoss`].

    Args:
        num_labels (`int`): Number of classes.
        num_queries (`int`): Queries per clip, or per frame.
        ignore_value (`int`, *optional*, defaults to 255): Label of pixels without a class.
        ignored_pixels (`str`, *optional*, defaults to `"negative"`): Such pixels lie outside every mask
            (`"negative"`), or are left out of matching and mask losses (`"excluded"`).
        no_object_weight, class_weight, mask_weight, dice_weight (`float`, *optional*): Weights as in
            [`Mask2FormerConfig`].
        train_num_points, oversample_ratio, importance_sample_ratio (*optional*): Random points as in
            [`Mask2FormerConfig`].
        second_round_cost (`str`, *optional*, defaults to `"full"`): Cost of the second matching round: that of the
            first (`"full"`), or the cross-entropy of masks only (`"mask"`).
        secondary_loss (`str`, *optional*, defaults to `"soft"`): Mask loss of the second round: THE-Mask's Eq. 5
            (`"soft"`) or that of the first round (`"original"`).
        secondary_target (`str`, *optional*, defaults to `"thresholded"`): The soft mask, predicted mask ∘ label:
            `"thresholded"` at 0.5 or `"soft"`.
        secondary_points (`str`, *optional*, defaults to `"dense"`): The soft loss over every pixel (`"dense"`) or at
            `"sampled"` points.
        secondary_mask_weight, secondary_dice_weight, secondary_round_weight (`float`, *optional*): Weights of the
            soft losses, and of the whole second round (Eq. 6).
        frame_loss_weight (`float`, *optional*): Weight of the frame level beside a video level.
    """

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
