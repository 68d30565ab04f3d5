# SPDX-License-Identifier: Apache-2.0
"""The `video-semantic-segmentation` pipeline: a video in, one label map per frame out."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoModel, BaseVideoProcessor, Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_themask.auto import AutoModelForVideoSemanticSegmentation
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.source import FrameSource

from .loading import as_own_processor, check_weights, label_names, load_processor
from .segment import segment_frames

TASK = "video-semantic-segmentation"


def register_pipeline() -> None:
    """Register the pipeline with Transformers. Repeated calls are no-ops."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        # The latter finds models whose code comes with their checkpoint.
        model_classes = (AutoModelForVideoSemanticSegmentation, AutoModel)
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=VideoSemanticSegmentationPipeline, pt_model=model_classes, type="multimodal"
        )


class VideoSemanticSegmentationPipeline(Pipeline):
    """Label every frame of a video with a video semantic segmentation model, or with an image model frame by frame.

    The video is read, segmented and let go of while it is being read: only the label maps grow with its length, and
    with `stream=True` nothing does.

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
    >>> for result in segmenter("clip.mp4", stream=True):
    ...     print(result["frame_index"], result["segmentation"].shape)

    ```

    Args:
        model: A video semantic segmentation model. By its path, `pipeline` loads every model that
            [`AutoModelForVideoSemanticSegmentation`] does.
        video_processor: The model's video processor. Defaults to that of the model's checkpoint.
        kwargs: As in [`~transformers.Pipeline`], and `mode`, `num_frames` and `frame_stride` for all calls.

    Raises:
        ValueError: If the model does not label videos.
        OSError: If its checkpoint has no processor.
    """

    _load_processor = False
    _load_image_processor = False
    # Checkpoints of image models have none; theirs is made of the image processor.
    _load_video_processor = None
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: PreTrainedModel, video_processor: BaseVideoProcessor | None = None, **kwargs: Any):
        if not hasattr(model, "stream_modes"):
            raise ValueError(
                "`model` must be a model that labels videos, or a complete checkpoint of a Transformers model that "
                f"segments images. Got a {type(model).__name__}."
            )
        if video_processor is None:
            video_processor = load_processor(model.name_or_path, model)
        label_names(model.config)
        check_weights(model, model.name_or_path)
        super().__init__(model, video_processor=as_own_processor(video_processor, model), **kwargs)

    def _sanitize_parameters(
        self, mode: str | None = None, num_frames: int | None = None, frame_stride: int | None = None
    ) -> tuple[dict, dict, dict]:
        given = {"mode": mode, "num_frames": num_frames, "frame_stride": frame_stride}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def __call__(
        self,
        inputs: Any,
        *,
        mode: str | None = None,
        num_frames: int | None = None,
        frame_stride: int | None = None,
        stream: bool = False,
        num_workers: int | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Segment one video or several.

        Args:
            inputs: One video: a file, a URL, a folder of images, a `uint8` RGB array of shape `(num_frames, height,
                width, 3)`, a `uint8` tensor of shape `(num_frames, 3, height, width)`, or a list of frames (PIL
                images, arrays of shape `(height, width, 3)` or tensors of shape `(3, height, width)`). Or a list of
                such videos, or a generator or data set that yields them.
            mode: `"contiguous"`, `"interleaved"`, `"sliding"` or `"recurrent"`; see
                [`~transformers_themask.models.streaming.StreamingMixin.stream`]. Defaults to the model's first.
            num_frames: Frames that the model sees at once. Defaults to the model's `num_frames`.
            frame_stride: Distance between neighbouring frames of a clip. Defaults to 3 for interleaved clips, as in
                the official evaluation, and to 1 for others.
            stream: Whether to return the frames of one video one by one, as soon as they are labelled. The video may
                then also be endless: a camera's index, or an iterator over frames.
            num_workers: Processes that open the videos of a list or data set.
            batch_size: Only 1 is possible, because videos differ in length.

        Returns:
            A `dict` for one video, a list of them for several:

            - **segmentation** (`np.ndarray` of shape `(num_frames, height, width)`) -- Class index of every pixel at
              the video's own size, as `uint8` for up to 255 classes.
            - **labels** (`dict[int, str]`) -- Index and name of the classes that appear.
            - **frame_rate** (`float` or `None`) -- Frames per second, where the input tells.

            With `stream=True` an iterator over a `dict` per frame: **frame_index**, **segmentation** of shape
            `(height, width)`, and **labels** that appear in it.

        Raises:
            IncompleteVideoError: If a video cannot be read to its end; with `stream=True` after its last readable
                frame.
            ValueError: If the input is no video or an option is impossible.
        """
        batch_size = batch_size or self._batch_size or 1
        if batch_size != 1:
            raise ValueError(f"`batch_size` must be 1, because videos differ in length. Got {batch_size}.")
        if isinstance(inputs, (list, tuple)) and not inputs:
            raise ValueError("`inputs` must be a video or a list of videos. Got an empty list.")
        options = {"mode": mode, "num_frames": num_frames, "frame_stride": frame_stride}
        if stream:
            return self._labelled_one_by_one(inputs, options)
        if isinstance(inputs, list) and (isinstance(inputs[0], Image.Image) or getattr(inputs[0], "ndim", None) == 3):
            inputs = tuple(inputs)  # one video of these frames
        return super().__call__(inputs, num_workers=num_workers, **options)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and its video processor, from which `pipeline` builds this pipeline again.

        The base class would also copy this file next to the model and name it in `config.json`. The copy needs the
        rest of the package, and where the package is installed, Transformers would still ask to trust it.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Open one video without reading its frames yet."""
        if isinstance(input_, (str, Path)):
            source = _open_frame_source(input_)
            return {"frames": source, "frame_rate": source.frame_rate}
        return {"frames": FramesInMemory(input_), "frame_rate": None}

    def _labelled_one_by_one(self, video: Any, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        given = {**self._forward_params, **self._sanitize_parameters(**options)[1]}
        frames = _open_frame_source(video)
        for index, label_map in segment_frames(self.model, self.video_processor, frames, device=self.device, **given):
            yield {"frame_index": index, "segmentation": label_map, "labels": self._names(np.unique(label_map))}

    def _names(self, class_indices: Iterable[int]) -> dict[int, str]:
        id2label: dict = self.model.config.id2label or {}
        return {int(index): id2label[int(index)] for index in sorted(class_indices)}

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
        class_indices = set().union(*(np.unique(label_map).tolist() for label_map in label_maps))
        return {
            "segmentation": np.stack(label_maps),
            "labels": self._names(class_indices),
            "frame_rate": None if frame_rate is None else float(frame_rate),
        }


def _open_frame_source(video: Any) -> FrameSource:
    # Imported here so that registering the pipeline does not import PyAV.
    from transformers_themask.videos.frame_source import open_frame_source

    return open_frame_source(video)
