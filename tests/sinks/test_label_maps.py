# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from transformers_themask.sinks.label_maps import LabelFolder, write_label_map


def test_a_label_map_survives_the_png(tmp_path):
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label_map(label_map, tmp_path / "new" / "a.png")
    image = Image.open(tmp_path / "new" / "a.png")
    assert image.mode == "L" and np.array_equal(image, label_map)


def test_a_label_map_of_many_classes_survives_the_png(tmp_path):
    label_map = np.array([[0, 255, 256, 999]], dtype=np.int32)
    write_label_map(label_map, tmp_path / "a.png")
    assert np.array_equal(Image.open(tmp_path / "a.png"), label_map)


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_appears_when_all_label_maps_are_there(labelled_frames, tmp_path, exists):
    folder = tmp_path / "new" / "labels"
    if exists:
        folder.mkdir(parents=True)
    sink = LabelFolder(folder)
    for frame in labelled_frames:
        sink.write(frame)
        assert not folder.exists() or not list(folder.iterdir())
    sink.close()
    sink.abandon()
    assert [path.name for path in folder.parent.iterdir()] == ["labels"]
    assert sorted(path.stem for path in folder.iterdir()) == [frame.name for frame in labelled_frames]
    for frame in labelled_frames:
        assert np.array_equal(Image.open(folder / f"{frame.name}.png"), frame.label_map)


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_no_folder_of_the_user_is_touched(labelled_frames, tmp_path, end):
    (tmp_path / "labels.unfinished").mkdir()
    (tmp_path / "labels.unfinished" / "mine.png").touch()
    sink = LabelFolder(tmp_path / "labels")
    sink.write(labelled_frames[0])
    getattr(sink, end)()
    expected = ["labels", "labels.unfinished"] if end == "close" else ["labels.unfinished"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert (tmp_path / "labels.unfinished" / "mine.png").exists()


def test_a_folder_is_made_for_frames_only(tmp_path):
    LabelFolder(tmp_path / "labels").close()
    assert not list(tmp_path.iterdir())


def test_abandoned_folder_leaves_no_files(labelled_frames, tmp_path):
    sink = LabelFolder(tmp_path / "labels")
    sink.abandon()
    sink.write(labelled_frames[0])
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_label_maps_do_not_mix_with_earlier_ones(tmp_path):
    (tmp_path / "0.png").touch()
    with pytest.raises(ValueError, match="`folder` must be a new or empty folder"):
        LabelFolder(tmp_path)
