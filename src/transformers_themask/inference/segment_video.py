# SPDX-License-Identifier: Apache-2.0
"""Segment a video from a source into sinks, with decoding, model, drawing and writing in parallel."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_themask.models.protocols import Clip, Prepared, Session
from transformers_themask.sinks.sink import LabelledFrame, Sink
from transformers_themask.videos.source import FrameSource, IncompleteVideoError, TimedFrame

from .stages import StageQueue, Stages

logger = logging.get_logger(__name__)

# Decoded pictures, and outputs of the model, that may wait: enough to hide that some take longer than others.
SHORT_QUEUE = 2


Frame = TypeVar("Frame")


def segment_video(
    session: Session[Prepared, Clip],
    source: FrameSource,
    sinks: Sequence[Sink],
    *,
    max_frames: int | None = None,
    progress: bool = False,
) -> int:
    """Label every frame of a video and give it to sinks; returns the number of frames.

    Decoding, preparing, labelling and each sink run in threads of their own; the model runs in the caller's, with its
    device, its autocast and its number of threads. Bounded queues join them: memory does not grow with the length of
    the video. The first error stops all threads, and no sink keeps anything.

    Args:
        session: The video's session, for example as `model.stream(processor)` makes it. It is reset first.
        source: The video, as [`open_frame_source`] returns it. A frame that is not later than the one before is shown
            one tick after it, with a warning.
        sinks: Take the labelled frames. All are closed after the last frame, in order.
        max_frames: Stop after that many frames; for endless sources.
        progress: Whether to show a progress bar.

    Raises:
        IncompleteVideoError: If the video is damaged. Its readable part has been written, and the sinks are closed.
    """
    check_max_frames(max_frames)
    session.reset()
    with ExitStack() as unfinished:
        for sink in sinks:
            unfinished.callback(sink.abandon)
        with tqdm(total=expected_frames(source, max_frames), unit="frame", disable=not progress) as bar:
            num_frames, damage = _run_stages(session, source, sinks, max_frames, bar)
        if num_frames == 0:
            raise ValueError(f"The video must have at least one frame. Got none from {source.path}.")
        for sink in sinks:
            sink.close()
        unfinished.pop_all()
    if damage is not None:
        raise damage
    return num_frames


def expected_frames(source: FrameSource, max_frames: int | None) -> int | None:
    """Number of frames that will be read, as far as the source tells."""
    known = [number for number in (source.num_frames, max_frames) if number is not None]
    return min(known, default=None)


def check_max_frames(max_frames: int | None) -> None:
    """Raise a `ValueError` for a limit to the number of frames that lets none through."""
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1. Got {max_frames}.")


def _run_stages(
    session: Session[Prepared, Clip], source: FrameSource, sinks: Sequence[Sink], max_frames: int | None, bar: tqdm
) -> tuple[int, IncompleteVideoError | None]:
    """Pass every frame through the threads; returns what [`run_session`] does."""
    # Frames that are with the model or on the way from it.
    waiting: deque[TimedFrame] = deque()
    with Stages() as stages:
        branches: list[StageQueue[LabelledFrame]] = [StageQueue(stages, session.max_held_frames) for _ in sinks]
        for sink, branch in zip(sinks, branches, strict=True):
            stages.start(partial(_write, sink, branch))
        return run_session(
            stages,
            session,
            _growing_times(source),
            max_frames,
            prepare=lambda frame: session.prepare(frame.picture),
            on_frame=waiting.append,
            use=partial(_label, session, source, waiting, branches, bar),
        )


def run_session(
    stages: Stages,
    session: Session[Prepared, Clip],
    frames: Generator[Frame, None, None],
    max_frames: int | None,
    prepare: Callable[[Frame], Prepared],
    on_frame: Callable[[Frame], object],
    use: Callable[[Iterable[Clip]], None],
) -> tuple[int, IncompleteVideoError | None]:
    """Run the model here, while threads decode and prepare frames and `use` its outputs.

    Calls `on_frame` with each frame before it goes to the model. Returns the number of frames and, of a damaged
    video, what ended it, to be raised again when what came before it has been used.
    """
    damages: list[IncompleteVideoError] = []
    decoded = stages.run(_decode(frames, max_frames, damages), SHORT_QUEUE)
    # The model takes and gives frames by the block: as many may wait on either side, so that neither side idles.
    prepared = stages.run(((frame, prepare(frame)) for frame in decoded), session.max_held_frames)
    clips: StageQueue[Clip] = StageQueue(stages, SHORT_QUEUE)
    stages.start(partial(use, clips))
    num_frames = 0
    for frame, inputs in prepared:
        on_frame(frame)
        for clip in session.advance(inputs):
            clips.put(clip)
        num_frames += 1
    for clip in session.advance(None):
        clips.put(clip)
    clips.end()
    return num_frames, next(iter(damages), None)


def _decode(
    frames: Generator[Frame, None, None], max_frames: int | None, damages: list[IncompleteVideoError]
) -> Generator[Frame, None, None]:
    try:
        with closing(frames):
            yield from islice(frames, max_frames)
    except IncompleteVideoError as error:
        damages.append(error)


def _growing_times(source: FrameSource) -> Generator[TimedFrame, None, None]:
    """Frames and their times; one that is not later than the frame before is shown one tick after it."""
    earlier: int | None = None
    has_warned = False
    with closing(source.timed_frames()) as timed_frames:
        for index, frame in enumerate(timed_frames):
            tick = round(frame.time / source.time_base)
            if earlier is not None and tick <= earlier:
                tick = earlier + 1
                frame = frame._replace(time=tick * source.time_base)
                if not has_warned:
                    logger.warning(
                        f"{source.path} repeats a time stamp at frame {index}: this frame, and any other like it, is "
                        f"shown {float(source.time_base):.2g} s after the one before. Encode the file again for even "
                        "times."
                    )
                    has_warned = True
            earlier = tick
            yield frame


def _label(
    session: Session[Prepared, Clip],
    source: FrameSource,
    waiting: deque[TimedFrame],
    branches: Sequence[StageQueue[LabelledFrame]],
    bar: tqdm,
    clips: Iterable[Clip],
) -> None:
    """Label clips; frames of interleaved clips wait until the ones before them are labelled."""
    label_maps: dict[int, np.ndarray] = {}
    index = 0
    for clip in clips:
        label_maps.update(session.label(clip))
        while index in label_maps:
            time, picture, end = waiting.popleft()
            frame = LabelledFrame(index, time, source.frame_name(index), picture, label_maps.pop(index), end)
            for branch in branches:
                branch.put(frame)
            bar.update()
            index += 1
    for branch in branches:
        branch.end()


def _write(sink: Sink, frames: Iterable[LabelledFrame]) -> None:
    for frame in frames:
        sink.write(frame)
