# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.sources import load_videos
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.source import IncompleteVideoError


def write_levels(folder, names):
    """Images of rising grey levels under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names):
        Image.fromarray(np.full((8, 12, 3), level, np.uint8)).save(folder / name)


def test_a_folder_plays_its_images_at_the_frame_rate(frames, frame_folder):
    source = FrameFolder(frame_folder, frame_rate=Fraction(30000, 1001))
    times, images, _ = zip(*source.timed_frames(), strict=True)
    assert np.array_equal(images, frames) and np.array_equal(list(source), frames)
    assert times == tuple(index * Fraction(1001, 30000) for index in range(11))
    assert source.num_frames == 11
    assert [source.frame_name(index) for index in (0, 10)] == ["00000100", "00000120"]


def test_images_come_in_the_order_of_training_by_the_numbers_in_their_names(tmp_path):
    names = ["2.png", "9.png", "10.png", "f1.png", "f02.png", "f10_1.png", "f10_10.png", "f100.PNG"]
    folder = tmp_path / "val" / "clip" / "frames"
    write_levels(folder, names)
    (folder / "._2.png").write_bytes(b"what a Mac leaves behind")
    (folder / "notes.txt").write_text("no image")
    source = FrameFolder(folder)
    assert [int(frame.max()) for frame in source] == list(range(len(names)))
    assert [source.frame_name(index) for index in range(len(names))] == [name.split(".")[0] for name in names]
    (tmp_path / "classes.txt").write_text("cat")
    (row,) = load_videos(tmp_path, "val").rows
    assert [path.split("/")[-1] for path in row["frames"]] == names


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"folder with jpg or png images. Got {tmp_path}"):
        FrameFolder(tmp_path)


def test_a_folder_needs_a_positive_frame_rate(frame_folder):
    with pytest.raises(ValueError, match=r"`frame_rate` must be positive. Got 0"):
        FrameFolder(frame_folder, Fraction(0))


def test_images_of_one_stem_are_rejected(tmp_path):
    write_levels(tmp_path, ["1.png", "2.png", "2.jpg"])
    with pytest.raises(ValueError, match=r"a stem of its own. Got 3 frames with 2 stems"):
        FrameFolder(tmp_path)


def test_a_broken_first_image_is_named(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no png")
    with pytest.raises(OSError, match=r"0\.png"):
        list(FrameFolder(tmp_path))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:45]), "the image is damaged"),
        (lambda path: Image.new("RGB", (8, 12)).save(path), "the picture is 12x8, the first one 8x12"),
    ],
    ids=["damaged", "other_size"],
)
def test_images_before_a_broken_one_are_read(tmp_path, damage, problem):
    write_levels(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    damage(tmp_path / "2.png")
    frames = []
    with pytest.raises(IncompleteVideoError, match=rf"2\.png: {problem}.*; 2 frames could be read\.$"):
        for frame in FrameFolder(tmp_path):
            frames.append(frame)
    assert [int(frame.max()) for frame in frames] == [0, 1]
