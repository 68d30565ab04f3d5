# SPDX-License-Identifier: Apache-2.0
"""The model and the processor a run starts from, checked against the data set before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModel, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel

from transformers_themask.config_overrides import build_config
from transformers_themask.inference import loading
from transformers_themask.inference.loading import load_pretrained, loading_errors_as_sentences
from transformers_themask.models.video_processing import VideoSegmentationProcessor

from .arguments import DataArguments, ModelArguments
from .parameter_groups import backbones
from .recipe_files import merged

NEW_PROCESSOR_SIZE = {"shortest_edge": 480, "longest_edge": 853}
PROCESSOR_FILE = "video_preprocessor_config.json"

# The field of a configuration that holds the whole configuration of an image model.
SEGMENTER_PART = "segmenter_config"


def load_config(model_args: ModelArguments, class_names: Sequence[str]) -> PreTrainedConfig:
    """Build the model's configuration from a checkpoint, if there is one, and the overrides.

    Args:
        model_args ([`ModelArguments`]): Checkpoint and overrides.
        class_names (`Sequence[str]`): The data set's classes in the order of their indices.

    Returns:
        The configuration, with the data set's classes.

    Raises:
        ValueError: For an unknown architecture or field, or a checkpoint with other classes.
        FileNotFoundError: If the checkpoint holds no configuration.
    """
    if model_args.model_type not in CONFIG_MAPPING:
        raise ValueError(f"`model_type` must be a registered architecture. Got {model_args.model_type!r}.")
    config_class = CONFIG_MAPPING[model_args.model_type]
    if not hasattr(config_class, "num_frames"):
        raise ValueError(
            f"`model_type` must be an architecture for videos. Got {model_args.model_type!r}. An image model is "
            "trained as `per_frame`, with its checkpoint as `model_name_or_path` or its fields as `segmenter_config`."
        )
    id2label = dict(enumerate(class_names))
    label2id = {name: index for index, name in id2label.items()}
    saved = {} if model_args.model_name_or_path is None else _saved_config(model_args, config_class, id2label)
    overrides = _on_top_of_parts(saved, model_args.overrides, config_class)
    return build_config(config_class, saved, {**overrides, "id2label": id2label, "label2id": label2id})


def check_clip_length(config: PreTrainedConfig, frame_offsets: Sequence[int]) -> None:
    """Check that training clips are what a model takes.

    Args:
        config (`PreTrainedConfig`): The model's configuration. One with `reference_offsets` decides where the frames
            lie, one with `num_frames` only how many they are.
        frame_offsets (`Sequence[int]`): Frames of a clip relative to its last frame.

    Raises:
        ValueError: If they are not.
    """
    got, references = list(frame_offsets), getattr(config, "reference_offsets", None)
    num_frames = getattr(config, "num_frames", len(got))
    if references is not None and got != [*references, 0]:
        raise ValueError(
            f"`frame_offsets` must be the `reference_offsets` of the model and 0, {[*references, 0]}. Got {got}."
        )
    if len(got) != num_frames:
        raise ValueError(
            f"`frame_offsets` must have one entry per frame of the model. Got {got} for `num_frames` = {num_frames}."
        )


def load_model(model_args: ModelArguments, config: PreTrainedConfig, for_training: bool = True) -> PreTrainedModel:
    """Build the model, with the checkpoint's weights if there is one.

    Args:
        model_args ([`ModelArguments`]): Checkpoint and whether its pixel level stays as it is.
        config ([`PreTrainedConfig`]): What [`load_config`] returned.
        for_training (`bool`, *optional*, defaults to `True`): Whether the model is trained next. If not, the
            checkpoint must hold all of it.

    Returns:
        The model. Weights that the checkpoint lacks are new and named in a warning.

    Raises:
        ValueError: If the checkpoint cannot be loaded or does not fit.
    """
    if model_args.model_name_or_path is None:
        model = AutoModel.from_config(config)
        if model_args.backbone_name_or_path is not None:
            _load_backbone(model, model_args.backbone_name_or_path)
    else:
        model = load_pretrained(
            AutoModel,
            "model_name_or_path",
            model_args.model_name_or_path,
            allow_missing=for_training,
            allow_mismatched=for_training and model_args.ignore_mismatched_sizes,
            config=config,
        )
    if model_args.freeze_pixel_level:
        if not hasattr(model, "freeze_pixel_level"):
            raise ValueError(
                f"`freeze_pixel_level` must be false for {type(model).__name__}, which has no pixel level. Got true."
            )
        model.freeze_pixel_level()
    return model


def load_processor(
    model_args: ModelArguments, data_args: DataArguments, config: PreTrainedConfig | None = None
) -> VideoSegmentationProcessor:
    """Take the checkpoint's video processor or a new one, at the evaluation size asked for.

    Args:
        model_args ([`ModelArguments`]): The checkpoint; one without a processor gets a new processor.
        data_args ([`DataArguments`]): The evaluation size.
        config ([`PreTrainedConfig`], *optional*): The model's configuration. One that takes square frames only
            decides their size.

    Returns:
        The processor, which reduces raw labels.
    """
    checkpoint, asked_for = model_args.model_name_or_path, _evaluation_size(data_args)
    square = getattr(config, "square_input_size", None)
    size = square or asked_for
    if checkpoint is None or not (Path(checkpoint) / PROCESSOR_FILE).is_file():
        fit = getattr(config, "fit", "stretch")
        return VideoSegmentationProcessor(size=size or NEW_PROCESSOR_SIZE, fit=fit, do_reduce_labels=True)
    options: dict[str, Any] = {"size": size} if size else {}
    fit = getattr(config, "fit", None)
    if fit is not None and _saved_fields(checkpoint)["model_type"] != getattr(config, "model_type", None):
        options["fit"] = fit  # the checkpoint is a part of the model, whose frames may be made to fit otherwise
    with loading_errors_as_sentences("model_name_or_path", checkpoint):
        processor = AutoVideoProcessor.from_pretrained(checkpoint, **options)
    return processor.with_size(asked_for) if asked_for and not square else processor


def load_for_evaluation(
    model_args: ModelArguments, data_args: DataArguments, class_names: Sequence[str]
) -> tuple[PreTrainedModel, VideoSegmentationProcessor]:
    """Load a checkpoint that is scored as it is: of this package, or of Transformers' image and video models.

    Args:
        model_args ([`ModelArguments`]): The checkpoint, and overrides for one of this package.
        data_args ([`DataArguments`]): The evaluation size.
        class_names (`Sequence[str]`): The data set's classes in the order of their indices.

    Returns:
        The model and its video processor, for a checkpoint of Transformers with its own preprocessing.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or has other classes.
    """
    checkpoint = str(model_args.model_name_or_path)
    model_type = _saved_fields(checkpoint)["model_type"]
    is_native = not hasattr(CONFIG_MAPPING[model_type], "num_frames") if model_type in CONFIG_MAPPING else True
    if not is_native:
        config = load_config(replace(model_args, model_type=model_type), class_names)
        model = load_model(model_args, config, for_training=False)
        return model, load_processor(model_args, data_args, config)
    if model_args.overrides:
        raise ValueError(
            f"`config_overrides` must be left out to evaluate {checkpoint}, a checkpoint of Transformers. "
            f"Got {model_args.overrides}."
        )
    model, processor = loading.load_model(checkpoint, size=_evaluation_size(data_args), argument="model_name_or_path")
    _check_classes(checkpoint, dict(model.config.id2label), dict(enumerate(class_names)))
    return model, processor


def _evaluation_size(data_args: DataArguments) -> dict[str, int] | None:
    if data_args.eval_shortest_edge is None or data_args.eval_longest_edge is None:
        return None
    return {"shortest_edge": data_args.eval_shortest_edge, "longest_edge": data_args.eval_longest_edge}


def _load_backbone(model: PreTrainedModel, checkpoint: str) -> None:
    found = backbones(model)
    if not found:
        raise ValueError(
            f"`backbone_name_or_path` must be left out for {type(model).__name__}, which has no separate backbone. "
            f"Got {checkpoint}. Give a checkpoint of the whole model as `model_name_or_path`."
        )
    for backbone in found:
        # Other tasks' checkpoints lack, for example, the norms that some backbones put after their stages.
        pretrained = load_pretrained(
            type(backbone), "backbone_name_or_path", checkpoint, allow_missing=True, config=backbone.config
        )
        backbone.load_state_dict(pretrained.state_dict())


def _on_top_of_parts(
    saved: Mapping[str, Any], overrides: Mapping[str, Any], config_class: type[PreTrainedConfig]
) -> dict[str, Any]:
    """The overrides, with those of a part of the model, such as its backbone, added to the part's saved fields."""
    result = dict(overrides)
    for name in config_class.sub_configs:
        below, above = saved.get(name), overrides.get(name)
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            is_same_model = above.get("model_type", below.get("model_type")) == below.get("model_type")
            result[name] = merged(below, above) if is_same_model else above
    return result


def _saved_config(
    model_args: ModelArguments, config_class: type[PreTrainedConfig], id2label: dict[int, str]
) -> dict[str, Any]:
    checkpoint = str(model_args.model_name_or_path)
    saved = _saved_fields(checkpoint)
    # An image model's own checkpoint, of which the configuration says whether it can be used.
    is_segmenter = SEGMENTER_PART in config_class.sub_configs and saved["model_type"] != model_args.model_type
    if not is_segmenter and saved["model_type"] not in (model_args.model_type, "mask2former"):
        raise ValueError(
            f"`model_name_or_path` must hold a {model_args.model_type} or mask2former model. "
            f"Got {saved['model_type']!r} in {checkpoint}; set `--model_type` to train that architecture, "
            "`per_frame` for an image model."
        )
    if is_segmenter and not any("Segmentation" in name for name in saved.get("architectures") or ["Segmentation"]):
        return {SEGMENTER_PART: saved}  # an encoder or a classifier: its classes are not those of pixels
    saved_labels = {int(index): name for index, name in saved.get("id2label", {}).items()}
    if not model_args.ignore_mismatched_sizes:
        _check_classes(checkpoint, saved_labels, id2label)
    return {SEGMENTER_PART: saved} if is_segmenter else saved


def _saved_fields(checkpoint: str) -> dict[str, Any]:
    try:
        saved, _ = PreTrainedConfig.get_config_dict(checkpoint)
    except OSError:
        saved = {}
    if "model_type" not in saved:
        raise FileNotFoundError(
            f"`model_name_or_path` must be a saved model. Got {checkpoint}, which has no config.json of one."
        )
    return saved


def _check_classes(checkpoint: str, saved: dict[int, str], wanted: dict[int, str]) -> None:
    if saved != wanted:
        raise ValueError(
            f"The data set's {len(wanted)} classes must be those of {checkpoint}. Got {len(saved)} classes there, "
            f"first difference {_first_difference(saved, wanted)}. "
            "Give `--ignore_mismatched_sizes true` to fine-tune to other classes."
        )


def _first_difference(saved: dict[int, str], wanted: dict[int, str]) -> str:
    for index in sorted(saved.keys() | wanted.keys()):
        if saved.get(index) != wanted.get(index):
            return f"at index {index}: {saved.get(index)!r} there, {wanted.get(index)!r} in the data"
    return "none"
