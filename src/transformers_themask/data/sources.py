# SPDX-License-Identifier: Apache-2.0
"""Loading of labelled videos from a folder in any of the known layouts."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import cityscapes, video_folder, vspw
from .labelled_videos import LabelledVideos
from .video_table import OnError, video_table


@dataclass(frozen=True)
class Layout:
    """A layout of videos in a folder: its name in messages, and its functions of the folder."""

    name: str
    # Files or folders of which only this layout has one.
    markers: tuple[str, ...]
    split_names: Callable[[Path], list[str]]
    # Rows of a split; the last argument handles errors.
    list_videos: Callable[[Path, str, OnError], Iterator[dict[str, Any]]]
    # Class names, and the raw id of each value in mask files (`None`: the values are raw ids).
    read_classes: Callable[[Path], tuple[list[str], np.ndarray | None]]


LAYOUTS = (
    Layout(
        "VSPW",
        (vspw.LABEL_FILE,),
        vspw.split_names,
        vspw.list_videos,
        lambda root: (vspw.read_class_names(root), None),
    ),
    Layout(
        "Cityscapes sequences",
        (cityscapes.FRAME_FOLDER,),
        cityscapes.split_names,
        cityscapes.list_videos,
        lambda root: (list(cityscapes.CLASS_IDS), cityscapes.id_map()),
    ),
    Layout(
        "folder of videos",
        (video_folder.NAMES_FILE, video_folder.IDS_FILE),
        video_folder.split_names,
        video_folder.list_videos,
        video_folder.read_classes,
    ),
)


def load_videos(root: str | os.PathLike[str], split: str) -> LabelledVideos:
    """Load one split of a folder in one of the layouts that `vspw.py`, `cityscapes.py` and `video_folder.py` describe.

    Frames and videos in the skip list are left out, with a warning that tells how many.

    `root`: folder of the data set. `split`: name of the split, such as `"train"`. Returns the videos; `rows` is a
    `datasets.Dataset` in memory.
    """
    root = Path(root)
    layout = find_layout(root)
    class_names, id_map = layout.read_classes(root)
    rows = video_table(partial(layout.list_videos, root, split), root)
    return LabelledVideos(rows, root, class_names, id_map)


def find_layout(root: Path) -> Layout:
    """Recognise the layout of a folder by its markers."""
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be a folder of labelled videos. Got {root}, which is not a folder.")
    for layout in LAYOUTS:
        if any((root / marker).exists() for marker in layout.markers):
            return layout
    known = "; ".join(f"{' or '.join(layout.markers)} ({layout.name})" for layout in LAYOUTS)
    raise FileNotFoundError(f"`root` must hold one of {known}. Got {root}, which holds none of them; see the README.")
