# SPDX-License-Identifier: Apache-2.0
"""Training clips of videos on disk, reproducible from (seed, epoch, index) whatever process reads them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from .clips import required_video_frames, sample_clip
from .file_checks import check_frame_size, check_label_ids, check_mask_size
from .images import read_frame, read_mask
from .transforms import ClipAugmentation

MAX_CLIP_DRAWS = 50


class ClipDataset(Dataset):
    """One random clip per item.

    All randomness of an item comes from `(seed, epoch, index)`, hence workers, ranks and a resumed run agree on it.
    An item whose labels are all void after augmentation is replaced by a clip of another random video, as in the
    official training code.

    Args:
        rows (`Sequence[Mapping]`): One row per video as from [`load_vspw`]: `video_id`, `num_frames`, `frames` and
            `masks` with paths relative to `root`.
        root (`str` or `os.PathLike`): Folder the paths are relative to.
        frame_offsets (`Sequence[int]`): Offsets of the clip's frames from its last frame, such as `(-9, -6, -3, 0)`.
        processor: Video processor that normalises the frames and reduces the labels. It also resizes when there is
            no augmentation.
        augmentation ([`ClipAugmentation`] or `None`): Geometry and colour changes.
        crop_size (`tuple[int, int]` or `None`): Height and width to which smaller clips are padded at the bottom and
            the right, after normalisation: frames with 0, labels with the ignored id. `None` takes the crop size of
            the augmentation; without either nothing is padded.
        seed (`int`): Seed of every draw.
        num_labels (`int`): Number of classes; raw ids run from 1 to it, 0 and 255 are void.
        clips_per_video (`int`, *optional*, defaults to 1): How many items each video gives per epoch, on average.
        sample_by (`str`, *optional*, defaults to `"video"`): `"video"` draws every video equally often, as the
            official code does; `"frame"` in proportion to its frames, where videos differ much in length.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        root: str | os.PathLike[str],
        frame_offsets: Sequence[int],
        processor: Any,
        augmentation: ClipAugmentation | None,
        crop_size: tuple[int, int] | None,
        seed: int,
        num_labels: int,
        clips_per_video: int = 1,
        sample_by: str = "video",
    ):
        if sample_by not in ("video", "frame"):
            raise ValueError(f"`sample_by` must be 'video' or 'frame'. Got {sample_by!r}.")
        if len(rows) == 0 or clips_per_video < 1:
            raise ValueError(
                "`rows` and `clips_per_video` must give at least one clip. "
                f"Got {len(rows)} videos and {clips_per_video} clips per video."
            )
        _check_video_lengths(rows, frame_offsets)
        if not processor.do_reduce_labels:
            raise ValueError(
                "`processor.do_reduce_labels` must be True because masks in VSPW layout hold raw ids with 0 as void. "
                f"Got {processor.do_reduce_labels}; build the processor with `do_reduce_labels=True`."
            )
        self.rows = rows
        self.root = Path(root)
        self.frame_offsets = tuple(frame_offsets)
        self.processor = processor
        self.augmentation = augmentation
        self.crop_size = augmentation.crop_size if crop_size is None and augmentation is not None else crop_size
        self.seed = seed
        self.num_labels = num_labels
        self.clips_per_video = clips_per_video
        repeats = 1 if sample_by == "video" else [row["num_frames"] for row in rows]
        self.video_order = np.repeat(np.arange(len(rows)), repeats)

    def __len__(self) -> int:
        return len(self.rows) * self.clips_per_video

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Make one item.

        Args:
            key (`int` or `tuple[int, int]`): Index, or index and epoch as from [`ClipSampler`]; the epoch is 0 if
                not given.

        Returns:
            `dict`: `pixel_values_videos` of shape `(num_frames, 3, height, width)`, `labels` (`int64`) of shape
            `(num_frames, height, width)`, `video_id` and `frame_names`.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be between 0 and {len(self) - 1}. Got {index}.")
        rng = np.random.default_rng([self.seed, epoch, index])
        video = int(self.video_order[index % len(self.video_order)])
        for _ in range(MAX_CLIP_DRAWS):
            item = self._draw_clip(self.rows[video], rng)
            if bool((item["labels"] != self.processor.ignore_index).any()):
                return item
            video = int(rng.integers(len(self.rows)))
        raise ValueError(
            f"Clips must have labelled pixels. Got {MAX_CLIP_DRAWS} clips in a row in which every pixel is void, the "
            f"last from video {item['video_id']!r}; check the masks and the crop size."
        )

    def _draw_clip(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        indices = sample_clip(row["num_frames"], self.frame_offsets, rng)
        frame_paths = [row["frames"][index] for index in indices]
        mask_paths = [row["masks"][index] for index in indices]
        frames, masks = self._read_clip(frame_paths, mask_paths)
        if self.augmentation is not None:
            frames, masks = self.augmentation(frames, masks, rng)
        # Augmented clips keep their size: the reference pads them after normalisation and never stretches them.
        options = {} if self.augmentation is None else {"do_resize": False, "size_divisor": 1}
        batch = self.processor(frames, segmentation_maps=masks, return_tensors="pt", **options)
        pixel_values, labels = batch["pixel_values_videos"][0], batch["labels"][0]
        if self.crop_size is not None:
            pixel_values = _pad_bottom_right(pixel_values, self.crop_size, value=0)
            labels = _pad_bottom_right(labels, self.crop_size, value=self.processor.ignore_index)
        return {
            "pixel_values_videos": pixel_values,
            "labels": labels,
            "video_id": row["video_id"],
            "frame_names": [PurePosixPath(path).stem for path in frame_paths],
        }

    def _read_clip(self, frame_paths: list[str], mask_paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
        frames = [read_frame(self.root / path) for path in frame_paths]
        masks = [read_mask(self.root / path) for path in mask_paths]
        for frame, mask, frame_path, mask_path in zip(frames, masks, frame_paths, mask_paths, strict=True):
            size = frame.shape[:2]
            check_frame_size(size, self.root / frame_path, frames[0].shape[:2], self.root / frame_paths[0])
            check_mask_size(mask.shape, self.root / mask_path, size)
            check_label_ids(mask, self.num_labels, self.root / mask_path)
        return np.stack(frames), np.stack(masks)


class ClipSampler(Sampler):
    """Shuffled `(index, epoch)` pairs.

    The epoch travels with the index because a `set_epoch` on the dataset does not reach persistent workers.

    Args:
        num_clips (`int`): Length of the dataset.
        seed (`int`, *optional*, defaults to 0): Seed of the order.
    """

    def __init__(self, num_clips: int, seed: int = 0):
        self.num_clips = num_clips
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and draws the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_clips

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        return iter([(int(index), self.epoch) for index in order])


def _check_video_lengths(rows: Sequence[Mapping[str, Any]], frame_offsets: Sequence[int]) -> None:
    num_required = required_video_frames(frame_offsets)
    too_short = [(row["video_id"], row["num_frames"]) for row in rows if row["num_frames"] < num_required]
    if too_short:
        video_id, num_frames = too_short[0]
        raise ValueError(
            f"Every training video must have at least {num_required} frames for the frame offsets "
            f"{tuple(frame_offsets)}. Got {num_frames} in {video_id!r} ({len(too_short)} videos are too short); "
            "remove them from the split file or use smaller offsets."
        )


def _pad_bottom_right(maps: torch.Tensor, size: tuple[int, int], value: float) -> torch.Tensor:
    height, width = maps.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"`crop_size` must hold every clip. Got {tuple(size)} for a clip of size {(height, width)}; "
            "enlarge it or crop to it in the augmentation."
        )
    return functional.pad(maps, (0, size[1] - width, 0, size[0] - height), value=value)
