# SPDX-License-Identifier: Apache-2.0
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.mvc.label_folders import (
    check_label_folder,
    frames_with_label_maps,
    label_files,
    read_label_map,
    single_video,
    videos_of_data_set,
)
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter


def label_maps_for(video, folder, seed=0):
    """Random label maps of all frames of a video, written where a result has them."""
    rng = np.random.default_rng(seed)
    label_maps = [rng.integers(0, 6, frame.shape[:2], dtype=np.uint8) for frame in video.frames]
    for index, label_map in enumerate(label_maps):
        write_label_map(label_map, video.label_path(folder, index))
    return label_maps


@pytest.fixture
def numbered(frame_folder):
    """A folder of eleven frames, 00000100.png, 00000102.png ..., as a video."""
    (video,) = single_video(open_frame_source(frame_folder))
    return video


def test_frames_come_with_the_label_map_of_every_folder(numbered, frames, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    expected = [label_maps_for(numbered, folder, seed) for seed, folder in enumerate(folders)]
    assert [file.name for file in label_files(folders[0])] == [f"{100 + 2 * index:08d}.png" for index in range(11)]
    (tmp_path / "a" / "._00000100.png").touch()  # what some systems leave behind
    for _ in range(2):  # any number of times
        read = list(frames_with_label_maps(numbered, folders))
        np.testing.assert_array_equal([frame for frame, _ in read], frames)
        np.testing.assert_array_equal([maps for _, maps in read], list(zip(*expected, strict=True)))


def test_a_video_file_has_label_maps_by_the_index_of_a_frame(video_path, tmp_path):
    (video,) = single_video(VideoReader(video_path))
    expected = label_maps_for(video, tmp_path)
    assert video.name == "" and [file.stem for file in label_files(tmp_path)][:2] == ["00000000", "00000001"]
    read = list(frames_with_label_maps(video, [tmp_path]))
    np.testing.assert_array_equal([frame for frame, _ in read], list(VideoReader(video_path)))
    np.testing.assert_array_equal([maps[0] for _, maps in read], expected)


def test_videos_of_a_data_set_have_a_folder_each(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "labels"
    write_synthetic_dataset(root, 1, 2, num_frames=3, size=(32, 40))
    videos = videos_of_data_set(load_videos(root, "val"))
    assert [video.name for video in videos] == ["val_0000", "val_0001"]
    for seed, video in enumerate(videos):
        expected = label_maps_for(video, folder, seed)
        names = [file.relative_to(folder).as_posix() for file in label_files(folder / video.name)]
        assert names == [f"{video.name}/{number:08d}.png" for number in (1, 2, 3)]
        read = list(frames_with_label_maps(video, [folder]))
        np.testing.assert_array_equal(
            [frame for frame, _ in read], list(FrameFolder(root / "data" / video.name / "origin"))
        )
        np.testing.assert_array_equal([maps[0] for _, maps in read], expected)


def test_a_data_set_may_have_video_files(frames, tmp_path):
    root = tmp_path / "root"
    (root / "val").mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nmeadow\n")
    with VideoWriter(root / "val" / "drive.mp4", 10) as writer:
        for frame in frames[:4]:
            writer.write(frame)
    (video,) = videos_of_data_set(load_videos(root, "val"))
    assert video.label_path(tmp_path, 3) == tmp_path / "drive" / "00000003.png"
    np.testing.assert_array_equal(list(video.frames), list(VideoReader(root / "val" / "drive.mp4")))


def test_one_frame_at_a_time_is_read(numbered, tmp_path):
    """The label map of the last frame may be missing until it is needed."""
    label_maps_for(numbered, tmp_path)
    last = label_files(tmp_path)[-1]
    content = last.read_bytes()
    last.unlink()
    read = frames_with_label_maps(numbered, [tmp_path])
    for _ in range(10):
        next(read)
    last.write_bytes(content)
    assert len(list(read)) == 1


def test_a_missing_label_map_is_named(numbered, tmp_path):
    label_maps_for(numbered, tmp_path)
    (tmp_path / "00000106.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00000106.png must exist, as every frame has a label map"):
        list(frames_with_label_maps(numbered, [tmp_path]))


def test_a_label_map_too_many_is_found(numbered, tmp_path):
    label_maps_for(numbered, tmp_path)
    write_label_map(np.zeros((36, 50), dtype=np.uint8), tmp_path / "00000999.png")
    with pytest.raises(ValueError, match=r"must hold the label maps of 11 frames. Got 12. Is it the result of anoth"):
        list(frames_with_label_maps(numbered, [tmp_path]))


def test_label_maps_of_another_kind_are_rejected(tmp_path):
    path = tmp_path / "map.png"
    write_label_map(np.zeros((4, 6), dtype=np.uint8), path)
    assert read_label_map(path, (4, 6)).dtype == np.uint8
    with pytest.raises(ValueError, match=r"must have the size of its frame, 6x4. Got \(4, 6\)"):
        read_label_map(path, (6, 4))
    Image.new("RGB", (6, 4)).save(path)
    with pytest.raises(ValueError, match="must be an 8-bit single-channel image of ids"):
        read_label_map(path, (4, 6))


def test_a_folder_without_label_maps_of_a_video_is_found_before_it_is_read(numbered, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"{folder} must be a folder of label maps, one PNG per frame"):
            check_label_folder(folder, [numbered])
    label_maps_for(numbered, tmp_path)
    check_label_folder(tmp_path, [numbered])


def test_a_damaged_video_is_no_half_of_a_result(frame_folder, tmp_path):
    for position, file in enumerate(sorted(frame_folder.iterdir())):
        (tmp_path / file.name).write_bytes(b"damaged" if position == 5 else file.read_bytes())
    (video,) = single_video(FrameFolder(tmp_path))
    with pytest.raises(ValueError, match=r"5 frames could be read\. No output was written") as error:
        list(video.frames)
    assert not isinstance(error.value, IncompleteVideoError)


def test_camera_is_rejected(monkeypatch):
    capture = SimpleNamespace(isOpened=lambda: True, get=lambda _: 30.0, release=lambda: None)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda _: capture))
    with pytest.raises(ValueError, match=r"`source` must be a video that can be read again. Got camera 0; record it"):
        single_video(open_frame_source("0"))
