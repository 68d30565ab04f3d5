# SPDX-License-Identifier: Apache-2.0
"""The model and the processor that a run starts from, checked against the data set before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModel, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel

from transformers_themask.config_overrides import build_config
from transformers_themask.inference import loading
from transformers_themask.inference.loading import load_pretrained, loading_errors_as_sentences
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.registry import ANY_OTHER, Family, family_of, trainable_families, wrapping_family

from .arguments import DataArguments, ModelArguments
from .parameter_groups import backbones
from .recipe_files import merged

NEW_PROCESSOR_SIZE = {"shortest_edge": 480, "longest_edge": 853}
PROCESSOR_FILE = "video_preprocessor_config.json"


def load_config(model_args: ModelArguments, class_names: Sequence[str]) -> PreTrainedConfig:
    """The model's configuration from a checkpoint, if there is one, and the overrides, checked against the classes.

    An unknown architecture, field or part to freeze is a `ValueError`, a missing configuration a `FileNotFoundError`.
    """
    row = _family_named(model_args.model_type)
    for part in model_args.freeze:
        if part not in row.freezable:
            remedy = f"It has {', '.join(row.freezable)}." if row.freezable else "It has none."
            raise ValueError(f"`freeze` must name freezable parts of a {row.name} model. Got {part!r}. {remedy}")
    id2label = dict(enumerate(class_names))
    label2id = {name: index for index, name in id2label.items()}
    saved = {} if model_args.model_name_or_path is None else _saved_config(model_args, row, id2label)
    overrides = _on_top_of_parts(saved, model_args.overrides, row.config)
    return build_config(row.config, saved, {**overrides, "id2label": id2label, "label2id": label2id})


def check_clip_length(config: PreTrainedConfig, frame_offsets: Sequence[int]) -> None:
    """Raise a `ValueError` unless clips have the model's number of frames, at its `reference_offsets` if any."""
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
    """The model, with the checkpoint's weights, if any; `for_training`, missing ones are new, with a warning."""
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
    model.freeze(*model_args.freeze)
    return model


def load_processor(
    model_args: ModelArguments, data_args: DataArguments, config: PreTrainedConfig
) -> VideoSegmentationProcessor:
    """The checkpoint's video processor or, if it has none, a new one that reduces raw labels.

    Its size is the configuration's `square_input_size`, if any, or the evaluation size of the arguments.
    """
    checkpoint, wanted = model_args.model_name_or_path, _evaluation_size(data_args)
    square, fit = getattr(config, "square_input_size", None), getattr(config, "fit", None)
    if checkpoint is None or not (Path(checkpoint) / PROCESSOR_FILE).is_file():
        row = family_of(config)
        size = square or wanted or NEW_PROCESSOR_SIZE
        # The processor of a wrapping family needs the image processor of a checkpoint.
        new = VideoSegmentationProcessor if row is None or row.wrapped_processor else row.processor
        return new(size=size, fit=fit or "stretch", do_reduce_labels=True)
    options: dict[str, Any] = {"size": square} if square else {}
    if fit is not None and _saved_fields(checkpoint)["model_type"] != config.model_type:
        options["fit"] = fit  # the checkpoint is a part of the model, whose frames may have another fit
    with loading_errors_as_sentences("model_name_or_path", checkpoint):
        processor = AutoVideoProcessor.from_pretrained(checkpoint, **options)
    return processor.with_size(wanted) if wanted and not square else processor


def load_for_evaluation(
    model_args: ModelArguments, data_args: DataArguments, class_names: Sequence[str]
) -> tuple[PreTrainedModel, VideoSegmentationProcessor]:
    """Model and video processor of a checkpoint to score, of this package or of Transformers."""
    checkpoint = str(model_args.model_name_or_path)
    row = family_of(_saved_fields(checkpoint)["model_type"])
    if row is not None and not row.is_native:
        config = load_config(replace(model_args, model_type=row.name), class_names)
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


def _family_named(model_type: str) -> Family:
    row = family_of(model_type)
    if row is not None and not row.is_native:
        return row
    remedy, wrapper = "", wrapping_family(model_type)
    if wrapper is not None and model_type in CONFIG_MAPPING:
        remedy = (
            f" An image model is trained as `{wrapper.name}`, with its checkpoint as `model_name_or_path` or its "
            f"fields as `{wrapper.starts_from[ANY_OTHER]}`."
        )
    known = ", ".join(row.name for row in trainable_families())
    raise ValueError(f"`model_type` must be one of {known}. Got {model_type!r}.{remedy}")


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
        # Checkpoints of other tasks lack, for example, the norms that some backbones have after their stages.
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


def _saved_config(model_args: ModelArguments, row: Family, id2label: dict[int, str]) -> dict[str, Any]:
    checkpoint = str(model_args.model_name_or_path)
    saved = _saved_fields(checkpoint)
    part = row.part_from(saved["model_type"])
    if part is None:
        wrapper = wrapping_family(saved["model_type"])
        hint = "" if wrapper is None else f", or `--model_type {wrapper.name}` for an image model"
        raise ValueError(
            f"`model_name_or_path` must hold a {' or '.join([row.name, *row.starts_from])} model. "
            f"Got {saved['model_type']!r} in {checkpoint}. Give `--model_type` of that architecture{hint}."
        )
    if part and not any("Segmentation" in name for name in saved.get("architectures") or ["Segmentation"]):
        return {part: saved}  # an encoder or a classifier, whose classes are not those of pixels
    saved_labels = {int(index): name for index, name in saved.get("id2label", {}).items()}
    if not model_args.ignore_mismatched_sizes:
        _check_classes(checkpoint, saved_labels, id2label)
    return {part: saved} if part else saved


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
    if saved == wanted:
        return
    index = next(index for index in sorted(saved.keys() | wanted.keys()) if saved.get(index) != wanted.get(index))
    raise ValueError(
        f"The data set's {len(wanted)} classes must be those of {checkpoint}. Got {len(saved)} classes there, "
        f"first difference at index {index}: {saved.get(index)!r} there, {wanted.get(index)!r} in the data. "
        "Give `--ignore_mismatched_sizes true` to fine-tune to other classes."
    )
