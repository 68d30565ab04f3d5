# SPDX-License-Identifier: Apache-2.0
"""Evaluation on whole videos, in order, frame by frame; counts are kept, not predictions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from transformers_themask.batch.video_batch import divide_work
from transformers_themask.data.frame_checks import check_mask_size
from transformers_themask.data.labelled_videos import LabelledVideos, VideoFrames
from transformers_themask.files.plain_names import inside
from transformers_themask.inference.segment import segment_frames
from transformers_themask.metrics.video_scores import VideoScores, named_scores
from transformers_themask.models.protocols import VideoModel, VideoProcessor
from transformers_themask.models.streaming import STEPWISE_MODES, check_clip_options, evaluation_clips, stream_options
from transformers_themask.mvc.passes import segment_frames_augmented
from transformers_themask.mvc.tta import TTA
from transformers_themask.sinks.label_maps import write_label_map

from .sharding import gather_in_steps


@dataclass(frozen=True)
class EvaluationVideos:
    """The videos to score and how they are cut into clips; `frame_stride` counts where the mode leaves it open.

    Frames without a mask are segmented, as the context of the others, but not scored. `mode` is one of
    [`~transformers_themask.models.streaming.StreamingMixin.stream`]; by default that of the official evaluation,
    `"interleaved"`, or the first mode of a model without clips.
    """

    videos: LabelledVideos
    num_frames: int
    frame_stride: int = 3
    mode: str | None = None
    tta: TTA = field(default_factory=TTA)

    def __post_init__(self):
        check_clip_options(self.num_frames, self.frame_stride)

    def num_calls(self, model: VideoModel, row: Mapping[str, Any]) -> int:
        """Number of calls of a model for a video, over all passes."""
        options = self.options_for(model)
        num_passes = len(self.tta.passes)
        if options["mode"] in STEPWISE_MODES:
            return num_passes * row["num_frames"]
        return num_passes * len(evaluation_clips(row["num_frames"], self.num_frames, options.get("frame_stride", 1)))

    def options_for(self, model: VideoModel) -> dict[str, Any]:
        """How a model's session forms the clips, as options of [`segment_frames`]."""
        mode = self.mode
        if mode is None:
            mode = "interleaved" if "interleaved" in model.stream_modes else model.stream_modes[0]
        options = {"num_frames": self.num_frames, "frame_stride": self.frame_stride, "mode": mode}
        ignored = {"contiguous": ["frame_stride"], "recurrent": ["num_frames", "frame_stride"]}.get(mode, [])
        return {name: value for name, value in options.items() if name not in ignored}

    def clips_of(self, model: VideoModel) -> dict[str, Any] | None:
        """How videos are cut into clips and augmented, for the result file; `None` if they are neither."""
        options = self.options_for(model)
        clips: dict[str, Any] = {}
        if options["mode"] not in STEPWISE_MODES:
            clips = {"num_frames": self.num_frames, "frame_stride": options.get("frame_stride", 1)}
        if self.tta.passes != TTA().passes:
            clips["tta"] = asdict(self.tta)
        return clips or None


def frames_per_clip(model: VideoModel) -> int:
    """Number of frames that a model is given at once by default."""
    _, num_frames, _ = stream_options(model, mode=None, num_frames=None, frame_stride=None)
    return num_frames


def evaluate_videos(
    model: VideoModel,
    processor: VideoProcessor,
    videos: EvaluationVideos,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    prediction_dir: Path | None = None,
    in_step: bool = False,
) -> dict[str, Any]:
    """Segment and score videos; in a distributed run every rank takes its share and gets the scores of all.

    A rank takes whole videos, and none twice, so the scores do not depend on the number of processes. Memory does not
    grow with the number of frames. Label maps go to `prediction_dir` as `<video_id>/<frame>.png`, class indices in an
    8-bit image: the layout that VSPW's scripts read, and `themask evaluate --predictions`. With `in_step` every rank
    calls the model equally often, on an empty clip once its own are used up, as a collective forward (FSDP) needs.

    Returns the scores of [`VideoScores.compute`] with class names for indices and `None` for undefined scores, and
    `num_unlabelled_frames`.
    """
    state = PartialState()
    labelled = videos.videos
    options = videos.options_for(model)
    class_indices = processor.reduce_labels(torch.arange(256))
    scores = VideoScores(labelled.num_labels, class_indices, ignore_index=processor.ignore_index)
    shares = divide_work([row["num_frames"] for row in labelled.rows], state.num_processes)
    own_rows = [labelled.rows[index] for index in shares[state.process_index]]
    num_own_frames = sum(row["num_frames"] for row in own_rows)
    if in_step:
        gather_in_steps(model)
    hidden = not (progress and state.is_main_process)
    with tqdm(total=num_own_frames, desc="Evaluation", unit="frame", disable=hidden, dynamic_ncols=True) as bar:
        for row in own_rows:
            scores.start_video(row["video_id"])
            frames = VideoFrames(labelled, row)
            label_maps = segment_frames_augmented(model, processor, frames, videos.tta, device=device, **options)
            for index, label_map in label_maps:
                mask = labelled.read_mask(row, index)
                if mask is None:
                    scores.skip_frame()
                else:
                    check_mask_size(mask.shape, labelled.root / row["masks"][index], label_map.shape)
                    scores.add_frame(label_map, mask)
                if prediction_dir is not None:
                    name = f"{Path(row['frames'][index]).stem}.png"
                    write_label_map(label_map, inside(prediction_dir, prediction_dir / row["video_id"] / name))
                bar.update()
    if in_step:
        num_calls = [sum(videos.num_calls(model, labelled.rows[index]) for index in share) for share in shares]
        empty_clip = [np.zeros((1, 1, 3), np.uint8)] * (1 if options["mode"] in STEPWISE_MODES else videos.num_frames)
        for _ in range(max(num_calls) - num_calls[state.process_index]):
            list(segment_frames(model, processor, empty_clip, device=device, **options))
    scores.end_video()
    if state.num_processes > 1:
        scores, *others = gather_object([scores])
        for other in others:
            scores.merge(other)
    return _named_in_order(scores, labelled)


def _named_in_order(scores: VideoScores, videos: LabelledVideos) -> dict[str, Any]:
    named = named_scores(scores.compute(), videos.class_names)
    named["num_unlabelled_frames"] = videos.num_frames - named["num_frames"]
    per_video = named.pop("per_video")
    return {**named, "per_video": {row["video_id"]: per_video[row["video_id"]] for row in videos.rows}}
