# SPDX-License-Identifier: Apache-2.0
"""The interfaces between models, video processors and sessions."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature

from .outputs import VideoSegmentationOutput
from .step_context import StepContext


class PreparedFrame(NamedTuple):
    """A frame on its way into the model.

    `picture` is a `uint8` RGB array `(height, width, 3)`, `pixel_values_videos` the model's input
    `(1, 1, 3, input_height, input_width)`.
    """

    picture: np.ndarray
    pixel_values_videos: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.picture.shape[0], self.picture.shape[1]


class SegmentedClip(NamedTuple):
    """The model's `outputs` for frames of a video, with the indices of these frames and their height and width."""

    frame_indices: list[int]
    outputs: VideoSegmentationOutput
    size: tuple[int, int]


class VideoProcessor(Protocol):
    """From frames to a model's input, and from its outputs to label maps; see [`VideoSegmentationProcessor`]."""

    ignore_index: int
    do_resize: Any
    size: Any
    size_divisor: int

    def __call__(self, videos: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare videos and, with them, their label maps."""

    def post_process_semantic_segmentation(
        self, outputs: VideoSegmentationOutput, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Turn outputs into one tensor of class indices `(num_frames, height, width)` per video."""

    def reduce_labels(self, raw_ids: Tensor) -> Tensor:
        """Turn raw ids into class indices."""

    def scaled(self, scale: float) -> "VideoProcessor":
        """A processor whose target size is scaled."""

    def input_size(self, original: tuple[int, int]) -> tuple[int, int]:
        """The size of the network's input for frames of a given size."""

    def content_size(self, original: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
        """The part of the network's input that shows the frame."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Write the processor's configuration."""


Prepared = TypeVar("Prepared")
Clip = TypeVar("Clip")


class Session(Protocol[Prepared, Clip]):
    """Labels the frames of one video; see [`VideoSession`].

    `prepare` and `label` may run in any thread, `advance` in one thread, in order.
    """

    @property
    def max_held_frames(self) -> int:
        """Number of frames that may come before the first of them is answered."""

    def reset(self) -> None:
        """Drop all state: the next frame is the first of a video."""

    def prepare(self, frame: np.ndarray) -> Prepared:
        """Turn one frame into the input of `advance`."""

    def advance(self, prepared: Prepared | None) -> Iterator[Clip]:
        """Continue as far as the next frame allows, or for `None` to the end."""

    def label(self, clip: Clip) -> list[tuple[int, np.ndarray]]:
        """Index and label map of the frames of a clip."""


class ModelSession(Session[PreparedFrame, SegmentedClip], Protocol):
    """The state of one video on its way through a model; see [`VideoSession`]."""

    mode: str
    num_frames: int
    frame_stride: int

    def step(self, frame: Any) -> list[tuple[int, np.ndarray]]:
        """Take in the next frame or frames; returns index and label map of every frame that can be answered now."""

    def flush(self) -> list[tuple[int, np.ndarray]]:
        """End the video; returns index and label map of the frames that were held back."""


class VideoModel(Protocol):
    """A video segmentation model of any family."""

    config: PreTrainedConfig
    training: bool
    stream_modes: tuple[str, ...]
    has_matching_rounds: bool
    freezable_parts: dict[str, tuple[str, ...]]

    @property
    def device(self) -> torch.device:
        """The parameters' device."""

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating-point type."""

    def __call__(
        self, pixel_values_videos: Tensor, labels: Tensor | None = None, context: StepContext | None = None
    ) -> VideoSegmentationOutput:
        """Segment clips `(batch, num_frames, 3, height, width)` and, given labels, compute the loss."""

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """The divisors of a batch's loss, additive over the batches of a step."""

    def initial_state(self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None) -> Any:
        """The state before the first frame of a video."""

    def clip_step(self, pixel_values_videos: Tensor, state: Any) -> tuple[VideoSegmentationOutput, Any]:
        """Segment the next frames of every video of a batch; returns the outputs and the next state."""

    def stream(
        self,
        processor: VideoProcessor,
        mode: str | None = None,
        num_frames: int | None = None,
        frame_stride: int | None = None,
    ) -> ModelSession:
        """Open a session for one video."""

    def freeze(self, *parts: str) -> None:
        """Keep some of `freezable_parts` as they are in training."""

    def eval(self) -> Any:
        """Set the evaluation mode."""

    def train(self, mode: bool = True) -> Any:
        """Set the training mode."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the parameters."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Write configuration and weights."""


__all__ = ["ModelSession", "PreparedFrame", "SegmentedClip", "Session", "VideoModel", "VideoProcessor"]
