# SPDX-License-Identifier: Apache-2.0
"""Compare the training loader with a plain per-frame chain, on the same clips with the same draws; row 14."""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

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

from .measuring import Result, Setting, Work, faster, summarise_pairs, table, take_turns

SIZE = (480, 853)
FRAME_OFFSETS = (-9, -6, -3, 0)
# Standard deviation of the grain in grey levels: gives a JPEG of quality 90 the size of a photograph.
GRAIN = 6.0
WARM_UP = 2
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
        speed_up = summarise_pairs(times["A"], times[chain])
        images = {"value": len(FRAME_OFFSETS) / speed_up["seconds"]["ours"]}
        yield Result(name, (bound,), {"speed_up": speed_up, "images_per_s_and_core": images})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--data_root", type=Path, help="a folder of labelled videos (default: generated ones)")
    parser.add_argument("--split", default="train", help="which videos (default: train)")
    parser.add_argument("--frame_offsets", type=int, nargs="+", default=FRAME_OFFSETS)
    parser.add_argument("--num_clips", type=int, default=24, help="clips to time (default: 24)")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time the chains; medians and paired ratios."""
    with TemporaryDirectory() as folder:
        root = options.data_root or Path(folder, "videos")
        if options.data_root is None:
            write_grainy_videos(root)
        times = measure(load_videos(root, options.split), tuple(options.frame_offsets), options.num_clips)
    result: dict[str, dict[str, float]] = {}
    for name, of_chain in times.items():
        median = statistics.median(of_chain) / len(options.frame_offsets)
        result[name] = {"ms_per_frame": 1e3 * median, "frames_per_s": 1 / median}
        if name != "device":
            result[name]["ratio"] = summarise_pairs(times["A"], of_chain)["value"]
    print(table(result))
    yield result


def write_grainy_videos(root: Path) -> None:
    """Write three synthetic videos of 24 frames with files of the size of photographs."""
    write_synthetic_dataset(root, num_train_videos=3, num_val_videos=1, num_frames=24, size=SIZE, num_classes=8)
    rng = np.random.default_rng(0)
    for path in sorted(root.glob("data/*/origin/*.jpg")):
        frame = np.asarray(Image.open(path)) + rng.normal(0, GRAIN, (*SIZE, 3))
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def measure(videos: LabelledVideos, frame_offsets: tuple[int, ...], num_clips: int) -> dict[str, list[float]]:
    """CPU seconds of every chain for every clip."""
    processor, augmentation = THEMaskVideoProcessor(), ClipAugmentation()
    on_cpu, on_device = (
        ClipDataset(videos, frame_offsets, processor, augmentation, seed=0, photometric_on=place)
        for place in ("cpu", "device")
    )
    plain, collate = PlainChain(videos, frame_offsets, processor, augmentation), ClipCollator()
    keys = [(clip % len(videos.rows), clip) for clip in range(WARM_UP + num_clips)]
    batches = [collate([on_device[key]]) for key in keys]
    works = {
        "A": one_by_one(lambda key: plain(*key), keys),
        "B": one_by_one(lambda key: collate([on_cpu[key]]), keys),
        "C": one_by_one(lambda key: collate([on_device[key]]), keys),
        "device": one_by_one(lambda batch: prepare_on_device(batch, processor), batches),
    }
    return take_turns(works, num_clips, warm_up=WARM_UP)


def one_by_one(work: Callable[[Any], Any], inputs: list[Any]) -> Work:
    """Work on the next of some inputs at every call."""
    remaining = iter(inputs)
    return lambda: work(next(remaining))


class PlainChain:
    """Chain A: step by step, frame by frame."""

    def __init__(self, videos, frame_offsets, processor, augmentation):
        self.videos, self.sampler, self.augmentation = videos, OffsetSampler(tuple(frame_offsets)), augmentation
        self.mean = 255 * np.array(processor.image_mean, np.float32)
        self.deviation = 255 * np.array(processor.image_std, np.float32)

    def __call__(self, index: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The clip of a video in an epoch, with the draws of `ClipDataset`."""
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
        """Draw a corner, again up to ten times while one class fills the crop."""
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

    def in_hsv(frame, channel, change):
        hsv = np.array(Image.fromarray(np.ascontiguousarray(frame)).convert("HSV"))
        hsv[..., channel] = change(hsv[..., channel])
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))

    if draw.brightness is not None:
        frame = scale(frame, shift=draw.brightness)
    if draw.contrast is not None and draw.contrast_first:
        frame = scale(frame, draw.contrast)
    if draw.saturation is not None:
        frame = in_hsv(frame, 1, lambda levels: scale(levels, draw.saturation))
    if draw.hue is not None:
        frame = in_hsv(frame, 0, lambda levels: (levels.astype(np.int16) + round(draw.hue * 256 / 180)) % 256)
    if draw.contrast is not None and not draw.contrast_first:
        frame = scale(frame, draw.contrast)
    return frame
