# SPDX-License-Identifier: Apache-2.0
"""Frames in memory, or made by the program, as a video."""

from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_themask.models.frame_arrays import rgb_array

from .source import DEFAULT_FRAME_RATE, FrameSource, TimedFrame


class FramesInMemory(FrameSource):
    """An array, a tensor, or anything that yields frames, as a video; an iterator can be read once.

    `frames` is a `uint8` RGB array of shape `(num_frames, height, width, 3)`, a `uint8` tensor of shape `(num_frames,
    3, height, width)`, or frames, converted when they are asked for: PIL images, arrays of shape `(height, width, 3)`,
    tensors of shape `(3, height, width)`. `frame_rate` is that to play them at, in frames per second.
    """

    path = "the frames in memory"

    def __init__(self, frames: Any, frame_rate: Fraction = DEFAULT_FRAME_RATE):
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be positive. Got {frame_rate}.")
        check_video(frames)
        self.num_frames: int | None = len(frames) if isinstance(frames, Sized) else None
        if self.num_frames == 0:
            raise ValueError("A video must have at least one frame. Got none.")
        self.frame_rate = Fraction(frame_rate)
        self.time_base = Fraction(1, self.frame_rate.numerator)
        self._frames = frames
        self._is_used_up = False

    def timed_frames(self) -> Generator[TimedFrame, None, None]:
        """Yield the frames with their times in seconds."""
        if self._is_used_up:
            raise ValueError("An iterator of frames must be read only once. Got a second time; pass a list.")
        self._is_used_up = isinstance(self._frames, Iterator)
        # What makes its frames as it goes may fill one array again and again, while a frame still waits to be drawn.
        is_stored = isinstance(self._frames, (np.ndarray, torch.Tensor, Sequence))
        for index, frame in enumerate(map(rgb_array, self._frames)):
            yield TimedFrame(index / self.frame_rate, frame if is_stored else frame.copy())


def check_video(video: Any) -> None:
    """Raise a `ValueError` unless this is a video as [`FramesInMemory`] takes it; frames are not looked at yet."""
    if isinstance(video, torch.Tensor):
        if video.ndim != 4 or video.shape[1] != 3:
            raise ValueError(
                f"A video tensor must have shape (num_frames, 3, height, width). Got {tuple(video.shape)}."
            )
    elif isinstance(video, np.ndarray):
        if video.ndim != 4 or video.shape[3] != 3:
            raise ValueError(f"A video array must have shape (num_frames, height, width, 3). Got {video.shape}.")
    elif isinstance(video, (dict, bytes, Image.Image)) or not isinstance(video, Iterable):
        raise ValueError(
            f"A video must be a path, an array, a tensor or a list of frames. Got a {type(video).__name__}."
        )
