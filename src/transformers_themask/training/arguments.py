# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training run: what a recipe or the command line sets.

The defaults are the paper's training on VSPW (An et al., BMVC 2023, section 4.1, and the released configurations).
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import TrainingArguments

from .config_overrides import mapping_from_text

# The stride of the coarsest feature map.
SIZE_DIVISOR = 32


@dataclass
class ModelArguments:
    """Which model to train, and from which weights."""

    model_type: str = field(default="themask", metadata={"help": "Architecture of a new model."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: a saved model of this package or a Mask2Former; with `per_frame` also "
            "any Transformers segmentation model, or its encoder."
        },
    )
    backbone_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained weights for the backbone of a new model, e.g. nvidia/mit-b1."}
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Configuration fields as a mapping, e.g. '{backbone: mit-b1, num_frames: 2}'."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Start a new classification head when the checkpoint's classes are not the data set's."},
    )
    freeze_pixel_level: bool = field(
        default=False, metadata={"help": "Keep the backbone and the pixel decoder as they are in the checkpoint."}
    )

    def __post_init__(self):
        self.config_overrides = self.overrides
        if self.model_name_or_path is not None and self.backbone_name_or_path is not None:
            raise ValueError(
                "`backbone_name_or_path` must not be given together with `model_name_or_path`, which has a backbone. "
                f"Got {self.backbone_name_or_path} and {self.model_name_or_path}."
            )

    @property
    def overrides(self) -> dict[str, Any]:
        """The configuration fields as a mapping, however they were given."""
        if isinstance(self.config_overrides, str):
            return mapping_from_text("config_overrides", self.config_overrides)
        return self.config_overrides or {}


@dataclass
class DataArguments:
    """Which videos to train and score on, and how clips are cut from them."""

    data_root: str | None = field(
        default=None, metadata={"help": "Folder in the VSPW layout: split files, class names and data/<video>/."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "What results call the data set. Default: the name of its folder."}
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split file to train on."})
    eval_split: str = field(default="val", metadata={"help": "Name of the split file to score."})
    frame_offsets: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Frames of a training clip relative to its last frame, e.g. -9 -6 -3 0."},
    )
    clips_per_video: int = field(default=1, metadata={"help": "Training clips drawn from each video per epoch."})
    sample_by: str = field(
        default="video",
        metadata={"help": "Draw every 'video' equally often (the paper) or in proportion to its length ('frame')."},
    )
    base_size: list[int] = field(
        default_factory=lambda: [853, 480],
        metadata={"help": "Longest and shortest edge that frames are scaled to before the random scale."},
    )
    ratio_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Smallest and largest random scale."}
    )
    crop_size: list[int] = field(default_factory=lambda: [480, 480], metadata={"help": "Height and width of a crop."})
    cat_max_ratio: float = field(
        default=0.75, metadata={"help": "Share of a crop that one class may cover before it is drawn again."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Share of the clips that are mirrored."})
    photometric: bool = field(default=True, metadata={"help": "Vary brightness, contrast, saturation and hue."})
    photometric_on: str = field(
        default="cpu",
        metadata={
            "help": "Where colours are varied: on the `cpu`, exactly as the reference, or, faster, the `device`."
        },
    )
    eval_shortest_edge: int | None = field(
        default=None,
        metadata={
            "help": "Shortest edge of the network's input in evaluation and use; saved with the video processor. "
            "Default: that of the checkpoint, or 480."
        },
    )
    eval_longest_edge: int | None = field(
        default=None, metadata={"help": "The same for the longest edge. Default: that of the checkpoint, or 853."}
    )
    eval_num_frames: int | None = field(
        default=None, metadata={"help": "Frames per clip in evaluation. Default: the model's `num_frames`."}
    )
    eval_frame_stride: int = field(
        default=3, metadata={"help": "Distance between the frames of a clip in evaluation."}
    )

    def __post_init__(self):
        for name in ("base_size", "ratio_range", "crop_size"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` must be two numbers. Got {getattr(self, name)}.")
        if any(edge % SIZE_DIVISOR or edge < 1 for edge in self.crop_size):
            raise ValueError(
                f"`crop_size` must be multiples of {SIZE_DIVISOR}, as a model's input. Got {self.crop_size}."
            )
        if (self.eval_shortest_edge is None) != (self.eval_longest_edge is None):
            raise ValueError(
                "`eval_shortest_edge` and `eval_longest_edge` must be given together. "
                f"Got {self.eval_shortest_edge} and {self.eval_longest_edge}."
            )


@dataclass
class VSSTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of video semantic segmentation and three arguments of its own."""

    one_round_steps: int = field(
        default=0,
        metadata={"help": "Optimiser steps with one round of matching at the start (paper: 30000 of 160000)."},
    )
    backbone_learning_rate_factor: float = field(
        default=0.1, metadata={"help": "The backbone's learning rate relative to `learning_rate`."}
    )
    do_predict: bool = field(
        default=False, metadata={"help": "Write the label maps of `eval_split` to <output_dir>/predictions."}
    )

    output_dir: str | None = field(default="runs/vss", metadata={"help": "Folder of the model, checkpoints, scores."})
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "A checkpoint folder, or `auto` for the last complete one in `output_dir`, if any: the same "
            "command goes on where a killed run was. `none` refuses a folder with checkpoints."
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "Learning rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"power": 0.9, "lr_end": 0.0}, metadata={"help": "Arguments of the schedule."}
    )
    max_grad_norm: float = field(default=0.01, metadata={"help": "Largest L2 norm of all gradients together."})
    metric_for_best_model: str | None = field(default="mean_iou", metadata={"help": "What the best checkpoint is."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses from the log, at the cost of one GPU wait per step."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: clips are no table columns."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Keys of the labels."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 (the order that HfArgumentParser understands)
        default="none", metadata={"help": "Experiment trackers to report to."}
    )

    def __post_init__(self):
        if self.one_round_steps < 0:
            raise ValueError(f"`one_round_steps` must be at least 0. Got {self.one_round_steps}.")
        if self.resume_from_checkpoint == "none":
            self.resume_from_checkpoint = None
        super().__post_init__()
        self.dataloader_pin_memory &= self.device.type != "cpu"  # else torch warns that it does nothing


# The training arguments that the result depends on; batch size, accumulation and processes count as their product.
RECIPE_FIELDS = (
    "seed",
    "data_seed",
    "one_round_steps",
    "learning_rate",
    "backbone_learning_rate_factor",
    "weight_decay",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_grad_norm",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
)
# Where the data lie and how results are looked at does not change what is learned.
VOLATILE_DATA_FIELDS = {"data_root", "dataset_name", "eval_split", "eval_num_frames", "eval_frame_stride"}


def clips_per_step(args: VSSTrainingArguments) -> int:
    """Number of clips of one optimiser step, over batches, accumulation and processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def recipe_of(
    model_args: ModelArguments, data_args: DataArguments, training_args: VSSTrainingArguments
) -> dict[str, Any]:
    """The arguments that the result of a run depends on, as JSON can hold them.

    `max_steps` is left out: a run may be extended, with the schedule of its new length.

    Args:
        model_args ([`ModelArguments`]): The model.
        data_args ([`DataArguments`]): The data.
        training_args ([`VSSTrainingArguments`]): The training.
    """
    data = {name: value for name, value in asdict(data_args).items() if name not in VOLATILE_DATA_FIELDS}
    training = {name: getattr(training_args, name) for name in RECIPE_FIELDS}
    recipe = {**asdict(model_args), **data, **training, "clips_per_step": clips_per_step(training_args)}
    return json.loads(json.dumps(recipe, default=str))
