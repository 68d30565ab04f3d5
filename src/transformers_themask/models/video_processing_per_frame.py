# SPDX-License-Identifier: Apache-2.0
"""The video processor of an image model's checkpoint: every frame goes through its own image processor."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.feature_extraction_utils import BatchFeature

from .video_processing import SHARED_OPTIONS, VideoSegmentationProcessor, check_maps, round_up, scaled_size


class PerFrameVideoProcessor(VideoSegmentationProcessor):
    r"""Prepares frames exactly as an image processor does, and turns a model's outputs into label maps.

    So a checkpoint of an image model sees in a video what it sees in pictures, whatever its rules for sizes, padding,
    interpolation and order of colours are.

    Args:
        image_processor: The image processor, or its saved fields. It must keep the whole picture, with padding, if
            any, to the right and at the bottom.
        kwargs: `do_reduce_labels` and `ignore_index`, as in [`VideoSegmentationProcessor`].

    Raises:
        ValueError: If `image_processor` is none.
    """

    def __init__(self, image_processor: BaseImageProcessor | Mapping[str, Any] | None = None, **kwargs: Any):
        built = built_image_processor(image_processor)
        options = {name: getattr(built, name, None) for name in SHARED_OPTIONS}
        super().__init__(**{**kwargs, **options, "fit": "pad", "size_divisor": 1})
        self.image_processor: BaseImageProcessor = built
        self._sizes: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}

    @classmethod
    def for_whole_frames(cls, image_processor: BaseImageProcessor, size: Mapping[str, int] | None) -> Any:
        """The processor of a checkpoint whose frames must be labelled whole.

        Center crops are left out. So is cutting into squares: the model does it. The `size` of frames, if given,
        replaces the image processor's, unless it makes squares of them by cutting or padding.
        """
        options = image_processor.to_dict()
        makes_squares = options.get("do_split_image") or options.get("do_pad")
        options.update({name: False for name in ("do_center_crop", "do_split_image") if options.get(name)})
        if size is not None and not makes_squares:
            options["size"] = dict(size)
            if "keep_aspect_ratio" in options:
                options["keep_aspect_ratio"] = False
        return cls(image_processor=options)

    def with_size(self, size: Mapping[str, int]) -> "PerFrameVideoProcessor":
        """The same processor with another target size, unless its image processor makes squares by itself."""
        return self.for_whole_frames(self.image_processor, size)

    def scaled(self, scale: float) -> "PerFrameVideoProcessor":
        """The same processor with a target size, and a size to pad to, larger by a factor."""
        options = {**self.image_processor.to_dict(), "size": scaled_size(self.size, scale)}
        if options.get("pad_size"):  # else larger frames would not fit in
            options["pad_size"] = {edge: math.ceil(length * scale) for edge, length in options["pad_size"].items()}
        return type(self)(
            image_processor=options, do_reduce_labels=self.do_reduce_labels, ignore_index=self.ignore_index
        )

    def __call__(self, videos: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare videos and, with them, their label maps, as [`VideoSegmentationProcessor`] does.

        `kwargs` may be `return_tensors`, `device`, `do_reduce_labels`, `ignore_index` and `input_data_format`. What
        happens to the frames is up to the image processor.

        Raises:
            ValueError: If an option is the image processor's, or as in [`VideoSegmentationProcessor`].
        """
        unknown = kwargs.keys() - {"return_tensors", "device", "do_reduce_labels", "ignore_index", "input_data_format"}
        if unknown:
            raise ValueError(
                f"Options of frames must be set in `image_processor`. Got {', '.join(sorted(unknown))} for a call."
            )
        return super().__call__(videos, segmentation_maps, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The saved fields: those of the image processor, and what concerns labels."""
        fields = super().to_dict()
        fields.pop("_sizes", None)
        return {**fields, "image_processor": self.image_processor.to_dict()}

    def resized_size(self, height: int, width: int, size: Any = None) -> tuple[int, int]:
        """Height and width that frames of a given size are resized to, before padding."""
        return self._input_and_content_size((height, width))[1]

    def input_size(self, original: tuple[int, int]) -> tuple[int, int]:
        """The size of the network's input for frames of a given size."""
        return self._input_and_content_size(original)[0]

    def content_size(self, original: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
        """The part of the network's input that shows the frame."""
        true_size, content = self._input_and_content_size(original)
        if input_size in (true_size, round_up(true_size, 4)):
            return content
        # Masks that are not at stride 4 are taken for those of a larger or smaller input.
        rows, columns = (
            round(part * taken_for / true)
            for part, taken_for, true in zip(content, input_size, true_size, strict=True)
        )
        return rows, columns

    def _input_and_content_size(self, original: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Input and content size for a frame of a given size, measured on a white frame: black is padding."""
        if original not in self._sizes:
            white = torch.full((3, *original), 255, dtype=torch.uint8)
            (pixels,) = self._pixel_values(white[None], do_rescale=False, do_normalize=False)
            rows, columns = pixels[0].any(1), pixels[0].any(0)
            content = int(rows.sum()), int(columns.sum())
            if not rows[: content[0]].all() or not columns[: content[1]].all():
                raise ValueError(
                    "`image_processor` must pad to the right and at the bottom. "
                    f"Got a {type(self.image_processor).__name__} that pads elsewhere. Switch off its padding."
                )
            self._sizes[original] = (len(rows), len(columns)), content
        return self._sizes[original]

    def _pixel_values(self, frames: Tensor, **options: Any) -> Tensor:
        """The image processor's answer to frames `(num_frames, 3, height, width)`."""
        return self.image_processor(list(frames), return_tensors="pt", input_data_format="channels_first", **options)[
            "pixel_values"
        ]

    def _preprocess(
        self,
        videos: list[Tensor],
        *,
        segmentation_maps: list[Tensor] | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        batch = {"pixel_values_videos": [self._pixel_values(video) for video in videos]}
        if segmentation_maps is not None:
            check_maps(segmentation_maps, videos)
            batch["labels"] = [
                self._prepare_labels(
                    raw_ids,
                    self.resized_size(*video.shape[-2:]),
                    (features.shape[-2], features.shape[-1]),
                    bool(do_reduce_labels),
                )
                for raw_ids, video, features in zip(
                    segmentation_maps, videos, batch["pixel_values_videos"], strict=True
                )
            ]
        return BatchFeature(batch, tensor_type=return_tensors)


def built_image_processor(image_processor: Any) -> BaseImageProcessor:
    """An image processor from its saved fields, or as it is."""
    if isinstance(image_processor, Mapping):
        fields = dict(image_processor)
        image_processor_class = getattr(transformers, str(fields.pop("image_processor_type", None)), None)
        if image_processor_class is not None:
            return image_processor_class(**fields)
    if not isinstance(image_processor, BaseImageProcessor):
        raise ValueError(
            "`image_processor` must be an image processor of Transformers or its saved fields. "
            f"Got {image_processor!r:.200}."
        )
    return image_processor


__all__ = ["PerFrameVideoProcessor"]
