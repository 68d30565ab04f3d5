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
        model: Video semantic segmentation model. It is put in eval mode.
        processor: The model's video processor.
        frames: The video's frames as [`~transformers_themask.models.streaming.VideoSession.step`] takes them, read as
            they are needed.
        num_frames, frame_stride, mode: See [`~transformers_themask.models.streaming.StreamingMixin.stream`].
        device: Where to run; the model is moved there. Defaults to where the model is.

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
    """Yield index and label map of every frame of one video, as a session that has seen nothing yet gives them.

    Raises an `IncompleteVideoError` after the last readable frame of a damaged video.
    """
    try:
        for frame in frames:
            yield from session.step(frame)
    except IncompleteVideoError:
        yield from session.flush()
        raise
    yield from session.flush()
