# SPDX-License-Identifier: Apache-2.0
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from full_disk import full_disk
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.sinks.label_track import LabelTrack, label_track_classes, read_label_track

SOURCE = SimpleNamespace(frame_rate=None, time_base=Fraction(1, 90000))
NAMES = ["sky", "meadow", 'cañon "west"', "d", "e", "f"]


def write_track(path, labelled_frames, names=NAMES):
    sink = LabelTrack(path, SOURCE, names, class_palette(len(names)))
    for frame in labelled_frames:
        sink.write(frame)
        assert not path.exists()
    sink.close()
    sink.abandon()
    return path


def test_label_maps_times_and_classes_come_back_exactly(labelled_frames, tmp_path):
    path = write_track(tmp_path / "new" / "labels.mkv", labelled_frames)
    for (time, label_map), frame in zip(read_label_track(path), labelled_frames, strict=True):
        assert time == frame.time
        assert label_map.dtype == np.uint8 and np.array_equal(label_map, frame.label_map)
    names, palette = label_track_classes(path)
    assert names == NAMES and np.array_equal(palette, class_palette(6))
    assert [file.name for file in path.parent.iterdir()] == ["labels.mkv"]


def test_more_than_256_classes_come_back_too(labelled_frames, tmp_path):
    label_map = np.arange(36 * 50, dtype=np.int32).reshape(36, 50) % 1000
    path = write_track(
        tmp_path / "labels.mkv",
        [replace(labelled_frames[0], label_map=label_map)],
        [f"class {k}" for k in range(1000)],
    )
    ((_, read),) = read_label_track(path)
    assert read.dtype == np.uint16 and np.array_equal(read, label_map)


def test_times_closer_than_a_millisecond_and_beyond_a_day_come_back(labelled_frames, tmp_path):
    times = [Fraction(tick, 90000) for tick in (0, 1, 2, 90000 * 100000 + 1, 90000 * 100000 + 2)]
    frames = [replace(frame, time=time) for frame, time in zip(labelled_frames, times, strict=False)]
    read = read_label_track(write_track(tmp_path / "labels.mkv", frames))
    assert [time for time, _ in read] == times


def test_any_player_shows_class_indices_as_grey_levels(labelled_frames, tmp_path):
    path = write_track(tmp_path / "labels.mkv", labelled_frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "ffv1"
        pictures = list(container.decode(stream))
    for picture, frame in zip(pictures, labelled_frames, strict=True):
        assert np.array_equal(picture.to_ndarray(), frame.label_map)
        assert abs(picture.time - frame.time) <= 0.0005  # Matroska's millisecond


def test_a_track_is_smaller_than_its_label_maps_one_by_one(tmp_path, labelled_frames):
    rows, columns = np.mgrid[:240, :320]
    maps = [((rows - 120) ** 2 + (columns - 10 * k) ** 2 < 3600).astype(np.uint8) for k in range(20)]
    frames = [replace(labelled_frames[0], time=Fraction(k), label_map=label_map) for k, label_map in enumerate(maps)]
    path = write_track(tmp_path / "labels.mkv", frames)
    for k, label_map in enumerate(maps):
        write_label_map(label_map, tmp_path / "png" / f"{k}.png")
    assert os.path.getsize(path) < sum(file.stat().st_size for file in (tmp_path / "png").iterdir())


def test_reading_a_track_does_not_need_all_of_it(labelled_frames, tmp_path):
    path = write_track(tmp_path / "labels.mkv", labelled_frames)
    reader = read_label_track(path)
    assert np.array_equal(next(reader)[1], labelled_frames[0].label_map)
    reader.close()
    path.unlink()


def test_abandoned_track_leaves_no_files(labelled_frames, tmp_path):
    sink = LabelTrack(tmp_path / "labels.mkv", SOURCE, NAMES, class_palette(6))
    sink.abandon()
    sink.close()
    sink.write(labelled_frames[0])
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_files(labelled_frames, tmp_path):
    sink = LabelTrack(tmp_path / "labels.mkv", SOURCE, NAMES, class_palette(6))
    with full_disk():
        with pytest.raises(OSError):
            for second in range(1000):
                sink.write(replace(labelled_frames[0], time=Fraction(second)))
            sink.close()
        sink.abandon()
    assert not list(tmp_path.iterdir())


def test_file_names_may_hold_a_colon(labelled_frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_track(Path("e:f.mkv"), labelled_frames)
    assert len(list(read_label_track("e:f.mkv"))) == len(labelled_frames)
    assert label_track_classes("e:f.mkv")[0] == NAMES


def test_file_without_a_label_track_is_named_in_the_error(video_path, tmp_path):
    (tmp_path / "text.mkv").write_text("text")
    with pytest.raises(ValueError, match=r"`path` must be a file whose name ends in .mkv. Got .*a.mp4"):
        LabelTrack(tmp_path / "a.mp4", SOURCE, NAMES, class_palette(6))
    with pytest.raises(FileNotFoundError, match="must name an existing label track"):
        next(read_label_track(tmp_path / "missing.mkv"))
    with pytest.raises(ValueError, match=r"must name a label track. Got .*text.mkv"):
        label_track_classes(tmp_path / "text.mkv")
    with pytest.raises(ValueError, match="must name a label track, as `LabelTrack` writes it"):
        next(read_label_track(video_path))
