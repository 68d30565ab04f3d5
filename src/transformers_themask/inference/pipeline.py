# SPDX-License-Identifier: Apache-2.0
"""The `video-semantic-segmentation` pipeline: a video in, one label map per frame out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

from .frame_source import open_frame_source
from .segment import segment_frames


class VideoSemanticSegmentationPipeline(Pipeline):
    """Label every frame of a video with a video semantic segmentation model.

    The video is read, segmented and let go of block by block: only the label maps grow with its length.

    Example:
    ```python
    >>> from transformers import pipeline
    >>> import transformers_themask

    >>> segmenter = pipeline("video-semantic-segmentation", model="path/to/model")
    >>> result = segmenter("clip.mp4")
    >>> result["segmentation"].shape  # (num_frames, height, width)
    (287, 720, 1280)
    >>> result["labels"]
    {3: 'road', 8: 'car'}
    ```
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self, num_frames: int | None = None, frame_stride: int | None = None
    ) -> tuple[dict, dict, dict]:
        given = {"num_frames": num_frames, "frame_stride": frame_stride}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def __call__(
        self,
        inputs: Any,
        *,
        num_frames: int | None = None,
        frame_stride: int | None = None,
        num_workers: int | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Segment one video or several.

        Args:
            inputs (`str`, `Path`, `np.ndarray`, `torch.Tensor` or `list`):
                One video: a file, a URL, a folder of images, a `uint8` RGB array of shape `(num_frames, height, width,
                3)`, a `uint8` tensor of shape `(num_frames, 3, height, width)`, or a list of frames (PIL images or
                arrays of shape `(height, width, 3)`). Or a list of such videos, or a generator or data set that yields
                them.
            num_frames (`int`, *optional*):
                Frames that the model sees at once. Defaults to the model's `num_frames`.
            frame_stride (`int`, *optional*, defaults to 1):
                Distance between neighbouring frames of a clip; the official evaluation uses 3.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that open the videos of a list or data set.
            batch_size (`int`, *optional*, defaults to 1):
                Only 1 is possible, because videos differ in length.

        Returns:
            A `dict` for one video, a list of them for several:

            - **segmentation** (`np.ndarray` of shape `(num_frames, height, width)`) -- Class index of every pixel at
              the video's own size, as `uint8` for up to 255 classes.
            - **labels** (`dict[int, str]`) -- Index and name of the classes that appear.
            - **frame_rate** (`float` or `None`) -- Frames per second, where the input tells.
        """
        batch_size = batch_size or self._batch_size or 1
        if batch_size != 1:
            raise ValueError(f"`batch_size` must be 1, because videos differ in length. Got {batch_size}.")
        if isinstance(inputs, (list, tuple)) and not inputs:
            raise ValueError("`inputs` must be a video or a list of videos. Got an empty list.")
        video_or_videos = tuple(inputs) if _is_list_of_frames(inputs) else inputs
        return super().__call__(
            video_or_videos, num_workers=num_workers, num_frames=num_frames, frame_stride=frame_stride
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and its video processor, from which `pipeline` builds this pipeline again.

        The base class would also copy this file next to the model and name it in `config.json`. The copy needs the
        rest of the package, and where the package is installed, Transformers would still ask to trust it.

        Args:
            save_directory (`str` or `Path`):
                Folder to write.
            kwargs:
                Passed to both `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Open one video without reading its frames yet."""
        if isinstance(input_, (str, Path)):
            source = open_frame_source(input_)
            return {"frames": source, "frame_rate": source.frame_rate}
        return {"frames": _rgb_arrays(input_), "frame_rate": None}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        frames = input_tensors["frames"]
        labelled = segment_frames(self.model, self.video_processor, frames, device=self.device, **forward_parameters)
        label_maps = [label_map for _, label_map in labelled]
        if not label_maps:
            raise ValueError("A video must have at least one frame. Got none.")
        return {"label_maps": label_maps, "frame_rate": input_tensors["frame_rate"]}

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> dict[str, Any]:
        """Stack the label maps and name the classes in them."""
        label_maps, frame_rate = model_outputs["label_maps"], model_outputs["frame_rate"]
        id2label: dict = self.model.config.id2label or {}
        class_indices = sorted(set().union(*(np.unique(label_map).tolist() for label_map in label_maps)))
        return {
            "segmentation": np.stack(label_maps),
            "labels": {index: id2label[index] for index in class_indices},
            "frame_rate": None if frame_rate is None else float(frame_rate),
        }


def _is_list_of_frames(inputs: Any) -> bool:
    if not isinstance(inputs, (list, tuple)) or not inputs:
        return False
    return isinstance(inputs[0], Image.Image) or (isinstance(inputs[0], np.ndarray) and inputs[0].ndim == 3)


def _rgb_arrays(video: Any) -> Iterator[np.ndarray]:
    """Yield the frames of a video in memory as `uint8` arrays of shape `(height, width, 3)`."""
    if isinstance(video, torch.Tensor):
        if video.ndim != 4 or video.shape[1] != 3:
            raise ValueError(
                f"A video tensor must have shape (num_frames, 3, height, width). Got {tuple(video.shape)}."
            )
        video = video.permute(0, 2, 3, 1).cpu().numpy()
    elif isinstance(video, np.ndarray) and (video.ndim != 4 or video.shape[3] != 3):
        raise ValueError(f"A video array must have shape (num_frames, height, width, 3). Got {video.shape}.")
    elif not isinstance(video, (np.ndarray, list, tuple)):
        raise ValueError(
            f"A video must be a path, an array, a tensor or a list of frames. Got a {type(video).__name__}."
        )
    return map(_rgb_array, video)


def _rgb_array(frame: Any) -> np.ndarray:
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        kind = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(
            f"A frame must be a PIL image or a uint8 array of shape (height, width, 3). Got {kind}; values "
            "from 0 to 1 become uint8 as `(255 * frame).round().astype(np.uint8)`."
        )
    return frame
