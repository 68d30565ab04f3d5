# SPDX-License-Identifier: Apache-2.0
"""What the files of a data set must satisfy: every mask fits its frame and holds known ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .images import frame_size, mask_size, read_mask

VOID_ID = 255
# Of a larger split a sample is checked: opening every file of VSPW's training split would take minutes.
MAX_CHECKED_FRAMES = 20_000


def check_files(
    rows: Sequence[Mapping[str, Any]],
    root: Path,
    num_labels: int,
    *,
    max_frames: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Look over a split before a run, so that the run does not end at a bad file after hours.

    The headers tell whether files can be opened, are of the right kind, and of one size per video. Ids are looked at
    in the first and the last mask of each video only; whoever reads a mask later checks all of it again.

    Args:
        rows (`Sequence[Mapping]`): One row per video as from [`load_vspw`].
        root (`Path`): Folder the paths are relative to.
        num_labels (`int`): Number of classes.
        max_frames (`int`, *optional*): How many frames to open at most, drawn at random; all by default.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Raises:
        ValueError: For a file of the wrong kind, size or content.
        OSError: For a file that cannot be read.
    """
    num_frames = sum(row["num_frames"] for row in rows)
    is_checked = np.ones(num_frames, dtype=bool)
    if max_frames is not None and num_frames > max_frames:
        is_checked[max_frames:] = False
        np.random.default_rng(seed).shuffle(is_checked)
    start = 0
    with logging.tqdm(total=num_frames, desc="Checking files", unit="frame", disable=not progress) as bar:
        for row in rows:
            checked = np.flatnonzero(is_checked[start : start + row["num_frames"]])
            _check_sizes([(root / row["frames"][index], root / row["masks"][index]) for index in checked])
            for mask in {row["masks"][0], row["masks"][-1]}:
                check_label_ids(read_mask(root / mask), num_labels, root / mask)
            start += row["num_frames"]
            bar.update(row["num_frames"])


def check_frame_size(size: tuple[int, ...], path: Path, first_size: tuple[int, ...], first_path: Path) -> None:
    """Raise a `ValueError` unless a frame has the size of another one of its video."""
    if size != first_size:
        raise ValueError(
            f"All frames of a video must have one size (height, width). Got {size} for {path} after {first_size} for "
            f"{first_path}."
        )


def check_mask_size(size: tuple[int, ...], path: Path, size_of_frame: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless a mask has the size of its frame."""
    if size != size_of_frame:
        raise ValueError(
            f"Mask {path} must have its frame's size (height, width) {size_of_frame}. Got {size}; replace the mask or "
            "the frame."
        )


def check_label_ids(mask: np.ndarray, num_labels: int, path: Path) -> None:
    """Raise a `ValueError` unless a mask holds raw ids of the classes, or void."""
    wrong = id_out_of_range(mask, num_labels)
    if wrong is not None:
        raise ValueError(
            f"Mask {path} must hold raw ids from 0 to {num_labels} (0 is void) or {VOID_ID}. Got {wrong}; correct the "
            "mask or the list of classes."
        )


def id_out_of_range(ids: np.ndarray, highest: int) -> int | None:
    """Return the highest id above `highest` that is not 255 (void), or `None`."""
    is_wrong = (ids > highest) & (ids != VOID_ID)
    return int(ids[is_wrong].max()) if is_wrong.any() else None


def _check_sizes(pairs: list[tuple[Path, Path]]) -> None:
    """Check the headers of frames and masks of one video."""
    sizes = [frame_size(frame) for frame, _ in pairs]
    for size, (frame, mask) in zip(sizes, pairs, strict=True):
        check_frame_size(size, frame, sizes[0], pairs[0][0])
        check_mask_size(mask_size(mask), mask, size)
