# SPDX-License-Identifier: Apache-2.0
"""Label maps as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from transformers_themask.files.atomic import AtomicFolder

from .output_folder import check_new_folder
from .sink import LabelledFrame


def write_label_map(label_map: np.ndarray, path: str | Path) -> None:
    """Write class indices `(height, width)` as a single-channel PNG, of 16 bits unless they are `uint8`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_map if label_map.dtype == np.uint8 else label_map.astype(np.uint16)).save(path)


class LabelFolder:
    """Sink that writes the class indices of every frame as a PNG of the frame's name.

    Args:
        folder: New or empty folder.
        argument: Name of the argument that gives the folder, for the errors.
    """

    def __init__(self, folder: str | Path, argument: str = "folder"):
        self.folder = Path(folder)
        check_new_folder(argument, self.folder)
        self._unfinished = AtomicFolder(self.folder)
        self._hidden: Path | None = None

    def write(self, frame: LabelledFrame) -> None:
        """Write the next label map."""
        if self._hidden is None:
            self._hidden = self._unfinished.make()
        write_label_map(frame.label_map, self._hidden / f"{frame.name}.png")

    def close(self) -> None:
        """Rename the folder."""
        self._unfinished.finish()

    def abandon(self) -> None:
        """Remove an unfinished folder."""
        self._unfinished.remove()
