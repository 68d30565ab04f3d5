# SPDX-License-Identifier: Apache-2.0
"""Folders of videos: finding them, dividing them among processes, and records of their results."""

import csv
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from transformers_themask.data.image_folder import FRAME_SUFFIXES
from transformers_themask.data.video_file import VIDEO_SUFFIXES
from transformers_themask.files.atomic import AtomicFile
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import open_frame_source

# Besides those that data sets come in, what people have: cameras, old archives, recordings.
FILE_SUFFIXES = frozenset((*VIDEO_SUFFIXES, ".avi", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"))
# Where the data sets that this package reads keep the labels of a video.
MASK_FOLDERS = ("mask", "masks")
# Lies in the folder of every video's results and moves into place together with them.
RECORD_FILE = "record.json"
SUMMARY_COLUMNS = ("video", "status", "frames", "seconds", "frames_per_second", "error")

Status = Literal["complete", "incomplete", "failed", "unfinished"]
STATUSES = get_args(Status)


@dataclass(frozen=True)
class FoundVideo:
    """A video file, or a folder of frames, somewhere below the folder that was searched.

    `name` is the path relative to that folder, with suffix and forward slashes, also that of its results. `num_bytes`
    of the file, or of all files of the folder, tell a video from one that took its place.
    """

    name: str
    path: Path
    num_bytes: int

    def num_frames(self) -> int:
        """Number of frames that the video declares; 0 where it cannot be opened, 1 where it does not tell."""
        try:
            return open_frame_source(self.path).num_frames or 1
        except (ValueError, OSError):
            return 0


@dataclass(frozen=True)
class VideoRecord:
    """The outcome of one video.

    It is "incomplete" where only the readable part of a damaged file could be segmented, "failed" where nothing could,
    and "unfinished" where no process got to its end. `job` is everything that the results depend on.
    """

    video: str
    status: Status
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    job: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record into the folder of the results."""
        folder.joinpath(RECORD_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def row(self) -> dict[str, Any]:
        """The line of the summary."""
        facts = asdict(self) | {"frames_per_second": round(self.frames / self.seconds, 3) if self.frames else None}
        return {column: facts[column] for column in SUMMARY_COLUMNS}


def find_videos(folder: Path, output: Path) -> list[FoundVideo]:
    """All video files and folders of frames below a folder, in order of their names; a `ValueError` if there are none.

    A folder is a video when it holds jpg or png images and neither video files nor further folders; pictures beside
    those are taken for posters and previews. Names that begin with a dot are passed over, and so are `output` and
    images in folders called `mask` or `masks`. Links are followed.
    """
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder with videos. Got {folder}.")
    found = []
    for path in _video_paths(folder, output.resolve(), frozenset()):
        name = folder.resolve().name if path == folder else path.relative_to(folder).as_posix()
        found.append(FoundVideo(name, path, _num_bytes(path)))
    if not found:
        raise ValueError(
            f"`folder` must hold video files ({', '.join(sorted(FILE_SUFFIXES))}) or folders of jpg or png images. "
            f"Got {folder}, in which there are none."
        )
    return sorted(found, key=lambda video: video.name)


def _video_paths(folder: Path, output: Path, parents: frozenset[Path]) -> Iterator[Path]:
    place = folder.resolve()
    if place == output or place in parents:  # links can lead back
        return
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    # With links to nowhere, which shall not be lost without a word.
    files = [entry for entry in entries if entry.suffix.lower() in FILE_SUFFIXES and not entry.is_dir()]
    yield from files
    for inner in folders:
        yield from _video_paths(inner, output, parents | {place})
    has_images = any(entry.suffix.lower() in FRAME_SUFFIXES for entry in entries)
    if has_images and not files and not folders and folder.name not in MASK_FOLDERS:
        yield folder


def _num_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


def divide_work(amounts: Sequence[int], num_shares: int) -> list[list[int]]:
    """Divide pieces of work into shares of nearly the same amount: the largest first, each to who has least.

    The result depends on the arguments alone, so that processes which compute it for themselves agree. Returns the
    pieces of each share, in their original order.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [(0, share) for share in range(num_shares)]
    for piece in sorted(range(len(amounts)), key=lambda piece: (-amounts[piece], piece)):
        load, share = heapq.heappop(loads)
        shares[share].append(piece)
        heapq.heappush(loads, (load + amounts[piece], share))
    return [sorted(share) for share in shares]


def read_record(folder: Path) -> VideoRecord | None:
    """The record in a folder of results; `None` where there is none that can be read."""
    try:
        return VideoRecord(**json.loads(folder.joinpath(RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def check_result_folders(argument: str, folders: Iterable[Path]) -> None:
    """Raise a `ValueError` for a folder that holds something other than the results of an earlier run."""
    for folder in folders:
        if os.path.lexists(folder) and not folder.joinpath(RECORD_FILE).is_file():
            raise ValueError(
                f"`{argument}` must be a new folder or hold earlier results. Got {folder}, which is neither and "
                "would be replaced. Name another folder."
            )


def summarise(records: Sequence[VideoRecord]) -> dict[str, Any]:
    """Totals, and one row per video."""
    counts = Counter(record.status for record in records)
    frames, seconds = sum(record.frames for record in records), sum(record.seconds for record in records)
    totals = {
        "videos": len(records),
        **{status: counts[status] for status in STATUSES},
        "frames": frames,
        "seconds": round(seconds, 3),
        "frames_per_second": round(frames / seconds, 3) if seconds else None,
    }
    return {"totals": totals, "videos": [record.row() for record in records]}


def write_summary(folder: Path, summary: dict[str, Any]) -> str:
    """Write `summary.json` and, with the rows only, `summary.csv`; a reader never sees half of one.

    Returns the number of videos of each status, in words.
    """
    with AtomicFile(folder / "summary.json") as hidden:
        hidden.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    # File names that are not UTF-8 are escaped, as JSON does with all others.
    with (
        AtomicFile(folder / "summary.csv") as hidden,
        hidden.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(summary["videos"])
    totals = summary["totals"]
    counts = ", ".join(f"{totals[status]} {status}" for status in STATUSES if totals[status])
    return f"{counted(totals['videos'], 'video')}: {counts}"
