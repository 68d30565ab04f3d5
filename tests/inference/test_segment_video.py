# SPDX-License-Identifier: Apache-2.0
import itertools
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch

from transformers_themask.inference.segment import segment_frames
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.videos.source import FrameSource, IncompleteVideoError, TimedFrame


class Scripted(FrameSource):
    """Frames at given times, then an error if there is one; knows whether it was closed, and how far it was read."""

    path, frame_rate, time_base, num_frames, has_audio = "scripted", Fraction(10), Fraction(1, 1000), None, False

    def __init__(self, frames, times=None, error=None):
        self.frames, self.error = frames, error
        self.times = times or (Fraction(index, 10) for index in itertools.count())
        self.num_read, self.is_closed = 0, False

    def timed_frames(self):
        try:
            for time, frame in zip(self.times, self.frames, strict=False):
                self.num_read += 1
                yield TimedFrame(time, frame)
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True

    def frame_name(self, index):
        return f"frame {index}"


class Collector:
    """Keeps what it is given, and notes how it ends; fails where it is told to."""

    def __init__(self, failing_at=None, failing_to_close=False):
        self.frames, self.end = [], None
        self.failing_at, self.failing_to_close = failing_at, failing_to_close

    def write(self, frame):
        if frame.index == self.failing_at:
            raise ZeroDivisionError(frame.index)
        self.frames.append(frame)

    def close(self):
        if self.failing_to_close:
            raise ZeroDivisionError
        self.end = "closed"

    def abandon(self):
        self.end = self.end or "abandoned"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stage")]


@pytest.fixture
def session(segmenter):
    return segmenter.model.stream(segmenter.processor)


@pytest.mark.parametrize(
    ("mode", "num_frames", "frame_stride"),
    [("contiguous", 2, 1), ("contiguous", 20, 1), ("interleaved", 2, 3), ("sliding", 3, 2)],
)
def test_every_sink_gets_every_frame_in_order_with_its_label_map(segmenter, frames, mode, num_frames, frame_stride):
    session = segmenter.model.stream(segmenter.processor, mode, num_frames, frame_stride)
    session.step(frames[0])  # what it has seen before is forgotten
    sinks = [Collector(), Collector()]
    assert segment_video(session, Scripted(frames), sinks) == 11
    expected = segment_frames(segmenter.model, segmenter.processor, frames, num_frames, frame_stride, mode)
    for (index, label_map), frame, other in zip(expected, sinks[0].frames, sinks[1].frames, strict=True):
        assert other is frame
        assert (frame.index, frame.time, frame.name) == (index, Fraction(index, 10), f"frame {index}")
        assert np.array_equal(frame.picture, frames[index]) and np.array_equal(frame.label_map, label_map)
    assert [sink.end for sink in sinks] == ["closed", "closed"]


def test_readable_part_of_a_damaged_video_is_written_before_the_error(session, frames):
    source = Scripted(frames[:5], error=IncompleteVideoError("cut"))
    sink = Collector()
    with pytest.raises(IncompleteVideoError, match="cut"):
        segment_video(session, source, [sink])
    assert [frame.index for frame in sink.frames] == [0, 1, 2, 3, 4]
    assert sink.end == "closed"


def test_error_of_the_source_leaves_no_files(session, frames):
    source, sink = Scripted(frames[:5], error=OSError("gone")), Collector()
    with pytest.raises(OSError, match="gone"):
        segment_video(session, source, [sink])
    assert sink.end == "abandoned"


def test_an_error_of_one_sink_stops_an_endless_source_and_all_sinks(session, frames):
    source, sinks = Scripted(itertools.cycle(frames)), [Collector(), Collector(failing_at=4)]
    with pytest.raises(ZeroDivisionError, match="4"):
        segment_video(session, source, sinks)
    assert [sink.end for sink in sinks] == ["abandoned", "abandoned"]
    assert source.is_closed


def test_an_error_on_closing_keeps_what_is_finished_and_abandons_the_rest(session, frames):
    sinks = [Collector(), Collector(failing_to_close=True), Collector()]
    with pytest.raises(ZeroDivisionError):
        segment_video(session, Scripted(frames), sinks)
    assert [sink.end for sink in sinks] == ["closed", "abandoned", "abandoned"]


def test_an_error_of_the_model_names_the_frame(session, frames):
    source, sink = Scripted([*frames[:3], frames[3][:20]]), Collector()
    with pytest.raises(ValueError, match=r"Got 20x50 for frame 3"):
        segment_video(session, source, [sink])
    assert sink.end == "abandoned"


def test_an_interruption_stops_everything(segmenter, session, frames):
    def interrupt(module, arguments):
        raise KeyboardInterrupt

    source, sink = Scripted(itertools.cycle(frames)), Collector()
    hook = segmenter.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment_video(session, source, [sink])
    hook.remove()
    assert sink.end == "abandoned" and source.is_closed


def test_the_model_runs_as_its_caller_says(segmenter, session, frames):
    seen = set()

    def note(module, arguments):
        seen.add((threading.current_thread(), torch.get_num_threads(), torch.is_autocast_enabled("cpu")))

    hook = segmenter.model.register_forward_pre_hook(note)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads + 1)
    try:
        with torch.autocast("cpu"):
            segment_video(session, Scripted(frames), [])
    finally:
        torch.set_num_threads(num_threads)
        hook.remove()
    assert seen == {(threading.main_thread(), num_threads + 1, True)}


def test_no_more_is_read_ahead_than_fits_into_the_queues(segmenter, frames):
    source = Scripted(itertools.islice(itertools.cycle(frames), 200))
    ahead = []

    class Counting(Collector):
        def write(self, frame):
            ahead.append(source.num_read - frame.index)

    session = segmenter.model.stream(segmenter.processor, num_frames=1)
    segment_video(session, source, [Counting()])
    # One in each of the five threads' hands, and two, one, two and one waiting between them.
    assert len(ahead) == 200 and max(ahead) <= 12


def test_an_endless_source_is_left_after_the_frames_asked_for(session, frames):
    source, sink = Scripted(itertools.cycle(frames)), Collector()
    assert segment_video(session, source, [sink], max_frames=3) == 3
    assert (len(sink.frames), sink.end, source.is_closed, source.num_read) == (3, "closed", True, 3)
    with pytest.raises(ValueError, match=r"`max_frames` must be at least 1. Got 0"):
        segment_video(session, source, [sink], max_frames=0)


def test_a_video_has_a_frame(session):
    sink = Collector()
    with pytest.raises(ValueError, match=r"at least one frame. Got none from scripted"):
        segment_video(session, Scripted([]), [sink])
    assert sink.end == "abandoned"


def test_frames_whose_times_do_not_grow_are_set_one_tick_apart_with_a_warning(session, frames, caplog):
    milliseconds = (0, 100, 100, 100, 50, 400)
    source, sink = Scripted(frames[:6], [Fraction(time, 1000) for time in milliseconds]), Collector()
    segment_video(session, source, [sink])
    assert [frame.time * 1000 for frame in sink.frames] == [0, 100, 101, 102, 103, 400]
    (warning,) = caplog.messages
    assert "scripted repeats a time stamp at frame 2" in warning and "0.001 s after" in warning


def test_the_progress_bar_counts_up_to_what_is_expected(session, frames, capsys):
    source = Scripted(frames)
    source.num_frames = 11
    segment_video(session, source, [], progress=True)
    segment_video(session, Scripted(frames), [], max_frames=4, progress=True)
    assert "11/11" in (shown := capsys.readouterr().err) and "4/4" in shown
