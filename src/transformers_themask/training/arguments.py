# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training run, set by a recipe or on the command line.

The defaults are the training of THE-Mask on VSPW (An et al., BMVC 2023, section 4.1, and the released configurations).
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainingArguments, get_scheduler
from transformers.hf_argparser import HfArg

from transformers_themask.config_overrides import mapping_from_text
from transformers_themask.data.clip_dataset import ClipDataset
from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.data.transforms import ClipAugmentation
from transformers_themask.models.protocols import VideoModel
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.mvc.tta import TTA
from transformers_themask.publishing.licenses import check_license
from transformers_themask.registry import default_family, trainable_families

from .evaluation import EvaluationVideos, frames_per_clip
from .parameter_groups import UNDECAYED_NORMS, default_undecayed_norms

BEST_MODEL_METRICS = ("mean_iou", "weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8", "vc16")
# The stride of the coarsest feature map.
SIZE_DIVISOR = 32
PIXEL_LEVEL = "pixel_level"


def argument(default: Any, help: str) -> Any:
    """A field of a dataclass of arguments; every instance gets a copy of a list."""
    if isinstance(default, list):
        return HfArg(default_factory=default.copy, help=help)
    return HfArg(default=default, help=help)


@dataclass
class ModelArguments:
    """Which model to train, and from which weights."""

    model_type: str = HfArg(
        default_factory=lambda: default_family().name,
        help=f"Architecture of a new model: {', '.join(row.name for row in trainable_families())}.",
    )
    model_name_or_path: str | None = argument(
        None,
        "Checkpoint to start from, of this package or one of Transformers that the architecture can start from. "
        "Without training, any video or image segmentation model; `model_type` is then ignored.",
    )
    backbone_name_or_path: str | None = argument(None, "Weights for a new model's backbone, e.g. nvidia/mit-b1.")
    config_overrides: dict | str | None = argument(None, "Configuration fields: '{backbone: mit-b1, num_frames: 2}'.")
    ignore_mismatched_sizes: bool = argument(False, "Start a new classifier if the checkpoint has other classes.")
    freeze: list[str] = argument([], "Parts of the model that are not trained, e.g. pixel_level.")
    freeze_pixel_level: bool = argument(False, "The same as `--freeze pixel_level`.")

    def __post_init__(self):
        self.config_overrides = self.overrides
        if self.freeze_pixel_level and PIXEL_LEVEL not in self.freeze:
            self.freeze = [*self.freeze, PIXEL_LEVEL]
        if self.model_name_or_path is not None and self.backbone_name_or_path is not None:
            raise ValueError(
                "`backbone_name_or_path` must not be given together with `model_name_or_path`, which has a backbone. "
                f"Got {self.backbone_name_or_path} and {self.model_name_or_path}."
            )

    @property
    def overrides(self) -> dict[str, Any]:
        """The configuration fields as a mapping, parsed if they were given as text."""
        if isinstance(self.config_overrides, str):
            return mapping_from_text("config_overrides", self.config_overrides)
        return self.config_overrides or {}


@dataclass
class DataArguments:
    """Which videos to train and score on, and how clips are cut from them."""

    data_root: str | None = argument(None, "Labelled videos: VSPW, Cityscapes sequences or a folder of videos.")
    dataset_name: str | None = argument(None, "What results call the data set. Default: the name of its folder.")
    train_split: str = argument("train", "Name of the split file to train on.")
    eval_split: str = argument("val", "Name of the split file to score.")
    frame_offsets: list[int] = argument([0], "Frames of a training clip relative to its last frame, e.g. -9 -6 -3 0.")
    draw_distance: bool | None = argument(
        None,
        "Draw the distance of a clip's two frames, up to that of `frame_offsets`. If false, it is fixed, "
        "and half of the clips run backwards. Default: that of the architecture.",
    )
    clips_per_video: int = argument(1, "Training clips drawn from each video per epoch.")
    sample_by: str = argument("video", "Draw videos equally often (`video`, the paper) or by length (`frame`).")
    base_size: list[int] = argument([853, 480], "Longest and shortest edge of frames before the random scale.")
    ratio_range: list[float] = argument([0.5, 2.0], "Smallest and largest random scale.")
    crop_size: list[int] = argument([480, 480], "Height and width of a crop.")
    cat_max_ratio: float = argument(0.75, "Share of a crop that one class may cover before it is drawn again.")
    flip_probability: float = argument(0.5, "Share of the clips that are mirrored.")
    photometric: bool = argument(True, "Vary brightness, contrast, saturation and hue.")
    photometric_on: str = argument("cpu", "Where colours are varied: `cpu`, as the reference, or `device`, faster.")
    eval_shortest_edge: int | None = argument(
        None, "Shortest edge of the input in evaluation, saved with the processor. Default: the checkpoint's, or 480."
    )
    eval_longest_edge: int | None = argument(None, "Likewise the longest edge. Default: the checkpoint's, or 853.")
    eval_num_frames: int | None = argument(None, "Frames per clip in evaluation. Default: the model's `num_frames`.")
    eval_frame_stride: int = argument(3, "Distance of a clip's frames in evaluation, if its mode leaves that open.")
    eval_mode: str | None = argument(
        None,
        "How clips are formed in evaluation: interleaved, contiguous, sliding or recurrent. Default: "
        "interleaved, the official evaluation; recurrent for a model without clips.",
    )
    eval_scales: list[float] = argument(
        [1.0], "Test-time augmentation: input sizes against the usual one, one pass each, e.g. 0.9 1.0 1.1 1.2."
    )
    eval_flip: bool = argument(False, "In evaluation, a pass with mirrored frames for each scale, too.")
    eval_combine: str = argument(
        "votes", "Combination of passes: majority (`votes`) or highest mean score (`scores`, the only choice for two)."
    )

    def __post_init__(self):
        for name in ("base_size", "ratio_range", "crop_size"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` must be two numbers. Got {getattr(self, name)}.")
        if any(edge % SIZE_DIVISOR or edge < 1 for edge in self.crop_size):
            raise ValueError(
                f"`crop_size` must be multiples of {SIZE_DIVISOR}, as a model's input. Got {self.crop_size}."
            )
        edges = (self.eval_shortest_edge, self.eval_longest_edge)
        is_positive = not any(edge is not None and edge < 1 for edge in edges)
        if not is_positive or edges.count(None) == 1:
            rule = "given together" if is_positive else "positive"
            names = "`eval_shortest_edge` and `eval_longest_edge`"
            raise ValueError(f"{names} must be {rule}. Got {edges[0]} and {edges[1]}.")

    def clip_sampler(self, config: PreTrainedConfig) -> str:
        """Name of the sampler of training clips: the configuration's unless `draw_distance` is set."""
        if self.draw_distance is None:
            return config.clip_sampler
        return "pair" if self.draw_distance else "offsets"

    def clip_dataset(
        self, videos: LabelledVideos, processor: VideoSegmentationProcessor, config: PreTrainedConfig, seed: int
    ) -> ClipDataset:
        """The training clips of a model with this processor and configuration."""
        return ClipDataset(
            videos=videos,
            frame_offsets=self.frame_offsets,
            processor=processor,
            augmentation=ClipAugmentation(
                base_size=(self.base_size[0], self.base_size[1]),
                ratio_range=(self.ratio_range[0], self.ratio_range[1]),
                crop_size=(self.crop_size[0], self.crop_size[1]),
                cat_max_ratio=self.cat_max_ratio,
                flip_probability=self.flip_probability,
                photometric=self.photometric,
            ),
            seed=seed,
            clips_per_video=self.clips_per_video,
            sample_by=self.sample_by,
            photometric_on=self.photometric_on,
            clip_sampler=self.clip_sampler(config),
        )

    def tta(self) -> TTA:
        """The test-time augmentation of the evaluation."""
        return TTA(tuple(self.eval_scales), self.eval_flip, self.eval_combine)

    def evaluation_videos(self, videos: LabelledVideos, model: VideoModel) -> EvaluationVideos:
        """The videos to score, with the model's number of frames per clip unless another is set."""
        num_frames = frames_per_clip(model) if self.eval_num_frames is None else self.eval_num_frames
        return EvaluationVideos(videos, num_frames, self.eval_frame_stride, self.eval_mode, self.tta())


@dataclass
class VSSTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of video semantic segmentation and a few arguments of its own."""

    one_round_steps: int = argument(0, "Optimiser steps with one round of matching at first, e.g. 30000 of 160000.")
    consistency_weight: float = argument(
        0.0,
        "Weight of the loss of a second pass with hidden patches, masked video consistency (MVC, Eq. 4), "
        "e.g. 1. It doubles the time of a step and needs the memory of one accumulated batch. 0: no such pass.",
    )
    mask_patch_size: int = argument(64, "Edge of a hidden patch in pixels: 64 for crops of 1024, 32 for 480.")
    mask_ratio: float = argument(0.7, "Expected share of hidden patches.")
    mask_tube_length: int = argument(
        1,
        "Consecutive frames of a clip that hide the same patches: 1 draws for each frame independently, "
        "2 and more make tubes, 0 hides the same patches in the whole clip.",
    )
    backbone_learning_rate_factor: float = argument(0.1, "The backbone's learning rate relative to `learning_rate`.")
    undecayed_norms: str | None = argument(
        None,
        "Part whose norm layers have no weight decay: the `head`, the `backbone`, or `all`, with the "
        "embeddings. Default: that of the architecture.",
    )
    clips_per_step: int | None = argument(
        None, "Required processes x batch size x accumulation, which a recipe's schedule is made for. Default: any."
    )
    license: str | None = argument(None, "Licence of the weights for the model card, an id of the Hub, e.g. mit.")
    do_predict: bool = argument(False, "Write the label maps of `eval_split` to <output_dir>/predictions.")

    output_dir: str | None = argument("runs/vss", "Folder of the model, checkpoints, scores.")
    resume_from_checkpoint: str | None = argument(
        "auto",
        "A checkpoint folder, or `auto` for the last complete one in `output_dir`, if any: repeating the "
        "command resumes a killed run. `none` rejects a folder with checkpoints.",
    )
    learning_rate: float = argument(1e-4, "Initial learning rate of AdamW.")
    weight_decay: float = argument(0.05, "Weight decay of AdamW.")
    lr_scheduler_type: str = argument("polynomial", "Learning rate schedule.")
    lr_scheduler_kwargs: dict | str | None = argument(
        None, "Arguments of the schedule. Default of `polynomial`: '{power: 0.9, lr_end: 0.0}'."
    )
    max_grad_norm: float = argument(0.01, "Largest L2 norm of all gradients together.")
    metric_for_best_model: str | None = argument("mean_iou", "Score of the best checkpoint.")
    logging_nan_inf_filter: bool = argument(False, "Hide non-finite losses from the log, for one GPU wait per step.")
    remove_unused_columns: bool = argument(False, "Must be false for clips.")
    label_names: list[str] | None = argument(["labels"], "Keys of the labels.")
    report_to: None | str | list[str] = argument(  # noqa: RUF036 (the order that HfArgumentParser understands)
        "none", "Experiment trackers to report to."
    )

    def __post_init__(self):
        if self.resume_from_checkpoint == "none":
            self.resume_from_checkpoint = None
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = mapping_from_text("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if self.license is not None:
            check_license("license", self.license)
        if self.undecayed_norms not in (None, *UNDECAYED_NORMS):
            raise ValueError(
                f"`undecayed_norms` must be one of {', '.join(UNDECAYED_NORMS)}. Got {self.undecayed_norms!r}."
            )
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "polynomial":
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0}
        self._check_numbers()
        super().__post_init__()
        # Launchers set both; a cluster may set WORLD_SIZE alone.
        num_launched = int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK"} <= os.environ.keys() else 1
        if num_launched != self.world_size:
            raise ValueError(
                f"The {num_launched} processes of the launcher must find one another. Got {self.world_size}, because "
                "there is no usable GPU for them. Give `--use_cpu`, or repair CUDA."
            )
        self.dataloader_pin_memory &= self.device.type != "cpu"  # a no-op there, of which torch warns

    def _check_numbers(self) -> None:
        at_least = {
            "one_round_steps": 0,
            "consistency_weight": 0,
            "mask_patch_size": 1,
            "mask_ratio": 0,
            "mask_tube_length": 0,
            "backbone_learning_rate_factor": 0,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0,
            "weight_decay": 0,
            "seed": 0,
            "data_seed": 0,
            "dataloader_num_workers": 0,
        }
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ValueError(f"`{name}` must be at least {lowest}. Got {value}.")
        if self.mask_ratio > 1:
            raise ValueError(f"`mask_ratio` must be at most 1. Got {self.mask_ratio}.")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise ValueError(
                "`max_steps` or `num_train_epochs` must be positive. "
                f"Got {self.max_steps} and {self.num_train_epochs}; leave `--do_train` out to train nothing."
            )
        if self.max_steps > 0 and self.get_warmup_steps(self.max_steps) >= max(self.max_steps, 1):
            raise ValueError(
                f"`warmup_steps` must be less than `max_steps`, {self.max_steps}. Got {self.warmup_steps}. Lower it "
                "or train longer."
            )
        best = str(self.metric_for_best_model).removeprefix("eval_")
        if self.metric_for_best_model is not None and best not in BEST_MODEL_METRICS:
            raise ValueError(
                f"`metric_for_best_model` must be one of {', '.join(BEST_MODEL_METRICS)}. "
                f"Got {self.metric_for_best_model!r}."
            )


# Training arguments that the result depends on, besides the product of batch size, accumulation and processes.
RECIPE_FIELDS = (
    "seed",
    "data_seed",
    "one_round_steps",
    "consistency_weight",
    "mask_patch_size",
    "mask_ratio",
    "mask_tube_length",
    "learning_rate",
    "backbone_learning_rate_factor",
    "weight_decay",
    "undecayed_norms",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_grad_norm",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
)
# Data arguments that do not affect training, and the one that `clip_sampler` resolves.
VOLATILE_DATA_FIELDS = {
    "data_root",
    "dataset_name",
    "eval_split",
    "eval_num_frames",
    "eval_frame_stride",
    "eval_mode",
    "eval_scales",
    "eval_flip",
    "eval_combine",
    "draw_distance",
}


def clips_per_step(args: VSSTrainingArguments) -> int:
    """Number of clips of one optimiser step; a `ValueError` if the argument `clips_per_step` differs."""
    product = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.clips_per_step is not None and product != args.clips_per_step:
        raise ValueError(
            f"`clips_per_step` must be processes x batch size x accumulation. Got {args.clips_per_step} for "
            f"{args.world_size} x {args.train_batch_size} x {args.gradient_accumulation_steps} = {product}. Set "
            "`--per_device_train_batch_size` and `--gradient_accumulation_steps` to suit the number of processes."
        )
    return product


def recipe_of(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: VSSTrainingArguments,
    config: PreTrainedConfig,
) -> dict[str, Any]:
    """What a run's result depends on, as JSON, without `max_steps`: a run may be extended with its longer schedule."""
    model = {name: value for name, value in asdict(model_args).items() if name != "freeze_pixel_level"}
    data = {name: value for name, value in asdict(data_args).items() if name not in VOLATILE_DATA_FIELDS}
    training = {name: getattr(training_args, name) for name in RECIPE_FIELDS}
    resolved = {
        "freeze": sorted(model_args.freeze),
        "clip_sampler": data_args.clip_sampler(config),
        "undecayed_norms": training_args.undecayed_norms or default_undecayed_norms(config),
        "clips_per_step": clips_per_step(training_args),
    }
    return json.loads(json.dumps({**model, **data, **training, **resolved}, default=str))


def in_current_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of [`recipe_of`], also of an earlier version, whose renamed arguments get their current names."""
    current = dict(recipe)
    if "freeze_pixel_level" in current:
        current["freeze"] = [PIXEL_LEVEL] if current.pop("freeze_pixel_level") else []
    if "draw_distance" in current:
        current["clip_sampler"] = "pair" if current.pop("draw_distance") else "offsets"
    return current


def check_schedule(args: VSSTrainingArguments) -> None:
    """Raise a `ValueError` unless the learning rate schedule can be built."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    options: Any = args.lr_scheduler_kwargs or {}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, max(args.max_steps, 1), dict(options))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"`lr_scheduler_kwargs` must suit `lr_scheduler_type`, {args.lr_scheduler_type}. "
            f"Got {args.lr_scheduler_kwargs}: {error}. Give `--lr_scheduler_kwargs '{{}}'` for its defaults."
        ) from error
