# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to the video model for it: a family of this package, or an image model frame by frame."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, VideomtConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .configuration_per_frame import PerFrameConfig
from .modeling_per_frame import PerFrameForVideoSemanticSegmentation, saved_fields
from .modeling_videomt import VideomtForVideoSemanticSegmentation

# Classes for configurations of Transformers' own video models, for which it takes no registration.
NATIVE_VIDEO_MODELS = {VideomtConfig.model_type: VideomtForVideoSemanticSegmentation}


class AutoModelForVideoSemanticSegmentation(_BaseAutoModelClass):
    """Instantiates the video semantic segmentation model that a checkpoint's configuration names.

    The configuration of any other Transformers model is taken for that of an image segmentation model, which then
    treats every frame on its own: see [`PerFrameForVideoSemanticSegmentation`].
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """Build a new model.

        Args:
            config ([`~transformers.PreTrainedConfig`]): Configuration of the video model, or of an image model.
            kwargs: As in `AutoModel.from_config`.

        Raises:
            ValueError: If the model does not segment images or videos.
        """
        if config.model_type in NATIVE_VIDEO_MODELS:
            return NATIVE_VIDEO_MODELS[config.model_type]._from_config(config, **kwargs)
        is_own = type(config) in cls._model_mapping
        return super().from_config(config if is_own else PerFrameConfig(segmenter_config=config), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): Folder or Hub repository.
            model_args: As in [`PreTrainedModel.from_pretrained`].
            kwargs: As in [`PreTrainedModel.from_pretrained`].

        Raises:
            OSError: If there is no `config.json` of a model.
            ValueError: If the model does not segment images or videos, or weights of an image model are missing;
                with `output_loading_info=True` these are named instead.
        """
        path, config = pretrained_model_name_or_path, kwargs.get("config")
        model_type = saved_fields(path, kwargs).get("model_type") if config is None else config.model_type
        if model_type is None:
            raise OSError("there is no config.json that names a `model_type`.")
        if model_type in NATIVE_VIDEO_MODELS:
            kwargs.pop("code_revision", None)
            return NATIVE_VIDEO_MODELS[model_type].from_pretrained(path, *model_args, **kwargs)
        if model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in cls._model_mapping:
            return super().from_pretrained(path, *model_args, **kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        model, info = PerFrameForVideoSemanticSegmentation.from_pretrained(
            path, *model_args, output_loading_info=True, **kwargs
        )
        if with_info:
            return model, info
        if info["missing_keys"]:
            raise ValueError(
                f"The weights in {path} must fill the whole model. Got none for `{min(info['missing_keys'])}`. Use a "
                f"checkpoint that segments images; `{type(model).__name__}.from_pretrained` also takes encoders, for "
                "training."
            )
        return model


__all__ = ["AutoModelForVideoSemanticSegmentation"]
