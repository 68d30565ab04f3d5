# SPDX-License-Identifier: Apache-2.0
"""A thin `Trainer` for video semantic segmentation."""

import inspect
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerControl
from transformers.trainer_utils import speed_metrics

from transformers_themask.data.clip_dataset import ClipDataset, ClipSampler
from transformers_themask.data.collator import ClipCollator
from transformers_themask.inference.loading import load_pretrained
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor

from .arguments import VSSTrainingArguments
from .evaluation import EvaluationVideos, evaluate_videos
from .learning_curve import LearningCurveCallback
from .parameter_groups import parameter_groups


class VSSTrainer(Trainer):
    """`Trainer` with clip sampling, the official parameter groups, loss terms in the log and video-wise evaluation.

    It works with any model of the package: nothing in it depends on one method.

    Args:
        model (`PreTrainedModel`): The model.
        args ([`VSSTrainingArguments`]): The arguments.
        processing_class (`THEMaskVideoProcessor`): The model's video processor, saved with it.
        train_dataset ([`~transformers_themask.data.clip_dataset.ClipDataset`], *optional*): Clips to train on.
        eval_dataset ([`EvaluationVideos`], *optional*): Videos to score.
    """

    args: VSSTrainingArguments
    model: PreTrainedModel
    processing_class: THEMaskVideoProcessor
    train_dataset: ClipDataset
    eval_dataset: EvaluationVideos
    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: VSSTrainingArguments,
        processing_class: THEMaskVideoProcessor,
        train_dataset: ClipDataset | None = None,
        eval_dataset: EvaluationVideos | None = None,
    ):
        super().__init__(
            model,
            args,
            data_collator=ClipCollator(),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
        )
        # The loss is a mean over each batch, so accumulated batches are averaged, not rescaled by label counts.
        self.model_accepts_loss_kwargs = False
        self._loss_terms: dict[str, torch.Tensor] = {}
        self._loss_term_counts: defaultdict[str, int] = defaultdict(int)
        self.add_callback(LearningCurveCallback)
        accepted = inspect.signature(type(self.model).forward).parameters
        if self.args.one_round_steps > 0 and "matching_rounds" not in accepted:
            raise ValueError(
                f"`one_round_steps` must be 0 for {type(self.model).__name__}, which has no rounds of matching. "
                f"Got {self.args.one_round_steps}."
            )

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Build the optimiser over [`parameter_groups`].

        Args:
            model (`PreTrainedModel`, *optional*): The model to train; defaults to the trainer's.

        Returns:
            The optimiser.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model, self.args.learning_rate, self.args.weight_decay, self.args.backbone_learning_rate_factor
            )
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Run the model and keep its named loss terms for the log.

        Args:
            model (`torch.nn.Module`): The model, wrapped for training.
            inputs (`dict`): A batch.
            return_outputs (`bool`, *optional*, defaults to `False`): Whether to return the outputs as well.
            num_items_in_batch (`int`, *optional*): Not used.

        Returns:
            The loss, or the loss and the outputs.
        """
        if model.training and self.state.global_step < self.args.one_round_steps:
            inputs = {**inputs, "matching_rounds": 1}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            self._remember_loss_terms(outputs.get("loss_terms") or {})
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`, adding the mean of each loss term to an entry that holds the training loss.

        Args:
            logs (`dict[str, float]`): The values to log.
            start_time (`float`, *optional*): When training started.
        """
        if "loss" in logs and self._loss_terms:
            logs.update(self._pop_mean_loss_terms())
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: EvaluationVideos | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        prediction_dir: Path | None = None,
    ) -> dict[str, Any]:
        """Segment whole videos and score them.

        Args:
            eval_dataset ([`EvaluationVideos`], *optional*): The videos; defaults to the trainer's.
            ignore_keys (`list[str]`, *optional*): Not used; the logits never leave the model's output.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): Put before each name.
            prediction_dir (`Path`, *optional*): Where to write the label maps, if anywhere.

        Returns:
            The scores of [`evaluate_videos`] and the run time.
        """
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
            )
        metrics: dict[str, Any] = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=videos.num_frames_in_total))
        self.log({name: value for name, value in metrics.items() if isinstance(value, float)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset=None) -> ClipSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ClipSampler(len(dataset), seed=seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # `Trainer` copies the file's tensors by name and only warns of those that are missing. Files of a model with a
        # SegFormer part carry that part's legacy names, which `from_pretrained` alone translates.
        model = self.model if model is None else model
        saved = load_pretrained(type(model), "checkpoint", resume_from_checkpoint, config=model.config)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _remember_loss_terms(self, loss_terms: dict[str, torch.Tensor]) -> None:
        for name, term in loss_terms.items():
            term = term.detach()  # summed on the device: reading a value here would wait for the GPU at every step
            self._loss_terms[name] = self._loss_terms[name] + term if name in self._loss_terms else term
            self._loss_term_counts[name] += 1

    def _pop_mean_loss_terms(self) -> dict[str, float]:
        names = sorted(self._loss_terms)
        means = torch.stack([self._loss_terms[name] / self._loss_term_counts[name] for name in names])
        means = self.accelerator.reduce(means, reduction="mean")
        self._loss_terms.clear()
        self._loss_term_counts.clear()
        return dict(zip(names, means.tolist(), strict=True))
