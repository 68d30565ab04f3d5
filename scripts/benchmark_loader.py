#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the training loader with a plain per-frame chain, on the same clips with the same draws.

    python scripts/benchmark_loader.py [--data_root DATA --split train] [--num_clips 24] [--json OUT.json]

A  per frame with Pillow and NumPy, in the order of the reference: decode, resize the whole frame and its mask, crop
   (classes of the last frame counted with NumPy), flip, distort the colours in float32 and Pillow's HSV, reduce the
   labels, normalise, pad, stack to a tensor.
B  `ClipDataset`: the same steps with OpenCV's exact grey levels.
C  `ClipDataset` with `photometric_on="device"`: colours and normalisation are left to the device and not counted;
   `device` is what they then cost on this CPU.

The chains take turns clip by clip in one process with one thread. Times are CPU times of the process, a ratio is the
median over the clips of A's time divided by the other's. Any folder that `load_videos` reads will do; by default
480x853 videos with grain are written to a temporary folder.
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import seconds
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.data.clip_dataset import ClipDataset
from transformers_themask.data.clips import OffsetSampler
from transformers_themask.data.collator import ClipCollator
from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.data.normalization import prepare_on_device
from transformers_themask.data.photometric import PhotometricDraw, draw_photometric
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.data.transforms import ClipAugmentation, crop_proposals, resized_size

SIZE = (480, 853)
# Standard deviation of the grain in grey levels: brings a JPEG of quality 90 to the weight of a photograph.
GRAIN = 6.0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, help="a folder of labelled videos; by default one is made up")
    parser.add_argument("--split", default="train", help="which videos (default: train)")
    parser.add_argument("--frame_offsets", type=int, nargs="+", default=[-9, -6, -3, 0])
    parser.add_argument("--num_clips", type=int, default=24, help="clips to time (default: 24)")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data_root
        if root is None:
            root = Path(folder, "videos")
            write_grainy_videos(root)
        times = measure(load_videos(root, arguments.split), tuple(arguments.frame_offsets), arguments.num_clips)
    result = summarise(times, len(arguments.frame_offsets))
    print(f"{'chain':<8}{'ms per frame':>14}{'frames/s':>10}{'A / chain':>11}")
    for name, row in result.items():
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(f"{name:<8}{row['ms_per_frame']:>14.2f}{row['frames_per_s']:>10.1f}{ratio:>11}")
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def write_grainy_videos(root: Path) -> None:
    """Write three synthetic videos of 24 frames, whose frames weigh as much as photographs."""
    write_synthetic_dataset(root, num_train_videos=3, num_val_videos=1, num_frames=24, size=SIZE, num_classes=8)
    rng = np.random.default_rng(0)
    for path in sorted(root.glob("data/*/origin/*.jpg")):
        frame = np.asarray(Image.open(path)) + rng.normal(0, GRAIN, (*SIZE, 3))
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def measure(videos: LabelledVideos, frame_offsets: tuple[int, ...], num_clips: int) -> dict[str, list[float]]:
    """Time every chain on every clip, in CPU seconds."""
    processor, augmentation = THEMaskVideoProcessor(), ClipAugmentation()
    datasets = {
        place: ClipDataset(videos, frame_offsets, processor, augmentation, seed=0, photometric_on=place)
        for place in ("cpu", "device")
    }
    plain = PlainChain(videos, frame_offsets, processor, augmentation)
    times: dict[str, list[float]] = {name: [] for name in ("A", "B", "C", "device")}
    for clip in range(-2, num_clips):  # two clips to warm up
        key = (clip % len(videos.rows), clip + 2)
        timed = {
            "A": seconds(partial(plain, *key)),
            "B": seconds(partial(load, datasets["cpu"], key)),
            "C": seconds(partial(load, datasets["device"], key)),
        }
        timed["device"] = seconds(partial(prepare_on_device, load(datasets["device"], key), processor))
        if clip >= 0:
            for name, time in timed.items():
                times[name].append(time)
    return times


def load(dataset: ClipDataset, key: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Make a batch of one clip."""
    return ClipCollator()([dataset[key]])


def summarise(times: dict[str, list[float]], num_frames: int) -> dict[str, dict[str, float]]:
    """Medians and paired ratios."""
    result = {}
    for name, of_chain in times.items():
        median = statistics.median(of_chain) / num_frames
        result[name] = {"ms_per_frame": 1e3 * median, "frames_per_s": 1 / median}
        if name != "device":  # work of another kind, on another machine
            ratios = [plain / other for plain, other in zip(times["A"], of_chain, strict=True)]
            result[name]["ratio"] = statistics.median(ratios)
    return result


class PlainChain:
    """Chain A: one frame after the other, one step after the other."""

    def __init__(self, videos, frame_offsets, processor, augmentation):
        self.videos, self.sampler, self.augmentation = videos, OffsetSampler(tuple(frame_offsets)), augmentation
        self.mean = 255 * np.array(processor.image_mean, np.float32)
        self.deviation = 255 * np.array(processor.image_std, np.float32)

    def __call__(self, index: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the clip of a video in an epoch, with the draws of `ClipDataset`."""
        rng = np.random.default_rng([0, epoch, index])
        row, root, options = self.videos.rows[index], self.videos.root, self.augmentation
        labelled = [frame for frame, mask in enumerate(row["masks"]) if mask]
        indices = self.sampler.draw(row["num_frames"], labelled, rng)
        images = [Image.open(root / row["frames"][frame]).convert("RGB") for frame in indices]
        label_maps = [Image.open(root / row["masks"][frame]) for frame in indices]

        size = (images[-1].height, images[-1].width)
        height, width = resized_size(size, options.base_size, rng.uniform(*options.ratio_range))
        frames = [np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in images]
        masks = [np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) for image in label_maps]
        top, left = self.select_crop(masks[-1], crop_proposals((height, width), options.crop_size, rng))
        box = np.s_[top : top + options.crop_size[0], left : left + options.crop_size[1]]
        frames, masks = [frame[box] for frame in frames], [mask[box] for mask in masks]
        if rng.random() < options.flip_probability:
            frames, masks = [frame[:, ::-1] for frame in frames], [mask[:, ::-1] for mask in masks]
        frames = [distort(frame, draw_photometric(rng)) for frame in frames]
        labels = [np.where((mask == 0) | (mask == 255), 255, mask.astype(np.int64) - 1) for mask in masks]
        frames = [(frame.astype(np.float32) - self.mean) / self.deviation for frame in frames]
        below, right = options.crop_size[0] - labels[0].shape[0], options.crop_size[1] - labels[0].shape[1]
        frames = [np.pad(frame, ((0, below), (0, right), (0, 0))) for frame in frames]
        labels = [np.pad(label, ((0, below), (0, right)), constant_values=255) for label in labels]
        clip = np.stack([np.ascontiguousarray(frame.transpose(2, 0, 1)) for frame in frames])
        return torch.from_numpy(clip)[None], torch.from_numpy(np.stack(labels))[None]

    def select_crop(self, mask, proposals):
        """Draw a corner, and up to ten times again while one class fills the crop."""
        size, corner = self.augmentation.crop_size, next(proposals)
        for _ in range(10):
            top, left = corner
            counts = np.bincount(mask[top : top + size[0], left : left + size[1]].ravel(), minlength=256)
            counts[[0, 255]] = 0
            if (counts > 0).sum() > 1 and counts.max() / counts.sum() < self.augmentation.cat_max_ratio:
                break
            corner = next(proposals)
        return corner


def distort(frame: np.ndarray, draw: PhotometricDraw) -> np.ndarray:
    """Distort the colours of a frame in float32, and in Pillow's 8-bit HSV."""

    def scale(levels, factor=1.0, shift=0.0):
        return (levels.astype(np.float32) * np.float32(factor) + np.float32(shift)).clip(0, 255).astype(np.uint8)

    if draw.brightness is not None:
        frame = scale(frame, shift=draw.brightness)
    if draw.contrast is not None and draw.contrast_first:
        frame = scale(frame, draw.contrast)
    if draw.saturation is not None:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(frame)).convert("HSV"))
        hsv[..., 1] = scale(hsv[..., 1], draw.saturation)
        frame = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if draw.hue is not None:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(frame)).convert("HSV"))
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(draw.hue * 256 / 180)) % 256
        frame = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if draw.contrast is not None and not draw.contrast_first:
        frame = scale(frame, draw.contrast)
    return frame


if __name__ == "__main__":
    main()
