# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation: a video is segmented at several scales and mirrored, and the results become one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from transformers_themask.inference.segment import labelled_frames
from transformers_themask.inference.segment_video import check_max_frames, segment_video
from transformers_themask.models.scores_to_labels import resampled_scores
from transformers_themask.models.streaming import (
    PreparedFrame,
    SegmentedClip,
    VideoSession,
    rgb_array,
    single_frames,
    stream_options,
)
from transformers_themask.sinks.sink import Sink
from transformers_themask.videos.camera import Camera
from transformers_themask.videos.ffmpeg_files import is_url
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.source import FrameSource, IncompleteVideoError

from .spools import LabelSpool, ScoreSpool

COMBINATIONS = ("votes", "scores")
# Beyond these nothing is left of a picture, or it fits nowhere.
MIN_SCALE, MAX_SCALE = 0.1, 10
# Pixels per cell of the grid on which scores are averaged; that of most models.
GRID_STRIDE = 4


@dataclass(frozen=True)
class Augmentation:
    """One way to look at a video: enlarged by `scale`, and mirrored or not."""

    scale: float = 1.0
    flip: bool = False


def augmentations(scales: Sequence[float], flip: bool) -> list[Augmentation]:
    """Every scale, and with `flip` also mirrored, in rising priority.

    The larger scale comes before the smaller one, as the paper has it, and the picture before its mirror image.

    Args:
        scales (`Sequence[float]`): Factors of the network's input size.
        flip (`bool`): Whether each is also used mirrored.

    Raises:
        ValueError: Unless the scales lie between 0.1 and 10 and differ.
    """
    rising = sorted(scales)
    in_range = all(MIN_SCALE <= scale <= MAX_SCALE for scale in rising)
    if not rising or len(set(rising)) < len(rising) or not in_range:
        raise ValueError(
            f"`scales` must be numbers from {MIN_SCALE} to {MAX_SCALE} that differ, at least one. Got {list(scales)}."
        )
    flips = (True, False) if flip else (False,)
    return [Augmentation(float(scale), flipped) for scale in rising for flipped in flips]


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation as in MVC (Liang et al., PVUW 2024, equation 8): which passes there are, and their sum.

    Args:
        scales (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            Factors of the network's input size; the paper's are 0.9, 1.0, 1.1 and 1.2.
        flip (`bool`, *optional*, defaults to `False`):
            Whether the video is also mirrored at every scale.
        combine (`str`, *optional*, defaults to `"votes"`):
            `"votes"` gives a pixel the label of most passes; of a tie, the largest scale decides, unmirrored before
            mirrored. `"scores"` averages the class scores instead.

    With `flip`, a mirrored video gets the mirrored result: with scores but for rounding, with votes except where a
    tie is decided between the picture and the mirror image of one scale, as the one that is not mirrored then wins.

    Raises:
        ValueError: If a value is not as described, or there are two inputs to vote.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    combine: str = "votes"

    def __post_init__(self):
        if self.combine not in COMBINATIONS:
            raise ValueError(f"`combine` must be one of {', '.join(COMBINATIONS)}. Got {self.combine!r}.")
        if self.combine == "votes" and len(self.passes) == 2:
            first, second = ("the smaller", "larger") if len(self.scales) == 2 else ("the mirrored", "other")
            raise ValueError(
                f"`combine` must be 'scores' for two inputs, as {first} one never outvotes the {second}. "
                "Got 'votes'. Say `--tta-combine scores` (of run_vss.py: `--eval_combine scores`), or add scales."
            )

    @property
    def passes(self) -> list[Augmentation]:
        """What is done to the video in each pass, in rising priority."""
        return augmentations(self.scales, self.flip)


def scaled_processor(processor: Any, scale: float) -> Any:
    """A video processor whose target size is larger or smaller by a factor, on all its edges.

    So the cap of the long side scales with the scale; otherwise large scales of wide videos would be one.

    Args:
        processor ([`VideoSegmentationProcessor`]): The processor; with scale 1 it is returned as it is.
        scale (`float`): The factor.

    Raises:
        ValueError: If the processor leaves frames as large as they are.
    """
    if scale == 1:
        return processor
    if not processor.do_resize or not processor.size:
        raise ValueError(
            f"`scales` must be 1.0 for a processor that does not resize frames. Got {scale:g}. Set its `do_resize` "
            "and `size`."
        )
    return processor.scaled(scale)


def scaled_processors(model: Any, processor: Any, tta: TTA) -> dict[float, Any]:
    """The processor of each scale.

    Args:
        model (`PreTrainedModel`): The model.
        processor ([`VideoSegmentationProcessor`]): Its video processor.
        tta ([`TTA`]): The scales.

    Raises:
        ValueError: If the model takes frames of one size only, or the processor does not resize them.
    """
    square = getattr(model, "square_input_size", None) or getattr(model.config, "square_input_size", None)
    # Those that score pixels take any square.
    is_fixed = not getattr(model.config, "is_semantic", False)
    if square is not None and is_fixed and any(scale != 1 for scale in tta.scales):
        kind = getattr(model.config, "segmenter_config", model.config).model_type
        raise ValueError(
            f"`scales` must be 1.0 for a {kind} model, whose input is always {square['height']}x{square['width']}. "
            f"Got {', '.join(f'{scale:g}' for scale in tta.scales)}. Mirrored pictures are possible."
        )
    return {scale: scaled_processor(processor, scale) for scale in sorted(tta.scales)}


def check_sizes(processors: Mapping[float, Any], size: tuple[int, int]) -> None:
    """Make sure that the network sees frames in another size at each scale.

    Args:
        processors (`Mapping[float, VideoSegmentationProcessor]`): The processor of each scale.
        size (`tuple[int, int]`): Height and width of the frames.

    Raises:
        ValueError: If two scales lead to one size, which rounding to a multiple can do.
    """
    scales: dict[tuple[int, int], float] = {}
    if len(processors) == 1:
        return
    for scale, processor in processors.items():
        seen = _size_seen(processor, size)
        other = scales.setdefault(seen, scale)
        if other != scale:
            raise ValueError(
                "`scales` must differ in what the network sees. "
                f"Got {other:g} and {scale:g}, which both make {seen[0]}x{seen[1]} of frames of {size[0]}x{size[1]}. "
                f"Choose scales further apart: edges are rounded to multiples of {processor.size_divisor or 1}."
            )


def check_repeatable(frames: Any) -> None:
    """Make sure that a video can be read once for every pass.

    Args:
        frames (`FrameSource` or `Iterable`): The video.

    Raises:
        ValueError: If it is a camera, an iterator or a live stream.
    """
    is_endless = isinstance(frames, FrameSource) and frames.num_frames is None
    if (
        isinstance(frames, (Camera, Iterator))
        or (is_endless and isinstance(frames, FramesInMemory))
        or (is_endless and is_url(frames.path))
    ):
        name = frames.path if isinstance(frames, FrameSource) else f"a {type(frames).__name__}"
        raise ValueError(
            "`source` must be a video that can be read again for every pass of test-time augmentation. "
            f"Got {name}. Save the video to a file first."
        )


class AugmentedSession(VideoSession):
    """A session that segments one augmentation of the video, for a spool instead of its caller.

    `label`, and with it `step` and `flush`, put what they find into `spool` and return empty label maps.

    Args:
        model, mode, num_frames, frame_stride:
            As in [`VideoSession`].
        processor ([`VideoSegmentationProcessor`]):
            The video processor of the scale.
        augmentation ([`Augmentation`]):
            The scale, and whether frames are mirrored, and results mirrored back.

    Attributes:
        spool ([`LabelSpool`] or [`ScoreSpool`]): Where results go; to be set before anything is labelled.
    """

    spool: LabelSpool | ScoreSpool

    def __init__(
        self,
        model: Any,
        processor: Any,
        mode: str,
        num_frames: int,
        frame_stride: int,
        augmentation: Augmentation,
    ):
        super().__init__(model, processor, mode, num_frames, frame_stride)
        self.augmentation = augmentation

    def prepare(self, frame: Any) -> PreparedFrame:
        """Turn one frame, or its mirror image, into the model's input. Does not touch the session's state."""
        picture = rgb_array(frame)
        return super().prepare(np.ascontiguousarray(picture[:, ::-1]) if self.augmentation.flip else picture)

    @torch.inference_mode()
    def label(self, clip: SegmentedClip) -> list[tuple[int, np.ndarray]]:
        """Put what outputs say about each frame into the spool, as the frame lies in the video."""
        grid = self.spool.grid
        results = super().label(clip) if grid is None else _grid_scores(self.processor, clip, grid)
        for index, values in results:
            self.spool.put(index, values[..., ::-1] if self.augmentation.flip else values)
        return [(index, np.empty((0, 0), np.uint8)) for index in clip.frame_indices]


class CombinedSession:
    """Hands out what a spool holds, frame by frame; goes wherever a session goes in [`segment_video`].

    Args:
        spool ([`LabelSpool`] or [`ScoreSpool`]): The results of all passes.
    """

    num_frames = frame_stride = 1

    def __init__(self, spool: LabelSpool | ScoreSpool):
        self._spool = spool
        self.reset()

    def reset(self) -> None:
        """The next frame is the first of the video."""
        self._index = 0

    def prepare(self, frame: Any) -> Any:
        """Nothing: everything about the frame is known."""
        return frame

    def advance(self, prepared: Any) -> Iterator[int]:
        """The index of the frame, or nothing for `None`."""
        if prepared is None:
            return
        if self._index == self._spool.num_frames:
            raise _changed_video(self._spool.num_frames, "more")
        self._index += 1
        yield self._index - 1

    def label(self, index: int) -> list[tuple[int, np.ndarray]]:
        """Index and label map of a frame."""
        return [(index, self._spool.combined(index))]


def open_passes(
    model: Any,
    processor: Any,
    tta: TTA,
    mode: str | None = None,
    num_frames: int | None = None,
    frame_stride: int | None = None,
) -> list[VideoSession]:
    """Open a session for each pass over a video, in rising priority; where there is one pass, the model's own.

    Args:
        model (`PreTrainedModel`): The model; it is put in eval mode.
        processor ([`VideoSegmentationProcessor`]): Its video processor.
        tta ([`TTA`]): The passes.
        mode, num_frames, frame_stride: See [`~transformers_themask.models.streaming.StreamingMixin.stream`].

    Raises:
        ValueError: If the model cannot do what is asked for; see [`scaled_processors`] and
            [`~transformers_themask.models.streaming.StreamingMixin.stream`].
    """
    processors = scaled_processors(model, processor, tta)
    passes = tta.passes
    if len(passes) == 1:
        return [model.stream(processors[passes[0].scale], mode, num_frames, frame_stride)]
    options = stream_options(model, mode, num_frames, frame_stride)
    return [AugmentedSession(model, processors[each.scale], *options, each) for each in passes]


def segment_video_in_passes(
    sessions: Sequence[VideoSession],
    source: FrameSource,
    sinks: Sequence[Sink],
    combine: str = "votes",
    *,
    max_frames: int | None = None,
    progress: bool = False,
) -> int:
    """Segment one video pass by pass, and give its frames with the combined label maps to sinks.

    As [`segment_video`], with one pass exactly that. The video is read once for every pass and once more for the
    sinks. What the passes find is kept in a temporary file, see [`LabelSpool`] and [`ScoreSpool`]: memory is that of
    one pass. The environment variable `TMPDIR` says where the file is.

    Args:
        sessions (`Sequence[VideoSession]`): The passes, as [`open_passes`] returns them.
        source ([`FrameSource`]): The video.
        sinks (`Sequence[Sink]`): What the labelled frames are for.
        combine (`str`, *optional*, defaults to `"votes"`): See [`TTA`].
        max_frames, progress: As in [`segment_video`]; there is a progress bar for every reading.

    Raises:
        IncompleteVideoError: If the video is damaged. Everything that could be read has been written, and the sinks
            are closed.
        ValueError: If the source cannot be read again, or two scales lead to one size.
    """
    if len(sessions) == 1:
        return segment_video(sessions[0], source, sinks, max_frames=max_frames, progress=progress)
    run = partial(segment_video, source=source, max_frames=max_frames, progress=progress)
    with ExitStack() as unfinished:
        for sink in sinks:
            unfinished.callback(sink.abandon)  # which does nothing to what has been closed
        check_max_frames(max_frames)
        check_repeatable(source)
        with _spooled(sessions, source, combine, partial(run, sinks=[])) as (spool, _):
            combined: Any = CombinedSession(spool)
            return run(combined, sinks=sinks)


def segment_frames_augmented(
    model: Any,
    processor: Any,
    frames: Iterable[Any],
    tta: TTA,
    num_frames: int | None = None,
    frame_stride: int | None = None,
    mode: str | None = None,
    device: str | torch.device | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the combined label map of every frame of one video, in order, after the last pass.

    Where there is one pass, as [`~transformers_themask.inference.segment.segment_frames`]: while the video is being
    read.

    Args:
        model, processor, num_frames, frame_stride, mode, device:
            As in [`~transformers_themask.inference.segment.segment_frames`].
        frames (`Iterable`):
            The video's frames as [`~transformers_themask.models.streaming.VideoSession.step`] takes them; they are
            read once in every pass.
        tta ([`TTA`]):
            The passes.

    Returns:
        Iterator over `(frame_index, label_map)`; `label_map` is an integer array of shape `(height, width)` with class
        indices `0 ... num_labels - 1`.

    Raises:
        IncompleteVideoError: After the last readable frame of a damaged video.
        ValueError: If the frames cannot be read again, two scales lead to one size, or as in [`open_passes`].
    """
    sessions = open_passes(model, processor, tta, mode, num_frames, frame_stride)
    if device is not None:
        model.to(device)
    if len(sessions) == 1:
        return labelled_frames(sessions[0], frames)
    check_repeatable(frames)
    return _combined_frames(sessions, frames, tta.combine)


def _combined_frames(
    sessions: Sequence[VideoSession], frames: Iterable[Any], combine: str
) -> Iterator[tuple[int, np.ndarray]]:
    with _spooled(sessions, frames, combine, partial(_exhaust, frames=frames)) as (spool, damage):
        for index in range(spool.num_frames):
            yield index, spool.combined(index)
    if damage is not None:
        raise damage


def _exhaust(session: VideoSession, frames: Iterable[Any]) -> None:
    for _ in labelled_frames(session, frames):
        pass


@contextmanager
def _spooled(
    sessions: Sequence[Any], frames: Iterable[Any], combine: str, run: Callable[[VideoSession], object]
) -> Iterator[tuple[LabelSpool | ScoreSpool, IncompleteVideoError | None]]:
    """Run all passes; gives their results, for the `with` block, and what is wrong with a damaged video."""
    size = _size_of_first(frames)
    check_sizes({session.augmentation.scale: session.processor for session in sessions}, size)
    damage: IncompleteVideoError | None = None
    num_frames: int | None = None
    with _spool(sessions[-1].processor, combine, size) as spool:
        for session in sessions:
            session.spool = spool
            spool.start_pass()
            try:
                run(session)
            except IncompleteVideoError as error:
                damage = error
            finally:
                session.reset()  # its state may be large, and there are many
            num_frames = spool.num_frames if num_frames is None else num_frames
            if spool.num_frames != num_frames:
                raise _changed_video(num_frames, spool.num_frames)
        yield spool, damage


def _changed_video(before: int, now: int | str) -> ValueError:
    return ValueError(f"`source` must have as many frames each time it is read. Got {before}, then {now}.")


def _spool(processor: Any, combine: str, size: tuple[int, int]) -> LabelSpool | ScoreSpool:
    """Where the results for frames of some size go; `processor` is that of the largest input."""
    if combine == "votes":
        return LabelSpool()
    rows, columns = _size_seen(processor, size)
    return ScoreSpool(size, (-(-rows // GRID_STRIDE), -(-columns // GRID_STRIDE)))


def _size_of_first(frames: Iterable[Any]) -> tuple[int, int]:
    for frame in frames:
        for single in single_frames(frame):
            return rgb_array(single).shape[0], rgb_array(single).shape[1]
    raise ValueError("A video must have at least one frame. Got none.")


def _size_seen(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """How large the network sees a frame, padding apart."""
    return processor.content_size(size, processor.input_size(size))


def _grid_scores(processor: Any, clip: SegmentedClip, grid: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Index and class scores `(num_labels, *grid)` of every frame of a clip."""
    for position, index in enumerate(clip.frame_indices):
        scores = clip.outputs.frame_scores(0, position)
        rows, columns = scores.shape[-2:]
        of_pixels = clip.outputs.get("logits") is not None
        # As for label maps: masks are at stride 4, logits may have any.
        input_size = processor.input_size(clip.size) if of_pixels else (4 * rows, 4 * columns)
        content = processor.content_size(clip.size, input_size)
        yield index, resampled_scores(scores, input_size, content, grid).cpu().numpy()
