# SPDX-License-Identifier: Apache-2.0
"""Label maps as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_label_map(label_map: np.ndarray, path: str | Path) -> None:
    """Write class indices as a single-channel PNG, of 16 bits unless `label_map` is `uint8`.

    Args:
        label_map (`np.ndarray` of shape `(height, width)`):
            Class indices.
        path (`str` or `Path`):
            File to write; its folder is made if needed.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_map if label_map.dtype == np.uint8 else label_map.astype(np.uint16)).save(path)
