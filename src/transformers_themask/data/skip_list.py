# SPDX-License-Identifier: Apache-2.0
"""The skip list of a data set, `ROOT/skip.txt`: a frame `<video>/<frame>` or a `<video>` per line; # starts a comment.

`<frame>` is the name of its file without suffix (of a video file, the index in eight digits). It is left out of every
split together with its mask; the frames around it become neighbours.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from transformers_themask.files.text_files import read_lines, read_text

SKIP_FILE = "skip.txt"


def read_skip_list(root: Path) -> set[str]:
    """Read the names in `ROOT/skip.txt`; empty without such a file."""
    path = root / SKIP_FILE
    if not path.is_file():
        return set()
    names = (line.partition("#")[0].strip() for line in read_lines(path))
    return {name for name in names if name}


def add_to_skip_list(root: Path, names: Iterable[str]) -> None:
    """Append names to `ROOT/skip.txt`, which need not exist yet."""
    path = root / SKIP_FILE
    start = read_text(path) if path.is_file() else ""
    end_of_line = "" if start == "" or start.endswith("\n") else "\n"
    path.write_text(start + end_of_line + "".join(f"{name}\n" for name in names), encoding="utf-8")


def skip_name(row: Mapping[str, Any], index: int) -> str:
    """Name of a frame in the skip list."""
    return f"{row['video_id']}/{PurePosixPath(row['frames'][index]).stem}"


def without_skipped(rows: Iterable[dict[str, Any]], skipped: set[str]) -> Iterator[dict[str, Any]]:
    """Remove skipped frames from the rows, and rows without any frame left."""
    for row in rows:
        if row["video_id"] in skipped:
            continue
        kept = [index for index in range(row["num_frames"]) if skip_name(row, index) not in skipped]
        if len(kept) == row["num_frames"]:
            yield row
        elif kept:
            frames, masks = ([row[key][index] for index in kept] for key in ("frames", "masks"))
            yield {**row, "num_frames": len(kept), "frames": frames, "masks": masks}
