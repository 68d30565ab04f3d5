# SPDX-License-Identifier: Apache-2.0
"""Configuration of any Transformers segmentation model used frame by frame."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, SegformerConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as SEMANTIC_SEGMENTERS,
)

# Universal segmenters that map single images to class and mask logits of queries, and nothing else.
ENCODERS_WITH_QUERIES = ("eomt", "eomt_dinov3")
DECODERS_WITH_QUERIES = ("mask2former", "maskformer", "oneformer")
QUERY_SEGMENTERS = (*ENCODERS_WITH_QUERIES, *DECODERS_WITH_QUERIES)

# The former take square images of one size, and this one square images of any size.
SQUARE_INPUT = (*ENCODERS_WITH_QUERIES, "dpt")

# What segmenters call `ignore_value`.
IGNORE_FIELDS = ("semantic_loss_ignore_index", "loss_ignore_index")


@strict
class PerFrameConfig(PreTrainedConfig):
    r"""Configuration of a [`PerFrameForVideoSemanticSegmentation`]: an image segmentation model and its classes.

    The classes and `ignore_value` are written into the segmenter's configuration too, so that it can be used and saved
    by itself. A configuration saved by the segmenter's own class is taken as `segmenter_config`.

    Args:
        segmenter_config: Configuration of the image model, a dictionary with its `model_type`: of a semantic
            segmentation model (`"segformer"`, `"upernet"`, `"dpt"`, `"beit"`, …) or of one with queries
            (`"mask2former"`, `"maskformer"`, `"oneformer"`, `"eomt"`, `"eomt_dinov3"`). Its classes are used where
            none are given here.
        ignore_value: Label of pixels without a class.
        task_inputs: Token ids of "the task is semantic", which OneFormer needs besides an image. Read from the
            tokenizer of its checkpoint.

    Raises:
        ValueError: If the segmenter is unknown or does not segment single images.
        StrictDataclassError: For a field of the wrong type.

    Example:
    ```python
    >>> from transformers_themask import PerFrameConfig
    >>> config = PerFrameConfig(segmenter_config={"model_type": "segformer"}, num_labels=11)
    >>> config.num_frames, config.segmenter_config.num_labels
    (1, 11)

    ```
    """

    model_type = "per_frame"
    clip_sampler = "offsets"
    sub_configs = {"segmenter_config": AutoConfig}

    segmenter_config: Any = None
    ignore_value: int = 255
    task_inputs: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        if self.segmenter_config is None:
            self.segmenter_config = SegformerConfig()
        elif not isinstance(self.segmenter_config, PreTrainedConfig):
            self.segmenter_config = segmenter_config_from_dict(self.segmenter_config)
        model_type = self.segmenter_config.model_type
        if model_type not in SEMANTIC_SEGMENTERS and model_type not in QUERY_SEGMENTERS:
            raise ValueError(
                "`segmenter_config` must describe a model that segments single images without further input. "
                f"Got {model_type!r}. Use one of {', '.join(sorted([*SEMANTIC_SEGMENTERS, *QUERY_SEGMENTERS]))}."
            )
        if "num_labels" not in kwargs and self.id2label is None:  # type: ignore[has-type]
            self.id2label = dict(self.segmenter_config.id2label)
        super().__post_init__(**kwargs)
        if self.needs_task:
            # Else it would also ask for texts, which its own contrastive loss alone is for.
            self.segmenter_config.is_training = False
        self.share_classes()

    def share_classes(self) -> None:
        """Write classes and `ignore_value` into the segmenter's configuration.

        Called at construction, and again by the model, since a loaded configuration's fields may have been overridden.
        """
        self.label2id = {name: index for index, name in self.id2label.items()}
        self.segmenter_config.id2label, self.segmenter_config.label2id = dict(self.id2label), dict(self.label2id)
        for name in IGNORE_FIELDS:
            if hasattr(self.segmenter_config, name):
                setattr(self.segmenter_config, name, self.ignore_value)

    @property
    def num_frames(self) -> int:
        """Frames that the model relates to one another: 1. Clips of any length can be given."""
        return 1

    @property
    def square_input_size(self) -> dict[str, int] | None:
        """Size of frames, as a video processor's `size`, for a segmenter that takes square ones only; else `None`."""
        if self.segmenter_config.model_type not in SQUARE_INPUT:
            return None
        return {"height": self.segmenter_config.image_size, "width": self.segmenter_config.image_size}

    @property
    def needs_task(self) -> bool:
        """True if the segmenter needs a task prompt, as OneFormer does."""
        return hasattr(self.segmenter_config, "task_seq_len")

    @property
    def is_semantic(self) -> bool:
        """True if the segmenter scores pixels, false if it predicts masks with queries."""
        return self.segmenter_config.model_type in SEMANTIC_SEGMENTERS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the configuration from saved fields, its own or those of a segmenter."""
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            config_dict = {"segmenter_config": config_dict}
        return super().from_dict(config_dict, **kwargs)


def segmenter_config_from_dict(fields: Any) -> PreTrainedConfig:
    """Build the image model's configuration from its fields."""
    if not isinstance(fields, Mapping) or fields.get("model_type") not in CONFIG_MAPPING:
        found = fields.get("model_type") if isinstance(fields, Mapping) else fields
        raise ValueError(
            "`segmenter_config` must be the configuration of a segmentation model, or a mapping that names it as "
            f"`model_type`. Got {found!r}. Use for example {{'model_type': 'segformer'}}."
        )
    return AutoConfig.for_model(**fields)


__all__ = ["PerFrameConfig"]
