# SPDX-License-Identifier: Apache-2.0
"""Segment a video and write it again with the class colours on top."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from .frame_source import DEFAULT_FRAME_RATE, FrameFolder
from .label_maps import write_label_map
from .segment import segment_frames
from .video_io import VideoReader, VideoWriter
from .visualization import RecentClasses, class_palette, draw_contours, draw_legend, overlay

logger = logging.get_logger(__name__)

# A class that vanishes keeps its place in the legend for this long.
LEGEND_HOLD_SECONDS = 2
# In pictures with a shorter side than this, readable names would cover too much and few would fit.
MIN_LEGEND_SIDE = 200


@dataclass(frozen=True)
class OverlayVideo:
    """What [`write_overlay_video`] wrote.

    Attributes:
        num_frames (`int`): Number of frames.
        has_legend (`bool`): Whether the frames name their colours.
        class_colors (`dict[str, str]`): Colour, as `#rrggbb`, of each class that occurs, in order of class index.
    """

    num_frames: int
    has_legend: bool
    class_colors: dict[str, str]


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
) -> OverlayVideo:
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
            Opacity of the colours, outlined at full opacity; 0 leaves the frames as they are.
        legend (`bool`, *optional*, defaults to `True`):
            Whether to name the colours along the bottom edge of pictures whose sides have at least 200 pixels.
        device (`str` or `torch.device`, *optional*):
            Where to run; defaults to where the model is.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`OverlayVideo`]: What was written.
    """
    id2label: dict = model.config.id2label or {}
    class_names = [id2label[index] for index in sorted(id2label)]
    palette = class_palette(len(class_names))
    frame_rate = source.frame_rate or DEFAULT_FRAME_RATE
    recent_classes = RecentClasses(round(LEGEND_HOLD_SECONDS * frame_rate))
    seen_classes: set[int] = set()
    has_legend = False
    # Frames that the model has been given but not yet labelled; at most one block.
    waiting: deque[tuple[Fraction, np.ndarray]] = deque()

    def frames() -> Iterator[np.ndarray]:
        for time, frame in _growing_times(source):
            waiting.append((time, frame))
            yield frame

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    labelled = segment_frames(model, processor, frames(), num_frames, frame_stride, device)
    audio_from = source.path if source.has_audio else None
    with VideoWriter(output, frame_rate, source.time_base, audio_from) as writer:
        for index, label_map in tqdm(labelled, total=source.num_frames, unit="frame", disable=not progress):
            time, frame = waiting.popleft()
            shown_classes = recent_classes.update(label_map)
            seen_classes.update(shown_classes)
            picture = overlay(frame, label_map, palette, alpha)
            if alpha > 0:
                picture = draw_contours(picture, label_map, palette)
            has_legend = legend and min(label_map.shape) >= MIN_LEGEND_SIDE
            if has_legend:
                picture = draw_legend(picture, shown_classes, class_names, palette)
            writer.write(picture, time)
            if labels_dir is not None:
                write_label_map(label_map, Path(labels_dir) / f"{source.frame_name(index)}.png")
    colors = {class_names[index]: "#" + bytes(palette[index]).hex() for index in sorted(seen_classes)}
    return OverlayVideo(writer.num_frames, has_legend, colors)


def _growing_times(source: VideoReader | FrameFolder) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The timed frames of a source; one that is not later than the frame before is shown one tick after it."""
    earlier: int | None = None
    has_warned = False
    for index, (time, frame) in enumerate(source.timed_frames()):
        tick = round(time / source.time_base)
        if earlier is not None and tick <= earlier:
            tick = earlier + 1
            time = tick * source.time_base
            if not has_warned:
                logger.warning(
                    f"{source.path} repeats a time stamp at frame {index}: this frame, and any other like it, is "
                    f"shown {float(source.time_base):.2g} s after the one before. Encode the file again for even "
                    "times."
                )
                has_warned = True
        earlier = tick
        yield time, frame
