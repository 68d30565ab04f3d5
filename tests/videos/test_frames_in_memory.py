# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.frames_in_memory import FramesInMemory

FORMS = {
    "array": lambda frames: frames,
    "tensor": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "list_of_arrays": list,
    "tuple_of_images": lambda frames: tuple(map(Image.fromarray, frames)),
    "list_of_tensors": lambda frames: list(torch.from_numpy(frames).permute(0, 3, 1, 2)),
    "generator": lambda frames: (frame for frame in frames),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_frames_gives_the_same_video(frames, form):
    source = open_frame_source(FORMS[form](frames), Fraction(30000, 1001))
    times, images, _ = zip(*source.timed_frames(), strict=True)
    assert np.array_equal(images, frames) and all(image.dtype == np.uint8 for image in images)
    assert list(times) == [index * Fraction(1001, 30000) for index in range(11)]
    assert source.frame_rate == Fraction(30000, 1001) and (Fraction(1001, 30000) / source.time_base).denominator == 1
    assert source.num_frames == (None if form == "generator" else 11)
    assert source.frame_name(10) == "00000010" and not source.has_audio


def test_frames_of_a_list_come_again_and_those_of_a_generator_do_not(frames):
    source = FramesInMemory(list(frames))
    assert np.array_equal(list(source), list(source))
    source = FramesInMemory(iter(frames))
    assert len(list(source)) == 11
    with pytest.raises(ValueError, match=r"iterator of frames must be read only once. .*pass a list"):
        list(source)


def test_a_generator_is_asked_for_one_frame_at_a_time(frames):
    asked = []
    source = iter(FramesInMemory(asked.append(index) or frame for index, frame in enumerate(frames)))
    next(source)
    assert asked == [0]
    next(source)
    assert asked == [0, 1]


def test_frames_of_an_array_are_not_copied(frames):
    assert all(np.shares_memory(frame, frames) for frame in FramesInMemory(frames))


def test_an_open_source_is_returned_as_it_is(frames):
    source = FramesInMemory(frames)
    assert open_frame_source(source) is source


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), r"\(num_frames, height, width, 3\). Got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(num_frames, 3, height, width\). Got \(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "at least one frame"),
        ([], "at least one frame"),
        (b"abc", "a list of frames. Got a bytes"),
        (None, "a list of frames. Got a NoneType"),
    ],
    ids=["channels_first_array", "channels_last_tensor", "no_frames", "empty_list", "bytes", "nothing"],
)
def test_invalid_videos_are_named_in_the_error(video, message):
    with pytest.raises(ValueError, match=message):
        open_frame_source(video)


def test_a_frame_of_floats_is_named_and_a_frame_rate_is_positive(frames):
    with pytest.raises(ValueError, match=r"a uint8 array .* Got float64"):
        list(FramesInMemory([frames[0] / 255]))
    with pytest.raises(ValueError, match=r"`frame_rate` must be positive. Got 0"):
        FramesInMemory(frames, Fraction(0))


def test_a_generator_may_fill_one_array_again_and_again():
    def frames():
        frame = np.zeros((4, 6, 3), np.uint8)
        for value in range(3):
            frame[:] = value
            yield frame

    assert [int(frame.max()) for frame in list(FramesInMemory(frames()))] == [0, 1, 2]
