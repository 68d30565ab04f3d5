# SPDX-License-Identifier: Apache-2.0
"""The base of all families' outputs: class scores of frames, whichever way a model predicts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn
from transformers.utils import ModelOutput

from .scores_to_labels import query_scores


class QueryLevel(NamedTuple):
    """The predictions of one set of queries, the last class "no object".

    Classes `(batch, num_frames, num_queries, num_labels + 1)`, where one frame stands for all if the queries belong to
    the whole clip; masks `(batch, num_frames, num_queries, height, width)`.
    """

    class_logits: Tensor
    mask_logits: Tensor


class VideoSegmentationOutput(ModelOutput):
    r"""Outputs of a video segmentation model.

    A family's outputs are a dataclass with this base. They hold `logits`, class scores of pixels
    `(batch, num_frames, num_labels, height, width)`, or queries with their masks in the fields that `levels` lists.
    """

    def levels(self) -> list[QueryLevel]:
        """The levels of queries that these outputs hold; they count alike. Empty for class scores of pixels."""
        levels = []
        if self.get("masks_queries_logits") is not None:
            levels.append(QueryLevel(self["class_queries_logits"][:, None], self["masks_queries_logits"]))
        if self.get("frame_masks_queries_logits") is not None:
            levels.append(QueryLevel(self["frame_class_queries_logits"], self["frame_masks_queries_logits"]))
        return levels

    def pixel_logits(self) -> Tensor | None:
        """Class scores of pixels, of models that predict these: `(batch, num_frames, num_labels, height, width)`."""
        return self.get("logits")

    def scores(self) -> Tensor:
        """Class scores `(batch, num_frames, num_labels, height, width)`: of pixels, or the mean over the levels."""
        pixel_logits = self.pixel_logits()
        if pixel_logits is not None:
            return pixel_logits
        scores = [query_scores(*level) for level in self.levels()]
        return sum(scores[1:], start=scores[0]) / len(scores)

    def frame_scores(self, video: int, frame: int, mask_size: tuple[int, int] | None = None) -> Tensor:
        """Class scores `(num_labels, height, width)` of a frame of a video, both by index, in float32.

        Masks are enlarged to `mask_size` (height, width) beforehand, if it is given.
        """
        pixel_logits = self.pixel_logits()
        if pixel_logits is not None:
            return pixel_logits[video, frame].float()
        scores = []
        for classes, masks in self.levels():
            # A level of the whole clip has one set of classes.
            frame_classes, frame_masks = classes[video, frame % classes.shape[1]], masks[video, frame].float()
            if mask_size is not None:
                frame_masks = nn.functional.interpolate(
                    frame_masks[None], mask_size, mode="bilinear", align_corners=False
                )[0]
            scores.append(query_scores(frame_classes.float(), frame_masks))
        return sum(scores[1:], start=scores[0]) / len(scores)


@dataclass
class PlainOutput(VideoSegmentationOutput):
    """Outputs that came as a plain mapping, such as tensors read from a file."""

    logits: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    frame_class_queries_logits: Tensor | None = None
    frame_masks_queries_logits: Tensor | None = None


def as_output(outputs: Mapping[str, Tensor]) -> VideoSegmentationOutput:
    """Give a mapping of output fields the methods of [`VideoSegmentationOutput`]; such outputs are returned as is."""
    if hasattr(outputs, "levels"):  # not by class: remote code has a copy of its own
        return cast(VideoSegmentationOutput, outputs)
    return PlainOutput(**{name: outputs.get(name) for name in PlainOutput.__dataclass_fields__})


__all__ = ["QueryLevel", "VideoSegmentationOutput"]
