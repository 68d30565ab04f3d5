# SPDX-License-Identifier: Apache-2.0
"""Segment one video from a source into sinks: decoding, the model, drawing and writing at the same time."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_themask.models.streaming import PreparedFrame, SegmentedClip, VideoSession
from transformers_themask.sinks.sink import LabelledFrame, Sink
from transformers_themask.videos.source import FrameSource, IncompleteVideoError

from .stages import StageQueue, Stages

logger = logging.get_logger(__name__)

TimedFrame = tuple[Fraction, np.ndarray]
# Decoded pictures, and outputs of the model, that may wait: enough to hide that some take longer than others.
SHORT_QUEUE = 2


@dataclass(frozen=True)
class SegmentedVideo:
    """What [`segment_video`] did.

    Attributes:
        num_frames (`int`): Number of frames that every sink was given.
    """

    num_frames: int


def segment_video(
    session: VideoSession,
    source: FrameSource,
    sinks: Sequence[Sink],
    *,
    max_frames: int | None = None,
    progress: bool = False,
) -> SegmentedVideo:
    """Label every frame of a video and give it to sinks.

    Decoding, preparing, labelling and each sink run in threads of their own; the model runs in the caller's, with its
    device, its autocast and its number of threads. Bounded queues join them: memory does not grow with the length of
    the video. The first error anywhere stops everything, and no sink keeps anything.

    Args:
        session ([`VideoSession`]):
            The video's session, as `model.stream(processor)` makes it. It is reset first.
        source ([`FrameSource`]):
            The video, as [`open_frame_source`] returns it. Of frames whose times do not grow each is shown one tick
            after the one before, with a warning.
        sinks (`Sequence[Sink]`):
            What the labelled frames are for. All are closed after the last frame, in order.
        max_frames (`int`, *optional*):
            Stop after that many frames, for sources without an end.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        [`SegmentedVideo`]

    Raises:
        IncompleteVideoError: If the video is damaged. Everything that could be read has been written, and the sinks
            are closed.
    """
    check_max_frames(max_frames)
    session.reset()
    damage: list[IncompleteVideoError] = []
    with ExitStack() as unfinished:
        for sink in sinks:
            unfinished.callback(sink.abandon)
        with tqdm(total=_expected_frames(source, max_frames), unit="frame", disable=not progress) as bar:
            writers = [*(sink.write for sink in sinks), lambda frame: bar.update()]
            num_frames = _run_stages(session, source, writers, max_frames, damage)
        if num_frames == 0:
            raise ValueError(f"The video must have at least one frame. Got none from {source.path}.")
        for sink in sinks:
            sink.close()
        unfinished.pop_all()
    if damage:
        raise damage[0]
    return SegmentedVideo(num_frames)


def _expected_frames(source: FrameSource, max_frames: int | None) -> int | None:
    known = [number for number in (source.num_frames, max_frames) if number is not None]
    return min(known, default=None)


def check_max_frames(max_frames: int | None) -> None:
    """Raise a `ValueError` unless there is no limit to the number of frames or one that lets a frame through."""
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1. Got {max_frames}.")


def _run_stages(
    session: VideoSession,
    source: FrameSource,
    writers: Sequence[Callable[[LabelledFrame], object]],
    max_frames: int | None,
    damage: list[IncompleteVideoError],
) -> int:
    """Pass every frame through the threads; returns how many there were."""
    # The model takes and gives frames by the block: as many may wait on either side, so that neither side idles.
    block = session.num_frames * session.frame_stride
    # Frames that are with the model or on the way from it.
    waiting: deque[TimedFrame] = deque()
    with Stages() as stages:
        decoded = stages.run(_decode(source, max_frames, damage), SHORT_QUEUE)
        prepared = stages.run(_prepare(session, decoded), block)
        clips: StageQueue[SegmentedClip] = StageQueue(stages, SHORT_QUEUE)
        branches: list[StageQueue[LabelledFrame]] = [StageQueue(stages, block) for _ in writers]
        stages.start(partial(_distribute, _label(session, clips, waiting, source), branches))
        for write, branch in zip(writers, branches, strict=True):
            stages.start(partial(_write, write, branch))
        return _advance(session, prepared, waiting, clips)


def _decode(
    source: FrameSource, max_frames: int | None, damage: list[IncompleteVideoError]
) -> Generator[TimedFrame, None, None]:
    try:
        with closing(source.timed_frames()) as timed_frames:
            yield from islice(_growing_times(timed_frames, source), max_frames)
    except IncompleteVideoError as error:  # raised again when what came before it has been written
        damage.append(error)


def _growing_times(timed_frames: Iterable[TimedFrame], source: FrameSource) -> Iterator[TimedFrame]:
    """Frames and their times; one that is not later than the frame before is shown one tick after it."""
    earlier: int | None = None
    has_warned = False
    for index, (time, frame) in enumerate(timed_frames):
        tick = round(time / source.time_base)
        if earlier is not None and tick <= earlier:
            tick = earlier + 1
            time = tick * source.time_base
            if not has_warned:
                logger.warning(
                    f"{source.path} repeats a time stamp at frame {index}: this frame, and any other like it, is "
                    f"shown {float(source.time_base):.2g} s after the one before. Encode the file again for even "
                    "times."
                )
                has_warned = True
        earlier = tick
        yield time, frame


def _prepare(
    session: VideoSession, decoded: Iterable[TimedFrame]
) -> Generator[tuple[TimedFrame, PreparedFrame], None, None]:
    for time, picture in decoded:
        yield (time, picture), session.prepare(picture)


def _advance(
    session: VideoSession,
    prepared: Iterable[tuple[TimedFrame, PreparedFrame]],
    waiting: deque[TimedFrame],
    clips: StageQueue[SegmentedClip],
) -> int:
    num_frames = 0
    for timed_frame, frame in prepared:
        waiting.append(timed_frame)
        num_frames += 1
        for clip in session.advance(frame):
            clips.put(clip)
    for clip in session.advance(None):
        clips.put(clip)
    clips.end()
    return num_frames


def _label(
    session: VideoSession, clips: Iterable[SegmentedClip], waiting: deque[TimedFrame], source: FrameSource
) -> Generator[LabelledFrame, None, None]:
    """Label clips; frames of interleaved clips wait until the ones before them are labelled."""
    label_maps: dict[int, np.ndarray] = {}
    index = 0
    for clip in clips:
        label_maps.update(session.label(clip))
        while index in label_maps:
            time, picture = waiting.popleft()
            yield LabelledFrame(index, time, source.frame_name(index), picture, label_maps.pop(index))
            index += 1


def _distribute(frames: Iterable[LabelledFrame], branches: Sequence[StageQueue[LabelledFrame]]) -> None:
    for frame in frames:
        for branch in branches:
            branch.put(frame)
    for branch in branches:
        branch.end()


def _write(write: Callable[[LabelledFrame], object], frames: Iterable[LabelledFrame]) -> None:
    for frame in frames:
        write(frame)
