# SPDX-License-Identifier: Apache-2.0
"""The video processor of THE-Mask, under the name that its checkpoints carry."""

from .video_processing import VideoSegmentationProcessor


class THEMaskVideoProcessor(VideoSegmentationProcessor):
    """[`VideoSegmentationProcessor`] as saved with THE-Mask and, by earlier versions, with every family."""


__all__ = ["THEMaskVideoProcessor"]
