# SPDX-License-Identifier: Apache-2.0
"""Label every frame of a video of any length, clip by clip, in bounded memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from transformers_themask.data.clips import check_clip_options, evaluation_clips


def segment_frames(
    model: PreTrainedModel,
    processor: Any,
    frames: Iterable[np.ndarray],
    num_frames: int | None = None,
    frame_stride: int = 1,
    device: str | torch.device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the label map of every frame of one video, in order.

    The video is cut into blocks of `num_frames * frame_stride` frames, and a block into `frame_stride` interleaved
    clips, as in the official evaluation; what is left at the end is cut into consecutive clips. No more than one block
    is in memory.

    Args:
        model (`PreTrainedModel`):
            Video semantic segmentation model. It is put in eval mode.
        processor (`THEMaskVideoProcessor`):
            The model's video processor.
        frames (`Iterable[np.ndarray]`):
            The video's frames, `uint8` RGB arrays of shape `(height, width, 3)`, read as they are needed.
        num_frames (`int`, *optional*):
            Frames per clip. Defaults to the model's.
        frame_stride (`int`, *optional*, defaults to 1):
            Distance between neighbouring frames of a clip. The official evaluation uses 3.
        device (`str` or `torch.device`, *optional*):
            Where to run; the model is moved there. Defaults to where the model is.

    Returns:
        Iterator over `(frame_index, label_map)`; `label_map` is an integer array of shape `(height, width)` with class
        indices `0 ... num_labels - 1`.
    """
    num_frames = model.config.num_frames if num_frames is None else num_frames
    check_clip_options(num_frames, frame_stride)
    model.eval()
    if device is not None:
        model.to(device)
    return _labelled_frames(model, processor, iter(frames), num_frames, frame_stride)


def _labelled_frames(
    model: PreTrainedModel,
    processor: Any,
    frames: Iterator[np.ndarray],
    num_frames: int,
    frame_stride: int,
) -> Iterator[tuple[int, np.ndarray]]:
    first_index = 0
    size: tuple[int, ...] | None = None
    while block := list(islice(frames, num_frames * frame_stride)):
        size = size or block[0].shape[:2]
        _check_sizes(block, size, first_index)
        label_maps: dict[int, np.ndarray] = {}
        for clip in evaluation_clips(len(block), num_frames, frame_stride):
            label_maps.update(zip(clip, _segment_clip(model, processor, [block[i] for i in clip]), strict=True))
        for position in range(len(block)):
            yield first_index + position, label_maps[position]
        first_index += len(block)


def _check_sizes(block: list[np.ndarray], size: tuple[int, ...], first_index: int) -> None:
    for position, frame in enumerate(block):
        if frame.shape[:2] != size:
            raise ValueError(
                f"`frames` must all have the size of the first one, {size[0]}x{size[1]}. Got "
                f"{frame.shape[0]}x{frame.shape[1]} for frame {first_index + position}."
            )


# Not around the loop above: a generator that yields inside `inference_mode` would switch it on for its caller.
@torch.inference_mode()
def _segment_clip(model: PreTrainedModel, processor: Any, clip: list[np.ndarray]) -> Iterable[np.ndarray]:
    inputs = processor([clip], return_tensors="pt").to(model.device, dtype=model.dtype)
    outputs = model(**inputs)
    height, width = clip[0].shape[:2]
    (label_maps,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(height, width)])
    return label_maps.cpu().numpy()  # (num_frames, height, width)
