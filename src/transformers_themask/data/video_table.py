# SPDX-License-Identifier: Apache-2.0
"""One row per video: how the rows of every layout are built from file names, and the table they are kept in."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from .image_folder import check_stems
from .skip_list import SKIP_FILE, read_skip_list, without_skipped

logger = logging.get_logger(__name__)

# In place of a mask's path: this frame has no labels.
UNLABELLED = ""
# What to do with a video, by its id, that cannot be listed.
OnError = Callable[[str, Exception], None]


def video_table(
    list_videos: Callable[[OnError], Iterable[dict[str, Any]]],
    root: Path,
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset:
    """Keep the rows of one split on disk, without what `skip.txt` names.

    Args:
        list_videos (`Callable`): Gives rows as from [`video_row`], and hands the error of a video that cannot be
            listed to its argument.
        root (`Path`): Folder of the data set.
        cache_dir (`str` or `os.PathLike`, *optional*): Where the table is kept; defaults to the cache of `datasets`
            (`HF_DATASETS_CACHE`). An unchanged table is not written again.

    Returns:
        `datasets.Dataset`: Columns `video_id`, `num_frames`, `frames` and `masks`; paths are relative to `root`.
    """
    rows, skipped = kept_rows(list_videos, root, _raise_error)
    if skipped is not None:
        logger.warning(skipped)
    if not rows:
        raise ValueError(f"A split must have at least one video. Got none in {root}; check the split and {SKIP_FILE}.")
    with _without_progress_bars():
        builder = VideoTable(cache_dir=None if cache_dir is None else str(cache_dir), rows=rows)
        builder.download_and_prepare()
        return builder.as_dataset(split="all_videos")


@dataclass(eq=False)
class VideoTableConfig(datasets.BuilderConfig):
    """Configuration of [`VideoTable`]; its hash names the table, so that changed files never meet a stale one.

    Args:
        rows (`list[dict]`): One row per video.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)


class VideoTable(datasets.GeneratorBasedBuilder):
    """Builder that writes the rows of its configuration."""

    BUILDER_CONFIG_CLASS = VideoTableConfig

    def _info(self) -> datasets.DatasetInfo:
        features = {
            "video_id": datasets.Value("string"),
            "num_frames": datasets.Value("int32"),
            "frames": datasets.List(datasets.Value("string")),
            "masks": datasets.List(datasets.Value("string")),
        }
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="all_videos")]

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self.config.rows)


def kept_rows(
    list_videos: Callable[[OnError], Iterable[dict[str, Any]]], root: Path, on_error: OnError
) -> tuple[list[dict[str, Any]], str | None]:
    """List the videos of a split without what `skip.txt` names, and tell how much that is, if anything.

    A video that is to be skipped may be one that cannot be listed.
    """
    skipped = read_skip_list(root)
    num_unlisted = 0

    def handle(video_id: str, error: Exception) -> None:
        nonlocal num_unlisted
        if video_id not in skipped:
            on_error(video_id, error)
        num_unlisted += video_id in skipped

    rows = list(list_videos(handle))
    kept = list(without_skipped(rows, skipped))
    num_frames = sum(row["num_frames"] for row in rows) - sum(row["num_frames"] for row in kept)
    if num_frames == num_unlisted == 0:
        return kept, None
    unlisted = f" and {num_unlisted} videos that cannot be listed" if num_unlisted else ""
    return kept, f"{root / SKIP_FILE} leaves out {num_frames} frames{unlisted}."


def list_rows(
    video_ids: Iterable[str], read_row: Callable[[str], dict[str, Any]], on_error: OnError
) -> Iterator[dict[str, Any]]:
    """Read one row per video; a video that cannot be listed is handed to `on_error` and left out."""
    for video_id in video_ids:
        try:
            row = read_row(video_id)
        except (ValueError, OSError) as error:
            on_error(video_id, error)
            continue
        yield row


def video_row(video_id: str, frames: list[str], masks: list[str] | None) -> dict[str, Any]:
    """One row: paths of frames and masks relative to the root, `""` for a frame without a mask; `None`: no masks."""
    masks = [UNLABELLED] * len(frames) if masks is None else masks
    return {"video_id": video_id, "num_frames": len(frames), "frames": frames, "masks": masks}


def match_masks(frame_folder: Path, frames: list[str], mask_folder: Path, masks: list[str]) -> list[str]:
    """Find the mask of every frame by its stem.

    Returns:
        `list[str]`: For each frame the name of its mask, `""` for a frame without one.

    Raises:
        FileNotFoundError: If a mask has no frame.
        ValueError: If two frames have one stem.
    """
    check_stems(frame_folder, frames)
    stems = [Path(name).stem for name in frames]
    mask_of_stem = {Path(name).stem: name for name in masks}
    without_frame = sorted(set(mask_of_stem) - set(stems))
    if without_frame:
        raise FileNotFoundError(
            f"Every mask in {mask_folder} must have a frame of the same stem. Got no frame for {without_frame[0]!r} "
            f"({len(without_frame)} masks without one); add the frame or remove the mask."
        )
    return [mask_of_stem.get(stem, UNLABELLED) for stem in stems]


def _raise_error(video_id: str, error: Exception) -> None:
    raise error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Build the small table of paths silently; a user's own setting is left as it was."""
    is_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if is_enabled:
            datasets.enable_progress_bars()
