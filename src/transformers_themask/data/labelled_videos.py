# SPDX-License-Identifier: Apache-2.0
"""The labelled videos of one split, whatever layout they lie in: what training and evaluation read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .file_checks import check_label_ids
from .images import read_frame, read_mask

# In place of a mask's path: this frame has no labels.
UNLABELLED = ""


@dataclass(frozen=True)
class LabelledVideos:
    """Videos as lists of frames, each with a mask or without one.

    Args:
        rows (`Sequence[Mapping]`): One row per video: `video_id`, `num_frames`, and `frames` and `masks`, paths relative
            to `root` in the order of time. The mask of a frame without labels is `""`.
        root (`Path`): Folder that the paths are relative to.
        class_names (`Sequence[str]`): Classes in the order of their indices; raw id k is class index k - 1.
        id_map (`np.ndarray` of shape `(256,)`, *optional*): Raw id (0 and 255: void) of each value that mask files hold;
            by default the files hold raw ids.
    """

    rows: Sequence[Mapping[str, Any]]
    root: Path
    class_names: Sequence[str]
    id_map: np.ndarray | None = None

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_frames(self) -> int:
        """Number of frames of all videos."""
        return sum(row["num_frames"] for row in self.rows)

    def read_frame(self, row: Mapping[str, Any], index: int) -> np.ndarray:
        """Read frame `index` of a video as RGB, `uint8` of shape `(height, width, 3)`."""
        return read_frame(self.root / row["frames"][index])

    def read_mask(self, row: Mapping[str, Any], index: int) -> np.ndarray | None:
        """Read the raw ids of frame `index`, `uint8` of shape `(height, width)`; `None` if it has no labels.

        Raises:
            ValueError: If the file holds an id that is neither a class nor void.
        """
        if row["masks"][index] == UNLABELLED:
            return None
        path = self.root / row["masks"][index]
        mask = read_mask(path)
        if self.id_map is not None:
            mask = self.id_map[mask]
        check_label_ids(mask, self.num_labels, path)
        return mask
