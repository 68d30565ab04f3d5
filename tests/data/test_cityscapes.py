# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.sources import load_videos

# The 19 evaluated classes of the benchmark, in the order of its results.
NAMES = "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car"
NAMES = [*NAMES.split(","), "truck", "bus", "train", "motorcycle", "bicycle"]
IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def root(tmp_path):
    """Two snippets of thirty frames, the twentieth labelled, and one of another sequence."""
    root = tmp_path / "cityscapes"
    write_snippet(root, "aachen", "aachen_000000", range(0, 30))
    write_snippet(root, "aachen", "aachen_000001", range(0, 30))
    write_snippet(root, "bochum", "bochum_000000", range(5, 35))
    write_snippet(root, "bochum", "bochum_000000", range(300, 330))
    return root


def write_snippet(root, city, sequence, numbers):
    frames, masks = (root / folder / "train" / city for folder in ("leftImg8bit_sequence", "gtFine"))
    frames.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (12, 6), (number % 256, 0, 0)).save(frames / f"{sequence}_{number:06d}_leftImg8bit.png")
    name = f"{sequence}_{numbers[19]:06d}_gtFine"
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(6, 12) % 34).save(masks / f"{name}_labelIds.png")
    Image.new("RGBA", (12, 6)).save(masks / f"{name}_color.png")
    (masks / f"{name}_polygons.json").write_text("{}")


@pytest.fixture
def load(root):
    return lambda split="train": load_videos(root, split)


def test_a_snippet_is_a_video_with_one_labelled_frame(load):
    videos = load()
    first_frames = ["aachen_000000_000000", "aachen_000001_000000", "bochum_000000_000005", "bochum_000000_000300"]
    assert videos.rows["video_id"] == first_frames and videos.num_frames == 120
    row = videos.rows[2]
    assert [index for index, mask in enumerate(row["masks"]) if mask] == [19]
    assert row["masks"][19] == "gtFine/train/bochum/bochum_000000_000024_gtFine_labelIds.png"
    assert row["frames"][19] == "leftImg8bit_sequence/train/bochum/bochum_000000_000024_leftImg8bit.png"
    assert [videos.read_frame(row, index)[0, 0, 0] for index in range(30)] == list(range(5, 35))


def test_evaluated_ids_become_raw_ids_and_others_void(load):
    videos = load()
    assert videos.class_names == NAMES
    mask = videos.read_mask(videos.rows[0], 19)
    expected = [IDS.index(value % 34) + 1 if value % 34 in IDS else 0 for value in range(72)]
    assert mask.dtype == np.uint8 and mask.ravel().tolist() == expected
    assert videos.read_mask(videos.rows[0], 18) is None


def test_unknown_id_is_rejected(load, root):
    path = root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((6, 12), 34, np.uint8)).save(path)
    videos = load()
    with pytest.raises(ValueError, match=r"000019_gtFine_labelIds.png must hold values .* of the 19 classes .*Got 34"):
        videos.read_mask(videos.rows[0], 19)


def test_missing_frames_split_a_snippet(load, root):
    (root / "leftImg8bit_sequence/train/aachen/aachen_000000_000010_leftImg8bit.png").unlink()
    rows = load().rows
    assert rows["video_id"][:2] == ["aachen_000000_000000", "aachen_000000_000011"]
    assert rows["num_frames"][:2] == [10, 19] and set(rows[0]["masks"]) == {""}


def test_mask_without_frame_and_missing_split_are_rejected(load, root):
    (root / "leftImg8bit_sequence/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Got no frame for 'aachen_000000_000019_gtFine_labelIds.png'"):
        load()
    with pytest.raises(FileNotFoundError, match="Got 'val'; available: train"):
        load("val")
    (root / "leftImg8bit_sequence/val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"val must hold frames .*check the file names"):
        load("val")
