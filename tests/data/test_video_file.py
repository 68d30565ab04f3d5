# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from hostile_videos import DISPLAY_MATRICES, picture, turn_display, write_video
from transformers_themask.data.video_file import read_video_frame, video_frame_path
from transformers_themask.videos.video_reader import VideoReader


@pytest.mark.parametrize("turn", DISPLAY_MATRICES)
def test_single_frames_have_the_orientation_of_the_whole_video(tmp_path, turn):
    matrix, upright = DISPLAY_MATRICES[turn]
    path = write_video(tmp_path / "plain.mp4", [picture(index) for index in range(5)])
    turned = turn_display(write_video(tmp_path / "turned.mp4", [picture(index) for index in range(5)]), matrix)
    whole = list(VideoReader(turned))
    for index in (3, 0, 4):
        plain = read_video_frame(tmp_path / video_frame_path(path.name, index))
        frame = read_video_frame(tmp_path / video_frame_path(turned.name, index))
        assert np.array_equal(frame, upright(plain)) and np.array_equal(frame, whole[index])


def test_file_name_with_a_colon_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "a:1.mp4", [picture(0)])
    assert read_video_frame(path.relative_to(tmp_path) / "00000000").shape == (48, 64, 3)
