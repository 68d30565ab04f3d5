# SPDX-License-Identifier: Apache-2.0
"""Image models are trained, scored and resumed like the video models: the trainer has no case for them."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from tiny_segmenters import per_frame_model
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
