# SPDX-License-Identifier: Apache-2.0
"""Configuration of CFFM."""

from math import ceil, isfinite
from typing import Any, Literal, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbones import backbone_config_of, check_no_late_backbone

# Number of mining layers of the published models (Table 1).
PUBLISHED_LAYERS = {"mit-b0": 1, "mit-b1": 2, "mit-b2": 2, "mit-b5": 4}
# The offsets of the published models: the official test script has lists of its own for them.
OFFICIAL_OFFSETS = (-9, -6, -3)


class ContextSource(NamedTuple):
    """Resolution of the surroundings of a window in one frame.

    `kernel` tokens per side; each is pooled from `cell` x `cell` places of a map that is resized so that a window
    spans `cells` of them per side, or of the frame as it is where `cells` is `None`.
    """

    kernel: int
    cell: int
    cells: int | None


@strict
class CFFMConfig(PreTrainedConfig):
    r"""Configuration of a [`CFFMForVideoSemanticSegmentation`] (Sun et al., CVPR 2022).

    The defaults are what the released code computes. Where the paper says something else (section 3.2), its values can
    be given: `context_pooling="plain"`, `reference_receptive_fields=(49, 20, 6)`,
    `reference_pooling_kernels=(7, 4, 2)`, `target_pooling_kernel=5`, `neighborhood=0`.

    Args:
        backbone_config: Configuration of the backbone: a [`MiTConfig`], or that of any `AutoBackbone` with strides 4,
            8, 16, 32. Defaults to MiT-B1.
        backbone: A published MiT size, `"mit-b0"` … `"mit-b5"`, in place of `backbone_config`.
        reference_offsets: Where the reference frames lie, relative to the target frame, the earliest first.
        mining_layers: Number N of cross-frame mining layers. Defaults to that of the published model with the
            `backbone` (1 for MiT-B0, 4 for MiT-B5), else 2.
        window_size: Side of the windows of the target frame, in places at stride 8.
        neighborhood: A window also sees the places of the target frame that lie so far around it, those on the other
            side of the frame at its border (as released); 0 leaves them out (as printed).
        context_pooling: How a frame becomes the map of pooled tokens in which windows see their surroundings.
            `"resized"` (as released): the frame, padded to whole windows, is first resized so that a window spans
            `window_size / kernel` tokens, rounded to the nearest whole number, of two to the smaller one; what it sees
            begins `field / kernel // 2` tokens before its own first one. `"plain"` (Eq. 2): the frame, padded to whole
            tokens, is pooled as it is. Which tokens lie "around the area" of a window, the paper leaves open; here it
            is those nearest to being centred on it, and of two choices as near the one further down or right: along
            each axis window i first sees token `round((window_size * i + (window_size - field) / 2) / kernel)`, halves
            rounded up.
        target_receptive_field: Side, in places, of what a window sees of the target frame at low resolution: a
            multiple of the pooling kernel, for `"resized"` an odd one. Exact for `"plain"` and wherever the kernel
            divides `window_size`; else `"resized"` changes the scale: kernel k covers
            `window_size / round(window_size / k)` places of the frame, 3 and 2 of the default 3.5 and 2.33, so that
            fields of 15 and 6 are 17.5 and 7 places.
        target_pooling_kernel: Side of what is pooled into one token there.
        reference_receptive_fields: The same as `target_receptive_field` for each reference frame.
        reference_pooling_kernels: The same as `target_pooling_kernel` for each reference frame.
        hidden_dim: Channels of the head.
        num_attention_heads: Heads of the mining layers.
        mlp_ratio: Hidden channels of their feed-forward layers, in units of `hidden_dim`.
        classifier_dropout: Share of the channels that both classifiers miss in training.
        auxiliary_loss_weight: Weight of the loss of the per-frame classifier, on all frames of a clip.
        ignored_pixels: Pixels labelled `ignore_value` have no loss. The mean is over all pixels, with these
            `"counted"` (as released), or over the labelled ones, with these `"excluded"`.
        first_frames: What a stream does before there are frames at all offsets. `"official"`: the released lists of
            references for frames 3 to 8, where the offsets are the default, and the per-frame classifier for all
            others. `"repeated"`: the first frame stands for those before it.
        ignore_value: Label of pixels without a class; no class index.

    Raises:
        ValueError: For contradicting fields, values out of range or an unknown backbone.
        StrictDataclassError: For a field of the wrong type.

    Example:
    ```python
    >>> from transformers_themask import CFFMConfig
    >>> config = CFFMConfig(backbone="mit-b0", num_labels=124)
    >>> config.num_frames, config.mining_layers
    (4, 1)

    ```
    """

    model_type = "cffm"
    clip_sampler = "offsets"
    sub_configs = {"backbone_config": AutoConfig}
    attribute_map = {"hidden_size": "hidden_dim", "num_hidden_layers": "mining_layers"}

    backbone_config: Any = None
    backbone: str | None = None
    reference_offsets: list[int] | tuple[int, ...] = OFFICIAL_OFFSETS
    mining_layers: int | None = None
    window_size: int = 7
    neighborhood: int = 3
    context_pooling: Literal["resized", "plain"] = "resized"
    target_receptive_field: int = 35
    target_pooling_kernel: int = 7
    reference_receptive_fields: list[int] | tuple[int, ...] = (49, 15, 6)
    reference_pooling_kernels: list[int] | tuple[int, ...] = (7, 3, 2)
    hidden_dim: int = 256
    num_attention_heads: int = 8
    mlp_ratio: int = 4
    classifier_dropout: float | int = 0.1
    auxiliary_loss_weight: float | int = 0.5
    ignored_pixels: Literal["counted", "excluded"] = "counted"
    first_frames: Literal["official", "repeated"] = "official"
    ignore_value: int = 255

    def __post_init__(self, **kwargs: Any):
        self.backbone_config = backbone_config_of(self.backbone, self.backbone_config)
        if self.mining_layers is None:
            self.mining_layers = PUBLISHED_LAYERS.get(self.backbone or "", 2)
        self.backbone = None  # saved with the model as `backbone_config`
        super().__post_init__(**kwargs)
        self.check_fields()

    @property
    def num_frames(self) -> int:
        """Frames of a clip: the reference frames and the target frame."""
        return len(self.reference_offsets) + 1

    @num_frames.setter
    def num_frames(self, value: Any) -> None:
        raise ValueError(
            f"`num_frames` must be left out: it is one more than there are `reference_offsets`. Got {value!r}. "
            "Give `reference_offsets` instead."
        )

    @property
    def reach(self) -> int:
        """Number of frames from the earliest reference to the target."""
        return -self.reference_offsets[0]

    @property
    def context_sources(self) -> list[ContextSource]:
        """Resolution of a window's surroundings: in the target frame, then in each reference frame."""
        is_resized = self.context_pooling == "resized"
        return [
            ContextSource(field // cell, cell, cells_per_window(self.window_size, cell) if is_resized else None)
            for field, cell in (
                (self.target_receptive_field, self.target_pooling_kernel),
                *zip(self.reference_receptive_fields, self.reference_pooling_kernels, strict=True),
            )
        ]

    def check_fields(self) -> None:
        """Reject values no model can be built or trained with, also such as were set after construction."""
        check_no_late_backbone(self.backbone)
        minima = ("mining_layers", "window_size", "hidden_dim", "num_attention_heads", "mlp_ratio", "num_labels")
        for name in minima:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Got {getattr(self, name)}.")
        if not isfinite(self.auxiliary_loss_weight) or self.auxiliary_loss_weight < 0:
            raise ValueError(
                f"`auxiliary_loss_weight` must be finite and at least 0. Got {self.auxiliary_loss_weight}. "
                "The released code has 0.5."
            )
        if 0 <= self.ignore_value < self.num_labels:
            raise ValueError(
                f"`ignore_value` must be no class index, of which there are {self.num_labels}. Got "
                f"{self.ignore_value}. Take another, and the same as `ignore_index` of the video processor."
            )
        offsets = list(self.reference_offsets)
        if not offsets or offsets != sorted(set(offsets)) or offsets[-1] >= 0:
            raise ValueError(
                f"`reference_offsets` must be negative, the earliest frame first. Got {tuple(offsets)}. "
                "The paper has (-9, -6, -3)."
            )
        for name in ("reference_receptive_fields", "reference_pooling_kernels"):
            if len(getattr(self, name)) != len(offsets):
                raise ValueError(
                    f"`{name}` must have one entry per reference frame, {len(offsets)}. Got {getattr(self, name)}."
                )
        fields = (self.target_receptive_field, *self.reference_receptive_fields)
        cells = (self.target_pooling_kernel, *self.reference_pooling_kernels)
        for field, cell in zip(fields, cells, strict=True):
            if cell < 1 or field < cell or field % cell:
                raise ValueError(
                    "A receptive field must be a positive multiple of its pooling kernel. "
                    f"Got {field} with kernels of {cell}."
                )
            if self.context_pooling == "resized" and (cell > self.window_size or field // cell % 2 == 0):
                raise ValueError(
                    "A receptive field must be an odd number of pooling kernels, each at most as large as the window "
                    f"({self.window_size}). Got {field} with kernels of {cell}. `context_pooling='plain'` takes "
                    "every multiple."
                )
        if not 0 <= self.neighborhood <= self.window_size:
            raise ValueError(
                f"`neighborhood` must lie between 0 and `window_size` ({self.window_size}). Got {self.neighborhood}."
            )
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"`classifier_dropout` must lie in [0, 1). Got {self.classifier_dropout}.")
        if self.hidden_dim % self.num_attention_heads:
            raise ValueError(
                f"`hidden_dim` must be a multiple of `num_attention_heads` ({self.num_attention_heads}). "
                f"Got {self.hidden_dim}."
            )


def cells_per_window(window_size: int, cell: int) -> int:
    """Pooled tokens per side of a window: the nearest whole number, and of two the smaller one (7 / 2 gives 3)."""
    return max(1, ceil(window_size / cell - 0.5))


__all__ = ["CFFMConfig"]
