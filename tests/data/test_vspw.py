# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.images import DamagedFileError, read_frame, read_mask
from transformers_themask.data.sources import load_videos
from transformers_themask.data.vspw import read_class_names


@pytest.fixture
def load(vspw_root):
    return lambda split="train": load_videos(vspw_root, split).rows


def test_rows_list_relative_paths_in_temporal_order(load):
    rows = load()
    assert rows["video_id"] == ["a", "b"]
    assert rows["num_frames"] == [5, 3]
    assert rows[1]["frames"] == [f"data/b/origin/{index:08d}.png" for index in (7, 8, 9)]
    assert rows[1]["masks"] == [f"data/b/mask/{index:08d}.png" for index in (7, 8, 9)]


def test_any_text_file_is_a_split(load, vspw_root):
    (vspw_root / "train_strict.txt").write_text("b\r\n\n")
    assert load("train_strict")["video_id"] == ["b"]


def test_changed_files_are_listed_again(load, vspw_root):
    assert load()["num_frames"] == [5, 3]
    for folder, suffix in (("origin", ".png"), ("mask", ".png")):
        (vspw_root / "data" / "b" / folder / f"00000007{suffix}").unlink()
    assert load()["num_frames"] == [5, 2]
    (vspw_root / "train.txt").write_text("b\nc\n")
    assert load()["video_id"] == ["b", "c"]


def test_listing_writes_no_cache_and_no_progress_bar(load, capfd):
    assert load().cache_files == []
    assert capfd.readouterr().err == ""


def test_class_names_follow_the_ids_not_the_file(vspw_root):
    assert read_class_names(vspw_root) == ["left", "right"]


def test_frames_and_masks_read_back_as_written(vspw_root):
    frame = read_frame(vspw_root / "data" / "b" / "origin" / "00000008.png")
    mask = read_mask(vspw_root / "data" / "b" / "mask" / "00000008.png")
    assert frame.dtype == mask.dtype == np.uint8
    assert frame[3, 20].tolist() == [10, 200, 0]
    assert (mask == np.repeat([1, 2], 16)).all() and mask.shape == (24, 32)


def test_missing_split_error_lists_the_available_ones(load):
    with pytest.raises(FileNotFoundError, match="Got 'test'; available: train, val"):
        load("test")


def test_path_as_split_is_rejected(load):
    with pytest.raises(ValueError, match=r"letters, digits and underscores only. Got '../train'"):
        load("../train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "at least one video"), ("a\nb\na\n", "every video once. Got 'a'"), ("a\nd\n", "Got 'd'; remove the line")],
)
def test_invalid_split_file_is_rejected(load, vspw_root, content, message):
    (vspw_root / "train.txt").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load()


def test_frame_without_mask_is_rejected(load, vspw_root):
    (vspw_root / "data" / "a" / "mask" / "00000009.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Got no mask for '00000009' .*add 00000009.png to .*a/mask"):
        load()


def test_mask_without_frame_is_rejected(load, vspw_root):
    (vspw_root / "data" / "a" / "origin" / "00000009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="Got no frame for '00000009'"):
        load()


def test_two_frames_of_one_stem_are_rejected(load, vspw_root):
    origin = vspw_root / "data" / "a" / "origin"
    shutil.copy(origin / "00000009.jpg", origin / "00000009.png")
    with pytest.raises(ValueError, match=r"a stem of its own. Got 6 frames with 5 stems"):
        load()


def test_video_without_frames_or_mask_folder_is_rejected(load, vspw_root):
    shutil.rmtree(vspw_root / "data" / "a" / "mask")
    with pytest.raises(FileNotFoundError, match=r"must have the folder .*mask"):
        load()
    (vspw_root / "data" / "a" / "mask").mkdir()
    for frame in (vspw_root / "data" / "a" / "origin").iterdir():
        frame.unlink()
    with pytest.raises(FileNotFoundError, match="must hold at least one frame"):
        load()


def test_missing_data_folder_and_binary_split_file_are_rejected(load, vspw_root):
    (vspw_root / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"val.txt must be a text file"):
        load("val")
    shutil.rmtree(vspw_root / "data")
    with pytest.raises(FileNotFoundError, match=r"must hold the folder data with the videos; there is no .*vspw/data"):
        load()


def test_missing_label_file_is_rejected(vspw_root):
    with pytest.raises(FileNotFoundError, match=r"`root` must be a folder in VSPW layout. Got .*nowhere"):
        read_class_names(vspw_root / "nowhere")
    (vspw_root / "label_num_dic_final.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"`root` must contain label_num_dic_final.json"):
        read_class_names(vspw_root)


@pytest.mark.parametrize("ids", [{"a": "1", "b": "3"}, {"a": "1", "b": "1"}, {"others": "0"}, {"a": "2"}, {"a": "-1"}])
def test_class_ids_with_gaps_or_repetitions_are_rejected(vspw_root, ids):
    (vspw_root / "label_num_dic_final.json").write_text(json.dumps(ids))
    with pytest.raises(ValueError, match="without gaps or repetitions"):
        read_class_names(vspw_root)


@pytest.mark.parametrize("content", ["{", '["a", "b"]', '{"a": "one"}', '{"a": null}'])
def test_invalid_label_file_is_rejected(vspw_root, content):
    (vspw_root / "label_num_dic_final.json").write_text(content)
    with pytest.raises(ValueError, match=r"label_num_dic_final.json must map every class name to an id string"):
        read_class_names(vspw_root)


@pytest.mark.parametrize("mode", ["RGB", "I;16", "1"])
def test_mask_of_several_channels_is_rejected(tmp_path, mode):
    path = tmp_path / "mask.png"
    image = Image.new("I;16", (4, 4)) if mode == "I;16" else Image.fromarray(np.ones((4, 4), np.uint8)).convert(mode)
    image.save(path)
    with pytest.raises(ValueError, match=r"Label map .*mask.png must be an 8-bit single-channel image"):
        read_mask(path)


def test_ids_of_a_palette_image_are_its_indices(tmp_path):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(ids)
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    image.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == "P"
    assert np.array_equal(read_mask(tmp_path / "mask.png"), ids)


def test_unreadable_image_error_names_the_file(tmp_path):
    for name, content in (("text.jpg", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=f"Image file .*{name} must be readable"):
            read_frame(tmp_path / name)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(OSError, match=r"half.jpg must be readable"):
        read_frame(tmp_path / "half.jpg")
    with pytest.raises(FileNotFoundError, match=r"missing.png must exist"):
        read_mask(tmp_path / "missing.png")


def test_frames_are_ordered_by_their_numbers(load, vspw_root):
    video = vspw_root / "data" / "b"
    for folder in ("origin", "mask"):
        for path, number in zip(sorted((video / folder).iterdir()), (2, 9, 10), strict=True):
            path.rename(path.with_name(f"{number}.png"))
    assert [path.rpartition("/")[2] for path in load()[1]["frames"]] == ["2.png", "9.png", "10.png"]


def test_split_without_mask_folders_has_no_labels(load, vspw_root):
    shutil.rmtree(vspw_root / "data" / "c" / "mask")
    row = load("val")[0]
    assert row["num_frames"] == 4 and row["masks"] == [""] * 4


def test_system_error_is_not_a_damaged_file_error(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder.png must be readable") as error:
        read_frame(tmp_path / "folder.png")
    assert not isinstance(error.value, DamagedFileError)
    (tmp_path / "junk.png").write_bytes(b"junk")
    (tmp_path / "header.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + (4).to_bytes(4, "big") + b"IHDR" + bytes(4) + b"\0" * 4
    )
    for name in ("junk", "header"):
        with pytest.raises(DamagedFileError, match=f"{name}.png must be readable"):
            read_frame(tmp_path / f"{name}.png")
