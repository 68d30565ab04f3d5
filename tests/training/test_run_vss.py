# SPDX-License-Identifier: Apache-2.0
import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny_config
from transformers_themask import AutoModelForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.data.sources import load_videos
from transformers_themask.metrics.prediction_folder import score_prediction_folder
from transformers_themask.publishing.model_card import write_model_card
from transformers_themask.training.evaluation import EvaluationVideos, evaluate_videos
from transformers_themask.training.recipes import parse_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
QUIET = ["--use_cpu", "--disable_tqdm", "true"]


@pytest.fixture
def call(run_vss, data_root, monkeypatch):
    """Runs the script in this process and returns its exit code."""

    def run(*arguments, root=data_root):
        monkeypatch.setattr("sys.argv", ["run_vss.py", *map(str, arguments), "--data_root", str(root), *QUIET])
        return run_vss.main()

    return run


def test_train_resume_evaluate_and_predict(call, data_root, tmp_path, capsys):
    run = tmp_path / "run"
    smoke = [RECIPES / "smoke.yaml", "--output_dir", run]
    assert call(*smoke) == 0
    assert call(*smoke, "--max_steps", 6, "--resume_from_checkpoint", "auto", "--do_predict") == 0
    results = json.loads((run / "all_results.json").read_text())
    assert f"mean_iou {results['eval_mean_iou']:.4f}" in capsys.readouterr().out
    with (run / "learning_curve.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["1", "2", "3", "4", "5", "6"]
    class_indices = THEMaskVideoProcessor().reduce_labels(torch.arange(256))
    videos = load_videos(data_root, "val")
    from_files = score_prediction_folder(run / "predictions", videos, class_indices, progress=False)
    assert results["eval_mean_iou"] == from_files["mean_iou"]
    assert results["eval_vc8"] == from_files["vc8"]
    facts = json.loads((run / "results.json").read_text())
    assert facts["mean_iou"] == results["eval_mean_iou"] and facts["recipe"] == "smoke.yaml"
    assert (facts["data_set"], facts["split"]) == ("synthetic", "val")
    assert facts["training"]["steps"] == 6 and facts["clips"] == {"num_frames": 2, "frame_stride": 1}
    # The saved folder alone, without the recipe, gives the same scores; `smoke.yaml` evaluates with a stride of 1.
    again = tmp_path / "again"
    assert call("--do_eval", "--model_name_or_path", run, "--output_dir", again, "--eval_frame_stride", 1) == 0
    assert json.loads((again / "all_results.json").read_text())["eval_mean_iou"] == results["eval_mean_iou"]


def test_checkpoint_of_another_recipe_is_rejected_with_one_line(call, tmp_path, capsys):
    smoke = [RECIPES / "smoke.yaml", "--output_dir", tmp_path / "run", "--max_steps", 2, "--do_eval", "false"]
    assert call(*smoke) == 0
    capsys.readouterr()
    assert call(*smoke, "--learning_rate", 0.5) == 2
    error = capsys.readouterr().err
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert error.startswith(f"run_vss.py: The recipe of {checkpoint} must be the one of this run. Got `learning_rate`")
    assert error.count("\n") == 1 and "= 0.001 there and 0.5 here" in error


TINY_ENCODER = "hidden_sizes: [8, 16, 24, 32], depths: [1, 1, 1, 1], num_attention_heads: [1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("recipe", "network", "introduction"),
    [
        (
            "camvid_small_cffm",
            f"{{backbone_config: {{{TINY_ENCODER}}}, hidden_dim: 16}}",
            "4 frames at a time. CFFM mines",
        ),
        (
            "camvid_small_segformer",
            f"{{segmenter_config: {{{TINY_ENCODER}}}}}",
            "1 frame at a time. It is an image model",
        ),
    ],
)
def test_models_of_pixels_train_resume_and_get_their_card(call, tmp_path, recipe, network, introduction):
    run = tmp_path / "run"
    flags = [RECIPES / f"{recipe}.yaml", "--config_overrides", network, "--output_dir", run, "--save_steps", 3]
    flags += ["--eval_strategy", "no", "--per_device_train_batch_size", 2, "--logging_steps", 1]
    flags += ["--dataloader_num_workers", 0, "--dataloader_persistent_workers", "false"]
    assert call(*flags, "--max_steps", 3, "--do_eval", "false") == 0
    assert call(*flags, "--max_steps", 5) == 0
    with (run / "learning_curve.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["1", "2", "3", "4", "5"]
    facts = json.loads((run / "results.json").read_text())
    assert facts["training"]["steps"] == 5 and facts["recipe"] == f"{recipe}.yaml"
    assert introduction in write_model_card(run).read_text()
    again = tmp_path / "again"
    assert call("--do_eval", "--model_name_or_path", run, "--output_dir", again) == 0
    assert json.loads((again / "results_val.json").read_text())["mean_iou"] == facts["mean_iou"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["demo", "camvid_small"])
def test_recipes_of_both_stages_train(call, tmp_path, experiment):
    two_steps = ["--max_steps", 2, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 0]
    two_steps += ["--dataloader_persistent_workers", "false", "--eval_strategy", "no", "--do_eval", "false"]
    stages = [tmp_path / "stage1", tmp_path / "stage2"]
    assert call(RECIPES / f"{experiment}_stage1.yaml", "--output_dir", stages[0], *two_steps) == 0
    stage1_args = parse_recipe([str(RECIPES / f"{experiment}_stage1.yaml")])[2]
    stage2_model_args = parse_recipe([str(RECIPES / f"{experiment}_stage2.yaml")])[0]
    assert stage2_model_args.model_name_or_path == stage1_args.output_dir
    start = ["--model_name_or_path", stages[0], "--output_dir", stages[1]]
    assert call(RECIPES / f"{experiment}_stage2.yaml", *start, *two_steps) == 0
    before, after = (AutoModelForVideoSemanticSegmentation.from_pretrained(stage).state_dict() for stage in stages)
    frozen = [name for name in before if "pixel_level_module" in name]
    assert frozen and all(after[name].equal(before[name]) for name in frozen)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--do_train", "--train_split", "tran"], "'tran'; available: train, val."),
        (["--do_train", "--frame_offsets", "-40", "0", "--config_overrides", "{num_frames: 2}"], "at least 41 frames"),
        (["--do_train", "--frame_offsets", "-1", "0"], "`frame_offsets` must have one entry per frame of the model"),
        (["--max_steps", "3"], "One of `--do_train`, `--do_eval` and `--do_predict` must be given."),
        (
            ["--do_eval", "--model_name_or_path", "no/such/folder"],
            "Got no/such/folder, which has no config.json of one.",
        ),
        (["--do_eval"], "`model_name_or_path` must be given to evaluate or predict without training."),
        (["--do_train", "--crop_size", "33", "64"], "`crop_size` must be multiples of 32"),
        (["--do_train", "--config_overrides", "{num_frames: two}"], "'num_frames' expected int, got str"),
        (["--do_train", "--config_overrides", "{matching_rounds: 7}"], "`matching_rounds` must be 1 or 2. Got 7."),
        (["--do_train", "--eval_num_frames", "0"], "`num_frames` must be at least 1. Got 0."),
        (["--do_train", "--backbone_name_or_path", "no/such/folder"], "`backbone_name_or_path` must be"),
        (["--do_train", "--no_such_flag"], "Got `no_such_flag`."),
        (["--do_train", "--per_device_train_batch_size", "90"], "raise `clips_per_video`"),
        (["--do_train", "--clips_per_step", "3"], "Got 3 for 1 x 8 x 1 = 8. Set `--per_device_train_batch_size`"),
        (["--do_train", "--learning_rat", "1"], "Got `learning_rat`. Did you mean `learning_rate`?"),
        (["--do_train", "--learning_rate", "nan"], "`learning_rate` must be at least 0. Got nan."),
        (["--do_train", "--max_steps", "0"], "`max_steps` or `num_train_epochs` must be positive"),
        (
            ["--do_train", "--max_steps", "4", "--warmup_steps", "4"],
            "`warmup_steps` must be less than `max_steps`",
        ),
        (["--do_train", "--metric_for_best_model", "mIoU"], "`metric_for_best_model` must be one of mean_iou"),
        (["--do_train", "--lr_scheduler_kwargs", "{foo: 1}"], "`lr_scheduler_kwargs` must suit `lr_scheduler_type`"),
        (["--do_train", "--eval_shortest_edge", "0", "--eval_longest_edge", "0"], "must be positive. Got 0 and 0"),
        (["--do_train", "--license", "mine"], "`license` must be a licence id of the Hub"),
        (
            ["--do_train", "--undecayed_norms", "neck"],
            "`undecayed_norms` must be one of head, backbone, all. Got 'neck'.",
        ),
        (["--do_train", "--photometric_on", "gpu"], "`photometric_on` must be 'cpu' or 'device'. Got 'gpu'."),
        (
            ["--do_train", "--resume_from_checkpoint", "no/such/folder"],
            "Got no/such/folder, which has no trainer_state",
        ),
    ],
)
def test_invalid_input_is_rejected_with_one_line_and_exit_code_2(call, tmp_path, capsys, flags, message):
    assert call(*flags, "--output_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("run_vss.py: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_missing_data_folder_is_named_in_the_error(call, tmp_path, capsys):
    assert call("--do_train", root=tmp_path / "nowhere") == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_model_of_other_classes_is_rejected(call, tmp_path, capsys):
    tiny_config(num_labels=3).save_pretrained(tmp_path / "model")
    assert call("--do_eval", "--model_name_or_path", tmp_path / "model") == 2
    assert "The data set's 8 classes must be those of" in capsys.readouterr().err


def test_the_traceback_is_logged_for_debugging(call):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("transformers.run_vss")
    logger.addHandler(handler)
    try:
        assert call("--do_eval") == 2 and log.getvalue() == ""
        logger.setLevel(logging.DEBUG)
        assert call("--do_eval") == 2 and "Traceback" in log.getvalue()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_unusable_output_folder_is_named_in_the_error(call, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert call("--do_train", "--output_dir", tmp_path / "file" / "run") == 2
    assert "`output_dir` must lie in a folder that can be written to" in capsys.readouterr().err


def test_evaluation_reads_the_split_and_the_clip_length_asked_for(call, data_root, tmp_path):
    run = tmp_path / "run"
    assert call(RECIPES / "smoke.yaml", "--output_dir", run, "--max_steps", 1, "--do_eval", "false") == 0
    evaluate = ["--do_eval", "--model_name_or_path", run, "--eval_split", "train", "--eval_num_frames", 3]
    assert call(*evaluate, "--output_dir", tmp_path / "scores") == 0
    results = json.loads((tmp_path / "scores" / "all_results.json").read_text())
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(run)
    videos = EvaluationVideos(load_videos(data_root, "train"), num_frames=3)
    assert results["eval_num_videos"] == len(videos.videos.rows)
    processor = THEMaskVideoProcessor.from_pretrained(run)
    assert results["eval_mean_iou"] == evaluate_videos(model, processor, videos)["mean_iou"]


@pytest.fixture
def damaged(data_root, tmp_path):
    """A copy of the data, and a mask in the middle of a video of each split."""
    root = shutil.copytree(data_root, tmp_path / "data")
    longest = {"train": (root / "train.txt").read_text().split()[0], "val": (root / "val.txt").read_text().split()[-1]}
    return root, {split: sorted((root / "data" / video / "mask").iterdir())[9] for split, video in longest.items()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_mask_of_another_size_is_found_before_training(call, damaged, tmp_path, capsys, split):
    root, masks = damaged
    Image.fromarray(np.ones((8, 8), np.uint8)).save(masks[split])
    assert call(RECIPES / "smoke.yaml", "--output_dir", tmp_path / "run", root=root) == 2
    error = capsys.readouterr().err
    assert f"Mask {masks[split]} must have its frame's size" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_masks_end_training_with_one_line(call, damaged, tmp_path, capsys, num_workers):
    root, masks = damaged
    for mask in masks["train"].parents[2].glob("train*/mask/*.png"):
        content = mask.read_bytes()
        if mask not in (min(mask.parent.iterdir()), max(mask.parent.iterdir())):
            mask.write_bytes(content[:-30])  # the header is whole, the picture is not
    flags = ["--output_dir", tmp_path / "run", "--dataloader_num_workers", num_workers]
    assert call(RECIPES / "smoke.yaml", *flags, root=root) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("run_vss.py: Clips must be readable and have labelled pixels. Got 50 in a row")


def test_a_wrong_label_of_the_split_to_score_is_found_before_training(call, damaged, tmp_path, capsys):
    root, masks = damaged
    Image.fromarray(np.full((64, 80), 9, np.uint8)).save(masks["val"])
    assert call(RECIPES / "smoke.yaml", "--output_dir", tmp_path / "run", root=root) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"run_vss.py: Mask {masks['val']} must hold raw ids from 0 to 8") and "Got 9" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_without_a_process_group_are_rejected(data_root, tmp_path):
    """Without a usable GPU each would train a whole run of its own, all in one folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [
        "scripts/run_vss.py",
        "recipes/smoke.yaml",
        f"--data_root={data_root}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, *script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "The 2 processes of the launcher must find one another. Got 1" in done.stderr
