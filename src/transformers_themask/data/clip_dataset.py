# SPDX-License-Identifier: Apache-2.0
"""Training clips of videos on disk, reproducible from (seed, epoch, index) in any process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from .clips import FrameSampler, frame_sampler
from .frame_checks import VOID_ID, check_frame_size, check_mask_size
from .images import DamagedFileError
from .labelled_videos import LabelledVideos
from .normalization import ClipProcessor, normalize_frames
from .photometric import distort_colors
from .transforms import ClipAugmentation
from .video_table import UNLABELLED

logger = logging.get_logger(__name__)

MAX_CLIP_DRAWS = 50


@dataclass(eq=False, repr=False)
class ClipDataset(Dataset):
    """One random clip per item, from `(seed, epoch, index)` alone: workers, ranks and a resumed run agree on it.

    The last frame of a clip, in the order in which the model sees it, always has labels. An item whose labels are all
    void after augmentation is replaced by a clip of another random video, as in the official training code, and so,
    with a warning, is one with a file that cannot be decoded.

    Args:
        frame_offsets: Offsets of the clip's frames from its last frame, such as `(-9, -6, -3, 0)`.
        processor: Normalises the frames and reduces the labels; without an augmentation it also resizes.
        augmentation: Smaller clips than its crop are padded at the bottom and the right, after normalisation: frames
            with 0, labels with the ignored id.
        clips_per_video: Items of each video per epoch, on average.
        sample_by: `"video"` draws every video equally often, as the official code does; `"frame"` in proportion to its
            labelled frames, where videos differ much in length.
        photometric_on: With `"device"` the colour distortion is only drawn, the same as with `"cpu"`: items hold 8-bit
            frames, which [`prepare_on_device`] distorts and normalises in the batch.
        clip_sampler: Name of a sampler for [`~clips.frame_sampler`].
    """

    videos: LabelledVideos
    frame_offsets: Sequence[int]
    processor: ClipProcessor
    augmentation: ClipAugmentation | None
    seed: int
    _: KW_ONLY
    clips_per_video: int = 1
    sample_by: str = "video"
    photometric_on: str = "cpu"
    clip_sampler: str = "offsets"

    def __post_init__(self):
        for name, choices in (("sample_by", ("video", "frame")), ("photometric_on", ("cpu", "device"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be {choices[0]!r} or {choices[1]!r}. Got {getattr(self, name)!r}.")
        rows, processor = self.videos.rows, self.processor
        if len(rows) == 0 or self.clips_per_video < 1:
            raise ValueError(
                "`videos` and `clips_per_video` must give at least one clip. "
                f"Got {len(rows)} videos and {self.clips_per_video} clips per video."
            )
        if not processor.do_reduce_labels:
            raise ValueError(
                "`processor.do_reduce_labels` must be True because masks hold raw ids with 0 as void. "
                f"Got {processor.do_reduce_labels}; build the processor with `do_reduce_labels=True`."
            )
        self._sampler = frame_sampler(self.clip_sampler, self.frame_offsets)
        self.frame_offsets = self._sampler.frame_offsets
        labelled = [_labelled_frames(row) for row in rows]
        _check_videos(rows, labelled, self._sampler)
        repeats = 1 if self.sample_by == "video" else [len(frames) for frames in labelled]
        self._video_order = np.repeat(np.arange(len(rows)), repeats)
        self._label_type = torch.uint8 if 0 <= processor.ignore_index <= VOID_ID else torch.int16
        # The processor's own reduction, looked up: one byte per pixel from the file to the loss.
        self._class_indices = processor.reduce_labels(torch.arange(VOID_ID + 1)).to(self._label_type).numpy()

    def __len__(self) -> int:
        return len(self.videos.rows) * self.clips_per_video

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Make the item of an index, or of an index and an epoch (otherwise 0) as from [`ClipSampler`].

        It holds `pixel_values_videos` `(num_frames, 3, height, width)`; `labels` `(num_frames, height, width)`, class
        indices in `uint8` (`int16` if the ignored id needs it); `sample_id`, unique in a run; `video_id` and
        `frame_names`; for the device `photometric` `(num_frames, 5)` and `content_sizes` `(2,)`, height and width
        without padding. Raises `OSError` for an unreadable file, `ValueError` for one of wrong kind, size or ids, or
        if no clip with labels is found.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be between 0 and {len(self) - 1}. Got {index}.")
        rng = np.random.default_rng([self.seed, epoch, index])
        video = int(self._video_order[index % len(self._video_order)])
        for _ in range(MAX_CLIP_DRAWS):
            row = self.videos.rows[video]
            try:
                item = self._draw_clip(row, rng)
                if bool((item["labels"] != self.processor.ignore_index).any()):
                    return {**item, "sample_id": epoch * len(self) + index}
            except DamagedFileError as error:
                logger.warning_once(f"{error} Training draws another clip.")
            video = int(rng.integers(len(self.videos.rows)))
        raise ValueError(
            f"Clips must be readable and have labelled pixels. Got {MAX_CLIP_DRAWS} in a row that are damaged or all "
            f"void, the last from video {row['video_id']!r}; check the files, the masks and the crop size."
        )

    def _draw_clip(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        indices = self._sampler.draw(row["num_frames"], _labelled_frames(row), rng)
        frames, masks = self._read_clip(row, indices)
        if self.augmentation is None:
            batch = self.processor(np.stack(frames), segmentation_maps=np.stack(masks), return_tensors="pt")
            labels = batch["labels"][0].to(self._label_type)
            item = {"pixel_values_videos": batch["pixel_values_videos"][0], "labels": labels}
        else:
            # Augmented clips keep their size: the reference pads them after normalisation and never stretches them.
            clip, ids, draws = self.augmentation(frames, masks, rng)
            item = {}
            if self.photometric_on == "device":
                item["photometric"] = torch.tensor([draw.as_row() for draw in draws])
                item["content_sizes"] = torch.tensor(clip.shape[-2:])
            else:
                distorted = [distort_colors(frame, draw) for frame, draw in zip(clip, draws, strict=True)]
                clip = normalize_frames(torch.stack(distorted), self.processor)
            labels = torch.from_numpy(self._class_indices[ids])
            crop_size = self.augmentation.crop_size
            item["pixel_values_videos"] = _pad_bottom_right(clip, crop_size, value=0)
            item["labels"] = _pad_bottom_right(labels, crop_size, value=self.processor.ignore_index)
        names = [PurePosixPath(row["frames"][index]).stem for index in indices]
        return {**item, "video_id": row["video_id"], "frame_names": names}

    def _read_clip(self, row: Mapping[str, Any], indices: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        root, paths = self.videos.root, [row["frames"][index] for index in indices]
        frames = [self.videos.read_frame(row, index) for index in indices]
        masks = []
        for frame, path, index in zip(frames, paths, indices, strict=True):
            size = frame.shape[:2]
            check_frame_size(size, root / path, frames[0].shape[:2], root / paths[0])
            mask = self.videos.read_mask(row, index)
            if mask is None:
                mask = np.zeros(size, np.uint8)  # raw id 0 is void
            check_mask_size(mask.shape, root / row["masks"][index], size)
            masks.append(mask)
        return frames, masks


@dataclass(eq=False)
class ClipSampler(Sampler):
    """Shuffled `(index, epoch)` pairs: a `set_epoch` on the dataset would not reach persistent workers.

    `clips_per_step` clips of all processes make an optimiser step; what remains at the end of an epoch is left out.
    """

    num_clips: int
    seed: int = 0
    clips_per_step: int = 1
    epoch: int = field(default=0, init=False)

    def __post_init__(self):
        if not 1 <= self.clips_per_step <= self.num_clips:
            raise ValueError(
                f"`clips_per_step` must be between 1 and the {self.num_clips} clips of an epoch. Got "
                f"{self.clips_per_step}; raise `clips_per_video`, or lower the batch size or the accumulation."
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_clips // self.clips_per_step * self.clips_per_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        return iter([(int(index), self.epoch) for index in order[: len(self)]])


def _labelled_frames(row: Mapping[str, Any]) -> list[int]:
    return [index for index, path in enumerate(row["masks"]) if path != UNLABELLED]


def _check_videos(rows: Sequence[Mapping[str, Any]], labelled: Sequence[Sequence[int]], sampler: FrameSampler) -> None:
    """Raise a `ValueError` unless every video holds a clip."""
    pairs = zip(rows, labelled, strict=True)
    unusable = [(row, frames) for row, frames in pairs if not sampler.has_clip(row["num_frames"], frames)]
    if unusable:
        row, frames = unusable[0]
        raise ValueError(
            f"Every training video must have at least {sampler.min_video_frames} frames for the frame offsets "
            f"{sampler.frame_offsets}, up to a labelled one or from it on. Got {row['num_frames']} in "
            f"{row['video_id']!r}, {len(frames)} of them labelled ({len(unusable)} videos are too short); "
            "remove them from the split file or use smaller offsets."
        )


def _pad_bottom_right(maps: Tensor, size: tuple[int, int], value: float) -> Tensor:
    height, width = maps.shape[-2:]
    return functional.pad(maps, (0, size[1] - width, 0, size[0] - height), value=value)
