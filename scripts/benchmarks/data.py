# SPDX-License-Identifier: Apache-2.0
"""Row 14: the training loader and a plain chain of Pillow and NumPy, as `benchmark_loader` compares them."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark_loader import measure, write_grainy_videos
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset

from .measuring import Result, Setting, faster, summarise_pairs

FRAME_OFFSETS = (-9, -6, -3, 0)
# Chains of `benchmark_loader`.
CHAINS = {"exact photometrics": ("B", faster(1.25, 1.4)), "photometrics on the device": ("C", faster(2, 3))}


def loader_results(setting: Setting) -> Iterator[Result]:
    """Row 14; the pairs are clips."""
    num_clips = 2 if setting.quick else max(4 * setting.repeats, 12)
    with TemporaryDirectory() as folder:
        root = Path(folder, "videos")
        if setting.quick:
            write_synthetic_dataset(root, num_train_videos=1, num_val_videos=1, num_frames=12, size=setting.size)
        else:
            write_grainy_videos(root)
        times = measure(load_videos(root, "train"), FRAME_OFFSETS, num_clips)
    for name, (chain, bound) in CHAINS.items():
        speed_up = summarise_pairs(list(zip(times["A"], times[chain], strict=True)))
        images = {"value": len(FRAME_OFFSETS) / speed_up["seconds"]["ours"]}
        yield Result(name, (bound,), {"speed_up": speed_up, "images_per_s_and_core": images})
