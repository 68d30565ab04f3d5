# SPDX-License-Identifier: Apache-2.0
"""Video semantic segmentation for Transformers. Importing this package registers its models and its pipeline."""

from typing import Any

from transformers_themask.auto import AutoModelForVideoSemanticSegmentation, register
from transformers_themask.inference.pipeline import register_pipeline
from transformers_themask.models.mit import MiTBackbone, MiTConfig
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.registry import families as registered_families
from transformers_themask.registry import register_family

__version__ = "0.1.0"

register()
register_pipeline()

# The classes of every family: its configuration, model and video processor.
globals().update(_classes := {name: each for row in registered_families() for name, each in row.exports.items()})

__all__ = [
    "AutoModelForVideoSemanticSegmentation",
    "MiTBackbone",
    "MiTConfig",
    "VideoSegmentationProcessor",
    "__version__",
    "register_family",
    *_classes,
]


def __getattr__(name: str) -> Any:
    """Tell type checkers that there are more names than they can see."""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
