# SPDX-License-Identifier: Apache-2.0
"""Label every frame of a video of any length, in bounded memory."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from transformers_themask.models.protocols import ModelSession, VideoModel, VideoProcessor
from transformers_themask.videos.source import IncompleteVideoError


def segment_frames(
    model: VideoModel,
    processor: VideoProcessor,
    frames: Iterable[Any],
    num_frames: int | None = None,
    frame_stride: int | None = None,
    mode: str | None = None,
    device: str | torch.device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the label map of every frame of one video, in order, while it is being read.

    Args:
        model (`PreTrainedModel`):
            Video semantic segmentation model. It is put in eval mode.
        processor (`VideoSegmentationProcessor`):
            The model's video processor.
        frames (`Iterable`):
            The video's frames as [`~transformers_themask.models.streaming.VideoSession.step`] takes them, read as they
            are needed.
        num_frames (`int`, *optional*):
            Frames per clip; see [`~transformers_themask.models.streaming.StreamingMixin.stream`].
        frame_stride (`int`, *optional*):
            Distance between neighbouring frames of a clip; likewise.
        mode (`str`, *optional*):
            How clips are formed; likewise.
        device (`str` or `torch.device`, *optional*):
            Where to run; the model is moved there. Defaults to where the model is.

    Returns:
        Iterator over `(frame_index, label_map)`; `label_map` is an integer array of shape `(height, width)` with class
        indices `0 ... num_labels - 1`.

    Raises:
        IncompleteVideoError: After the last readable frame of a damaged video.
    """
    session = model.stream(processor, mode, num_frames, frame_stride)
    if device is not None:
        model.to(device)
    return labelled_frames(session, frames)


def labelled_frames(session: ModelSession, frames: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and label map of every frame of one video, as a session gives them.

    Args:
        session ([`VideoSession`]): The video's session, which has seen nothing yet.
        frames (`Iterable`): The frames as [`VideoSession.step`] takes them.

    Raises:
        IncompleteVideoError: After the last readable frame of a damaged video.
    """
    try:
        for frame in frames:
            yield from session.step(frame)
    except IncompleteVideoError:
        yield from session.flush()
        raise
    yield from session.flush()
