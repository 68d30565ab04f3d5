# SPDX-License-Identifier: Apache-2.0
"""The labelled videos of one split, in any layout: the input of training and evaluation."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frame_checks import check_label_ids
from .images import image_size, read_frame, read_mask
from .video_file import is_video_frame, read_video_frame
from .video_table import UNLABELLED


@dataclass(frozen=True)
class LabelledVideos:
    """Videos as lists of frames, each with a mask or without one.

    A row has `video_id`, `num_frames`, and `frames` and `masks`, paths relative to `root` in temporal order (`""`: no
    mask). Raw id k is class index k - 1 of `class_names`. `id_map` `(256,)` gives the raw id (0 and 255: void) of each
    value in mask files, beyond the classes for values that are not allowed; by default the files hold raw ids.
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

    def fingerprint(self) -> str:
        """Hash of the videos, frames, masks and classes, independent of the folder."""
        listing = [[row["video_id"], list(row["frames"]), list(row["masks"])] for row in self.rows]
        return hashlib.sha256(json.dumps([list(self.class_names), listing]).encode()).hexdigest()[:16]

    def read_frame(self, row: Mapping[str, Any], index: int) -> np.ndarray:
        """Frame `index` of a video in RGB, `uint8` `(height, width, 3)`; a `DamagedFileError` if not decodable."""
        path = row["frames"][index]
        return read_video_frame(self.root / path) if is_video_frame(path) else read_frame(self.root / path)

    def read_mask(self, row: Mapping[str, Any], index: int) -> np.ndarray | None:
        """Raw ids of frame `index`, checked, `uint8` `(height, width)`; `None` if it has no labels."""
        if row["masks"][index] == UNLABELLED:
            return None
        path = self.root / row["masks"][index]
        stored = read_mask(path)
        ids = stored if self.id_map is None else self.id_map[stored]
        check_label_ids(ids, stored, self.num_labels, path)
        return ids

    def frame_size(self, row: Mapping[str, Any], index: int) -> tuple[int, ...]:
        """Height and width of frame `index`: from the header of an image, or a decoded frame of a video file."""
        path = row["frames"][index]
        return self.read_frame(row, index).shape[:2] if is_video_frame(path) else image_size(self.root / path)

    def mask_size(self, row: Mapping[str, Any], index: int) -> tuple[int, int] | None:
        """Height and width of the mask of frame `index`, from its header; `None` if it has no labels."""
        path = row["masks"][index]
        return None if path == UNLABELLED else image_size(self.root / path, is_label_map=True)


@dataclass(frozen=True)
class VideoFrames:
    """The frames of one video, read from disk in every iteration as `uint8` RGB arrays `(height, width, 3)`."""

    videos: LabelledVideos
    row: Mapping[str, Any]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.videos.read_frame(self.row, index) for index in range(self.row["num_frames"]))

    def frame_name(self, index: int) -> str:
        """File name of a frame, without suffix."""
        return Path(self.row["frames"][index]).stem
