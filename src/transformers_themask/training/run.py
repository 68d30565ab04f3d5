# SPDX-License-Identifier: Apache-2.0
"""A whole run: train, save, evaluate and predict as a recipe and flags say."""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers_themask.publishing.results import (
    RESULT_FILE,
    model_facts,
    training_facts,
    training_record,
    write_results,
)

from .arguments import DataArguments, ModelArguments, clips_per_step
from .evaluation import frames_per_clip
from .preparation import prepare
from .recipes import RECIPE_SUFFIXES, parse_recipe
from .trainer import PREDICTION_DIR, VSSTrainer

HEADLINE_SCORES = ("mean_iou", "weighted_iou", "pixel_accuracy", "vc8", "vc16")


def run_recipe(arguments: Sequence[str], say: Callable[[str], object]) -> int:
    """Do what `[RECIPE.yaml] [--flag value ...]` says; `say` takes each line for the user, in the main process.

    The model, its processor, checkpoints, `results.json`, the learning curve and, on request, label maps are left in
    `output_dir`. Most problems are found before anything is trained, as a `ValueError`, `OSError` or `ImportError`;
    checkpoints written before another one stay. Returns the exit code: 0, or 143 after SIGTERM, with a checkpoint.
    """
    model_args, data_args, training_args = parse_recipe(arguments)
    trainer, checkpoint = prepare(model_args, data_args, training_args, say)
    say = say if trainer.is_world_process_zero() else lambda line: None
    for line in _announcement(trainer, checkpoint):
        say(line)
    if training_args.do_train and not _train(trainer, checkpoint, say):
        exit_code = 128 + signal.SIGTERM
    else:
        if training_args.do_eval or training_args.do_predict:
            metrics = _evaluate(trainer, say)
            if trainer.is_world_process_zero():
                recipe = arguments[0] if arguments and arguments[0].endswith(RECIPE_SUFFIXES) else None
                write_result_file(trainer, metrics, data_args, model_args, recipe)
        if training_args.push_to_hub:
            trainer.push_to_hub(license=training_args.license)
        exit_code = 0
    # Without this a process may abort at exit, while another one still talks to it.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return exit_code


def write_result_file(
    trainer: VSSTrainer,
    metrics: Mapping[str, Any],
    data_args: DataArguments,
    model_args: ModelArguments,
    recipe: str | None,
) -> None:
    """Write a training's `results.json` beside its model, or an evaluation's, named after the split."""
    args, videos = trainer.args, trainer.eval_dataset
    measured = {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
    output_dir = Path(str(args.output_dir))
    facts: dict[str, Any]
    if args.do_train:
        initial_weights = model_args.model_name_or_path or model_args.backbone_name_or_path
        facts = {
            "model": model_facts(trainer.model, output_dir.name, initial_weights),
            "recipe": recipe,
            "training": training_facts(args, trainer.state.global_step, clips_per_step(args)),
        }
        path = output_dir / RESULT_FILE
    else:
        checkpoint = Path(str(model_args.model_name_or_path))
        facts = training_record(checkpoint) or {"model": model_facts(trainer.model, checkpoint.name)}
        path = output_dir / f"results_{data_args.eval_split}.json"
    write_results(
        path,
        {name.removeprefix("eval_"): value for name, value in metrics.items() if name not in measured},
        data_set=data_args.dataset_name or Path(str(data_args.data_root)).resolve().name,
        split=data_args.eval_split,
        clips=videos.clips_of(trainer.model),
        **facts,
    )


def _announcement(trainer: VSSTrainer, checkpoint: Path | None) -> list[str]:
    model, clips, videos = trainer.model, trainer.train_dataset, trainer.eval_dataset.videos
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    clip_length = frames_per_clip(model) if clips is None else model.config.num_frames
    lines = [
        f"{type(model).__name__}: {num_parameters / 1e6:.2f} M parameters, {model.config.num_labels} classes, "
        f"clips of {clip_length}"
    ]
    if clips is not None:
        steps, epochs = trainer.args.max_steps, trainer.args.num_train_epochs
        length = f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"
        lines.append(f"training: {len(clips.videos.rows)} videos, {len(clips)} clips per epoch, {length}")
        if checkpoint is not None:
            lines.append(f"resuming from {checkpoint}")
    return [*lines, f"evaluation: {len(videos.rows)} videos, {videos.num_frames} frames"]


def _train(trainer: VSSTrainer, checkpoint: Path | None, say: Callable[[str], object]) -> bool:
    """Train and save; `False` after SIGTERM."""
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stop_signal.has_stopped:
        say(f"stopped at step {trainer.state.global_step} with a checkpoint; run the same command to resume")
        return False
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    say(f"model: {trainer.args.output_dir}")
    return True


def _evaluate(trainer: VSSTrainer, say: Callable[[str], object]) -> dict[str, Any]:
    args = trainer.args
    prediction_dir = Path(str(args.output_dir)) / PREDICTION_DIR if args.do_predict else None
    metrics = trainer.evaluate(prediction_dir=prediction_dir)
    trainer.save_metrics("eval", metrics)
    scores = {name: metrics[f"eval_{name}"] for name in HEADLINE_SCORES}
    say("  ".join(f"{name} {'-' if score is None else format(score, '.4f')}" for name, score in scores.items()))
    if prediction_dir is not None:
        say(f"label maps: {prediction_dir}")
    return metrics
