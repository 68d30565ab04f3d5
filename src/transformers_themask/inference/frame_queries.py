# SPDX-License-Identifier: Apache-2.0
"""The primary and the secondary query of each class in a frame, and their masks."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.query_view import ClassQueries, FrameQueries, QueryMask, draw_queries
from transformers_themask.models.frame_arrays import rgb_array
from transformers_themask.models.label_counts import clip_targets
from transformers_themask.models.matching import Assignment, LevelPrediction
from transformers_themask.models.point_sampling import uniform_points
from transformers_themask.models.protocols import VideoModel, VideoProcessor
from transformers_themask.models.query_loss import HierarchicalLoss
from transformers_themask.models.streaming import single_frames

MASK_FIELDS = ("frame_masks_queries_logits", "masks_queries_logits")


@torch.inference_mode()
def frame_queries(
    model: VideoModel, processor: VideoProcessor, clip: Any, labels: np.ndarray | None = None, frame: int = -1
) -> FrameQueries:
    """The primary and the secondary query of each class in a frame, by the matching that the model was trained with.

    Classes come from the video queries and masks from the frame queries, where a model has both. The points of the
    matching are the same in every call. A one-frame model sees the shown frame alone. The queries are matched to
    `labels` `(num_frames, height, width)`, the model's `ignore_value` for none, or else to what the model itself
    predicts. Raises a `ValueError` if the model has no such queries, or the frame is not there.
    """
    config = model.config
    if not model.has_matching_rounds:
        raise ValueError(f"`model` must match its queries in two rounds. Got {type(model).__name__}, which does not.")
    pictures = [rgb_array(picture) for picture in single_frames(clip)]
    size = pictures[0].shape[0], pictures[0].shape[1]
    if not -len(pictures) <= frame < len(pictures):
        raise ValueError(f"`frame` must be one of the clip's {len(pictures)}. Got {frame}.")
    shape = (len(pictures), *size)
    if labels is not None and np.shape(labels) != shape:
        raise ValueError(f"`labels` must have the shape of the clip, {shape}. Got {np.shape(labels)}.")
    if config.num_frames == 1:  # such a model sees every frame by itself
        pictures, labels, frame = [pictures[frame]], None if labels is None else labels[frame, None], 0
    inputs = processor([pictures], return_tensors="pt").to(model.device, dtype=model.dtype)
    outputs = model.eval()(**inputs)
    if labels is None:
        (targets,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    else:
        targets = torch.as_tensor(labels)
    # The part of the network's input, four times as large as the masks, that is not padding.
    rows, columns = next(outputs[name] for name in MASK_FIELDS if outputs.get(name) is not None).shape[-2:]
    content = processor.content_size(size, (4 * rows, 4 * columns))
    matched = _Matched(model, outputs, targets.long(), content)
    target = targets[frame].cpu().numpy()
    classes = [matched.class_queries(position, frame, size) for position in range(len(matched.class_labels))]
    classes.sort(key=lambda entry: -int((target == entry.class_index).sum()))
    return FrameQueries(pictures[frame], target, classes)


def query_view(
    model: VideoModel,
    processor: VideoProcessor,
    clip: Any,
    labels: np.ndarray | None = None,
    class_index: int | None = None,
    frame: int = -1,
    palette: np.ndarray | None = None,
) -> Image.Image:
    """Draw a frame of a clip and, for each class, the masks of its primary and its secondary query.

    Arguments are those of [`frame_queries`], the one class to show, and the RGB palette `(num_classes, 3)`, by default
    [`class_palette`]. Raises a `ValueError` if the class is not in the clip, or as in [`frame_queries`].
    """
    id2label = model.config.id2label
    queries = frame_queries(model, processor, clip, labels, frame)
    if class_index is not None:
        shown = [entry for entry in queries.classes if entry.class_index == class_index]
        if not shown:
            present = ", ".join(f"{entry.class_index} ({id2label[entry.class_index]})" for entry in queries.classes)
            raise ValueError(f"`class_index` must be one of the classes of the clip, {present}. Got {class_index}.")
        queries = queries._replace(classes=shown)
    palette = class_palette(len(id2label)) if palette is None else palette
    return draw_queries(queries, id2label, palette, "prediction" if labels is None else "labels")


class _Matched:
    """Outputs for one clip with its queries assigned to the classes of `targets` `(num_frames, height, width)`."""

    def __init__(self, model: PreTrainedModel, outputs: ModelOutput, targets: Tensor, content: tuple[int, int]):
        video, frames = _levels(outputs)
        self._masks = (frames or video)[0].mask_logits.flatten(0, 1)  # (num_frames, num_queries, rows, columns)
        self._content = content
        config = model.config
        labels = self._padded(targets.to(self._masks.device), config.ignore_value)[None]
        clip = clip_targets(labels, config.num_labels, config.ignore_value, config.ignored_pixels == "excluded")
        criterion = HierarchicalLoss(model.loss_settings, uniform_points, torch.Generator().manual_seed(0))
        ((self._rounds,),) = criterion.match(video, frames, clip, config.matching_rounds)
        self._probabilities = (video or frames)[0].class_logits.float().softmax(-1).mean(0)
        self.class_labels = clip.class_labels[0].tolist()

    def class_queries(self, position: int, frame: int, size: tuple[int, int]) -> ClassQueries:
        """What the rounds gave to one of the targets, with masks of a frame at its size."""
        return ClassQueries(
            self.class_labels[position],
            *(self._query_mask(assignment, position, frame, size) for assignment in self._rounds),
        )

    def _query_mask(
        self, assignment: Assignment, position: int, frame: int, size: tuple[int, int]
    ) -> QueryMask | None:
        (pairs,) = np.nonzero(assignment.target_indices == position)
        if len(pairs) == 0:
            return None
        query = int(assignment.query_indices[pairs[0]])
        rows, columns = self._masks.shape[-2:]
        mask = self._masks[frame, query].float()[None, None]
        mask = nn.functional.interpolate(mask, (4 * rows, 4 * columns), mode="bilinear", align_corners=False)
        mask = mask[..., : self._content[0], : self._content[1]]
        mask = nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False)[0, 0].sigmoid()
        return QueryMask(query, float(self._probabilities[query, self.class_labels[position]]), mask.cpu().numpy())

    def _padded(self, targets: Tensor, ignore_value: int) -> Tensor:
        """Extend label maps by the padding of the network's input, in their own pixels."""
        rows, columns = self._masks.shape[-2:]
        height, width = targets.shape[-2:]
        below = round(height * 4 * rows / self._content[0]) - height
        right = round(width * 4 * columns / self._content[1]) - width
        return nn.functional.pad(targets, (0, right, 0, below), value=ignore_value)


def _levels(outputs: ModelOutput) -> tuple[list[LevelPrediction], list[LevelPrediction]]:
    """The last prediction of the video queries and that of the frame queries, as far as there are any."""
    video, frames = [], []
    if outputs.get("masks_queries_logits") is not None:
        video = [LevelPrediction(outputs["class_queries_logits"], outputs["masks_queries_logits"])]
    if outputs.get("frame_masks_queries_logits") is not None:
        masks = outputs["frame_masks_queries_logits"].flatten(0, 1)[:, None]
        frames = [LevelPrediction(outputs["frame_class_queries_logits"].flatten(0, 1), masks)]
    return video, frames
