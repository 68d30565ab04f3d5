# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions: a video of any length is labelled while it is read; the session holds the state."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .frame_arrays import rgb_array
from .outputs import VideoSegmentationOutput
from .protocols import PreparedFrame, SegmentedClip, VideoModel, VideoProcessor

# The distance between a clip's frames in the official evaluation.
OFFICIAL_FRAME_STRIDE = 3

# Modes that cut a video into clips.
BLOCK_MODES = ("contiguous", "interleaved")
# Modes that answer every frame at once, from it and the state after the frames before.
STEPWISE_MODES = ("sliding", "recurrent")


class StreamingMixin:
    """Streaming of a model: the state stays outside the network, in a session.

    The defaults are those of a model that treats every frame on its own. A model that relates frames to one another
    overrides `initial_state` and `clip_step`, and lists its modes in `stream_modes`, the default first.
    """

    stream_modes: tuple[str, ...] = ("contiguous", "interleaved", "sliding")

    # The kinds of steps of a model that does not compute the same in each; exported, each is a graph of its own.
    step_kinds: tuple[str, ...] = ("",)

    def stream(
        self: VideoModel,
        processor: VideoProcessor,
        mode: str | None = None,
        num_frames: int | None = None,
        frame_stride: int | None = None,
    ) -> "VideoSession":
        """Open a session, which labels one video frame by frame. The model is put in eval mode.

        Args:
            processor: The model's video processor.
            mode: `"contiguous"` cuts the video into clips of consecutive frames. `"interleaved"` cuts it into blocks
                of `num_frames * frame_stride` frames and these into `frame_stride` interleaved clips, the official
                evaluation. `"sliding"` answers every frame at once, as the last of a clip that begins
                `(num_frames - 1) * frame_stride` frames earlier (or with the video). `"recurrent"` answers every frame
                at once, from what the model passes on from frame to frame. Defaults to the model's first mode, or to
                `"interleaved"` where a larger `frame_stride` than 1 asks for it.
            num_frames: Frames per clip. Defaults to the model's.
            frame_stride: Distance between the frames of a clip. Defaults to 3 for interleaved clips and to 1 for
                others.

        Raises:
            ValueError: If the model does not support `mode`, or `mode` does not support an option.
        """
        return VideoSession(self, processor, *stream_options(self, mode, num_frames, frame_stride))

    def initial_state(self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None) -> Any:
        """The state before the first frame of a video, for the first `clip_step`.

        `num_frames` and `frame_stride` are those of windows, for models that have them; the mode is by default the one
        that answers every frame at once.
        """

    def clip_step(self, pixel_values_videos: Tensor, state: Any) -> tuple[VideoSegmentationOutput, Any]:
        """Segment the next frames of every video of a batch.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, height, width)`): The frames.
            state: From `initial_state` or the step before; it is not modified. `None` for a clip by itself.

        Returns:
            The outputs for these frames, and the state for the next ones.
        """
        return self(pixel_values_videos=pixel_values_videos), state  # type: ignore[operator]

    def streaming_step(self, pixel_values_videos: Tensor, state: Any) -> tuple[VideoSegmentationOutput, Any]:
        """`clip_step` under its earlier name."""
        return self.clip_step(pixel_values_videos, state)

    def step_kind(self, state: Any) -> str:
        """The kind of the step from a state, one of `step_kinds`."""
        return self.step_kinds[0]

    def step_of_kind(self, kind: str, pixel_values_videos: Tensor, state: Any) -> tuple[VideoSegmentationOutput, Any]:
        """`clip_step` as a step of a given kind, for an exported graph."""
        return self.clip_step(pixel_values_videos, state)


class VideoSession:
    """A streaming session: the state of one video on its way through a model, opened by [`StreamingMixin.stream`].

    Memory is bounded by the frames of one block or window. Frames come back in order; in the modes `"contiguous"` and
    `"interleaved"` only when their block is full.

    `step` can be taken apart for threads: `prepare` and `label` may run anywhere, `advance` in one thread, in order.

    Example:
    ```python
    >>> import numpy as np
    >>> from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
    >>> model = THEMaskForVideoSemanticSegmentation(THEMaskConfig(backbone="mit-b0", num_frames=2))
    >>> session = model.stream(THEMaskVideoProcessor(size={"shortest_edge": 64}), mode="sliding")
    >>> [(frame_index, label_map)] = session.step(np.zeros((90, 120, 3), dtype=np.uint8))
    >>> frame_index, label_map.shape
    (0, (90, 120))
    >>> session.flush()
    []

    ```
    """

    def __init__(self, model: VideoModel, processor: VideoProcessor, mode: str, num_frames: int, frame_stride: int):
        self.model = model.eval()
        self.processor = processor
        self.mode = mode
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.reset()

    @property
    def max_held_frames(self) -> int:
        """Number of frames that may come before the first of them is answered."""
        return self.num_frames * self.frame_stride

    def reset(self) -> None:
        """Drop all state: the next frame is the first of a video."""
        self._num_advanced = 0
        self._size: tuple[int, int] | None = None
        self._block: list[Tensor] = []
        self._has_begun = False
        self._state: Any = None

    def step(self, frame: Any) -> list[tuple[int, np.ndarray]]:
        """Take in the next frame, or the next few.

        Args:
            frame: A `uint8` RGB array of shape `(height, width, 3)`, a `uint8` tensor of shape `(3, height, width)` or
                an image; or several, as a list or with a leading axis.

        Returns:
            Index and label map of every frame that can be answered now, in order. A label map is an integer array
            `(height, width)` of class indices.

        Raises:
            ValueError: If the frame is none, or has another size than the first one.
        """
        return [pair for single in single_frames(frame) for pair in self._labelled(self.prepare(single))]

    def flush(self) -> list[tuple[int, np.ndarray]]:
        """End the video: index and label map of the frames that were held back. The session is then as new."""
        labelled = self._labelled(None)
        self.reset()
        return labelled

    def prepare(self, frame: Any) -> PreparedFrame:
        """Turn one frame into the model's input, on a GPU where the model is on one; the session's state stays."""
        picture = rgb_array(frame)
        # `input_data_format`, because one or three rows of pixels would be taken for channels.
        device = str(self.model.device) if self.model.device.type == "cuda" else "cpu"
        inputs = self.processor([[picture]], return_tensors="pt", input_data_format="channels_last", device=device)
        return PreparedFrame(picture, inputs["pixel_values_videos"])

    def advance(self, prepared: PreparedFrame | None) -> Iterator[SegmentedClip]:
        """Run the model as far as the frame from `prepare` allows, or for `None` to the end.

        Yields the clips that are complete now, to be exhausted before the next call; those of a block may interleave.
        """
        if prepared is None:
            return self._segment_block()
        self._check_size(prepared.size)
        if self.mode in STEPWISE_MODES:
            return self._segment_newest(prepared.pixel_values_videos)
        self._block.append(prepared.pixel_values_videos)
        is_full = len(self._block) == self.num_frames * self.frame_stride
        return self._segment_block() if is_full else iter(())

    @torch.inference_mode()
    def label(self, clip: SegmentedClip) -> list[tuple[int, np.ndarray]]:
        """Turn outputs into label maps, each with the index of its frame. Does not touch the session's state."""
        (maps,) = self.processor.post_process_semantic_segmentation(clip.outputs, target_sizes=[clip.size])
        return list(zip(clip.frame_indices, maps.cpu().numpy(), strict=True))

    def _labelled(self, prepared: PreparedFrame | None) -> list[tuple[int, np.ndarray]]:
        pairs = [pair for clip in self.advance(prepared) for pair in self.label(clip)]
        return sorted(pairs, key=lambda pair: pair[0])

    def _segment_newest(self, frame: Tensor) -> Iterator[SegmentedClip]:
        self._num_advanced += 1
        yield self._segment([self._num_advanced - 1], frame)

    def _segment_block(self) -> Iterator[SegmentedClip]:
        block, first = self._block, self._num_advanced
        self._block = []
        self._num_advanced += len(block)
        for clip in evaluation_clips(len(block), self.num_frames, self.frame_stride):
            frames = torch.cat([block[position] for position in clip], dim=1)
            yield self._segment([first + position for position in clip], frames)

    # Not around the loop above: a generator that yields inside `inference_mode` would switch it on for its caller.
    @torch.inference_mode()
    def _segment(self, frame_indices: list[int], frames: Tensor) -> SegmentedClip:
        if not self._has_begun:
            self._state = self.model.initial_state(self.num_frames, self.frame_stride, self.mode)
            self._has_begun = True
        frames = frames.to(self.model.device, dtype=self.model.dtype)
        outputs, self._state = self.model.clip_step(frames, self._state)
        return SegmentedClip(frame_indices, outputs, self._video_size)

    @property
    def _video_size(self) -> tuple[int, int]:
        assert self._size is not None  # frames came before their clip
        return self._size

    def _check_size(self, size: tuple[int, int]) -> None:
        self._size = self._size or size
        if size != self._size:
            raise ValueError(
                f"`frames` must all have the size of the first one, {self._size[0]}x{self._size[1]}. Got "
                f"{size[0]}x{size[1]} for frame {self._num_advanced + len(self._block)}."
            )


def stream_options(
    model: VideoModel, mode: str | None, num_frames: int | None, frame_stride: int | None
) -> tuple[str, int, int]:
    """Fill in what was left open; see [`StreamingMixin.stream`]."""
    modes = model.stream_modes
    check_clip_options(1 if num_frames is None else num_frames, 1 if frame_stride is None else frame_stride)
    if mode is None:
        asks_for_blocks = (frame_stride or 1) > 1 and "interleaved" in modes
        mode = "interleaved" if asks_for_blocks else modes[0]
    if mode not in modes:
        raise ValueError(f"`mode` must be one that {type(model).__name__} has: {', '.join(modes)}. Got {mode!r}.")
    if mode == "recurrent":
        for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
            if value not in (None, 1):
                raise ValueError(
                    f"`{name}` must be left out in the mode 'recurrent', which has no clips. Got {value}."
                )
    if mode == "contiguous" and frame_stride not in (None, 1):
        raise ValueError(
            f"`frame_stride` must be 1 in the mode 'contiguous'. Got {frame_stride}. Use 'interleaved' or 'sliding'."
        )
    if num_frames is None:
        num_frames = 1 if mode == "recurrent" else model.config.num_frames
    if frame_stride is None:
        frame_stride = OFFICIAL_FRAME_STRIDE if mode == "interleaved" else 1
    return mode, num_frames, frame_stride


def check_clip_options(num_frames: int, frame_stride: int) -> None:
    """Raise a `ValueError` unless clips have frames, and frames a distance."""
    for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Got {value}.")


def evaluation_clips(
    num_video_frames: int, num_frames: int, frame_stride: int = OFFICIAL_FRAME_STRIDE
) -> list[list[int]]:
    """Split a video into clips, lists of frame indices, so that every frame is predicted exactly once.

    As in the official test protocol, blocks of `num_frames * frame_stride` frames are split into `frame_stride`
    interleaved clips and the frames after the last full block into windows of consecutive frames, the last of which
    may be shorter. The official code loses frames of shorter videos than a block; here such a video is all remainder.
    """
    check_clip_options(num_frames, frame_stride)
    block_size = num_frames * frame_stride
    remainder_start = num_video_frames - num_video_frames % block_size
    interleaved = [
        list(range(block_start + phase, block_start + block_size, frame_stride))
        for block_start in range(0, remainder_start, block_size)
        for phase in range(frame_stride)
    ]
    consecutive = [
        list(range(start, min(start + num_frames, num_video_frames)))
        for start in range(remainder_start, num_video_frames, num_frames)
    ]
    return interleaved + consecutive


def single_frames(frame: Any) -> Iterable[Any]:
    """The frames of a chunk, or the one frame that was given instead."""
    is_chunk = isinstance(frame, (list, tuple)) or getattr(frame, "ndim", 3) == 4
    return frame if is_chunk else [frame]


__all__ = ["StreamingMixin", "VideoSession"]
