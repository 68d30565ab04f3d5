# SPDX-License-Identifier: Apache-2.0
"""Segment a video and write it again with the class colours on top."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .frame_source import DEFAULT_FRAME_RATE, FrameFolder
from .label_maps import write_label_map
from .segment import segment_frames
from .video_io import VideoReader, VideoWriter
from .visualization import RecentClasses, class_palette, draw_legend, overlay

# A class that vanishes keeps its place in the legend for this long.
LEGEND_HOLD_SECONDS = 2


def write_overlay_video(
    model: PreTrainedModel,
    processor: Any,
    source: VideoReader | FrameFolder,
    output: str | Path,
    *,
    labels_dir: str | Path | None = None,
    num_frames: int | None = None,
    frame_stride: int = 1,
    alpha: float = 0.5,
    legend: bool = True,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> int:
    """Segment a video and write the overlay, with the source's size, times and sound.

    Frames pass through one by one: memory holds one block of [`segment_frames`], however long the video is.

    Args:
        model (`PreTrainedModel`):
            Video semantic segmentation model.
        processor (`THEMaskVideoProcessor`):
            The model's video processor.
        source ([`VideoReader`] or [`FrameFolder`]):
            The video, as [`open_frame_source`] returns it.
        output (`str` or `Path`):
            The mp4 file to write; its folder is made if needed.
        labels_dir (`str` or `Path`, *optional*):
            Folder for the label maps, one PNG of class indices per frame.
        num_frames (`int`, *optional*):
            Frames per clip. Defaults to the model's.
        frame_stride (`int`, *optional*, defaults to 1):
            Distance between neighbouring frames of a clip.
        alpha (`float`, *optional*, defaults to 0.5):
            Opacity of the colours.
        legend (`bool`, *optional*, defaults to `True`):
            Whether to name the colours along the bottom edge.
        device (`str` or `torch.device`, *optional*):
            Where to run; defaults to where the model is.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `int`: Number of frames written.
    """
    id2label: dict = model.config.id2label or {}
    class_names = [id2label[index] for index in sorted(id2label)]
    palette = class_palette(len(class_names))
    frame_rate = source.frame_rate or DEFAULT_FRAME_RATE
    recent_classes = RecentClasses(round(LEGEND_HOLD_SECONDS * frame_rate))
    # Frames that the model has been given but not yet labelled; at most one block.
    waiting: deque[tuple[Fraction, np.ndarray]] = deque()

    def frames() -> Iterator[np.ndarray]:
        for time, frame in source.timed_frames():
            waiting.append((time, frame))
            yield frame

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    labelled = segment_frames(model, processor, frames(), num_frames, frame_stride, device)
    audio_from = source.path if source.has_audio else None
    with VideoWriter(output, frame_rate, source.time_base, audio_from) as writer:
        for index, label_map in tqdm(labelled, total=source.num_frames, unit="frame", disable=not progress):
            time, frame = waiting.popleft()
            picture = overlay(frame, label_map, palette, alpha)
            if legend:
                picture = draw_legend(picture, recent_classes.update(label_map), class_names, palette)
            writer.write(picture, time)
            if labels_dir is not None:
                write_label_map(label_map, Path(labels_dir) / f"{source.frame_name(index)}.png")
    return writer.num_frames
