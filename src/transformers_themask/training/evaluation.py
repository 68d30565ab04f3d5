# SPDX-License-Identifier: Apache-2.0
"""Scoring a model on whole videos: every frame once, in order, keeping counts instead of predictions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from transformers_themask.data.clips import check_clip_options
from transformers_themask.data.file_checks import check_label_ids, check_mask_size
from transformers_themask.data.images import read_frame, read_mask
from transformers_themask.inference.label_maps import write_label_map
from transformers_themask.inference.segment import segment_frames
from transformers_themask.metrics.video_scores import VideoScores
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor


@dataclass(frozen=True)
class EvaluationVideos:
    """The videos to score and how they are cut into clips.

    Args:
        rows (`Sequence[Mapping]`): One row per video with `video_id`, `num_frames`, `frames` and `masks`, as
            [`~transformers_themask.data.vspw.load_vspw`] gives them.
        root (`Path`): Folder that the paths in the rows are relative to.
        class_names (`Sequence[str]`): Classes in the order of their indices.
        num_frames (`int`): Frames per clip.
        frame_stride (`int`, *optional*, defaults to 3): Distance between the frames of a clip.
    """

    rows: Sequence[Mapping[str, Any]]
    root: Path
    class_names: Sequence[str]
    num_frames: int
    frame_stride: int = 3

    def __post_init__(self):
        check_clip_options(self.num_frames, self.frame_stride)

    @property
    def num_frames_in_total(self) -> int:
        """Number of frames of all videos."""
        return sum(row["num_frames"] for row in self.rows)


def evaluate_videos(
    model: PreTrainedModel,
    processor: THEMaskVideoProcessor,
    videos: EvaluationVideos,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    prediction_dir: Path | None = None,
) -> dict[str, Any]:
    """Segment and score videos; in a distributed run every process takes its share and gets the scores of all.

    Args:
        model (`PreTrainedModel`): The model; it is put in eval mode.
        processor (`THEMaskVideoProcessor`): Its video processor; it also reduces the labels.
        videos ([`EvaluationVideos`]): What to score.
        device (`torch.device` or `str`, *optional*): Where to run; defaults to where the model is.
        progress (`bool`, *optional*, defaults to `False`): Whether the main process shows a progress bar.
        prediction_dir (`Path`, *optional*): Where to write label maps as `<video_id>/<frame>.png`, class indices in an
            8-bit image.

    Returns:
        The scores of [`VideoScores.compute`], with `per_class_iou` by class name and `None` for a class that occurs in
        no label.
    """
    state = PartialState()
    class_indices = processor.reduce_labels(torch.arange(256))
    scores = VideoScores(len(videos.class_names), class_indices, ignore_index=processor.ignore_index)
    own_rows = [videos.rows[index] for index in range(state.process_index, len(videos.rows), state.num_processes)]
    num_own_frames = sum(row["num_frames"] for row in own_rows)
    hidden = not (progress and state.is_main_process)
    with tqdm(total=num_own_frames, desc="Evaluation", unit="frame", disable=hidden, dynamic_ncols=True) as bar:
        for row in own_rows:
            scores.start_video(row["video_id"])
            for name, prediction, mask in _segmented_frames(model, processor, videos, row, device):
                scores.add_frame(prediction, mask)
                if prediction_dir is not None:
                    write_label_map(prediction, prediction_dir / row["video_id"] / f"{name}.png")
                bar.update()
    if state.num_processes > 1:
        scores, *others = gather_object([scores])
        for other in others:
            scores.merge(other)
    return _named_scores(scores, videos.class_names)


def _segmented_frames(
    model: PreTrainedModel,
    processor: THEMaskVideoProcessor,
    videos: EvaluationVideos,
    row: Mapping[str, Any],
    device: torch.device | str | None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, label map and raw mask of every frame of one video, in order."""
    frames = (read_frame(videos.root / path) for path in row["frames"])
    label_maps = segment_frames(model, processor, frames, videos.num_frames, videos.frame_stride, device)
    paths = (videos.root / path for path in row["masks"])
    for path, (_, label_map) in zip(paths, label_maps, strict=True):
        mask = read_mask(path)
        check_mask_size(mask.shape, path, label_map.shape)
        check_label_ids(mask, len(videos.class_names), path)
        yield path.stem, label_map, mask


def _named_scores(scores: VideoScores, class_names: Sequence[str]) -> dict[str, Any]:
    named = scores.compute()
    ious = zip(class_names, named["per_class_iou"], strict=True)
    named["per_class_iou"] = {name: None if math.isnan(iou) else iou for name, iou in ious}
    return named
