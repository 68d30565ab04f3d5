# SPDX-License-Identifier: Apache-2.0
"""Run the passes of test-time augmentation over a video, and combine their results."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from transformers_themask.files.media_files import is_url
from transformers_themask.inference.segment import labelled_frames
from transformers_themask.inference.segment_video import check_max_frames, expected_frames, run_session, segment_video
from transformers_themask.inference.stages import Stages
from transformers_themask.models.frame_arrays import rgb_array
from transformers_themask.models.protocols import PreparedFrame, SegmentedClip, VideoModel, VideoProcessor
from transformers_themask.models.scores_to_labels import resampled_scores
from transformers_themask.models.streaming import VideoSession, single_frames, stream_options
from transformers_themask.sinks.sink import Sink
from transformers_themask.videos.camera import Camera
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.source import FrameSource, IncompleteVideoError

from .spools import LabelSpool, ScoreSpool
from .tta import TTA, Augmentation, check_sizes, scaled_processors, size_seen

# Pixels per cell of the grid on which scores are averaged; that of most models.
GRID_STRIDE = 4


class Pass(NamedTuple):
    """One pass over a video: the session of its scale, and how the pass sees the video."""

    session: VideoSession
    augmentation: Augmentation

    def prepare(self, frame: Any) -> PreparedFrame:
        """Turn one frame, or its mirror image, into the model's input."""
        picture = rgb_array(frame)
        return self.session.prepare(np.ascontiguousarray(picture[:, ::-1]) if self.augmentation.flip else picture)

    @torch.inference_mode()
    def keep(self, clips: Iterable[SegmentedClip], spool: LabelSpool | ScoreSpool) -> None:
        """Keep the results for the frames of clips, mirrored back."""
        grid = spool.grid
        for clip in clips:
            results = self.session.label(clip) if grid is None else _grid_scores(self.session.processor, clip, grid)
            for index, values in results:
                spool.put(index, values[..., ::-1] if self.augmentation.flip else values)


@dataclass
class CombinedSession:
    """A session that answers with the combined results of all passes."""

    spool: LabelSpool | ScoreSpool
    max_held_frames: int = 1

    def reset(self) -> None:
        """Start with the first frame."""
        self._index = 0

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """No-op: the results exist."""
        return frame

    def advance(self, prepared: np.ndarray | None) -> Iterator[int]:
        """The index of the frame, or nothing for `None`."""
        if prepared is None:
            return
        if self._index == self.spool.num_frames:
            raise _changed_video(self.spool.num_frames, "more")
        self._index += 1
        yield self._index - 1

    def label(self, clip: int) -> list[tuple[int, np.ndarray]]:
        """Index and label map of a frame."""
        return [(clip, self.spool.combined(clip))]


def check_repeatable(frames: Any) -> None:
    """Raise a `ValueError` for a camera, an iterator or a live stream, which cannot be read once for every pass."""
    is_endless = isinstance(frames, FrameSource) and frames.num_frames is None
    is_live = is_endless and (isinstance(frames, FramesInMemory) or is_url(frames.path))
    if isinstance(frames, (Camera, Iterator)) or is_live:
        name = frames.path if isinstance(frames, FrameSource) else f"a {type(frames).__name__}"
        raise ValueError(
            "`source` must be a video that can be read again for every pass of test-time augmentation. "
            f"Got {name}. Save the video to a file first."
        )


def open_passes(
    model: VideoModel,
    processor: VideoProcessor,
    tta: TTA,
    mode: str | None = None,
    num_frames: int | None = None,
    frame_stride: int | None = None,
) -> list[Pass]:
    """Open a session for each pass over a video, in rising priority; a `ValueError` for what the model cannot do."""
    processors = scaled_processors(model, processor, tta)
    options = stream_options(model, mode, num_frames, frame_stride)
    return [Pass(VideoSession(model, processors[each.scale], *options), each) for each in tta.passes]


def segment_video_in_passes(
    passes: Sequence[Pass],
    source: FrameSource,
    sinks: Sequence[Sink],
    combine: str = "votes",
    *,
    max_frames: int | None = None,
    progress: bool = False,
) -> int:
    """Segment one video pass by pass, and give its frames with the combined label maps to sinks.

    As [`segment_video`], with one pass exactly that. The video is read once for every pass, with a progress bar each,
    and once more for the sinks. The results of the passes wait in a temporary file (see [`LabelSpool`] and
    [`ScoreSpool`]) in the folder of the environment variable `TMPDIR`: memory is that of one pass. A `ValueError` is
    raised if the source cannot be read again, or two scales lead to one size.
    """
    if len(passes) == 1:
        return segment_video(passes[0].session, source, sinks, max_frames=max_frames, progress=progress)
    with ExitStack() as unfinished:
        for sink in sinks:
            unfinished.callback(sink.abandon)  # a no-op for closed ones
        check_max_frames(max_frames)
        check_repeatable(source)
        with _spooled(passes, source, combine, max_frames, progress) as (spool, _):
            return segment_video(CombinedSession(spool), source, sinks, max_frames=max_frames, progress=progress)


def segment_frames_augmented(
    model: VideoModel,
    processor: VideoProcessor,
    frames: Iterable[Any],
    tta: TTA,
    num_frames: int | None = None,
    frame_stride: int | None = None,
    mode: str | None = None,
    device: str | torch.device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and combined label map `(height, width)` of every frame of one video, in order, after the last pass.

    As [`~transformers_themask.inference.segment.segment_frames`], with one pass exactly that. The frames are read once
    in every pass. A `ValueError` is raised if they cannot be read again, two scales lead to one size, or as in
    [`open_passes`].
    """
    passes = open_passes(model, processor, tta, mode, num_frames, frame_stride)
    if device is not None:
        model.to(device)
    if len(passes) == 1:
        return labelled_frames(passes[0].session, frames)
    check_repeatable(frames)
    return _combined_frames(passes, frames, tta.combine)


def _combined_frames(passes: Sequence[Pass], frames: Iterable[Any], combine: str) -> Iterator[tuple[int, np.ndarray]]:
    with _spooled(passes, frames, combine) as (spool, damage):
        for index in range(spool.num_frames):
            yield index, spool.combined(index)
    if damage is not None:
        raise damage


@contextmanager
def _spooled(
    passes: Sequence[Pass],
    frames: Iterable[Any],
    combine: str,
    max_frames: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[LabelSpool | ScoreSpool, IncompleteVideoError | None]]:
    """Run all passes; gives their results, for the `with` block, and what is wrong with a damaged video."""
    size = _size_of_first(frames)
    check_sizes({each.augmentation.scale: each.session.processor for each in passes}, size)
    damage: IncompleteVideoError | None = None
    num_frames: int | None = None
    rows, columns = size_seen(passes[-1].session.processor, size)  # of the largest input
    grid = -(-rows // GRID_STRIDE), -(-columns // GRID_STRIDE)
    with LabelSpool() if combine == "votes" else ScoreSpool(size, grid) as spool:
        for each in passes:
            spool.start_pass()
            try:
                damage = _run_pass(each, frames, max_frames, spool, progress)
            finally:
                each.session.reset()  # its state may be large, and there are many
            num_frames = spool.num_frames if num_frames is None else num_frames
            if spool.num_frames != num_frames:
                raise _changed_video(num_frames, spool.num_frames)
        yield spool, damage


def _run_pass(
    each: Pass, frames: Iterable[Any], max_frames: int | None, spool: LabelSpool | ScoreSpool, progress: bool
) -> IncompleteVideoError | None:
    """Segment a video into the spool, with threads as in [`segment_video`]; returns what ended a damaged one."""
    total = expected_frames(frames, max_frames) if isinstance(frames, FrameSource) else None
    singles = (single for frame in frames for single in single_frames(frame))
    each.session.reset()
    with tqdm(total=total, unit="frame", disable=not progress) as bar, Stages() as stages:
        _, damage = run_session(
            stages,
            each.session,
            singles,
            max_frames,
            prepare=each.prepare,
            on_frame=lambda _: bar.update(),
            use=lambda clips: each.keep(clips, spool),
        )
    return damage


def _changed_video(before: int, now: int | str) -> ValueError:
    return ValueError(f"`source` must have as many frames each time it is read. Got {before}, then {now}.")


def _size_of_first(frames: Iterable[Any]) -> tuple[int, int]:
    for frame in frames:
        for single in single_frames(frame):
            return rgb_array(single).shape[0], rgb_array(single).shape[1]
    raise ValueError("A video must have at least one frame. Got none.")


def _grid_scores(
    processor: VideoProcessor, clip: SegmentedClip, grid: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and class scores `(num_labels, *grid)` of every frame of a clip."""
    for position, index in enumerate(clip.frame_indices):
        scores = clip.outputs.frame_scores(0, position)
        rows, columns = scores.shape[-2:]
        of_pixels = clip.outputs.get("logits") is not None
        # As for label maps: masks are at stride 4, logits may have any.
        input_size = processor.input_size(clip.size) if of_pixels else (4 * rows, 4 * columns)
        content = processor.content_size(clip.size, input_size)
        yield index, resampled_scores(scores, input_size, content, grid).cpu().numpy()
