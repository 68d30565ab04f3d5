# SPDX-License-Identifier: Apache-2.0
"""The family of image segmentation models of Transformers, applied frame by frame."""

from transformers import SegformerConfig

from transformers_themask.models.configuration_per_frame import PerFrameConfig
from transformers_themask.models.modeling_per_frame import PerFrameForVideoSemanticSegmentation
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor
from transformers_themask.registry import ANY_OTHER, Family


def tiny(**overrides: object) -> PerFrameForVideoSemanticSegmentation:
    """A SegFormer of four narrow stages."""
    segmenter = SegformerConfig(
        hidden_sizes=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    fields = {"segmenter_config": segmenter, "num_labels": 6, **overrides}
    return PerFrameForVideoSemanticSegmentation(PerFrameConfig(**fields))


def accepts_any(model_type: str) -> bool:
    """True: the configuration itself rejects models that do not segment images."""
    return True


FAMILY = Family(
    config=PerFrameConfig,
    model=PerFrameForVideoSemanticSegmentation,
    processor=PerFrameVideoProcessor,
    tiny=tiny,
    introduction="It is an image model that looks at each frame on its own.",
    starts_from={ANY_OTHER: "segmenter_config"},
    accepts=accepts_any,
)
