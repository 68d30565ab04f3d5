# SPDX-License-Identifier: Apache-2.0
"""Tables of the pixels of each class in each frame."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transformers_themask.files.atomic import AtomicFile
from transformers_themask.files.file_names import check_suffix

from .sink import LabelledFrame

SCHEMA = pa.schema(
    [
        ("frame", pa.int64()),
        ("time", pa.float64()),
        ("class_index", pa.int32()),
        ("class_name", pa.string()),
        ("pixels", pa.int64()),
        ("share", pa.float64()),
    ]
)
# Large enough for columns to be compressed and read well; waiting as Python objects, they take two megabytes.
ROWS_PER_GROUP = 8192

Row = tuple[int, float, int, str, int, float]


class ClassStatistics:
    """Sink that writes one row for every class in every frame, as CSV or Parquet.

    The columns are `frame` (index), `time` (seconds), `class_index`, `class_name`, `pixels` and `share` (of the
    frame's pixels). Classes that do not occur in a frame have no row there.

    Args:
        path: File to write, ending in `.csv` or `.parquet`; its folder is made if needed.
        class_names: Name of each class; an index without one is void.
        argument: Name of the argument that gives the path, for the errors.
    """

    def __init__(self, path: str | Path, class_names: Sequence[str], argument: str = "path"):
        self.path = Path(path)
        check_suffix(self.path, tuple(TABLE_WRITERS), argument)
        self._class_names = class_names
        self._unfinished = AtomicFile(self.path)
        self._table: _CsvTable | _ParquetTable | None = None

    def write(self, frame: LabelledFrame) -> None:
        """Count the pixels of the next frame."""
        if self._table is None:
            self._table = TABLE_WRITERS[self.path.suffix](self._unfinished.make())
        rows: list[Row] = []
        for index, count in enumerate(np.bincount(frame.label_map.ravel()).tolist()):
            if count > 0:
                name = self._class_names[index] if index < len(self._class_names) else "void"
                rows.append((frame.index, float(frame.time), index, name, count, count / frame.label_map.size))
        self._table.write(rows)

    def close(self) -> None:
        """Finish the file."""
        if self._table is not None:
            self._table.close()
            self._unfinished.finish()

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        self._unfinished.remove(None if self._table is None else self._table.close)


class _CsvTable:
    def __init__(self, path: Path):
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(SCHEMA.names)

    def write(self, rows: list[Row]) -> None:
        self._writer.writerows(rows)

    def close(self) -> None:
        self._file.close()


class _ParquetTable:
    """Collects rows until they are worth a row group."""

    def __init__(self, path: Path):
        self._writer = pq.ParquetWriter(path, SCHEMA)
        self._rows: list[Row] = []

    def write(self, rows: list[Row]) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        columns = zip(zip(*self._rows, strict=True), SCHEMA.types, strict=True)
        self._writer.write_table(pa.table([pa.array(values, kind) for values, kind in columns], schema=SCHEMA))
        self._rows = []


TABLE_WRITERS: dict[str, type[_CsvTable | _ParquetTable]] = {".csv": _CsvTable, ".parquet": _ParquetTable}
