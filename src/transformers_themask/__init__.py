# SPDX-License-Identifier: Apache-2.0
"""Video semantic segmentation for Transformers. Importing this package registers its models and its pipeline."""

from transformers_themask.auto import AutoModelForVideoSemanticSegmentation, register
from transformers_themask.models.configuration_cffm import CFFMConfig
from transformers_themask.models.configuration_mpvss import MPVSSConfig
from transformers_themask.models.configuration_per_frame import PerFrameConfig
from transformers_themask.models.configuration_themask import THEMaskConfig
from transformers_themask.models.mit import MiTBackbone, MiTConfig
from transformers_themask.models.modeling_cffm import CFFMForVideoSemanticSegmentation
from transformers_themask.models.modeling_mpvss import MPVSSForVideoSemanticSegmentation
from transformers_themask.models.modeling_per_frame import PerFrameForVideoSemanticSegmentation
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.models.modeling_videomt import VideomtForVideoSemanticSegmentation
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor

__version__ = "0.1.0"

__all__ = [
    "AutoModelForVideoSemanticSegmentation",
    "CFFMConfig",
    "CFFMForVideoSemanticSegmentation",
    "MPVSSConfig",
    "MPVSSForVideoSemanticSegmentation",
    "MiTBackbone",
    "MiTConfig",
    "PerFrameConfig",
    "PerFrameForVideoSemanticSegmentation",
    "PerFrameVideoProcessor",
    "THEMaskConfig",
    "THEMaskForVideoSemanticSegmentation",
    "THEMaskVideoProcessor",
    "VideoSegmentationProcessor",
    "VideomtForVideoSemanticSegmentation",
    "__version__",
]

register()
