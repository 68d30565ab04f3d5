# SPDX-License-Identifier: Apache-2.0
"""A thin `Trainer` for video semantic segmentation."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints, speed_metrics

from transformers_themask.data.clip_dataset import ClipDataset, ClipSampler
from transformers_themask.data.collator import ClipCollator
from transformers_themask.data.normalization import prepare_on_device
from transformers_themask.inference.loading import load_pretrained
from transformers_themask.models.step_context import StepContext
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.publishing.model_card import write_model_card

from .arguments import VSSTrainingArguments, clips_per_step
from .batch_norms import are_batch_norms_shared, share_batch_norms
from .checkpoints import WRITING_DIR, publish_checkpoint, seal_checkpoint, write_recipe
from .evaluation import EvaluationVideos, evaluate_videos
from .learning_curve import LearningCurveCallback
from .loss_meter import LossMeter
from .masked_consistency import draw_patches, hide_patches, running_statistics_kept
from .parameter_groups import default_undecayed_norms, parameter_groups
from .run_monitor import RunMonitor
from .sharding import own_class
from .starting_point import check_clip_length
from .stop_signal import StopOnSignal

LOSS_METER_FILE = "loss_meter_{}.pt"
# Folder of label maps in the output folder.
PREDICTION_DIR = "predictions"
# Key that marks a batch of the pass with hidden patches.
IS_MASKED = "is_masked"
# Parts of the seeds of that pass, and of its patches.
MASKED_PASS, PATCHES = 1, 2


class VSSTrainer(Trainer):
    """`Trainer` whose result depends on the recipe alone; official parameter groups, evaluation video by video.

    Loss and gradients of an optimiser step do not depend on how its clips are spread over processes, batches and
    accumulation: every batch contributes its share of the step's loss, and a clip's random points follow from seed,
    step and clip. Batch norms are the exception: they see the clips of one forward pass, of all ranks on GPUs and of
    their own on CPUs, so accumulation makes their batches smaller. A killed run resumes from its last checkpoint with
    the same losses and weights. Any [`~transformers_themask.models.pretrained_model.VideoPreTrainedModel`] can be
    trained; a `ValueError` is raised if an argument does not fit it or the data.
    """

    args: VSSTrainingArguments
    model: PreTrainedModel
    processing_class: VideoSegmentationProcessor
    train_dataset: ClipDataset
    eval_dataset: EvaluationVideos
    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: VSSTrainingArguments,
        processing_class: VideoSegmentationProcessor,
        train_dataset: ClipDataset | None = None,
        eval_dataset: EvaluationVideos | None = None,
        recipe: Mapping[str, Any] | None = None,
    ):
        if args.n_gpu > 1:
            raise ValueError(
                f"Every process must have one GPU. Got {args.n_gpu} for one process. "
                "Start one process per GPU with `accelerate launch --multi_gpu`."
            )
        if train_dataset is not None:  # checked before anything is written
            clip_sampler(train_dataset, args)
            check_clip_length(model.config, train_dataset.frame_offsets)
            if are_batch_norms_shared(args.device.type, args.world_size):
                share_batch_norms(model)
        super().__init__(model, args, ClipCollator(), train_dataset, eval_dataset, processing_class)
        if args.fsdp and self.accelerator.distributed_type != DistributedType.FSDP:
            raise ValueError(
                "`fsdp` must be used on accelerators with one process each: elsewhere Accelerate does not shard. "
                f"Got {self.accelerator.distributed_type.value}. Leave `fsdp` out of the configuration."
            )
        if self.is_deepspeed_enabled and args.consistency_weight > 0:
            raise ValueError(
                "`consistency_weight` must be 0 with DeepSpeed, which takes one backward pass per batch. "
                f"Got {args.consistency_weight}. Use DDP or FSDP."
            )
        # The model divides by the counts of a step, so `Trainer` must not rescale the loss.
        self.model_accepts_loss_kwargs = True
        self.recipe = recipe
        self.loss_meter = LossMeter()
        self._num_lost_steps: int | torch.Tensor = 0
        self.stop_signal = StopOnSignal(self.accelerator)
        self._is_writing_checkpoint = False
        self.run_monitor = RunMonitor()
        self.add_callback(self.run_monitor)
        self.add_callback(LearningCurveCallback)
        self.add_callback(self.stop_signal)
        if self.args.one_round_steps > 0 and not self.model.has_matching_rounds:
            raise ValueError(
                f"`one_round_steps` must be 0 for {type(self.model).__name__}, which has no rounds of matching. "
                f"Got {self.args.one_round_steps}."
            )

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Build the optimiser over [`parameter_groups`]."""
        if self.optimizer is None:
            args = self.args
            model = self.model if model is None else model
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(args, model)
            rates = (args.learning_rate, args.weight_decay, args.backbone_learning_rate_factor)
            undecayed_norms = args.undecayed_norms or default_undecayed_norms(self.model.config)
            self.optimizer = optimizer_class(parameter_groups(model, *rates, undecayed_norms), **optimizer_kwargs)
        return self.optimizer

    def train(self, resume_from_checkpoint: str | None = None, **options) -> TrainOutput:
        """As `Trainer.train`; for a complete run only its model is loaded."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, "trainer_state.json")))
            num_steps: float = self.args.max_steps
            if num_steps <= 0:
                num_steps = self.args.num_train_epochs * (len(self.train_dataset) // clips_per_step(self.args))
            if state.global_step >= num_steps:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                return TrainOutput(state.global_step, float("nan"), {})
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        self._check_finite()
        return output

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """As `Trainer.training_step`, and with `consistency_weight` a second pass with hidden patches (MVC, Eq. 4).

        Each pass has its own backward, so the second one needs no more memory than an accumulated batch.
        """
        loss = self._training_pass(model, inputs, num_items_in_batch)
        if self.args.consistency_weight > 0:
            with running_statistics_kept(model):
                loss = loss + self._training_pass(model, {**inputs, IS_MASKED: True}, num_items_in_batch)
        return loss

    def _training_pass(self, model, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None) -> torch.Tensor:
        # Dropout and drop path are seeded by seed, step and clips. The default generator's state would depend on how
        # often data loaders were started, so on where a run was resumed.
        key = [sampling_seed(self.args), self.state.global_step, inputs["sample_ids"][0]]
        torch.manual_seed(random_seed([*key, MASKED_PASS] if IS_MASKED in inputs else key))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model and keep its named loss terms for the log; `num_items_in_batch` are the step's loss counts."""
        is_masked, sample_ids = inputs.pop(IS_MASKED, False), inputs.pop("sample_ids")
        purpose = [MASKED_PASS] if is_masked else []
        points = [self._generator(sample_id, *purpose) for sample_id in sample_ids]
        outputs = model(**inputs, context=StepContext(num_items_in_batch, self._matching_rounds(), points))
        loss = outputs["loss"]
        if is_masked:
            self.loss_meter.add({"consistency_loss": loss, "loss": self.args.consistency_weight * loss}, {})
            loss = self.args.consistency_weight * loss
        elif model.training:
            terms = {**(outputs.get("loss_terms") or {}), "loss": loss}
            self.loss_meter.add(terms, outputs.get("statistics") or {})
        # Shares add up to the loss of the step, but ranks average their gradients.
        loss = loss if num_items_in_batch is None else loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; the training loss and its terms are the means over the steps since the last entry."""
        if "loss" in logs:
            # Unlike the sums of `Trainer`, those of the meter survive a crash.
            logs.update(self.loss_meter.pop_means(self.accelerator, self.state.global_step))
            self._check_finite(logs["loss"])
            logs.update(self.run_monitor.pop_readings(self.accelerator))
        super().log(logs, start_time)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.args.fp16:  # where the loss scaler skips steps that overflow
            value = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            self._num_lost_steps = self._num_lost_steps + ~value.isfinite()  # read later, to avoid waiting for the GPU
        return norm

    def _check_finite(self, loss: float = 0.0) -> None:
        """Raise a `ValueError` if the weights have become non-finite, before they are saved."""
        num_lost = int(self._num_lost_steps)
        if num_lost == 0 and math.isfinite(loss):
            return
        problem = f"{num_lost} steps with non-finite gradients" if num_lost else f"a loss of {loss}"
        masked = " Masked video consistency needs trained or pretrained weights to start from."
        raise ValueError(
            f"Loss and gradients must be finite. Got {problem} up to step {self.state.global_step}. Lower "
            f"`learning_rate`, or train in float32.{masked if self.args.consistency_weight else ''}"
        )

    def evaluate(
        self,
        eval_dataset: EvaluationVideos | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        prediction_dir: Path | None = None,
    ) -> dict[str, Any]:
        """Score videos, by default the trainer's: what [`evaluate_videos`] returns, and the run time."""
        videos = self.eval_dataset if eval_dataset is None else eval_dataset
        start_time = time.time()
        with self.accelerator.autocast():
            scores = evaluate_videos(
                self.model,
                self.processing_class,
                videos,
                device=self.args.device,
                progress=not self.args.disable_tqdm,
                prediction_dir=prediction_dir,
                in_step=self.is_fsdp_enabled or self.is_deepspeed_enabled,
            )
        metrics: dict[str, Any] = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=videos.videos.num_frames))
        self.log({name: value for name, value in metrics.items() if isinstance(value, float)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, license: str | None = None, tags: str | list[str] | None = None, **kwargs) -> None:
        """Write the model card from the result file in the output folder; further arguments are ignored."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags
            write_model_card(str(self.args.output_dir), license_id=license, repo_id=self.hub_model_id, tags=tags or ())

    def push_to_hub(self, *arguments, **options):
        """As `Trainer.push_to_hub`, without the label maps of `do_predict`."""
        predictions = Path(str(self.args.output_dir), PREDICTION_DIR)
        hidden = predictions.with_name(f"_{PREDICTION_DIR}")  # `Trainer` excludes this prefix
        if self.is_world_process_zero() and predictions.is_dir():
            predictions.rename(hidden)
        try:
            return super().push_to_hub(*arguments, **options)
        finally:
            if self.is_world_process_zero() and hidden.is_dir():
                hidden.rename(predictions)

    def _get_train_sampler(self, train_dataset=None) -> ClipSampler:
        self._clip_sampler = clip_sampler(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return self._clip_sampler

    def _run_epoch(self, *arguments, **options) -> None:
        # After resuming within an epoch on several ranks, neither `Trainer` nor Accelerate reaches the sampler below
        # the wrappers that skip and distribute its batches.
        self._clip_sampler.set_epoch(options["epoch"])
        super()._run_epoch(*arguments, **options)

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """The loss counts of the next optimiser step, over all its batches and all ranks."""
        model = self.accelerator.unwrap_model(self.model)
        context = StepContext(matching_rounds=self._matching_rounds())
        counts = torch.stack([model.loss_counts(batch["labels"], context) for batch in batch_samples]).sum(0)
        return self.accelerator.reduce(counts.to(device), reduction="sum")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = prepare_on_device(super()._prepare_inputs(inputs), self.processing_class)
        if IS_MASKED in inputs:
            frames = inputs["pixel_values_videos"]
            num_frames, _, *size = frames.shape[1:]
            shape = (num_frames, *size)
            args = self.args
            generators = [self._generator(clip, PATCHES) for clip in inputs["sample_ids"]]
            patches = [draw_patches(shape, args.mask_patch_size, args.mask_tube_length, each) for each in generators]
            inputs["pixel_values_videos"], _ = hide_patches(frames, torch.stack(patches), args.mask_ratio)
        return inputs

    def _generator(self, sample_id: int, *purpose: int) -> torch.Generator:
        """A generator of random numbers for a clip, which do not depend on rank and batch."""
        key = [sampling_seed(self.args), self.state.global_step, sample_id, *purpose]
        return torch.Generator(self.args.device).manual_seed(random_seed(key))

    def _matching_rounds(self) -> int | None:
        """One round in the warm-up, then the configuration's number."""
        return 1 if self.state.global_step < self.args.one_round_steps else None

    def _get_output_dir(self, trial=None) -> str:
        run_dir = super()._get_output_dir(trial)
        return str(Path(run_dir, WRITING_DIR)) if self._is_writing_checkpoint else run_dir

    def _save_checkpoint(self, model, trial=None) -> None:
        """Write an atomic checkpoint."""
        self._check_finite()
        run_dir = Path(super()._get_output_dir(trial))
        step = self.state.global_step
        writing, final = (folder / f"checkpoint-{step}" for folder in (run_dir / WRITING_DIR, run_dir))
        if self.is_local_process_zero():
            shutil.rmtree(writing.parent, ignore_errors=True)  # left by a crash
        self.accelerator.wait_for_everyone()
        best_model_checkpoint = self.state.best_model_checkpoint
        best_step = self.state.best_global_step
        if best_step and (best_step == step or (run_dir / f"checkpoint-{best_step}").is_dir()):
            # `Trainer` would look for it in the folder that is being written.
            best_model_checkpoint = str(run_dir / f"checkpoint-{best_step}")
        self._is_writing_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing_checkpoint = False
        torch.save(self.loss_meter.state_dict(), writing / LOSS_METER_FILE.format(self.args.process_index))
        self.accelerator.wait_for_everyone()
        self.state.best_model_checkpoint = best_model_checkpoint
        if self.args.should_save:
            self.state.save_to_json(str(writing / "trainer_state.json"))
        if self.is_world_process_zero():
            self._finish_checkpoint(writing, final)
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero() and writing.is_dir():  # a node with a disk of its own
            self._finish_checkpoint(writing, final)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            limit = self.args.save_total_limit
            # By time: a crash may have left a damaged checkpoint of a later step.
            rotate_checkpoints(str(run_dir), limit, best_model_checkpoint, use_mtime=True)

    def _finish_checkpoint(self, writing: Path, final: Path) -> None:
        if self.recipe is not None:
            write_recipe(self.recipe, writing)
        seal_checkpoint(writing)
        publish_checkpoint(writing, final)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            paths = sorted(Path(checkpoint).glob(LOSS_METER_FILE.format("*")))
            states = [torch.load(path, weights_only=True, map_location="cpu") for path in paths]
            self.loss_meter.load_state_dicts(states, self.args.process_index, self.args.world_size)

    def _determine_best_metric(self, metrics: dict[str, Any], trial=None) -> bool:
        # An undefined score, such as VC16 of short videos, counts as the worst.
        defined = {name: float("-inf") if value is None else value for name, value in metrics.items()}
        return super()._determine_best_metric(defined, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # `Trainer` copies tensors by name and only warns of missing ones. Files of a model with a SegFormer part hold
        # legacy names, which only `from_pretrained` translates.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # they have formats of their own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = self.model if model is None else model
        saved = load_pretrained(type(model), "checkpoint", resume_from_checkpoint, config=model.config)
        model.load_state_dict(saved.state_dict())

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with own_class(self.model):
            super()._save(output_dir, state_dict)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


def sampling_seed(args: VSSTrainingArguments) -> int:
    """The seed of the order of clips and of their random points."""
    return args.seed if args.data_seed is None else args.data_seed


def clip_sampler(dataset: ClipDataset, args: VSSTrainingArguments) -> ClipSampler:
    """The order of a run's clips, in whole optimiser steps; a `ValueError` if the dataset has fewer clips than one."""
    return ClipSampler(len(dataset), seed=sampling_seed(args), clips_per_step=clips_per_step(args))


def random_seed(key: Sequence[int]) -> int:
    """A well-mixed seed for torch from a key of non-negative integers."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(state >> np.uint64(1))
