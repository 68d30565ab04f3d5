# SPDX-License-Identifier: Apache-2.0
"""All scores of a video data set, of all videos together and of each one, accumulated frame by frame."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .video_consistency import VideoConsistency
from .video_mean_iou import confusion_matrix, mean_iou_scores


class VideoScores:
    """Confusion matrix and video consistency over the frames of a split, with the official definitions.

    The consistency compares raw label ids, the matrix class indices, which `class_indices` `(256,)` gives for each raw
    id (`ignore_index` for void). Parts of a data set in several processes, whole videos each, are pickled and joined
    by `merge`; counts are integers and the consistency is summed exactly, so their distribution does not change the
    scores.
    """

    def __init__(
        self,
        num_labels: int,
        class_indices: ArrayLike,
        window_lengths: Sequence[int] = (8, 16),
        ignore_index: int = 255,
    ) -> None:
        self.num_labels = num_labels
        self.class_indices = np.asarray(class_indices)
        if self.class_indices.shape != (256,):
            raise ValueError(
                f"`class_indices` must have one entry for each of the 256 raw ids. Got shape "
                f"{self.class_indices.shape}; reduce `np.arange(256)`."
            )
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
        self.consistency = VideoConsistency(window_lengths)
        self.num_frames = 0
        self._scores_of_videos: dict[str, dict[str, Any]] = {}
        self._video_id: str | None = None
        self._video_matrix = np.zeros_like(self.matrix)
        self._num_video_frames = 0

    def start_video(self, video_id: str) -> None:
        """Start a video; the frames added next are its frames, in order."""
        self.end_video()
        self.consistency.start_video(video_id)
        self._video_id = video_id

    def end_video(self) -> None:
        """Finish the current video and free its buffers."""
        if self._video_id is None:
            return
        self._scores_of_videos[self._video_id] = self._compute_video(self._video_id)
        self.consistency.end_video()
        self._video_id, self._num_video_frames = None, 0
        self._video_matrix[:] = 0

    def add_frame(self, prediction: ArrayLike, raw_label: ArrayLike) -> None:
        """Score the next frame: class indices, and label ids as they are stored, both `(height, width)`."""
        raw_label = np.asarray(raw_label)
        if raw_label.dtype != np.uint8:
            raise ValueError(f"`raw_label` must be uint8, as masks are stored. Got dtype {raw_label.dtype}.")
        label = self.class_indices[raw_label]
        counts = confusion_matrix(prediction, label, self.num_labels, self.ignore_index)
        self.consistency.add_frame(prediction, raw_label)
        self.matrix += counts
        self._video_matrix += counts
        self.num_frames += 1
        self._num_video_frames += 1

    def skip_frame(self) -> None:
        """Skip the next frame, which has no labels; windows of the video consistency with it are undefined."""
        self.consistency.skip_frame()

    def merge(self, other: "VideoScores") -> None:
        """Add the videos of `other`, which was built with the same arguments."""
        if other.num_labels != self.num_labels or not np.array_equal(other.class_indices, self.class_indices):
            raise ValueError(
                f"`other` must have the same {self.num_labels} classes and `class_indices`. Got {other.num_labels} "
                "classes or another table; build both alike."
            )
        self.consistency.merge(other.consistency)
        other.end_video()
        self._scores_of_videos.update(other._scores_of_videos)
        self.matrix += other.matrix
        self.num_frames += other.num_frames

    def compute(self) -> dict[str, Any]:
        """Scores of [`mean_iou_scores`] and [`VideoConsistency.compute`] of what was added so far, and counts.

        `per_video` has the same of each video alone, its `per_class_iou` a `dict` from class index to IoU of the
        classes in its labels; `num_frames` are those with labels.
        """
        scores_of_videos = dict(self._scores_of_videos)
        if self._video_id is not None:
            scores_of_videos[self._video_id] = self._compute_video(self._video_id)
        return {
            **_matrix_scores(self.matrix),
            **self.consistency.compute(),
            "num_frames": self.num_frames,
            "num_videos": self.consistency.num_videos,
            "per_video": scores_of_videos,
        }

    def _compute_video(self, video_id: str) -> dict[str, Any]:
        scores = _matrix_scores(self._video_matrix)
        ious = enumerate(scores["per_class_iou"])
        scores["per_class_iou"] = {index: iou for index, iou in ious if not math.isnan(iou)}
        return {**scores, **self.consistency.compute([video_id]), "num_frames": self._num_video_frames}


def _matrix_scores(matrix: np.ndarray) -> dict[str, Any]:
    scores = mean_iou_scores(matrix)
    del scores["per_class_accuracy"]
    return scores


def named_scores(scores: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Scores of [`VideoScores.compute`] for JSON: each `per_class_iou` by class name, and `None` for NaN."""
    per_class_iou = dict(zip(class_names, scores["per_class_iou"], strict=True))
    per_video = {
        video_id: {**video, "per_class_iou": {class_names[k]: iou for k, iou in video["per_class_iou"].items()}}
        for video_id, video in scores["per_video"].items()
    }
    return _without_nan({**scores, "per_class_iou": per_class_iou, "per_video": per_video})


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
