# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest

from transformers_themask.inference.frame_source import FrameFolder, open_frame_source
from transformers_themask.inference.video_io import VideoReader


def test_a_folder_plays_its_images_in_the_order_of_their_names(frames, frame_folder):
    source = FrameFolder(frame_folder, frame_rate=Fraction(30000, 1001))
    times, images = zip(*source.timed_frames(), strict=True)
    assert np.array_equal(images, frames) and np.array_equal(list(source), frames)
    assert times == tuple(index * Fraction(1001, 30000) for index in range(11))
    assert source.num_frames == 11
    assert [source.frame_name(index) for index in (0, 10)] == ["00000100", "00000120"]


def test_open_frame_source_tells_files_from_folders(video_path, frame_folder):
    assert isinstance(open_frame_source(video_path), VideoReader)
    assert isinstance(open_frame_source(str(frame_folder)), FrameFolder)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"folder with jpg or png images. Got {tmp_path}"):
        FrameFolder(tmp_path)


def test_a_folder_needs_a_positive_frame_rate(frame_folder):
    with pytest.raises(ValueError, match=r"`frame_rate` must be positive. Got 0"):
        FrameFolder(frame_folder, Fraction(0))


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no png")
    with pytest.raises(OSError, match=r"0\.png"):
        list(FrameFolder(tmp_path))
