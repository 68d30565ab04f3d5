# SPDX-License-Identifier: Apache-2.0
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from transformers_themask.videos.camera import Camera
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


class FakeCapture:
    """Behaves like `cv2.VideoCapture` with a camera that is unplugged after a few pictures."""

    def __init__(self, frame_rate=30.0, num_frames=5, is_there=True):
        self.frame_rate = frame_rate
        self.is_there = is_there
        self.pictures = list(PICTURES[:num_frames])
        self.is_released = False

    def isOpened(self):  # noqa: N802
        return self.is_there

    def get(self, number):
        return self.frame_rate if number == 5 else 0.0

    def read(self):
        assert not self.is_released
        return (True, self.pictures.pop(0)[:, :, ::-1]) if self.pictures else (False, None)

    def release(self):
        self.is_released = True


def camera(*captures, ticks=(100.0, 100.04, 100.1, 100.1, 101.0)):
    """A camera that is opened once per capture, with a clock."""
    left, clock = list(captures), iter(ticks)

    class FakeCamera(Camera):
        def _capture(self):
            return left.pop(0)

        def _clock(self):
            return next(clock)

    return FakeCamera(3)


def read(source):
    """What comes before a camera stops."""
    frames = []
    with pytest.raises(IncompleteVideoError, match=r"Got camera 3, which stopped; 5 frames could be read\.$"):
        for timed_frame in source.timed_frames():
            frames.append(timed_frame)
    return frames


def test_frames_are_rgb_and_come_at_the_time_of_the_clock():
    capture = FakeCapture()
    source = camera(capture)
    times, frames, _ = zip(*read(source), strict=True)
    assert np.array_equal(frames, PICTURES) and all(frame.flags.c_contiguous for frame in frames)
    # Two at the same time are one unit apart.
    assert list(times) == [0, Fraction(4, 100), Fraction(1, 10), Fraction(1, 10) + source.time_base, 1]
    assert capture.is_released
    assert (source.num_frames, source.has_audio, source.frame_rate) == (None, False, 30)
    assert [source.frame_name(index) for index in (0, 12)] == ["00000000", "00000012"]


@pytest.mark.parametrize(
    ("told", "frame_rate"), [(29.97002997, Fraction(30000, 1001)), (0.0, None), (-1.0, None), (1e9, None)]
)
def test_a_camera_may_not_tell_its_frame_rate(told, frame_rate):
    assert camera(FakeCapture(told)).frame_rate == frame_rate


def test_the_camera_is_released_when_its_frames_are_no_longer_wanted():
    capture = FakeCapture()
    frames = iter(camera(capture))
    next(frames)
    assert not capture.is_released
    frames.close()
    assert capture.is_released


def test_the_first_iteration_uses_the_open_camera_and_the_next_one_opens_it_again():
    captures = [FakeCapture(), FakeCapture()]
    source = camera(*captures, ticks=range(10))
    assert [len(read(source)), captures[1].is_released, len(read(source))] == [5, False, 5]


def test_a_camera_that_cannot_be_opened_is_named():
    capture = FakeCapture(is_there=False)
    with pytest.raises(ValueError, match=r"a camera that is connected and free. Got 3, which cannot be opened"):
        camera(capture)
    assert capture.is_released


def test_a_camera_without_pictures_is_named():
    with pytest.raises(ValueError, match=r"delivers pictures. Got none from camera 3") as error:
        list(camera(FakeCapture(num_frames=0)))
    assert not isinstance(error.value, IncompleteVideoError)


@pytest.mark.parametrize("index", [2, "2"])
def test_a_number_opens_a_camera_through_opencv(monkeypatch, tmp_path, index):
    opened = []
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda i: opened.append(i) or FakeCapture()))
    monkeypatch.chdir(tmp_path)
    source = open_frame_source(index)
    assert isinstance(source, Camera) and source.path == "camera 2" and opened == [2]
    frames = source.timed_frames()
    assert [next(frames)[1].shape for _ in range(5)] == [(6, 8, 3)] * 5 and opened == [2]


def test_a_missing_opencv_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"OpenCV is not installed. Got camera 0; `pip install .*\[camera\]`"):
        open_frame_source(0)
