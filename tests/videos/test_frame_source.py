# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.source import FrameSource
from transformers_themask.videos.video_reader import VideoReader


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "path"])
def test_files_folders_and_frames_are_told_apart(video_path, frame_folder, frames, as_path):
    kinds = {
        VideoReader: open_frame_source(as_path(video_path)),
        FrameFolder: open_frame_source(as_path(frame_folder)),
        FramesInMemory: open_frame_source(frames),
    }
    for kind, source in kinds.items():
        assert type(source) is kind and isinstance(source, FrameSource)
        times, pictures, _ = zip(*source.timed_frames(), strict=True)
        assert np.array_equal(pictures, list(source)) and len(pictures) == source.num_frames == 11
        assert times == tuple(index / source.frame_rate for index in range(11))


@pytest.mark.parametrize("name", ["0", "12"])
def test_a_folder_or_file_named_by_a_number_is_no_camera(video_path, frames, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(video_path.read_bytes())
    assert open_frame_source(name).num_frames == 11


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"an existing video file. Got .*clip.mp4"):
        open_frame_source(tmp_path / "clip.mp4")
