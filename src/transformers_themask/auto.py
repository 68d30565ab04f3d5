# SPDX-License-Identifier: Apache-2.0
"""One table: which classes belong to which model family; and its registration with Transformers."""

from transformers import AutoBackbone, AutoConfig, AutoModel, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_themask.inference.pipeline import VideoSemanticSegmentationPipeline
from transformers_themask.models.auto_model import AutoModelForVideoSemanticSegmentation
from transformers_themask.models.configuration_cffm import CFFMConfig
from transformers_themask.models.configuration_mpvss import MPVSSConfig
from transformers_themask.models.configuration_per_frame import PerFrameConfig
from transformers_themask.models.configuration_themask import THEMaskConfig
from transformers_themask.models.mit import MiTBackbone, MiTConfig
from transformers_themask.models.modeling_cffm import CFFMForVideoSemanticSegmentation
from transformers_themask.models.modeling_mpvss import MPVSSForVideoSemanticSegmentation
from transformers_themask.models.modeling_per_frame import PerFrameForVideoSemanticSegmentation
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor

FAMILIES: list[tuple[type[PreTrainedConfig], type[PreTrainedModel], type[VideoSegmentationProcessor]]] = [
    (THEMaskConfig, THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor),
    (CFFMConfig, CFFMForVideoSemanticSegmentation, VideoSegmentationProcessor),
    (MPVSSConfig, MPVSSForVideoSemanticSegmentation, VideoSegmentationProcessor),
    (PerFrameConfig, PerFrameForVideoSemanticSegmentation, PerFrameVideoProcessor),
]


def register() -> None:
    """Make the families known to Transformers' auto classes and pipelines. Calling it again changes nothing."""
    AutoConfig.register(MiTConfig.model_type, MiTConfig, exist_ok=True)
    AutoBackbone.register(MiTConfig, MiTBackbone, exist_ok=True)
    for config_class, model_class, processor_class in FAMILIES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForVideoSemanticSegmentation.register(config_class, model_class, exist_ok=True)
        AutoVideoProcessor.register(config_class, processor_class, exist_ok=True)
        # Saved folders carry the source files of these classes, so they load where the package is not installed.
        config_class.register_for_auto_class()
        model_class.register_for_auto_class("AutoModel")
        processor_class.register_for_auto_class()
    if "video-semantic-segmentation" not in PIPELINE_REGISTRY.get_supported_tasks():
        # The latter finds models whose code comes with their checkpoint.
        PIPELINE_REGISTRY.register_pipeline(
            "video-semantic-segmentation",
            pipeline_class=VideoSemanticSegmentationPipeline,
            pt_model=(AutoModelForVideoSemanticSegmentation, AutoModel),
            type="multimodal",
        )
