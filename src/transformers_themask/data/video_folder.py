# SPDX-License-Identifier: Apache-2.0
"""Reader of a folder of videos with masks, the layout for custom data, which the README shows.

The mask of an image has the image's name; that of a frame in a video file its index from 0, such as `12.png` or
`00000012.png`. Id 255 is void, and so is 0 unless `classes.json` makes it a class: `{"background": 0, "car": 10}`.
Other ids are errors. Frames without a mask are context for the others; a video or split may have none at all.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformers_themask.files.text_files import read_class_ids, read_lines

from .frame_checks import VOID_ID
from .image_folder import FRAME_SUFFIXES, MASK_SUFFIXES, in_order_of_numbers, list_images
from .video_file import VIDEO_SUFFIXES, count_video_frames, video_frame_path
from .video_table import UNLABELLED, Classes, Listing, match_masks, video_row

NAME = "folder of videos"
NAMES_FILE = "classes.txt"
IDS_FILE = "classes.json"
MARKERS: tuple[str, ...] = (NAMES_FILE, IDS_FILE)
# Raw id of the values that masks must not hold; there must be fewer classes.
UNKNOWN_ID = 254


def read_classes(root: Path) -> Classes:
    """Class names in the order of their values in mask files, and the raw id `(256,)` of each value."""
    path = root / IDS_FILE if (root / IDS_FILE).is_file() else root / NAMES_FILE
    ids = _read_ids(path) if path.name == IDS_FILE else _read_names(path)
    if not 0 < len(ids) < UNKNOWN_ID:
        raise ValueError(f"{path} must name 1 to {UNKNOWN_ID - 1} classes. Got {len(ids)}.")
    names = sorted(ids, key=ids.__getitem__)
    id_map = np.full(256, UNKNOWN_ID, dtype=np.uint8)
    id_map[[0, VOID_ID]] = 0, VOID_ID
    id_map[[ids[name] for name in names]] = np.arange(1, len(names) + 1)
    return names, id_map


def split_names(root: Path) -> list[str]:
    """Names of the folders that hold at least one video."""
    folders = (folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return sorted(folder.name for folder in folders if _videos(folder))


def list_videos(root: Path, split: str) -> Listing:
    """List the videos in the folder `ROOT/<split>`."""
    if split not in split_names(root):
        available = ", ".join(split_names(root)) or "none"
        raise FileNotFoundError(
            f"`split` must name a folder of videos in {root}. Got {split!r}; available: {available}."
        )
    videos = _videos(root / split)
    return [(video, partial(_read_row, root, split, video, sources)) for video, sources in videos.items()]


def _videos(folder: Path) -> dict[str, list[Path]]:
    """The videos of a split, each with its sources of frames: a folder, a file or, by mistake, none or several."""
    sources: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        is_file = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        if is_file or (path / "frames").is_dir():
            sources.setdefault(path.stem if is_file else path.name, []).append(path)
        elif (path / "masks").is_dir():
            sources.setdefault(path.name, [])
    return {name: sources[name] for name in sorted(sources, key=in_order_of_numbers)}


def _read_row(root: Path, split: str, video_id: str, sources: list[Path]) -> dict[str, Any]:
    if len(sources) != 1:
        found = " and ".join(map(str, sorted(sources))) or "none"
        raise ValueError(
            f"Every video must have one source of frames, {root / split / video_id / 'frames'} or a file next to it "
            f"({', '.join(VIDEO_SUFFIXES)}). Got {found}."
        )
    source, mask_folder = sources[0], root / split / video_id / "masks"
    masks = list_images(mask_folder, MASK_SUFFIXES) if mask_folder.is_dir() else []
    if source.is_file():
        num_frames = count_video_frames(source)
        frames = [video_frame_path(source.name, index) for index in range(num_frames)]
        matched = _match_indices(source, num_frames, mask_folder, masks)
    else:
        names = list_images(source / "frames", FRAME_SUFFIXES)
        if not names:
            raise FileNotFoundError(f"{source / 'frames'} must hold at least one frame (.jpg or .png).")
        frames = [f"{video_id}/frames/{name}" for name in names]
        matched = match_masks(source / "frames", names, mask_folder, masks)
    paths = [f"{split}/{video_id}/masks/{name}" if name != UNLABELLED else UNLABELLED for name in matched]
    return video_row(video_id, [f"{split}/{frame}" for frame in frames], paths)


def _match_indices(video: Path, num_frames: int, mask_folder: Path, masks: list[str]) -> list[str]:
    """Find the mask of every frame of a video file by its index."""
    matched = [UNLABELLED] * num_frames
    for name in masks:
        stem = Path(name).stem
        if not (stem.isascii() and stem.isdigit()) or int(stem) >= num_frames:
            raise ValueError(
                f"Every mask in {mask_folder} must be named by the index of a frame in {video}, 0 to "
                f"{num_frames - 1}. Got {name}; rename or remove it."
            )
        if matched[int(stem)] != UNLABELLED:
            raise ValueError(
                f"Every frame of {video} must have one mask at most. Got {matched[int(stem)]} and {name} in "
                f"{mask_folder}; remove one."
            )
        matched[int(stem)] = name
    return matched


def _read_names(path: Path) -> dict[str, int]:
    names = read_lines(path)
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path} must hold one class name per line, each once. Got {names}; correct the list.")
    return {name: number for number, name in enumerate(names, start=1)}


def _read_ids(path: Path) -> dict[str, int]:
    ids = read_class_ids(path, "map every class name to its id in the masks")
    is_valid = all(0 <= value < VOID_ID for value in ids.values()) and len(set(ids.values())) == len(ids)
    if not is_valid:
        raise ValueError(f"The ids in {path} must be 0 to {VOID_ID - 1}, each once. Got {sorted(ids.values())}.")
    return ids
