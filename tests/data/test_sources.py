# SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.sources import load_videos


def test_vspw_layout_is_recognised(vspw_root):
    videos = load_videos(vspw_root, "train")
    assert videos.class_names == ["left", "right"] and videos.num_labels == 2 and videos.num_frames == 8
    row = videos.rows[1]
    assert videos.frame_size(row, 0) == videos.mask_size(row, 0) == (24, 32)
    assert videos.read_frame(row, 1)[0, 0, 0] == 10
    assert np.array_equal(videos.read_mask(row, 1)[0], np.repeat([1, 2], 16))


def test_videos_can_be_pickled(vspw_root):
    videos = load_videos(str(vspw_root), "val")
    copy = pickle.loads(pickle.dumps(videos))
    assert copy.rows[0] == videos.rows[0] and copy.root == vspw_root


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "which is not a folder"), ("", "classes.txt or classes.json")]
)
def test_unknown_layout_is_rejected(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_videos(tmp_path / name, "train")


def test_skip_list_removes_frames_and_videos_with_a_warning(vspw_root, caplog):
    def load():
        return load_videos(vspw_root, "train").rows

    (vspw_root / "skip.txt").write_text("# damaged\nb/00000008   # half of it is missing\n\na\nelsewhere/0\n")
    rows = load()
    assert rows["video_id"] == ["b"] and rows["num_frames"] == [2]
    assert rows[0]["frames"] == [f"data/b/origin/{index:08d}.png" for index in (7, 9)]
    assert rows[0]["masks"] == [f"data/b/mask/{index:08d}.png" for index in (7, 9)]
    assert caplog.messages == [f"{vspw_root / 'skip.txt'} leaves out 6 frames."]
    (vspw_root / "data" / "a" / "mask" / "00000007.png").unlink()
    assert load()["video_id"] == ["b"]
    assert caplog.messages[1].endswith("skip.txt leaves out 1 frames and 1 videos that cannot be listed.")
    (vspw_root / "skip.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"at least one video. Got none in .*check the split and skip.txt"):
        load()
    (vspw_root / "skip.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"skip.txt must be a text file"):
        load()


def test_skip_list_is_not_listed_as_a_split(vspw_root):
    (vspw_root / "skip.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match="available: train, val"):
        load_videos(vspw_root, "test")


def test_vspw_ids_of_124_classes_and_both_voids_are_read(vspw_root):
    names = {"others": "0", **{f"class {index}": str(index) for index in range(124, 0, -1)}}
    (vspw_root / "label_num_dic_final.json").write_text(str(names).replace("'", '"'))
    ids = np.resize(np.array([*range(125), 255], dtype=np.uint8), (24, 32))
    Image.fromarray(ids).save(vspw_root / "data" / "c" / "mask" / "00000007.png")
    videos = load_videos(vspw_root, "val")
    assert videos.class_names[0] == "class 1" and videos.num_labels == 124
    assert np.array_equal(videos.read_mask(videos.rows[0], 0), ids)
