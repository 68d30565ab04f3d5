# SPDX-License-Identifier: Apache-2.0
"""Loading of labelled videos from a folder in any of the known layouts."""

import os
from pathlib import Path
from typing import Protocol

from . import cityscapes, video_folder, vspw
from .labelled_videos import LabelledVideos
from .video_table import Classes, Listing, video_table


class Layout(Protocol):
    """A layout of videos in a folder, read by a module: its name in messages, and its functions of the folder."""

    NAME: str
    # Files or folders of which only this layout has one.
    MARKERS: tuple[str, ...]

    def split_names(self, root: Path) -> list[str]:
        """Names of the splits."""

    def list_videos(self, root: Path, split: str) -> Listing:
        """List the videos of a split."""

    def read_classes(self, root: Path) -> Classes:
        """Class names, and the raw id of each value in mask files (`None`: the values are raw ids)."""


LAYOUTS: tuple[Layout, ...] = (vspw, cityscapes, video_folder)


def load_videos(root: str | os.PathLike[str], split: str) -> LabelledVideos:
    """Load one split, such as `"train"`, of a folder in one of the layouts that the README shows.

    Frames and videos in the skip list are left out, with a warning. `rows` is a `datasets.Dataset` in memory.
    """
    root = Path(root)
    layout = find_layout(root)
    class_names, id_map = layout.read_classes(root)
    rows = video_table(layout.list_videos(root, split), root)
    return LabelledVideos(rows, root, class_names, id_map)


def find_layout(root: Path) -> Layout:
    """Recognise the layout of a folder by its markers."""
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be a folder of labelled videos. Got {root}, which is not a folder.")
    for layout in LAYOUTS:
        if any((root / marker).exists() for marker in layout.MARKERS):
            return layout
    known = "; ".join(f"{' or '.join(layout.MARKERS)} ({layout.NAME})" for layout in LAYOUTS)
    raise FileNotFoundError(f"`root` must hold one of {known}. Got {root}, which holds none of them; see the README.")
