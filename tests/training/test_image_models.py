# SPDX-License-Identifier: Apache-2.0
"""Image models are trained, scored and resumed like the video models: the trainer has no case for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, VideomtForUniversalSegmentation, VideomtVideoProcessor

from tiny import tiny_model
from tiny_segmenters import opinionated, per_frame_model, save_native, videomt
from transformers_themask.data.sources import load_videos
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.segment import segment_frames
from transformers_themask.training.evaluation import evaluate_videos
from transformers_themask.training.trainer import VSSTrainer

NUM_CLASSES = 8  # of the synthetic videos


def trained(name, clips, videos, training_arguments, processor, **fields):
    arguments = training_arguments(max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-3, **fields)
    model = per_frame_model(name, num_labels=NUM_CLASSES)
    trainer = VSSTrainer(model, arguments, processor, clips(), videos())
    trainer.train(resume_from_checkpoint=fields.get("resume_from_checkpoint"))
    return trainer


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_a_resumed_run_of_an_image_model_ends_like_an_uninterrupted_one(
    name, clips, videos, training_arguments, processor, tmp_path
):
    def run(folder, **fields):
        output_dir = str(tmp_path / folder)
        return trained(name, clips, videos, training_arguments, processor, output_dir=output_dir, **fields)

    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for parameter, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[parameter], value), parameter
    start = per_frame_model(name, num_labels=NUM_CLASSES).state_dict()
    assert any(not torch.equal(value, start[parameter]) for parameter, value in whole.model.state_dict().items())
    terms = {"loss_pixels"} if name == "segformer" else {"loss_class", "loss_mask", "loss_dice", "primary_query_share"}
    losses = [entry for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(terms <= entry.keys() for entry in losses)
    assert 0 <= whole.evaluate()["eval_mean_iou"] <= 1


def test_a_trained_image_model_is_saved_as_a_whole_and_by_itself(
    clips, videos, training_arguments, processor, tmp_path
):
    trainer = trained("segformer", clips, videos, training_arguments, processor)
    trainer.save_model(str(tmp_path / "video"))
    trainer.model.segmenter.save_pretrained(tmp_path / "image")
    whole = type(trainer.model).from_pretrained(tmp_path / "video").segmenter.state_dict()
    alone = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "image").state_dict()
    for name, value in trainer.model.segmenter.state_dict().items():
        assert torch.equal(whole[name], value) and torch.equal(alone[name], value), name


# ---- checkpoints of Transformers, scored as they are ----


@pytest.fixture
def labelled(data_root):
    """Gives a configuration the classes of the data."""
    class_names = load_videos(data_root, "val").class_names

    def label(folder):
        fields = json.loads((folder / "config.json").read_text())
        fields["id2label"] = {str(index): name for index, name in enumerate(class_names)}
        fields["label2id"] = {name: index for index, name in enumerate(class_names)}
        (folder / "config.json").write_text(json.dumps(fields))

    return label


def native_checkpoint(name, folder):
    if name == "videomt":
        config = videomt()
        config.num_labels = NUM_CLASSES
        opinionated(VideomtForUniversalSegmentation(config)).save_pretrained(folder)
        VideomtVideoProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    else:
        sizes = {"segformer": {"height": 64, "width": 80}, "mask2former": {"shortest_edge": 50, "longest_edge": 90}}
        save_native(name, folder, num_labels=NUM_CLASSES, size=sizes[name])


@pytest.mark.parametrize("name", ["segformer", "mask2former", "videomt"])
def test_a_checkpoint_of_transformers_is_scored_without_training(
    name, run_vss, data_root, labelled, tmp_path, monkeypatch
):
    folder = tmp_path / "native"
    native_checkpoint(name, folder)
    labelled(folder)
    flags = ["--do_eval", "--do_predict", "--model_name_or_path", folder, "--data_root", data_root]
    flags += ["--output_dir", tmp_path / "scores", "--use_cpu", "true", "--disable_tqdm", "true"]
    monkeypatch.setattr("sys.argv", ["run_vss.py", *map(str, flags)])
    assert run_vss.main() == 0
    clips = json.loads((tmp_path / "scores" / "results_val.json").read_text())["clips"]
    assert clips == (None if name == "videomt" else {"num_frames": 1, "frame_stride": 3})
    model, processor = load_model(folder)
    videos = load_videos(data_root, "val")
    for row in videos.rows:  # every model here answers a frame without those after it
        frames = [videos.read_frame(row, index) for index in range(row["num_frames"])]
        for path, (_, label_map) in zip(row["frames"], segment_frames(model, processor, frames), strict=True):
            saved = tmp_path / "scores" / "predictions" / row["video_id"] / f"{Path(path).stem}.png"
            assert np.array_equal(np.array(Image.open(saved)), label_map)


def test_the_evaluation_may_be_streamed(processor, videos):
    model = tiny_model(num_frames=2, num_labels=NUM_CLASSES)
    whole = videos(2, 1)
    scores = {
        mode: evaluate_videos(model, processor, replace(whole, mode=mode, frame_stride=stride))["mean_iou"]
        for mode, stride in [(None, 1), ("interleaved", 1), ("contiguous", 3), ("sliding", 1)]
    }
    assert scores[None] == scores["interleaved"] == scores["contiguous"] != scores["sliding"]
    lengths = [row["num_frames"] for row in whole.videos.rows]
    calls = {
        mode: sum(replace(whole, mode=mode).num_calls(model, row) for row in whole.videos.rows)
        for mode in (None, "sliding")
    }
    assert calls == {None: sum(-(-length // 2) for length in lengths), "sliding": sum(lengths)}


def test_invalid_evaluation_options_are_rejected_with_one_line(
    run_vss, data_root, labelled, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "native"
    native_checkpoint("segformer", folder)

    def error_of(*flags):
        arguments = ["--do_eval", "--model_name_or_path", folder, "--data_root", data_root, *flags]
        monkeypatch.setattr("sys.argv", ["run_vss.py", *map(str, [*arguments, "--output_dir", tmp_path / "scores"])])
        assert run_vss.main() == 2
        return capsys.readouterr().err

    assert "The data set's 8 classes must be those of" in error_of()
    labelled(folder)
    assert "`config_overrides` must be left out to evaluate" in error_of("--config_overrides", "{num_labels: 3}")
    assert "`mode` must be one that" in error_of("--eval_mode", "recurrent")
    (folder / "config.json").write_text('{"model_type": "sam"}')
    assert "must describe a model that segments single images" in error_of()
