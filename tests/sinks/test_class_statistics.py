# SPDX-License-Identifier: Apache-2.0
import csv
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from full_disk import full_disk
from segmented_clip import write_all
from transformers_themask.sinks import class_statistics
from transformers_themask.sinks.class_statistics import ClassStatistics

NAMES = ["sky", "meadow", "stripes, wide", "dots", "checks"]  # the last index, 5, is void
COLUMNS = ["frame", "time", "class_index", "class_name", "pixels", "share"]


def expected_rows(labelled_frames):
    return [
        (
            frame.index,
            float(frame.time),
            index,
            NAMES[index] if index < 5 else "void",
            int((frame.label_map == index).sum()),
            (frame.label_map == index).mean(),
        )
        for frame in labelled_frames
        for index in np.unique(frame.label_map).tolist()
    ]


def write_table(path, labelled_frames):
    sink = ClassStatistics(path, NAMES)
    write_all(sink, labelled_frames)
    return path


@pytest.fixture(scope="module")
def some_frames(labelled_frames):
    """Frames that lack a class now and then."""
    return [replace(frame, label_map=frame.label_map[:8, :10]) for frame in labelled_frames]


def test_csv_has_a_row_for_each_class_in_each_frame(some_frames, tmp_path):
    path = write_table(tmp_path / "new" / "classes.csv", some_frames)
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    kinds = (int, float, int, str, int, float)
    read = [tuple(kind(value) for kind, value in zip(kinds, row, strict=True)) for row in rows]
    assert read == expected_rows(some_frames)


def test_parquet_has_the_same_rows_in_groups(some_frames, tmp_path, monkeypatch):
    monkeypatch.setattr(class_statistics, "ROWS_PER_GROUP", 10)
    path = write_table(tmp_path / "new" / "classes.parquet", some_frames)
    table = pq.read_table(path)
    assert table.column_names == COLUMNS
    assert [tuple(row.values()) for row in table.to_pylist()] == expected_rows(some_frames)
    assert pq.ParquetFile(path).num_row_groups > 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_abandoned_table_leaves_no_files(some_frames, tmp_path, suffix):
    sink = ClassStatistics(tmp_path / f"a.{suffix}", NAMES)
    sink.abandon()
    sink.close()
    sink.write(some_frames[0])
    sink.abandon()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_full_disk_leaves_no_files(some_frames, tmp_path, suffix):
    sink = ClassStatistics(tmp_path / f"a.{suffix}", NAMES)
    with full_disk():
        with pytest.raises(OSError):
            for index in range(2000):
                sink.write(replace(some_frames[0], index=index))
            sink.close()
        sink.abandon()
    assert not list(tmp_path.iterdir())


def test_table_of_another_kind_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be a file whose name ends in .csv or .parquet. Got .*a.xlsx"):
        ClassStatistics(tmp_path / "a.xlsx", NAMES)
