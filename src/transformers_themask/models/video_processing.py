# SPDX-License-Identifier: Apache-2.0
"""The video processor of every model family: frames and label maps in, tensors out, outputs back to label maps."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor, nn
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import load_video

from .frame_arrays import rgb_of_image
from .outputs import VideoSegmentationOutput, as_output
from .point_sampling import map_size
from .scores_to_labels import enlarged_argmax, twice_enlarged_argmax

# The options that mean the same in image and video processors of Transformers.
SHARED_OPTIONS = (
    "resample",
    "size",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)

# The entries of a `size` that are lengths in pixels.
EDGES = ("shortest_edge", "longest_edge", "height", "width", "max_height", "max_width")


class VideoSegmentationProcessorKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """Options of [`VideoSegmentationProcessor`] besides the common ones."""

    fit: str | None
    size_divisor: int | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    segmentation_maps: Any


class VideoSegmentationProcessor(BaseVideoProcessor):
    r"""Prepares clips and turns a model's outputs into label maps.

    Frames are resized as 8-bit images, rescaled, and normalised with the ImageNet mean and deviation. A video is a
    list of PIL images or `(height, width, 3)` arrays, an array `(num_frames, height, width, 3)`, a tensor
    `(num_frames, 3, height, width)` or the path of a video file; several videos come as a list.

    Args:
        size: Target size. With both edges, the largest size with this aspect ratio that exceeds neither;
            `shortest_edge` or `longest_edge` alone fix that edge; `{"height": ..., "width": ...}` is taken literally.
        fit: How the resized frames reach a multiple of `size_divisor`: `"stretch"` resizes them once more, `"pad"`
            adds zeros (after normalisation) to the right and at the bottom.
        size_divisor: The multiple.
        do_reduce_labels: Turn raw ids of VSPW-like data sets (0 = void, classes from 1) into class indices. Nothing
            else in the package does.
        ignore_index: The label of pixels without a class.
        kwargs: The common options of [`BaseVideoProcessor`], except cropping: a crop must cut frames and labels alike
            and belongs to the augmentation.
    """

    valid_kwargs = VideoSegmentationProcessorKwargs
    model_input_names = ["pixel_values_videos"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 480, "longest_edge": 853}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    fit = "stretch"
    size_divisor = 32
    do_reduce_labels = True
    ignore_index = 255

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        check_fit(self.fit)

    def __call__(self, videos: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare videos and, with them, their label maps.

        Args:
            videos: One video or a list of videos; see the class.
            segmentation_maps: Raw label ids of every frame: per video an array or tensor `(num_frames, height, width)`
                or a list of single-channel images.
            kwargs: Any option of the class, for this call; `return_tensors="pt"` stacks clips of one shape.

        Returns:
            [`BatchFeature`] with `pixel_values_videos` `(batch, num_frames, 3, height, width)` float32 and, with maps,
            `labels` `(batch, num_frames, height, width)` int64 class indices; without `return_tensors` lists of clips.

        Raises:
            FileNotFoundError: If a video file does not exist.
            ValueError: If there is no video, its frames differ in size, or maps and frames do not fit together.
        """
        if segmentation_maps is not None:
            kwargs["segmentation_maps"] = batched_maps(segmentation_maps)
        return self.preprocess(uniform_frames(videos), **kwargs)

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Decode video files with PyAV, which needs no system libraries."""
        if isinstance(video_url_or_urls, list):
            decoded = [self.fetch_videos(path, sample_indices_fn) for path in video_url_or_urls]
            return list(zip(*decoded, strict=True))
        path = str(video_url_or_urls)
        if "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"`videos` must name existing files. Got {path}.")
        return load_video(path, backend="pyav", sample_indices_fn=sample_indices_fn)

    def reduce_labels(self, raw_ids: Tensor) -> Tensor:
        """Turn raw ids into class indices: 0 and `ignore_index` to `ignore_index`, id k to k - 1.

        Takes integer tensors of any shape and returns int64 ones; `raw_ids` is left as it is.
        """
        raw_ids = torch.as_tensor(raw_ids).long()
        is_void = (raw_ids == 0) | (raw_ids == self.ignore_index)
        return torch.where(is_void, self.ignore_index, raw_ids - 1)

    def resized_size(self, height: int, width: int, size: Any = None) -> tuple[int, int]:
        """Height and width that frames of a given size are resized to, before stretching or padding."""
        size = self.size if size is None else size
        edges = dict(size)
        if edges.get("height") and edges.get("width"):
            return edges["height"], edges["width"]
        shortest, longest = edges.get("shortest_edge"), edges.get("longest_edge")
        factors = [longest / max(height, width)] if longest else []
        factors += [shortest / min(height, width)] if shortest else []
        if not factors:
            raise ValueError(
                f"`size` must give `shortest_edge`, `longest_edge`, both, or `height` and `width`. Got {size}."
            )
        factor = min(factors)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def post_process_semantic_segmentation(
        self,
        outputs: VideoSegmentationOutput,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        via_input_size: bool = False,
        enlarge_masks: bool = False,
    ) -> list[Tensor]:
        """Turn outputs into label maps.

        Video-level and frame-level predictions, where both are there, count half each. Every pixel gets a class. Where
        the frame lies in the network's input follows from the processor's own `size`, `do_resize` and `fit`, not from
        options given to a single call.

        Args:
            outputs: Outputs of a model of any family.
            target_sizes: Height and width of each video's original frames. Defaults to the size of the network's
                input; required for `logits`, whose stride is the model's own.
            via_input_size: Resize twice, by way of the network's input size as the official code does, instead of
                once.
            enlarge_masks: Likewise, and enlarge the masks before they become scores, as the official codes of
                Mask2Former and MPVSS do. Takes memory for all queries and classes at the size of the network's input.

        Returns:
            One tensor `(num_frames, height, width)` per video: class indices, uint8 (int32 beyond 256 classes).

        Raises:
            ValueError: If `outputs` hold neither masks nor `logits`, or `target_sizes` has not one entry per video.
        """
        fields, outputs = sorted(outputs), as_output(outputs)
        pixel_logits, levels = outputs.pixel_logits(), outputs.levels()
        scored = [pixel_logits] if pixel_logits is not None else [level.mask_logits for level in levels]
        if not scored:
            raise ValueError(
                f"`outputs` must hold masks of video or frame queries, or `logits` of pixels. Got {fields}."
            )
        batch_size, num_frames = scored[0].shape[:2]
        cells = map_size(scored[0])
        placements = self._placements(target_sizes, batch_size, cells, pixel_logits is not None)
        videos = []
        for video, (size, input_size, content) in enumerate(placements):
            steps = (cells[0] * content[0] / input_size[0] / size[0], cells[1] * content[1] / input_size[1] / size[1])
            maps = []
            for frame in range(num_frames):
                # A caller's autocast is for the network: scores in half precision would move borders.
                with torch.autocast(scored[0].device.type, enabled=False):
                    scores = outputs.frame_scores(video, frame, input_size if enlarge_masks else None)
                if via_input_size or enlarge_masks:
                    maps.append(twice_enlarged_argmax(scores, input_size, content, size))
                else:
                    maps.append(enlarged_argmax(scores, size, steps))
            videos.append(torch.stack(maps))
        return videos

    def _placements(
        self,
        target_sizes: Sequence[tuple[int, int]] | None,
        batch_size: int,
        cells: tuple[int, int],
        are_pixel_logits: bool,
    ) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
        """Sizes of each video's label maps, of the network's input, and of the part of it that shows the frame."""
        strided = (4 * cells[0], 4 * cells[1])
        if target_sizes is None and are_pixel_logits:
            raise ValueError(
                "`target_sizes` must be given for `logits`, whose stride is the model's own. Got None. "
                "Give the height and width of each video's frames."
            )
        if target_sizes is None:
            return [(strided, strided, strided)] * batch_size
        if len(target_sizes) != batch_size:
            raise ValueError(
                f"`target_sizes` must give one (height, width) per video. Got {len(target_sizes)} for {batch_size}."
            )
        placements = []
        for height, width in target_sizes:
            size = (int(height), int(width))
            # Logits may have any stride, but then nothing but `size` says how large the input was.
            input_size = self.input_size(size) if are_pixel_logits else strided
            placements.append((size, input_size, self.content_size(size, input_size)))
        return placements

    def input_size(self, original: tuple[int, int]) -> tuple[int, int]:
        """The size of the network's input for frames of a given size."""
        return round_up(self.resized_size(*original) if self.do_resize else original, self.size_divisor or 1)

    def with_size(self, size: Mapping[str, int]) -> "VideoSegmentationProcessor":
        """The same processor with another target size."""
        processor = copy.copy(self)
        processor.size = SizeDict(**size)
        return processor

    def scaled(self, scale: float) -> "VideoSegmentationProcessor":
        """The same processor with a target size larger by a factor, on all its edges."""
        return self.with_size(scaled_size(self.size, scale))

    def content_size(self, original: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
        """The part of the network's input that shows the frame: all of it unless padding was added."""
        if self.fit == "stretch":
            return input_size
        height, width = self.resized_size(*original) if self.do_resize else original
        return min(height, input_size[0]), min(width, input_size[1])

    def _preprocess(
        self,
        videos: list[Tensor],
        *,
        do_resize: bool | None = None,
        size: SizeDict | None = None,
        resample: Any = None,
        fit: str | None = None,
        size_divisor: int | None = None,
        do_center_crop: bool | None = None,
        segmentation_maps: list[Tensor] | None = None,
        do_reduce_labels: bool | None = None,
        ignore_index: int | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        fit = check_fit(fit)
        if do_center_crop:
            raise ValueError("`do_center_crop` must be False. Got True. Crop frames and label maps before.")
        resized = [self._resize_frames(video, do_resize, size, resample, fit, size_divisor or 1) for video in videos]
        features = super()._preprocess(
            resized,
            do_resize=False,
            size=size,
            resample=resample,
            do_center_crop=False,
            return_tensors=None,
            **kwargs,
        )["pixel_values_videos"]
        if fit == "pad":
            features = [pad_to_multiple(video, size_divisor or 1, 0) for video in features]
        if return_tensors is not None and len({tuple(video.shape) for video in features}) > 1:
            raise ValueError(
                "`videos` must have one shape to be stacked by `return_tensors`. "
                f"Got {[tuple(video.shape) for video in features]}. Process them one by one."
            )
        batch = {"pixel_values_videos": features}
        if segmentation_maps is not None:
            contents = [(video.shape[-2], video.shape[-1]) for video in resized]
            check_maps(segmentation_maps, videos)
            batch["labels"] = [
                self._prepare_labels(raw_ids, content, (video.shape[-2], video.shape[-1]), bool(do_reduce_labels))
                for raw_ids, content, video in zip(segmentation_maps, contents, features, strict=True)
            ]
        return BatchFeature(batch, tensor_type=return_tensors)

    def _resize_frames(
        self, video: Tensor, do_resize: bool | None, size: Any, resample: Any, fit: str, divisor: int
    ) -> Tensor:
        # Twice where the second size differs, as the official test pipeline does: aspect ratio first, then the
        # multiple.
        height, width = video.shape[-2:]
        target = self.resized_size(height, width, size) if do_resize else (height, width)
        targets = [target, round_up(target, divisor)] if fit == "stretch" else [target]
        for rows, columns in targets:
            if video.shape[-2:] != (rows, columns):
                video = self.resize(video, SizeDict(height=rows, width=columns), resample=resample)
        return video

    def _prepare_labels(
        self, raw_ids: Tensor, content_size: tuple[int, int], padded_size: tuple[int, int], reduce: bool
    ) -> Tensor:
        labels = self.reduce_labels(raw_ids) if reduce else raw_ids.long()
        labels = tvf.resize(labels[:, None], list(content_size), tvf.InterpolationMode.NEAREST_EXACT)[:, 0]
        below, right = padded_size[0] - content_size[0], padded_size[1] - content_size[1]
        return nn.functional.pad(labels, (0, right, 0, below), value=self.ignore_index)


def scaled_size(size: Any, scale: float) -> dict[str, int]:
    """A target size with all its lengths multiplied by a factor."""
    lengths = dict(size).items()
    return {edge: max(1, int(length * scale + 0.5)) if edge in EDGES else length for edge, length in lengths}


def check_fit(fit: str | None) -> str:
    """Return `fit` if it is known."""
    if fit not in ("stretch", "pad"):
        raise ValueError(f"`fit` must be 'stretch' or 'pad'. Got {fit!r}.")
    return fit


def round_up(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """The next multiples of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def pad_to_multiple(video: Tensor, divisor: int, value: float) -> Tensor:
    """Pad `(..., height, width)` to the right and at the bottom to multiples of `divisor`."""
    height, width = video.shape[-2:]
    rows, columns = round_up((height, width), divisor)
    return nn.functional.pad(video, (0, columns - width, 0, rows - height), value=value)


def batched_maps(segmentation_maps: Any) -> list[Tensor]:
    """Bring label maps to one integer tensor `(num_frames, height, width)` per video."""

    def to_tensor(item: Any) -> Tensor:
        if isinstance(item, (list, tuple)):
            return torch.stack([to_tensor(part) for part in item])
        return item if isinstance(item, Tensor) else torch.from_numpy(np.array(item))

    if isinstance(segmentation_maps, (list, tuple)):
        parts = [to_tensor(item) for item in segmentation_maps]
        maps = [torch.stack(parts)] if parts and parts[0].dim() == 2 else parts
    else:
        whole = to_tensor(segmentation_maps)
        maps = list(whole) if whole.dim() == 4 else [whole]
    for item in maps:
        if item.dim() != 3:
            raise ValueError(
                "`segmentation_maps` must have 3 dimensions (num_frames, height, width) per video. "
                f"Got shape {tuple(item.shape)}."
            )
        if item.is_floating_point() or item.is_complex() or (item.numel() and int(item.min()) < 0):
            lowest = item.min().item() if item.numel() else None
            raise ValueError(
                f"`segmentation_maps` must hold integer ids of at least 0. Got {item.dtype} from {lowest}."
            )
    return maps


def check_maps(maps: list[Tensor], videos: list[Tensor]) -> None:
    """Make sure that every frame has its map."""
    if len(maps) != len(videos):
        raise ValueError(f"`segmentation_maps` must come one per video. Got {len(maps)} for {len(videos)} videos.")
    for raw_ids, video in zip(maps, videos, strict=True):
        if len(raw_ids) != len(video):
            raise ValueError(f"`segmentation_maps` must hold one map per frame. Got {len(raw_ids)} for {len(video)}.")
        if raw_ids.shape[-2:] != video.shape[-2:]:
            raise ValueError(
                f"`segmentation_maps` must have the size of their frames, {tuple(video.shape[-2:])}. "
                f"Got {tuple(raw_ids.shape[-2:])}."
            )


def uniform_frames(videos: Any) -> Any:
    """Bring PIL frames to 8-bit RGB and make sure that lists of frames can be stacked."""
    if isinstance(videos, Image.Image):
        return Image.fromarray(rgb_of_image(videos))
    if not isinstance(videos, (list, tuple)):
        return videos
    if len(videos) == 0:
        raise ValueError("`videos` must hold at least one frame. Got an empty list.")
    frames = [uniform_frames(item) for item in videos]
    sizes = {size for size in map(frame_size, frames) if size is not None}
    if len(sizes) > 1:
        raise ValueError(f"`videos` must have frames of one size each. Got {sorted(sizes)}.")
    return frames


def frame_size(frame: Any) -> tuple[int, ...] | None:
    """Size of a single frame given as an image or array; `None` for anything else."""
    if isinstance(frame, Image.Image):
        return frame.height, frame.width
    return tuple(frame.shape) if isinstance(frame, (np.ndarray, Tensor)) and frame.ndim == 3 else None


__all__ = ["VideoSegmentationProcessor"]
