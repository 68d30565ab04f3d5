# SPDX-License-Identifier: Apache-2.0
"""All scores of a video data set, accumulated frame by frame."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .video_consistency.video_consistency import VideoConsistency
from .video_mean_iou.video_mean_iou import confusion_matrix, mean_iou_scores


class VideoScores:
    """Confusion matrix and video consistency over the frames of a split, with the official definitions.

    The consistency compares raw label ids, the matrix class indices. The two are told apart by a table rather than by
    a second label map per frame, so whoever evaluates reads a mask once and hands it over as it is:

    ```python
    scores = VideoScores(num_labels, class_indices=processor.reduce_labels(np.arange(256, dtype=np.uint8)))
    scores.start_video("1001_5z_ijQjUf_0")
    scores.add_frame(prediction, raw_label)  # and so on, in order
    scores.compute()["mean_iou"]
    ```

    The object holds counts and a few numbers per video, can be pickled, and the parts that several processes saw of
    a data set (whole videos each) are joined by `merge`.

    Args:
        num_labels (`int`):
            Number of classes.
        class_indices (integer array of shape `(256,)`):
            Class index of each raw label id, `ignore_index` for void.
        window_lengths (`Sequence[int]`, *optional*, defaults to `(8, 16)`):
            Frames per window of the video consistency.
        ignore_index (`int`, *optional*, defaults to 255):
            Entry of `class_indices` that is not counted.
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

    def start_video(self, video_id: str) -> None:
        """Begin a video; the frames that follow are its frames, in order."""
        self.consistency.start_video(video_id)

    def add_frame(self, prediction: ArrayLike, raw_label: ArrayLike) -> None:
        """Score the next frame of the video begun last.

        Args:
            prediction (integer array or CPU tensor of shape `(height, width)`):
                Class indices.
            raw_label (uint8 array or CPU tensor of shape `(height, width)`):
                Label ids as they are stored.
        """
        raw_label = np.asarray(raw_label)
        if raw_label.dtype != np.uint8:
            raise ValueError(f"`raw_label` must be uint8, as masks are stored. Got dtype {raw_label.dtype}.")
        label = self.class_indices[raw_label]
        counts = confusion_matrix(prediction, label, self.num_labels, self.ignore_index)
        self.consistency.add_frame(prediction, raw_label)
        self.matrix += counts
        self.num_frames += 1

    def merge(self, other: "VideoScores") -> None:
        """Add the videos of `other`, which was built with the same arguments."""
        if other.num_labels != self.num_labels or not np.array_equal(other.class_indices, self.class_indices):
            raise ValueError(
                f"`other` must have the same {self.num_labels} classes and `class_indices`. Got {other.num_labels} "
                "classes or another table; build both alike."
            )
        self.consistency.merge(other.consistency)
        self.matrix += other.matrix
        self.num_frames += other.num_frames

    def compute(self) -> dict[str, Any]:
        """Score what was added so far.

        Returns:
            `dict`: `mean_iou`, `weighted_iou`, `pixel_accuracy`, `mean_accuracy`, `vc8` and `vc16` (one entry per
            window length), `per_class_iou` (a list, NaN for a class that occurs in no label), `num_frames` and
            `num_videos`. A video consistency is NaN when no video is longer than its window.
        """
        scores = mean_iou_scores(self.matrix)
        del scores["per_class_accuracy"]
        return {
            **scores,
            **self.consistency.compute(),
            "num_frames": self.num_frames,
            "num_videos": self.consistency.num_videos,
        }
