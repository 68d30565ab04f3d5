# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a run to its trainer, with every check that is possible before training."""

from collections.abc import Callable
from pathlib import Path

from transformers import set_seed

from transformers_themask.data.file_checks import MAX_CHECKED_FRAMES, check_files
from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.data.sources import load_videos
from transformers_themask.models.protocols import VideoModel
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.mvc.tta import check_sizes, scaled_processors
from transformers_themask.sinks.output_folder import check_output_folder

from .arguments import DataArguments, ModelArguments, VSSTrainingArguments, check_schedule, recipe_of
from .checkpoints import checkpoint_to_resume
from .evaluation import EvaluationVideos
from .starting_point import check_clip_length, load_config, load_for_evaluation, load_model, load_processor
from .trainer import VSSTrainer, sampling_seed


def prepare(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: VSSTrainingArguments,
    say: Callable[[str], object],
) -> tuple[VSSTrainer, Path | None]:
    """Check the input and build the trainer; also returns the checkpoint to resume from, if any.

    `say` takes each line for the user. A `ValueError` is raised if arguments, data, checkpoint and model do not fit
    together, an `OSError` if a file cannot be read.
    """
    _check_arguments(model_args, data_args, training_args)
    set_seed(training_args.seed)
    progress = training_args.should_log and not training_args.disable_tqdm
    eval_videos = load_videos(str(data_args.data_root), data_args.eval_split)
    if not training_args.do_train:
        model, processor = load_for_evaluation(model_args, data_args, eval_videos.class_names)
        check_files(eval_videos, progress=progress, decode=False)
        scored = _videos_to_score(eval_videos, data_args, model, processor)
        return VSSTrainer(model, training_args, processor, eval_dataset=scored), None
    train_videos = load_videos(str(data_args.data_root), data_args.train_split)
    config = load_config(model_args, eval_videos.class_names)
    check_clip_length(config, data_args.frame_offsets)
    recipe = {**recipe_of(model_args, data_args, training_args, config), "train_videos": train_videos.fingerprint()}
    checkpoint, skipped = checkpoint_to_resume(
        Path(str(training_args.output_dir)), training_args.resume_from_checkpoint, config, recipe
    )
    if training_args.should_log:
        for line in skipped:
            say(line)
    processor = load_processor(model_args, data_args, config)
    # A video that cannot be scored must not come to light after days of training.
    check_files(eval_videos, progress=progress, decode=training_args.do_eval)
    seed = sampling_seed(training_args)
    check_files(train_videos, max_frames=MAX_CHECKED_FRAMES, seed=seed, progress=progress, allow_damaged=True)
    clips = data_args.clip_dataset(train_videos, processor, config, seed)
    model = load_model(model_args, config)
    scored = _videos_to_score(eval_videos, data_args, model, processor)
    return VSSTrainer(model, training_args, processor, clips, scored, recipe), checkpoint


def _check_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: VSSTrainingArguments
) -> None:
    """Check what needs neither data nor model."""
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("One of `--do_train`, `--do_eval` and `--do_predict` must be given. All three are off.")
    if not training_args.do_train and model_args.model_name_or_path is None:
        raise ValueError("`model_name_or_path` must be given to evaluate or predict without training.")
    if data_args.data_root is None:
        raise ValueError("`data_root` must be a folder of labelled videos. Give `--data_root DIR`.")
    data_args.tta()
    check_schedule(training_args)
    check_output_folder("output_dir", str(training_args.output_dir))


def _videos_to_score(
    videos: LabelledVideos, data_args: DataArguments, model: VideoModel, processor: VideoSegmentationProcessor
) -> EvaluationVideos:
    """The evaluation videos, checked at every scale of the test-time augmentation."""
    scored = data_args.evaluation_videos(videos, model)
    processors = scaled_processors(model, processor, scored.tta)
    if len(processors) > 1:
        for size in sorted({videos.read_frame(row, 0).shape[:2] for row in videos.rows}):
            check_sizes(processors, size)
    return scored
