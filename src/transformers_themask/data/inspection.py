# SPDX-License-Identifier: Apache-2.0
"""Inspection of every file of a data set: statistics, and problems that would stop a run."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from transformers.utils import logging

from .frame_checks import VOID_ID, check_frame_size, check_mask_size
from .images import DamagedFileError
from .labelled_videos import LabelledVideos
from .skip_list import SKIP_FILE, skip_name
from .sources import Layout, find_layout
from .video_table import UNLABELLED, kept_rows

# Decoding releases the interpreter's lock.
MAX_THREADS = 16


@dataclass(frozen=True)
class Finding:
    """One problem, named in the message, that stops a run or informs."""

    message: str
    stops_run: bool = True
    # Name in the skip list of the frame or video that cannot be decoded.
    damaged: str | None = None


@dataclass
class SplitReport:
    """Statistics and findings of one split: videos by (height, width), pixels by raw id."""

    split: str
    num_videos: int = 0
    num_frames: int = 0
    num_labelled_frames: int = 0
    videos_of_size: Counter[tuple[int, ...]] = field(default_factory=Counter)
    class_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """Report of [`inspect_data_set`], with the classes in the order of their indices."""

    layout: str
    class_names: list[str]
    splits: list[SplitReport]

    @property
    def stops_run(self) -> bool:
        """Whether a run on one of the splits would fail."""
        return any(finding.stops_run for report in self.splits for finding in report.findings)

    @property
    def damaged(self) -> list[str]:
        """Names in the skip list of the frames and videos that cannot be decoded."""
        findings = (finding for report in self.splits for finding in report.findings)
        return sorted({finding.damaged for finding in findings if finding.damaged is not None})

    def to_dict(self) -> dict[str, Any]:
        """The content as plain values, for JSON."""
        return {
            "layout": self.layout,
            "class_names": self.class_names,
            "stops_run": self.stops_run,
            "splits": {report.split: self._split_to_dict(report) for report in self.splits},
        }

    def _split_to_dict(self, report: SplitReport) -> dict[str, Any]:
        pixels = report.class_pixels.tolist()
        sizes = sorted(report.videos_of_size.items())
        return {
            "num_videos": report.num_videos,
            "num_frames": report.num_frames,
            "num_labelled_frames": report.num_labelled_frames,
            "sizes": [{"height": size[0], "width": size[1], "num_videos": count} for size, count in sizes],
            "class_pixels": dict(zip(self.class_names, pixels[1:], strict=False)),
            "void_pixels": pixels[0] + pixels[VOID_ID],
            "findings": [vars(finding) for finding in report.findings],
        }


def inspect_data_set(root: str | os.PathLike[str], splits: Sequence[str] = (), progress: bool = False) -> Inspection:
    """Decode every frame and mask, of all splits by default; problems of files are findings.

    Raises `ValueError` or `OSError` for a wrong layout, list of classes, split file or skip list.
    """
    root = Path(root)
    layout = find_layout(root)
    class_names, id_map = layout.read_classes(root)
    names = list(splits) or layout.split_names(root)
    if not names:
        raise FileNotFoundError(f"{root} must hold at least one split in the layout {layout.NAME}.")
    reports = []
    for name in names:
        report = SplitReport(name)
        videos = LabelledVideos(_list_videos(layout, root, report), root, class_names, id_map)
        _inspect_split(videos, report, progress)
        reports.append(report)
    return Inspection(layout.NAME, class_names, reports)


def _list_videos(layout: Layout, root: Path, report: SplitReport) -> list[dict[str, Any]]:
    """Rows of one split without skipped ones; videos that cannot be listed become findings."""

    def add_finding(video_id: str, error: Exception) -> None:
        damaged = video_id if isinstance(error, DamagedFileError) else None
        report.findings.append(Finding(str(error), damaged=damaged))

    rows, skipped = kept_rows(layout.list_videos(root, report.split), root, add_finding)
    notes = [] if skipped is None else [skipped]
    report.num_videos = len(rows)
    report.num_frames = sum(row["num_frames"] for row in rows)
    report.num_labelled_frames = sum(mask != UNLABELLED for row in rows for mask in row["masks"])
    if not report.num_frames:
        report.findings.append(Finding(f"The split {report.split} must have at least one frame."))
    elif not report.num_labelled_frames:
        notes.append(f"The split {report.split} has no labels: it can be segmented, but not used to train or score.")
    else:
        problem = f"has no labels: training rejects it unless {SKIP_FILE} names it."
        notes += [f"Video {row['video_id']} {problem}" for row in rows if not any(row["masks"])]
    report.findings += [Finding(note, stops_run=False) for note in notes]
    return rows


def _inspect_split(videos: LabelledVideos, report: SplitReport, progress: bool) -> None:
    """Add the contents of the files to the report."""
    num_threads = min(MAX_THREADS, os.cpu_count() or 1)
    bar = logging.tqdm(total=videos.num_frames, desc=report.split, unit="frame", disable=not progress)
    with bar, ThreadPoolExecutor(num_threads) as executor:
        results = executor.map(lambda row: _inspect_video(videos, row), videos.rows)
        for row, (size, class_pixels, findings) in zip(videos.rows, results, strict=True):
            if size is not None:
                report.videos_of_size[size] += 1
            report.class_pixels += class_pixels
            report.findings += findings
            bar.update(row["num_frames"])


def _inspect_video(
    videos: LabelledVideos, row: Mapping[str, Any]
) -> tuple[tuple[int, ...] | None, np.ndarray, list[Finding]]:
    """Size of the first readable frame, pixels of each raw id, and findings."""
    class_pixels = np.zeros(256, dtype=np.int64)
    findings = list(_gaps(row))
    first_size, first_path = None, videos.root
    for index in range(row["num_frames"]):
        try:
            path, size = videos.root / row["frames"][index], videos.read_frame(row, index).shape[:2]
            if first_size is None:
                first_size, first_path = size, path
            check_frame_size(size, path, first_size, first_path)
            mask = videos.read_mask(row, index)
            if mask is not None:
                check_mask_size(mask.shape, videos.root / row["masks"][index], size)
                class_pixels += np.bincount(mask.ravel(), minlength=256)
        except DamagedFileError as error:
            findings.append(Finding(str(error), damaged=skip_name(row, index)))
        except (ValueError, OSError) as error:
            findings.append(Finding(str(error)))
    return first_size, class_pixels, findings


def _gaps(row: Mapping[str, Any]) -> Iterator[Finding]:
    """Find gaps: steps between frame numbers that differ from the video's usual one."""
    matches = [re.search("[0-9]+$", PurePosixPath(path).stem) for path in row["frames"]]
    numbers = [int(match.group()) for match in matches if match is not None]
    steps = Counter(after - before for before, after in pairwise(numbers))
    if len(numbers) < len(matches) or len(steps) < 2:
        return
    usual = steps.most_common(1)[0][0]
    unusual = [(before, after) for before, after in pairwise(numbers) if after - before != usual]
    before, after = unusual[0]
    more = "" if len(unusual) == 1 else f" and at {len(unusual) - 1} more places"
    yield Finding(
        f"Video {row['video_id']}: frame numbers go from {before} to {after}{more}, where the usual step is {usual}; "
        "clips take frames by their position.",
        stops_run=False,
    )
