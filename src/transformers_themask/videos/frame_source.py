# SPDX-License-Identifier: Apache-2.0
"""Sources of frames: files, URLs, folders, cameras and memory."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from .camera import Camera
from .frame_folder import FrameFolder
from .frames_in_memory import FramesInMemory
from .source import DEFAULT_FRAME_RATE, FrameSource
from .video_reader import VideoReader


def open_frame_source(source: Any, folder_frame_rate: Fraction = DEFAULT_FRAME_RATE) -> FrameSource:
    """Open a video as a source of frames.

    `source`: a video file or a URL; a folder of images; the index of a camera, as a number or text; or frames in
    memory, see [`FramesInMemory`]. An open source is returned as it is. `folder_frame_rate`: frames per second of a
    folder and of frames in memory; files and cameras tell their own. Returns [`VideoReader`], [`FrameFolder`],
    [`Camera`] or [`FramesInMemory`]. It can be iterated over any number of times, except for an iterator in memory.
    """
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, int):
        return Camera(source)
    if not isinstance(source, (str, Path)):
        return FramesInMemory(source, folder_frame_rate)
    if Path(source).is_dir():
        return FrameFolder(source, folder_frame_rate)
    is_number = str(source).isascii() and str(source).isdigit()
    return Camera(int(str(source))) if is_number and not Path(source).exists() else VideoReader(source)
