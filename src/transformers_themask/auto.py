# SPDX-License-Identifier: Apache-2.0
"""The auto class of video semantic segmentation, and the registration of all families with Transformers."""

from pathlib import Path
from typing import Any

from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from transformers_themask.models.mit import MiTBackbone, MiTConfig
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.registry import ANY_OTHER, families, family_of, wrapping_family

# The options of `from_pretrained` that say where files come from.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class AutoModelForVideoSemanticSegmentation(_BaseAutoModelClass):
    """Instantiates the video semantic segmentation model that a checkpoint's configuration names.

    The configuration of a Transformers model that belongs to no family is taken for that of an image segmentation
    model, which then treats every frame on its own.
    """

    _model_mapping = AutoModel._model_mapping

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """Build a new model.

        Args:
            config: Configuration of the video model, or of an image model.
            kwargs: As in `AutoModel.from_config`.

        Raises:
            ValueError: If the model does not segment images or videos.
        """
        row = family_of(config)
        if row is None:
            row = _wrapper_of(config.model_type)
            config = row.config(**{row.starts_from[ANY_OTHER]: config})
        return row.model._from_config(config, **kwargs) if row.is_native else super().from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model.

        Args:
            pretrained_model_name_or_path: Folder or Hub repository.
            model_args, kwargs: As in [`PreTrainedModel.from_pretrained`].

        Raises:
            OSError: If there is no `config.json` of a model.
            ValueError: If the model does not segment images or videos, or weights of an image model are missing;
                with `output_loading_info=True` these are named instead.
        """
        path, config = pretrained_model_name_or_path, kwargs.get("config")
        model_type = _saved_model_type(path, kwargs) if config is None else config.model_type
        row = family_of(model_type)
        if row is not None and row.is_native:
            kwargs.pop("code_revision", None)
            return row.model.from_pretrained(path, *model_args, **kwargs)
        if row is not None:
            return super().from_pretrained(path, *model_args, **kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        wrapper = _wrapper_of(model_type).model
        model, info = wrapper.from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        if with_info:
            return model, info
        if info["missing_keys"]:
            raise ValueError(
                f"The weights in {path} must fill the whole model. Got none for `{min(info['missing_keys'])}`. Use a "
                f"checkpoint that segments images; `{type(model).__name__}.from_pretrained` also takes encoders, for "
                "training."
            )
        return model


def register() -> None:
    """Register all families and the MiT backbone with Transformers' auto classes. Repeated calls are no-ops."""
    AutoConfig.register(MiTConfig.model_type, MiTConfig, exist_ok=True)
    AutoBackbone.register(MiTConfig, MiTBackbone, exist_ok=True)
    VideoSegmentationProcessor.register_for_auto_class()
    families()


def _saved_model_type(path: str | Path, options: dict[str, Any]) -> str:
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    fields, _ = PreTrainedConfig.get_config_dict(path, **hub)
    if "model_type" not in fields:
        raise OSError("there is no config.json that names a `model_type`.")
    return fields["model_type"]


def _wrapper_of(model_type: str) -> Any:
    row = wrapping_family(model_type)
    if row is None:
        known = ", ".join(family.name for family in families())
        raise ValueError(f"`model_type` must name a video segmentation model: {known}. Got {model_type!r}.")
    return row
