# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.images import DamagedFileError
from transformers_themask.data.sources import load_videos
from transformers_themask.data.video_file import read_video_frame

NUM_FRAMES = 40
SIZE = (48, 64)


def picture(index):
    """A frame whose grey level and bar tell its index."""
    frame = np.full((*SIZE, 3), 20 + 5 * index, np.uint8)
    frame[:, index : index + 8] = 250
    return frame


def write_video(path, key_frame_interval=12, open_gop=False):
    """An H.264 file with B-frames, whose order in the file is not that in time."""
    with av.open(str(path), "w") as container:
        options = {"crf": "12", "bf": "3", "g": str(key_frame_interval), "x264-params": f"open-gop={int(open_gop)}"}
        stream = container.add_stream("libx264", rate=Fraction(25), options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode(None))


def write_mask(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(SIZE, value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """A split of one video as images with two masks, and one as a file with two."""
    root = tmp_path / "videos"
    (root / "train" / "images" / "frames").mkdir(parents=True)
    for index in range(12):
        Image.fromarray(picture(index)).save(root / "train" / "images" / "frames" / f"{index}.jpg")
    for index in (2, 10):
        write_mask(root / "train" / "images" / "masks" / f"{index}.png")
    write_video(root / "train" / "drive.mp4")
    write_mask(root / "train" / "drive" / "masks" / "7.png", 2)
    write_mask(root / "train" / "drive" / "masks" / "00000031.png")
    (root / "classes.txt").write_text("cat\r\ndog\r\n\n", encoding="utf-8-sig")
    return root


@pytest.fixture
def load(root):
    return lambda split="train": load_videos(root, split)


def test_images_are_ordered_by_number_and_masks_found_by_name(load):
    videos = load()
    assert videos.class_names == ["cat", "dog"]
    assert videos.rows["video_id"] == ["drive", "images"]
    row = videos.rows[1]
    assert row["frames"] == [f"train/images/frames/{index}.jpg" for index in range(12)]
    assert [index for index, mask in enumerate(row["masks"]) if mask] == [2, 10]
    assert abs(int(videos.read_frame(row, 11)[0, 0, 0]) - 75) < 5
    assert (videos.read_mask(row, 10) == 1).all() and videos.read_mask(row, 3) is None


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("open_gop", [False, True])
def test_random_access_equals_sequential_decoding(tmp_path, suffix, open_gop):
    path = tmp_path / f"video{suffix}"
    write_video(path, open_gop=open_gop)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(expected) == NUM_FRAMES
    order = [*np.random.default_rng(0).permutation(NUM_FRAMES), *range(NUM_FRAMES), *reversed(range(NUM_FRAMES))]
    for index in order:
        assert np.array_equal(read_video_frame(path / f"{index:08d}"), expected[index]), index


def test_masks_of_a_video_file_are_found_by_index(load):
    videos = load()
    row = videos.rows[0]
    assert row["num_frames"] == NUM_FRAMES and row["frames"][31] == "train/drive.mp4/00000031"
    assert {index: mask for index, mask in enumerate(row["masks"]) if mask} == {
        7: "train/drive/masks/7.png",
        31: "train/drive/masks/00000031.png",
    }
    assert videos.frame_size(row, 7) == videos.mask_size(row, 7) == SIZE
    assert abs(int(videos.read_frame(row, 31)[0, 0, 0]) - (20 + 5 * 31)) < 5


def test_forked_process_does_not_share_the_open_file(root):
    def read(indices):
        path = root / "train" / "drive.mp4"
        return [int(read_video_frame(path / f"{index:08d}")[0, -1, 0]) for index in indices]

    before = read(range(5))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(read(range(5, 40))), daemon=True)
    child.start()
    assert receiver.poll(60)
    in_child = receiver.recv()
    child.join()
    assert [*before, *in_child] == [*before, *read(range(5, 40))]


def test_damaged_video_file_is_rejected_or_skipped(load, root):
    path = root / "train" / "drive.mp4"
    path.write_bytes(path.read_bytes()[:-1000])  # the table of frames is at the end
    with pytest.raises(DamagedFileError, match=r"drive.mp4 must (be readable|hold a video stream)"):
        load()
    (root / "skip.txt").write_text("drive\n")
    assert load().rows["video_id"] == ["images"]


def test_frames_before_a_damaged_one_are_read(root):
    path = root / "train" / "drive.mp4"
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    content[(start + end) // 2 : end - 4] = bytes(end - 4 - (start + end) // 2)
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DamagedFileError, match=r"drive.mp4 must be readable. Got at frame 39"):
            read_video_frame(path / "00000039")
        assert abs(int(read_video_frame(path / "00000001")[0, 0, 0]) - 25) < 5


def test_custom_class_ids_are_mapped(load, root):
    (root / "classes.json").write_text(json.dumps({"dog": 2, "background": 0, "cat": 1}))
    videos = load()
    assert videos.class_names == ["background", "cat", "dog"]
    write_mask(root / "train" / "images" / "masks" / "2.png", 0)
    write_mask(root / "train" / "images" / "masks" / "10.png", 255)
    row = videos.rows[1]
    assert (videos.read_mask(row, 2) == 1).all() and (videos.read_mask(row, 10) == 255).all()
    write_mask(root / "train" / "images" / "masks" / "2.png", 3)
    with pytest.raises(ValueError, match=r"2.png must hold values that stand for one of the 3 classes .*Got 3"):
        videos.read_mask(row, 2)


@pytest.mark.parametrize("content", ["", "cat\n\ndog\n", "cat\ncat\n"])
def test_invalid_classes_txt_is_rejected(load, root, content):
    (root / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=r"classes.txt must (hold one class name per line|name 1 to 253 classes)"):
        load()


@pytest.mark.parametrize("content", ['["cat"]', '{"cat": 255}', '{"cat": 1, "dog": 1}', '{"cat": "x"}', "{}"])
def test_invalid_classes_json_is_rejected(load, root, content):
    (root / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes.json"):
        load()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("drive/masks/40.png", "index of a frame in .*drive.mp4, 0 to 39. Got 40.png"),
        ("drive/masks/first.png", "index of a frame .*Got first.png"),
        ("drive/masks/007.png", "one mask at most. Got 007.png and 7.png|one mask at most. Got 7.png and 007.png"),
        ("images/masks/77.png", "Got no frame for '77'"),
        ("other/masks/0.png", "must have one source of frames, .*other/frames or a file next to it .*Got none"),
    ],
)
def test_mask_without_frame_is_rejected(load, root, mask, message):
    write_mask(root / "train" / mask)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load()


def test_video_with_two_sources_is_rejected(load, root):
    (root / "train" / "drive" / "frames").mkdir()
    with pytest.raises(ValueError, match=r"one source of frames.*Got .*drive and .*drive.mp4"):
        load()


def test_missing_split_error_lists_the_available_ones(load, root):
    (root / "notes").mkdir()
    with pytest.raises(FileNotFoundError, match="Got 'val'; available: train"):
        load("val")
