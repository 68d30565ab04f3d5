# SPDX-License-Identifier: Apache-2.0
"""VidEoMT as a model of this package: queries are propagated from frame to frame, across calls."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import VideomtConfig, VideomtForUniversalSegmentation

from .outputs import VideoSegmentationOutput
from .streaming import StreamingMixin


@dataclass
class VideomtForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    r"""Outputs of [`VideomtForVideoSemanticSegmentation`].

    Args:
        frame_class_queries_logits: Classes of the queries, the last one "no object":
            `(batch, num_frames, num_queries, num_labels + 1)`.
        frame_masks_queries_logits: Masks of the queries:
            `(batch, num_frames, num_queries, masks_height, masks_width)`.
    """

    frame_class_queries_logits: Tensor | None = None
    frame_masks_queries_logits: Tensor | None = None


class PropagatedQueries(NamedTuple):
    """The state of a stream: the queries of its last frame, `(batch, frames_kept, num_queries, hidden)`.

    `frames_kept` is 1, and 0 before the first frame.
    """

    queries: Tensor


class VideomtForVideoSemanticSegmentation(StreamingMixin, VideomtForUniversalSegmentation):
    r"""Transformers' VidEoMT with a state that outlives the call, so that splitting a video changes nothing.

    It has the parameters of [`~transformers.VideomtForUniversalSegmentation`] and reads its checkpoints; a folder that
    it saves is one of them. Frames are processed one by one, and their axis stays apart from that of the batch. It
    takes square frames of the configuration's `image_size`, and cannot be trained.

    Example:
    ```python
    >>> import torch
    >>> from transformers import VideomtConfig
    >>> from transformers_themask import AutoModelForVideoSemanticSegmentation
    >>> config = VideomtConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_blocks=1, image_size=64)
    >>> model = AutoModelForVideoSemanticSegmentation.from_config(config)
    >>> model(pixel_values_videos=torch.randn(1, 3, 3, 64, 64)).frame_masks_queries_logits.shape
    torch.Size([1, 3, 200, 16, 16])

    ```
    """

    config_class = VideomtConfig
    stream_modes = ("recurrent",)
    has_matching_rounds = False
    freezable_parts: ClassVar[dict[str, tuple[str, ...]]] = {}

    @property
    def square_input_size(self) -> dict[str, int]:
        """Size of the frames, as a video processor's `size`."""
        return {"height": self.config.image_size, "width": self.config.image_size}

    def forward(
        self, pixel_values_videos: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> VideomtForVideoSemanticSegmentationOutput:
        r"""Segment clips, each from its first frame on.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, image_size, image_size)`): Normalised frames.
            labels: Must be left out: the published model has no loss for videos.

        Raises:
            ValueError: If a shape is not as described, or `labels` are given.
        """
        if labels is not None or kwargs:
            raise ValueError(
                "`forward` must be given `pixel_values_videos` only, for this model cannot be trained. "
                f"Got {', '.join(sorted([*kwargs, *(['labels'] if labels is not None else [])]))}."
            )
        return self.clip_step(pixel_values_videos, None)[0]

    def initial_state(self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None) -> PropagatedQueries:
        """The state before the first frame of a video: no queries."""
        return PropagatedQueries(self.query.weight.new_zeros(1, 0, *self.query.weight.shape))

    def clip_step(
        self, pixel_values_videos: Tensor, state: PropagatedQueries | None
    ) -> tuple[VideomtForVideoSemanticSegmentationOutput, PropagatedQueries]:
        """Segment the next frames of every video of a batch; see [`StreamingMixin.clip_step`].

        Raises:
            ValueError: If the frames' shape is not `(batch, num_frames, 3, image_size, image_size)`.
        """
        self._check_frames(pixel_values_videos)
        queries = (self.initial_state() if state is None else state).queries
        classes, masks = [], []
        for frame in pixel_values_videos.unbind(1):
            mask_logits, class_logits, queries = self._segment_frame(frame, queries)
            classes.append(class_logits)
            masks.append(mask_logits)
        outputs = VideomtForVideoSemanticSegmentationOutput(
            frame_class_queries_logits=torch.stack(classes, dim=1),
            frame_masks_queries_logits=torch.stack(masks, dim=1),
        )
        return outputs, PropagatedQueries(queries)

    def _segment_frame(self, frame: Tensor, propagated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masks and classes of one frame `(batch, 3, image_size, image_size)`, and the queries for the next."""
        tokens = self.embeddings(frame)
        first_with_queries = len(self.layers) - self.config.num_blocks
        for layer in self.layers[:first_with_queries]:
            tokens = layer(tokens)
        # A sum over the one frame before, or over none.
        queries = self.query.weight + self.query_updater(propagated).sum(1)
        tokens = torch.cat([queries.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for layer in self.layers[first_with_queries:]:
            tokens = layer(tokens)
        mask_logits, class_logits = self.predict(self.layernorm(tokens))
        return mask_logits, class_logits, tokens[:, None, : self.config.num_queries]

    def _check_frames(self, pixel_values_videos: Tensor) -> None:
        shape, edge = tuple(pixel_values_videos.shape), self.config.image_size
        if len(shape) != 5 or shape[2:] != (3, edge, edge) or 0 in shape:
            raise ValueError(
                f"`pixel_values_videos` must have shape (batch, num_frames, 3, {edge}, {edge}), with at least one "
                f"frame. Got {shape}. The video processor stretches frames to that size."
            )


__all__ = ["VideomtForVideoSemanticSegmentation", "VideomtForVideoSemanticSegmentationOutput"]
