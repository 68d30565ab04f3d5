# SPDX-License-Identifier: Apache-2.0
"""Reader of the VSPW layout, which the README shows: one row per video, raw label ids.

The numbers in the names of frames (.jpg or .png) are the order in time; they may start anywhere and have gaps. Every
frame needs a mask, unless no video of the split has a folder of masks, as in VSPW's test split.
"""

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from transformers_themask.files.plain_names import check_plain_name
from transformers_themask.files.text_files import read_class_ids, read_lines

from .frame_checks import VOID_ID
from .image_folder import FRAME_SUFFIXES, MASK_SUFFIXES, file_stem, list_images
from .skip_list import SKIP_FILE
from .video_table import UNLABELLED, Classes, Listing, match_masks, video_row

NAME = "VSPW"
LABEL_FILE = "label_num_dic_final.json"
MARKERS: tuple[str, ...] = (LABEL_FILE,)


def read_class_names(root: str | os.PathLike[str]) -> list[str]:
    """Class names in `label_num_dic_final.json` by class index: that of raw id 1, of raw id 2, ..."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"`root` must be a folder in VSPW layout. Got {root}, which does not exist.")
    path = Path(root) / LABEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"`root` must contain {LABEL_FILE}. Got {root}; write it as class name -> id string.")
    ids = read_class_ids(path, "map every class name to an id string")
    names = sorted((name for name in ids if ids[name] != 0), key=ids.__getitem__)
    class_ids = [ids[name] for name in names]
    if not names or class_ids != list(range(1, len(names) + 1)) or class_ids[-1] >= VOID_ID:
        raise ValueError(
            f"The class ids in {path} must be 1, 2, 3, ... without gaps or repetitions (0 is void), up to "
            f"{VOID_ID - 1}. Got {class_ids}; "
            "renumber the classes and the masks."
        )
    return names


def read_classes(root: Path) -> Classes:
    """Class names; mask files hold raw ids."""
    return read_class_names(root), None


def split_names(root: Path) -> list[str]:
    """Names of the split files: text files that begin with the name of a video, and `train`, `val` and `test`."""
    files = [file for file in root.glob("*.txt") if file.is_file() and file.name != SKIP_FILE]
    return sorted(file.stem for file in files if _is_split_file(file))


def _is_split_file(file: Path) -> bool:
    if file.stem in ("train", "val", "test"):
        return True
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next((line.strip() for line in lines if line.strip()), "")
    return bool(first) and re.fullmatch(r"\w+", file.stem) is not None and (file.parent / "data" / first).is_dir()


def list_videos(root: Path, split: str) -> Listing:
    """List the videos that `ROOT/<split>.txt` names."""
    video_ids = _read_split(root, split)
    if not (root / "data").is_dir():
        raise FileNotFoundError(f"{root} must hold the folder data with the videos; there is no {root / 'data'}.")
    has_labels = any((root / "data" / video_id / "mask").is_dir() for video_id in video_ids)
    return [(video_id, partial(_read_row, root, split, video_id, has_labels)) for video_id in video_ids]


def _read_row(root: Path, split: str, video_id: str, has_labels: bool) -> dict[str, Any]:
    folder = root / "data" / video_id
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Every video in {root / f'{split}.txt'} must be a folder in {root / 'data'}. Got {video_id!r}; "
            "remove the line or add the video."
        )
    frames = _list_images(folder / "origin", FRAME_SUFFIXES)
    if not frames:
        raise FileNotFoundError(f"{folder / 'origin'} must hold at least one frame (.jpg or .png).")
    masks = [f"data/{video_id}/mask/{name}" for name in _list_masks(folder, frames)] if has_labels else None
    return video_row(video_id, [f"data/{video_id}/origin/{name}" for name in frames], masks)


def _list_masks(folder: Path, frames: list[str]) -> list[str]:
    masks = match_masks(folder / "origin", frames, folder / "mask", _list_images(folder / "mask", MASK_SUFFIXES))
    without_mask = [file_stem(frame) for frame, mask in zip(frames, masks, strict=True) if mask == UNLABELLED]
    if without_mask:
        raise FileNotFoundError(
            f"Every frame in {folder / 'origin'} must have a mask of the same stem. Got no mask for "
            f"{without_mask[0]!r} ({len(without_mask)} frames without one); add {without_mask[0]}.png to "
            f"{folder / 'mask'} or remove the frame."
        )
    return masks


def _list_images(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"A video in VSPW layout must have the folder {folder}.")
    return list_images(folder, suffixes)


def _read_split(root: Path, split: str) -> list[str]:
    if not re.fullmatch(r"\w+", split):
        raise ValueError(
            f"`split` must be letters, digits and underscores only. Got {split!r}; rename the split file."
        )
    path = root / f"{split}.txt"
    if not path.is_file():
        available = ", ".join(split_names(root)) or "none"
        raise FileNotFoundError(f"`split` must name a split file in {root}. Got {split!r}; available: {available}.")
    video_ids = [line for line in read_lines(path) if line]
    if not video_ids:
        raise ValueError(f"{path} must name at least one video; write one video name per line.")
    repeated = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} must name every video once. Got {repeated[0]!r} again; remove the repeated line.")
    for video_id in video_ids:
        check_plain_name(video_id, path)
    return video_ids
