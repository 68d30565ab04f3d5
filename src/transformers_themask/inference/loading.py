# SPDX-License-Identifier: Apache-2.0
"""Loading saved models, with one sentence for whatever is wrong with them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoVideoProcessor, BaseVideoProcessor, PreTrainedConfig, PreTrainedModel

from transformers_themask.auto import AutoModelForVideoSemanticSegmentation
from transformers_themask.models.video_processing import SHARED_OPTIONS, VideoSegmentationProcessor
from transformers_themask.registry import family_of

# What `from_pretrained` raises for missing and damaged files and for values that no model has.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)


def load_model(
    path: str | Path,
    device: str | torch.device | None = None,
    argument: str = "model",
    size: Mapping[str, int] | None = None,
) -> tuple[PreTrainedModel, VideoSegmentationProcessor]:
    """Load a model for videos, in evaluation mode, and its video processor.

    Besides models of this package these are VidEoMT and all semantic and universal segmentation models of
    Transformers: SegFormer, UperNet, DPT, BEiT, Mask2Former, MaskFormer, OneFormer, EoMT and others.

    Args:
        path: Folder or Hub repository.
        device: Where to put the model. Defaults to the CPU.
        argument: Name of the argument that asks for the model, for the errors.
        size: Size of frames for an image model that takes any, instead of its image processor's.

    Raises:
        ValueError: If it cannot be loaded, or not whole, or does not segment images or videos.
    """
    model = load_pretrained(AutoModelForVideoSemanticSegmentation, argument, path)
    with loading_errors_as_sentences(argument, path):
        processor = load_processor(path, model, size)
        label_names(model.config)
        _check_constants(processor)
    return (model if device is None else model.to(device)), processor


def load_class_names(path: str | Path, argument: str = "model") -> list[str]:
    """Names of the classes of a saved model, from its configuration alone; a `ValueError` if that cannot be loaded."""
    with loading_errors_as_sentences(argument, path):
        return label_names(AutoConfig.from_pretrained(path))


def load_processor(
    path: str | Path, model: PreTrainedModel, size: Mapping[str, int] | None = None, **options: Any
) -> VideoSegmentationProcessor:
    """Load a checkpoint's processor of pictures or videos as the video processor of the model that was made of it.

    `size` is that of frames for an image model that takes any, `options` say where files come from, such as
    `revision`. Raises an `OSError` or a `ValueError` if there is no processor, or none that can be used.
    """
    if PreTrainedConfig.get_config_dict(path, **options)[0].get("model_type") == model.config.model_type:
        return as_own_processor(AutoVideoProcessor.from_pretrained(path, **options), model)
    row = family_of(model.config)
    if row is None or row.wrapped_processor is None:
        raise ValueError(f"there is no video processor of a {model.config.model_type} model.")
    return row.wrapped_processor(path, model.config, size, **options)


def as_own_processor(processor: BaseVideoProcessor, model: PreTrainedModel) -> VideoSegmentationProcessor:
    """A video processor of this package that does what another one does, stretching frames to the model's square."""
    if isinstance(processor, VideoSegmentationProcessor):
        return processor
    options = {name: getattr(processor, name) for name in SHARED_OPTIONS}
    return VideoSegmentationProcessor(**{**options, "size": model.square_input_size, "size_divisor": 1})


def load_pretrained(
    model_class: Any,
    argument: str,
    checkpoint: str | Path,
    *,
    allow_missing: bool = False,
    allow_mismatched: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a saved model, in evaluation mode; a `ValueError` if it cannot be loaded, or would be part random.

    Parameters that the checkpoint lacks, or has in another shape, may start anew where the model is trained next.
    """
    with loading_errors_as_sentences(argument, checkpoint):
        model, loading = model_class.from_pretrained(
            checkpoint, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    if loading["mismatched_keys"] and not allow_mismatched:
        name, saved_shape, shape = min(loading["mismatched_keys"])
        raise ValueError(
            f"The weights in {checkpoint} must fit the configuration. Got `{name}` of shape {tuple(saved_shape)} "
            f"there and {tuple(shape)} here. Use the configuration that they were saved with."
        )
    if loading["missing_keys"] and not allow_missing:
        raise ValueError(
            f"The weights in {checkpoint} must fill the whole model. Got none for {len(loading['missing_keys'])} "
            f"parameters, the first `{min(loading['missing_keys'])}`. Use a complete checkpoint of this model."
        )
    check_weights(model, checkpoint)
    return model


def label_names(config: PreTrainedConfig) -> list[str]:
    """Names of the classes by index; a `ValueError` unless `id2label` has the indices 0 ... n - 1."""
    indices = sorted(config.id2label)
    if indices != list(range(len(indices))):
        raise ValueError(
            f"`id2label` must name the classes 0 to {max(len(indices) - 1, 0)} without gaps. Got the indices "
            f"{str(indices)[:80]}; correct the model's configuration."
        )
    return [config.id2label[index] for index in indices]


def check_weights(model: PreTrainedModel, source: str | Path) -> None:
    """Raise a `ValueError` for saved values that are not finite, as a diverged training leaves them.

    These are parameters and, of batch norms, the running statistics.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all()):
            place = source or type(model).__name__
            raise ValueError(
                f"The weights in {place} must be finite. Got NaN or infinity in `{name}`. Use one from before "
                "the training diverged."
            )


def _check_constants(processor: VideoSegmentationProcessor) -> None:
    """Raise a `ValueError` for constants with which every frame would become NaN or infinite."""
    source = getattr(processor, "image_processor", processor)  # of an image model
    for name, has_sign in (("image_mean", True), ("image_std", False), ("rescale_factor", False)):
        value = getattr(source, name, None)
        numbers = np.ravel(np.asarray([] if value is None else value, dtype=float))
        if not np.isfinite(numbers).all() or not (has_sign or (numbers > 0).all()):
            raise ValueError(f"`{name}` must be finite{'' if has_sign else ' and positive'}. Got {value}.")


@contextmanager
def loading_errors_as_sentences(argument: str, checkpoint: str | Path) -> Iterator[None]:
    """Turn what a broken checkpoint raises inside the `with` block into a `ValueError` of one sentence."""
    try:
        yield
    except LOADING_ERRORS as error:
        # The cause is in the last line of what dataclasses raise; others begin with it and go on with advice.
        line = -1 if isinstance(error, StrictDataclassError) else 0
        reason = (str(error).strip() or type(error).__name__).splitlines()[line].strip()
        raise ValueError(
            f"`{argument}` must be a folder or Hub repository with a saved model and its video processor. Got "
            f"{checkpoint}, which cannot be loaded: {reason}"
        ) from error
