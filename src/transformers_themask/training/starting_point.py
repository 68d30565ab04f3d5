# SPDX-License-Identifier: Apache-2.0
"""The model and the processor a run starts from, checked against the data set before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModel, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from transformers_themask.inference.loading import load_pretrained, loading_errors_as_sentences
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor

from .arguments import DataArguments, ModelArguments, VSSTrainingArguments
from .config_overrides import build_config
from .parameter_groups import backbones

NEW_PROCESSOR_SIZE = {"shortest_edge": 480, "longest_edge": 853}
PROCESSOR_FILE = "video_preprocessor_config.json"
AUTO_RESUME = "auto"

# What may differ between a checkpoint and the model that goes on training from it.
VOLATILE_FIELDS = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}


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
    id2label = dict(enumerate(class_names))
    label2id = {name: index for index, name in id2label.items()}
    saved = {} if model_args.model_name_or_path is None else _saved_config(model_args, id2label)
    return build_config(config_class, saved, {**model_args.overrides, "id2label": id2label, "label2id": label2id})


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
        model.freeze_pixel_level()
    return model


def load_processor(model_args: ModelArguments, data_args: DataArguments) -> THEMaskVideoProcessor:
    """Take the checkpoint's video processor or a new one, at the evaluation size asked for.

    Args:
        model_args ([`ModelArguments`]): The checkpoint; one without a processor gets a new processor.
        data_args ([`DataArguments`]): The evaluation size.

    Returns:
        The processor, which reduces raw labels.
    """
    checkpoint = model_args.model_name_or_path
    size = {}
    if data_args.eval_shortest_edge is not None:
        size = {"shortest_edge": data_args.eval_shortest_edge, "longest_edge": data_args.eval_longest_edge}
    if checkpoint is not None and (Path(checkpoint) / PROCESSOR_FILE).is_file():
        with loading_errors_as_sentences("model_name_or_path", checkpoint):
            return AutoVideoProcessor.from_pretrained(checkpoint, **({"size": size} if size else {}))
    return THEMaskVideoProcessor(size=size or NEW_PROCESSOR_SIZE, do_reduce_labels=True)


def checkpoint_to_resume(training_args: VSSTrainingArguments, config: PreTrainedConfig) -> str | None:
    """Decide which checkpoint the run goes on from, and protect those of an earlier run.

    Args:
        training_args ([`VSSTrainingArguments`]): Output folder and `resume_from_checkpoint`.
        config ([`PreTrainedConfig`]): Configuration of the model to train.

    Returns:
        The checkpoint folder, or `None` for a fresh start.

    Raises:
        ValueError: If the output folder holds checkpoints but resuming was not asked for, or the checkpoint's model
            is another.
        FileNotFoundError: If the checkpoint asked for does not exist.
    """
    output_dir, wanted = Path(str(training_args.output_dir)), training_args.resume_from_checkpoint
    last = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    if wanted is None:
        if last is not None:
            raise ValueError(
                f"`output_dir` must hold no checkpoints of an earlier run. Got {last}. "
                "Give `--resume_from_checkpoint auto` to go on from it, or another `--output_dir`."
            )
        return None
    checkpoint = last if wanted == AUTO_RESUME else wanted
    if checkpoint is not None:
        _require_same_model(Path(checkpoint), config)
    return checkpoint


def _load_backbone(model: PreTrainedModel, checkpoint: str) -> None:
    for backbone in backbones(model):
        # Other tasks' checkpoints lack, for example, the norms that some backbones put after their stages.
        pretrained = load_pretrained(
            type(backbone), "backbone_name_or_path", checkpoint, allow_missing=True, config=backbone.config
        )
        backbone.load_state_dict(pretrained.state_dict())


def _saved_config(model_args: ModelArguments, id2label: dict[int, str]) -> dict[str, Any]:
    checkpoint = str(model_args.model_name_or_path)
    try:
        saved, _ = PreTrainedConfig.get_config_dict(checkpoint)
    except OSError:
        saved = {}
    if "model_type" not in saved:
        raise FileNotFoundError(
            f"`model_name_or_path` must be a saved model. Got {checkpoint}, which has no config.json of one."
        )
    if saved["model_type"] not in (model_args.model_type, "mask2former"):
        raise ValueError(
            f"`model_name_or_path` must hold a {model_args.model_type} or mask2former model. "
            f"Got {saved['model_type']!r} in {checkpoint}; set `--model_type` to train that architecture."
        )
    saved_labels = {int(index): name for index, name in saved.get("id2label", {}).items()}
    if saved_labels != id2label and not model_args.ignore_mismatched_sizes:
        raise ValueError(
            f"The data set's {len(id2label)} classes must be those of {checkpoint}. Got {len(saved_labels)} classes "
            f"there, first difference {_first_difference(saved_labels, id2label)}. "
            "Give `--ignore_mismatched_sizes true` to fine-tune to other classes."
        )
    return saved


def _first_difference(saved: dict[int, str], wanted: dict[int, str]) -> str:
    for index in sorted(saved.keys() | wanted.keys()):
        if saved.get(index) != wanted.get(index):
            return f"at index {index}: {saved.get(index)!r} there, {wanted.get(index)!r} in the data"
    return "none"


def _require_same_model(checkpoint: Path, config: PreTrainedConfig) -> None:
    if not (checkpoint / "trainer_state.json").is_file():
        raise FileNotFoundError(
            f"`resume_from_checkpoint` must be `auto` or a checkpoint folder. Got {checkpoint}, "
            "which has no trainer_state.json."
        )
    saved = type(config).from_pretrained(checkpoint).to_dict()
    current = config.to_dict()
    names = (saved.keys() | current.keys()) - VOLATILE_FIELDS
    differing = sorted(name for name in names if saved.get(name) != current.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"The model in {checkpoint} must be the one of this run. Got `{name}` = {saved.get(name)!r} there and "
            f"{current.get(name)!r} here. Resume with the recipe the checkpoint was trained with."
        )
