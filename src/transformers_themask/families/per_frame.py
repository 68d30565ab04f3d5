# SPDX-License-Identifier: Apache-2.0
"""The family of image segmentation models of Transformers, applied frame by frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig, SegformerConfig

from transformers_themask.families import STAGES
from transformers_themask.models.configuration_per_frame import PerFrameConfig
from transformers_themask.models.modeling_per_frame import PerFrameForVideoSemanticSegmentation
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor
from transformers_themask.registry import ANY_OTHER, Family


def tiny(**overrides: object) -> PerFrameForVideoSemanticSegmentation:
    """A SegFormer of four narrow stages."""
    segmenter = SegformerConfig(
        **STAGES,
        decoder_hidden_size=16,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    fields = {"segmenter_config": segmenter, "num_labels": 6, **overrides}
    return PerFrameForVideoSemanticSegmentation(PerFrameConfig(**fields))


def wrapped_processor(
    path: str | Path, config: PreTrainedConfig, size: Mapping[str, int] | None, **hub_options: Any
) -> PerFrameVideoProcessor:
    """The image processor of a checkpoint, applied frame by frame, at the square that the segmenter takes if any."""
    # Names of classes, for which OneFormer's would look on the Hub, are those of the configuration.
    image_processor = AutoImageProcessor.from_pretrained(path, class_info_file=None, **hub_options)
    square = config.square_input_size
    if square is not None and config.is_semantic:  # any square will do: the image processor's own, if it is one
        own = dict(getattr(image_processor, "size", None) or {})
        if own.get("height") is not None and own["height"] == own.get("width"):
            square = {"height": own["height"], "width": own["width"]}
    return PerFrameVideoProcessor.for_whole_frames(image_processor, square or size)


FAMILY = Family(
    config=PerFrameConfig,
    model=PerFrameForVideoSemanticSegmentation,
    processor=PerFrameVideoProcessor,
    tiny=tiny,
    introduction="It is an image model that looks at each frame on its own.",
    starts_from={ANY_OTHER: "segmenter_config"},
    accepts=lambda model_type: True,  # the configuration itself rejects models that do not segment images
    wrapped_processor=wrapped_processor,
)
