# SPDX-License-Identifier: Apache-2.0
"""Results that would be wrong, or lost at the end, are noticed."""

from fractions import Fraction

import numpy as np
import pytest

from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.mvc.aggregation import aggregate_video
from transformers_themask.mvc.label_folders import single_video, videos_of_data_set
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.sinks.timeline import ClassTimeline
from transformers_themask.videos.frame_folder import FrameFolder


@pytest.mark.parametrize(("value", "found"), [(255, "void alone"), (8, "8"), (200, "200")])
def test_label_maps_of_void_or_unknown_classes_win_no_aggregation(tmp_path, value, found):
    write_synthetic_dataset(tmp_path / "data", num_train_videos=1, num_val_videos=1, num_frames=3, size=(32, 48))
    (video,) = videos_of_data_set(load_videos(tmp_path / "data", "val"))
    rng = np.random.default_rng(0)
    for index in range(3):
        write_label_map(rng.integers(0, 8, (32, 48), dtype=np.uint8), video.label_path(tmp_path / "good", index))
        label_map = rng.integers(0, 8, (32, 48), dtype=np.uint8)
        if index == 1:
            label_map[...] = value
        write_label_map(label_map, video.label_path(tmp_path / "bad", index))
    with pytest.raises(ValueError, match=rf"bad.*must hold class indices from 0 to 7. Got {found}"):
        aggregate_video(video, [tmp_path / "good", tmp_path / "bad"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Of a single video the classes are not known, but void alone is no result.
    (alone,) = single_video(FrameFolder(tmp_path / "data" / "data" / video.name / "origin"))
    folders = [tmp_path / name / video.name for name in ("good", "bad")]
    if value == 255:
        with pytest.raises(ValueError, match=r"must hold class indices. Got void alone"):
            aggregate_video(alone, folders, tmp_path / "out")
    else:
        assert aggregate_video(alone, folders, tmp_path / "out").num_frames == 3


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_class_names_with_dollar_signs_are_drawn_as_text(tmp_path, suffix):
    names = ["$\\frac$", "a$b", "_hidden", "<b>", "%s"]
    path = tmp_path / f"timeline.{suffix}"
    timeline = ClassTimeline(path, names, np.arange(15, dtype=np.uint8).reshape(5, 3))
    for index in range(3):
        label_map = np.arange(20, dtype=np.uint8).reshape(4, 5) % 5
        timeline.write(LabelledFrame(index, Fraction(index, 10), f"{index}", np.zeros((4, 5, 3), np.uint8), label_map))
    timeline.close()
    content = path.read_bytes()
    assert len(content) > 1000
    if suffix == "svg":
        text = content.decode()
        assert all(name in text for name in ("$\\frac$", "a$b", " hidden", "&lt;b&gt;", "%s"))
