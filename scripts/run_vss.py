#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and predict with a video semantic segmentation model.

    accelerate launch scripts/run_vss.py recipes/camvid_small_stage1.yaml --data_root DATA [--flag value ...]

A recipe is a YAML file of the arguments in `transformers_themask.training.arguments`; flags override it. The run does
what `do_train`, `do_eval` and `do_predict` say and leaves the model, its processor, checkpoints, `results.json`, the
learning curve and, on request, label maps in `output_dir`.
"""

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from transformers_themask.data.clip_dataset import ClipDataset
from transformers_themask.data.file_checks import MAX_CHECKED_FRAMES, check_files
from transformers_themask.data.sources import load_videos
from transformers_themask.data.transforms import ClipAugmentation
from transformers_themask.models.streaming import STEPWISE_MODES, stream_options
from transformers_themask.mvc.tta import TTA, check_sizes, scaled_processors
from transformers_themask.publishing.results import (
    RESULT_FILE,
    model_facts,
    training_facts,
    training_record,
    write_results,
)
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.training.arguments import (
    DataArguments,
    ModelArguments,
    VSSTrainingArguments,
    check_schedule,
    clips_per_step,
    recipe_of,
)
from transformers_themask.training.checkpoints import checkpoint_to_resume
from transformers_themask.training.evaluation import EvaluationVideos
from transformers_themask.training.recipes import RECIPE_SUFFIXES, parse_recipe
from transformers_themask.training.starting_point import (
    check_frame_offsets,
    load_config,
    load_for_evaluation,
    load_model,
    load_processor,
)
from transformers_themask.training.trainer import PREDICTION_DIR, VSSTrainer, sampling_seed

# Below Transformers' own logger, so that TRANSFORMERS_VERBOSITY reaches it.
logger = logging.get_logger("transformers.run_vss")


def main() -> int:
    """Run the command line; a problem with the input is one sentence and exit code 2.

    Most are found before anything is trained, a broken file perhaps only when it is read; checkpoints written by then
    stay. The environment variable TRANSFORMERS_VERBOSITY=debug shows the traceback.
    """
    try:
        model_args, data_args, training_args = parse_recipe(sys.argv[1:])
        trainer, checkpoint = prepare(model_args, data_args, training_args)
        exit_code = run(trainer, checkpoint, data_args, model_args)
        # Without this a process may abort at exit, while the other one still talks to it.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    except (ValueError, OSError, ImportError) as error:
        logger.debug("The run ends with an error.", exc_info=True)
        tqdm.write(f"run_vss.py: {one_sentence(error)}", file=sys.stderr)  # clear of progress bars
        return 2
    return exit_code


def one_sentence(error: Exception) -> str:
    """What an error says, on one line."""
    message = str(error).strip()
    if "Original Traceback" in message:  # from a worker of a DataLoader, whose traceback ends with the error
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


def prepare(
    model_args: ModelArguments, data_args: DataArguments, training_args: VSSTrainingArguments
) -> tuple[VSSTrainer, Path | None]:
    """Check the input and build the trainer; also return the checkpoint to resume from, if any."""
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("One of `--do_train`, `--do_eval` and `--do_predict` must be given. Got none of them.")
    if not training_args.do_train and model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` must be given to evaluate or predict without training. Got none.")
    if data_args.data_root is None:
        raise ValueError("`data_root` must be a folder of labelled videos. Got none; give `--data_root DIR`.")
    tta = TTA(tuple(data_args.eval_scales), data_args.eval_flip, data_args.eval_combine)
    check_schedule(training_args)
    check_output_folder("output_dir", str(training_args.output_dir))
    set_seed(training_args.seed)
    # One process writes the cache of paths, the others read it.
    with training_args.main_process_first(desc="listing the videos"):
        eval_videos = load_videos(data_args.data_root, data_args.eval_split)
        train_videos = load_videos(data_args.data_root, data_args.train_split) if training_args.do_train else None
    class_names = eval_videos.class_names
    if training_args.do_train:
        config = load_config(model_args, class_names)
        check_frame_offsets(config, data_args.frame_offsets)
    else:
        model, processor = load_for_evaluation(model_args, data_args, class_names)
    recipe = recipe_of(model_args, data_args, training_args)
    if train_videos is not None:
        recipe["train_videos"] = train_videos.fingerprint()
    checkpoint = None
    if training_args.do_train:
        checkpoint, skipped = checkpoint_to_resume(
            Path(str(training_args.output_dir)), training_args.resume_from_checkpoint, config, recipe
        )
        if training_args.should_log:
            for sentence in skipped:
                print(sentence)
        processor = load_processor(model_args, data_args, config)
    progress = training_args.should_log and not training_args.disable_tqdm
    # After a training it would be late to find that one of them cannot be scored.
    check_files(eval_videos, progress=progress, decode=training_args.do_train and training_args.do_eval)
    train_dataset = None
    if train_videos is not None:
        seed = sampling_seed(training_args)
        check_files(train_videos, max_frames=MAX_CHECKED_FRAMES, seed=seed, progress=progress, allow_damaged=True)
        train_dataset = ClipDataset(
            videos=train_videos,
            frame_offsets=data_args.frame_offsets,
            processor=processor,
            augmentation=build_augmentation(data_args),
            crop_size=None,
            seed=seed,
            clips_per_video=data_args.clips_per_video,
            sample_by=data_args.sample_by,
            photometric_on=data_args.photometric_on,
            draw_distance=data_args.draw_distance,
        )
    if training_args.do_train:
        model = load_model(model_args, config)
    eval_dataset = EvaluationVideos(
        eval_videos,
        num_frames=frames_per_clip(model) if data_args.eval_num_frames is None else data_args.eval_num_frames,
        frame_stride=data_args.eval_frame_stride,
        mode=data_args.eval_mode,
        tta=tta,
    )
    check_scales(model, processor, eval_dataset)
    trainer = VSSTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        recipe=recipe,
    )
    return trainer, checkpoint


def build_augmentation(data_args: DataArguments) -> ClipAugmentation:
    """Turn the arguments into the clip augmentation."""
    longest_edge, shortest_edge = data_args.base_size
    smallest_ratio, largest_ratio = data_args.ratio_range
    crop_height, crop_width = data_args.crop_size
    return ClipAugmentation(
        base_size=(longest_edge, shortest_edge),
        ratio_range=(smallest_ratio, largest_ratio),
        crop_size=(crop_height, crop_width),
        cat_max_ratio=data_args.cat_max_ratio,
        flip_probability=data_args.flip_probability,
        photometric=data_args.photometric,
    )


def check_scales(model: PreTrainedModel, processor: Any, videos: EvaluationVideos) -> None:
    """Make sure that the model can see the videos at the scales of test-time augmentation."""
    processors = scaled_processors(model, processor, videos.tta)
    if len(processors) > 1:
        sizes = {videos.videos.read_frame(row, 0).shape[:2] for row in videos.videos.rows}
        for size in sorted(sizes):
            check_sizes(processors, size)


def frames_per_clip(model: PreTrainedModel) -> int:
    """Number of frames that a model is given at once, unless asked otherwise."""
    _, num_frames, _ = stream_options(model, mode=None, num_frames=None, frame_stride=None)
    return num_frames


def announce(trainer: VSSTrainer, checkpoint: Path | None) -> None:
    """Say what is about to be trained or scored, on which data, and from where."""
    model, videos = trainer.model, trainer.eval_dataset
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{type(model).__name__}: {num_parameters / 1e6:.2f} M parameters, {model.config.num_labels} classes, "
        f"clips of {frames_per_clip(model) if trainer.train_dataset is None else model.config.num_frames}"
    )
    if trainer.train_dataset is not None:
        clips = trainer.train_dataset
        steps, epochs = trainer.args.max_steps, trainer.args.num_train_epochs
        length = f"{steps} steps" if steps > 0 else f"{epochs:g} epochs"
        print(f"training: {len(clips.videos.rows)} videos, {len(clips)} clips per epoch, {length}")
        if checkpoint is not None:
            print(f"resuming from {checkpoint}")
    print(f"evaluation: {len(videos.videos.rows)} videos, {videos.videos.num_frames} frames", flush=True)


def run(trainer: VSSTrainer, checkpoint: Path | None, data_args: DataArguments, model_args: ModelArguments) -> int:
    """Train, save, score and write label maps, as the arguments say; returns the exit code."""
    args = trainer.args
    if trainer.is_world_process_zero():
        announce(trainer, checkpoint)
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.stop_signal.has_stopped:
            return announce_stop(trainer)
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("train", result.metrics)
        if trainer.is_world_process_zero():
            print(f"model: {args.output_dir}")
    if args.do_eval or args.do_predict:
        prediction_dir = Path(str(args.output_dir)) / PREDICTION_DIR if args.do_predict else None
        metrics = trainer.evaluate(prediction_dir=prediction_dir)
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            write_result_file(trainer, metrics, data_args, model_args)
            print_scores(metrics, prediction_dir)
    if args.push_to_hub:
        trainer.push_to_hub(license=args.license)
    return 0


def write_result_file(
    trainer: VSSTrainer, metrics: dict, data_args: DataArguments, model_args: ModelArguments
) -> None:
    """Write the scores, and what was scored on what, beside the model; model cards are made from it."""
    args, videos = trainer.args, trainer.eval_dataset
    measured = {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
    output_dir = Path(str(args.output_dir))
    facts: dict[str, Any]
    if args.do_train:
        initial_weights = model_args.model_name_or_path or model_args.backbone_name_or_path
        facts = {
            "model": model_facts(trainer.model, output_dir.name, initial_weights),
            "recipe": sys.argv[1] if len(sys.argv) > 1 and sys.argv[1].endswith(RECIPE_SUFFIXES) else None,
            "training": training_facts(args, trainer.state.global_step, clips_per_step(args)),
        }
        path = output_dir / RESULT_FILE
    else:
        checkpoint = Path(str(model_args.model_name_or_path))
        facts = training_record(checkpoint) or {"model": model_facts(trainer.model, checkpoint.name)}
        path = output_dir / f"results_{data_args.eval_split}.json"  # beside that of the training, if it is there
    write_results(
        path,
        {name.removeprefix("eval_"): value for name, value in metrics.items() if name not in measured},
        data_set=data_args.dataset_name or Path(str(data_args.data_root)).resolve().name,
        split=data_args.eval_split,
        clips=clips_of(videos, trainer.model),
        **facts,
    )


def clips_of(videos: EvaluationVideos, model: PreTrainedModel) -> dict[str, Any] | None:
    """How the scored videos were cut into clips and augmented, for the result file; `None` if they were neither."""
    options = videos.options_for(model)
    clips: dict[str, Any] = {}
    if options["mode"] not in STEPWISE_MODES:
        clips = {"num_frames": videos.num_frames, "frame_stride": options.get("frame_stride", 1)}
    if videos.tta.passes != TTA().passes:
        clips["tta"] = asdict(videos.tta)
    return clips or None


def announce_stop(trainer: VSSTrainer) -> int:
    """Say how to go on after SIGTERM; returns the exit code of a program that this signal ended."""
    if trainer.is_world_process_zero():
        print(f"stopped at step {trainer.state.global_step} with a checkpoint; the same command goes on from there")
    return 128 + signal.SIGTERM


def print_scores(metrics: dict, prediction_dir: Path | None) -> None:
    """Print the headline scores and where the label maps are."""
    names = ("mean_iou", "weighted_iou", "pixel_accuracy", "vc8", "vc16")
    scores = {name: metrics[f"eval_{name}"] for name in names}
    print("  ".join(f"{name} {'-' if score is None else format(score, '.4f')}" for name, score in scores.items()))
    if prediction_dir is not None:
        print(f"label maps: {prediction_dir}")


if __name__ == "__main__":
    sys.exit(main())
