# SPDX-License-Identifier: Apache-2.0
"""Reader of Cityscapes sequences: snippets of thirty frames, one of which has labels; the others are its context.

`ROOT/leftImg8bit_sequence` and `ROOT/gtFine` hold `<split>/<city>/<city>_<sequence>_<frame>_*.png`. A video is a run
of frames without a gap in their numbers, named by its first: `aachen_000000_000000`. The 19 classes that are evaluated
become raw ids 1 to 19, all others void.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .video_table import UNLABELLED, Classes, Listing, video_row

NAME = "Cityscapes sequences"
FRAME_FOLDER = "leftImg8bit_sequence"
MARKERS: tuple[str, ...] = (FRAME_FOLDER,)
MASK_FOLDER = "gtFine"
FRAME_NAME = re.compile(r"(?P<sequence>.+_[0-9]+)_(?P<frame>[0-9]+)_leftImg8bit\.png")
# Name and id of the evaluated classes, in the order in which scores are published.
CLASS_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
HIGHEST_ID = 33


def read_classes(root: Path) -> Classes:
    """Class names, and the raw id of each value in a mask file: 1 to 19, 0 if not evaluated; other values stay."""
    raw_ids = np.arange(256, dtype=np.uint8)
    raw_ids[: HIGHEST_ID + 1] = 0
    raw_ids[list(CLASS_IDS.values())] = np.arange(1, len(CLASS_IDS) + 1)
    return list(CLASS_IDS), raw_ids


def split_names(root: Path) -> list[str]:
    """Names of the folders of frames."""
    return sorted(folder.name for folder in (root / FRAME_FOLDER).iterdir() if folder.is_dir())


def list_videos(root: Path, split: str) -> Listing:
    """List the videos of one split, also those without labels, and as another one the masks without a frame."""
    if split not in split_names(root):
        available = ", ".join(split_names(root)) or "none"
        raise FileNotFoundError(
            f"`split` must name a folder in {root / FRAME_FOLDER}. Got {split!r}; available: {available}."
        )
    cities = sorted(folder.name for folder in (root / FRAME_FOLDER / split).iterdir() if folder.is_dir())
    snippets = {city: list(_snippets(root, split, city)) for city in cities}
    if not any(snippets.values()):
        raise FileNotFoundError(
            f"{root / FRAME_FOLDER / split} must hold frames <city>/<city>_<sequence>_<frame>_leftImg8bit.png; "
            "check the file names."
        )
    for city in cities:
        unused_masks = _mask_names(root, split, city)
        for names in snippets[city]:
            row = _row(split, city, names, unused_masks)
            yield row["video_id"], partial(dict, row)
        if unused_masks:
            yield city, partial(_reject, root / MASK_FOLDER / split / city, unused_masks)


def _snippets(root: Path, split: str, city: str) -> Iterator[list[str]]:
    """Cut the frames of a city where the sequence changes or frame numbers have a gap."""
    frames_of_sequence = defaultdict(list)
    for path in (root / FRAME_FOLDER / split / city).iterdir():
        match = FRAME_NAME.fullmatch(path.name)
        if match is not None:
            frames_of_sequence[match["sequence"]].append((int(match["frame"]), path.name))
    for _, frames in sorted(frames_of_sequence.items()):
        frames.sort()
        numbers = np.array([number for number, _ in frames])
        for run in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            yield [frames[index][1] for index in run]


def _mask_names(root: Path, split: str, city: str) -> set[str]:
    folder = root / MASK_FOLDER / split / city
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if path.name.endswith("_labelIds.png")}


def _row(split: str, city: str, names: list[str], unused_masks: set[str]) -> dict[str, Any]:
    """One row; the masks that it uses are removed from `unused_masks`."""
    masks = []
    for name in names:
        mask = name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        masks.append(f"{MASK_FOLDER}/{split}/{city}/{mask}" if mask in unused_masks else UNLABELLED)
        unused_masks.discard(mask)
    video_id = names[0].removesuffix("_leftImg8bit.png")
    return video_row(video_id, [f"{FRAME_FOLDER}/{split}/{city}/{name}" for name in names], masks)


def _reject(folder: Path, unused_masks: set[str]) -> NoReturn:
    raise FileNotFoundError(
        f"Every mask in {folder} must have a frame in {FRAME_FOLDER}. Got no frame for {min(unused_masks)!r} "
        f"({len(unused_masks)} masks without one); add the frames or remove the masks."
    )
