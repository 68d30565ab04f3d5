# SPDX-License-Identifier: Apache-2.0
"""A name from a file never leads out of the folder that it belongs to."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.files.plain_names import inside, is_plain_name
from transformers_themask.mvc.aggregation import aggregate_video
from transformers_themask.mvc.label_folders import videos_of_data_set
from transformers_themask.sinks.label_maps import write_label_map


@pytest.fixture
def root(tmp_path):
    write_synthetic_dataset(tmp_path / "data", num_train_videos=1, num_val_videos=2, num_frames=2, size=(16, 24))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "line",
    ["../data/val_0000", "val_0000/", "./val_0000", "val_0001/../val_0000", "..", ".", "a\\b", "a\x00b", "a\x1bb"],
)
def test_names_of_videos_with_separators_or_control_characters_are_rejected(root, line):
    (root / "val.txt").write_text(f"val_0001\n{line}\n")
    with pytest.raises(ValueError, match=r"val.txt must be one file name without separators. Got '"):
        load_videos(root, "val")


def test_absolute_names_and_names_beyond_the_limit_are_not_plain(tmp_path):
    assert not any(is_plain_name(name) for name in ("", str(tmp_path), "x" * 256, "é" * 128))
    assert all(is_plain_name(name) for name in ("a b", "...", "été", "-x", "x" * 255, "C:x"))


def test_label_maps_are_not_written_through_a_link_out_of_the_folder(root, tmp_path):
    (video, *_) = videos_of_data_set(load_videos(root, "val"))
    results, output, elsewhere = (tmp_path / name for name in ("results", "output", "elsewhere"))
    elsewhere.mkdir()
    output.mkdir()
    (output / video.name).symlink_to(elsewhere)
    for index in range(2):
        write_label_map(np.zeros((16, 24), np.uint8), video.new_label_path(results, index))
    for write in (lambda: video.new_label_path(output, 0), lambda: aggregate_video(video, [results], output)):
        with pytest.raises(ValueError, match="must be written inside"):
            write()
    assert not list(elsewhere.iterdir())


def test_files_inside_a_linked_folder_are_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", tmp_path / "link" / "a" / "b.png") == tmp_path / "link" / "a" / "b.png"


def test_a_video_that_is_a_link_is_read(root, tmp_path):
    shutil.move(root / "data" / "val_0000", tmp_path / "moved")
    (root / "data" / "val_0000").symlink_to(tmp_path / "moved")
    videos = load_videos(root, "val")
    assert videos.read_frame(videos.rows[0], 0).shape == (16, 24, 3)


@pytest.mark.parametrize("value", [1.5, 1.0, True, None, "1.0", "", "one", [1], "1" * 12])
def test_class_ids_that_are_no_whole_numbers_are_rejected(root, value):
    (root / "label_num_dic_final.json").write_text(json.dumps({"a": value}))
    with pytest.raises(ValueError, match=r"must map every class name to an id string\. Got "):
        load_videos(root, "val")


def test_more_classes_than_an_8_bit_mask_can_hold_are_rejected(root):
    (root / "label_num_dic_final.json").write_text(json.dumps({f"class {index}": index for index in range(1, 256)}))
    with pytest.raises(ValueError, match="up to 254"):
        load_videos(root, "val")


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_class_names_that_cannot_be_shown_are_rejected(root, name):
    (root / "label_num_dic_final.json").write_text(json.dumps({name: "1"}))
    with pytest.raises(ValueError, match="Got the name"):
        load_videos(root, "val")


def test_masks_are_still_read(root):
    videos = load_videos(root, "val")
    row = videos.rows[0]
    assert (videos.read_mask(row, 0) == np.asarray(Image.open(root / row["masks"][0]))).all()
