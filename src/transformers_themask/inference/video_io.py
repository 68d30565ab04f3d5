# SPDX-License-Identifier: Apache-2.0
"""Moved to `video_reader.py`, `video_writer.py` and `source.py`; this file goes as soon as nobody imports it."""

from .source import IncompleteVideoError
from .video_reader import VideoReader
from .video_writer import VideoWriter, check_mp4_path

__all__ = ["IncompleteVideoError", "VideoReader", "VideoWriter", "check_mp4_path"]
