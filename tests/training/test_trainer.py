# SPDX-License-Identifier: Apache-2.0
import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import tiny_model
from tolerances import assert_equal_up_to_rounding
from trained_models import TRAINED_MODELS
from transformers_themask.training.trainer import VSSTrainer


def final_weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_two_accumulated_batches_train_like_one_of_twice_the_size(
    pixel_classifier, clips, training_arguments, processor
):
    weights = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        model = copy.deepcopy(pixel_classifier)
        args = training_arguments(
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=3
        )
        VSSTrainer(model, args, processor, train_dataset=clips()).train()
        weights.append(final_weights(model))
    for name, weight in weights[0].items():
        assert_equal_up_to_rounding(weights[1][name], weight)


def test_only_the_first_optimizer_steps_match_in_one_round(pixel_classifier, clips, training_arguments, processor):
    args = training_arguments(max_steps=4, one_round_steps=3, gradient_accumulation_steps=2)
    VSSTrainer(pixel_classifier, args, processor, train_dataset=clips()).train()
    assert pixel_classifier.received_rounds == [1] * 6 + [None] * 2


def test_warm_up_resumes_where_it_stopped(pixel_classifier, clips, training_arguments, processor):
    args = training_arguments(max_steps=4, one_round_steps=3, save_strategy="steps", save_steps=2)
    VSSTrainer(pixel_classifier, args, processor, train_dataset=clips()).train()
    resumed = copy.deepcopy(pixel_classifier)
    resumed.received_rounds.clear()
    trainer = VSSTrainer(resumed, args, processor, train_dataset=clips())
    trainer.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-2")
    assert resumed.received_rounds == [1, None]


def test_warm_up_is_rejected_for_a_model_without_rounds(pixel_classifier, training_arguments, processor):
    class PlainModel(type(pixel_classifier)):
        has_matching_rounds = False

    with pytest.raises(ValueError, match="`one_round_steps` must be 0 for PlainModel"):
        VSSTrainer(PlainModel(pixel_classifier.config), training_arguments(one_round_steps=3), processor)


def test_logged_loss_terms_are_means_over_the_steps_since_the_last_log(
    pixel_classifier, clips, training_arguments, processor
):
    logs = []
    for logging_steps in (1, 2):
        model = copy.deepcopy(pixel_classifier)
        args = training_arguments(max_steps=4, logging_steps=logging_steps)
        trainer = VSSTrainer(model, args, processor, train_dataset=clips())
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    every_step, every_other = logs
    for index, entry in enumerate(every_other):
        pair = every_step[2 * index : 2 * index + 2]
        for name in ("loss", "loss_class", "loss_size"):
            assert entry[name] == pytest.approx(sum(step[name] for step in pair) / 2)
    for entry in every_step:
        assert entry["loss"] == pytest.approx(entry["loss_class"] + entry["loss_size"])


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    name, clips, training_arguments, processor, tmp_path
):
    build, frame_offsets, one_round_steps, consistency_weight = TRAINED_MODELS[name]

    def train(folder, resume=None):
        args = training_arguments(
            output_dir=str(tmp_path / folder),
            max_steps=6,
            save_strategy="steps",
            save_steps=2,
            one_round_steps=one_round_steps + one_round_steps // 2,  # one more than the checkpoint has
            consistency_weight=consistency_weight,
            mask_patch_size=16,
        )
        model = build()
        VSSTrainer(model, args, processor, train_dataset=clips(frame_offsets)).train(resume_from_checkpoint=resume)
        return {key: value.clone() for key, value in model.state_dict().items()}

    uninterrupted = train("whole")
    resumed = train("resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


def test_frozen_parameters_and_their_statistics_do_not_change(clips, training_arguments, processor):
    model = tiny_model(num_frames=2, num_labels=8)
    model.freeze_pixel_level()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = training_arguments(max_steps=2)
    VSSTrainer(model, args, processor, train_dataset=clips((-1, 0))).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("pixel_level_module" in name for name in changed)


def test_evaluation_during_training_picks_the_best_checkpoint_and_draws_the_curve(
    clips, videos, training_arguments, processor
):
    args = training_arguments(
        max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, learning_rate=1e-3
    )
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, clips(), videos())
    trainer.train()
    scores = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert len(scores) == 2 and trainer.state.best_metric == max(scores)
    curve = Path(args.output_dir, "learning_curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "1", "2", "3", "4"]
    assert curve[2].split(",")[4] == str(scores[0])


def test_the_best_checkpoint_is_restored_completely(clips, videos, training_arguments, processor):
    args = training_arguments(
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
    )
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, clips(), videos())
    trainer.train()
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in best.state_dict().items())
    assert trainer.evaluate()["eval_mean_iou"] == trainer.state.best_metric


def test_a_saved_run_holds_model_and_processor(clips, training_arguments, processor):
    args = training_arguments(max_steps=1)
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, train_dataset=clips())
    trainer.train()
    trainer.save_model()
    saved = json.loads(Path(args.output_dir, "video_preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 64, "width": 96}
    reloaded = type(trainer.model).from_pretrained(args.output_dir)
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in reloaded.state_dict().items())


def test_resuming_a_complete_run_only_loads_its_model(pixel_classifier, clips, training_arguments, processor):
    args = training_arguments(max_steps=2, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    VSSTrainer(copy.deepcopy(pixel_classifier), args, processor, train_dataset=clips()).train()
    again = VSSTrainer(pixel_classifier, args, processor, train_dataset=clips())
    again.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-2")
    assert pixel_classifier.received_rounds == [] and again.state.global_step == 2
    saved = type(pixel_classifier).from_pretrained(f"{args.output_dir}/checkpoint-2")
    assert all(
        torch.equal(final_weights(pixel_classifier)[name], weight) for name, weight in final_weights(saved).items()
    )


def test_undefined_score_is_never_the_best(clips, videos, training_arguments, processor):
    args = training_arguments(
        max_steps=2, eval_strategy="steps", eval_steps=1, metric_for_best_model="vc16", save_strategy="best"
    )
    short = videos()
    short = replace(
        short, videos=replace(short.videos, rows=[row for row in short.videos.rows if row["num_frames"] < 16])
    )
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, clips(), short)
    trainer.train()
    assert trainer.state.global_step == 2


def test_clips_of_another_length_are_rejected(clips, training_arguments, processor):
    with pytest.raises(ValueError, match=r"one entry per frame of the model\. Got \[-3, 0\] for `num_frames` = 1"):
        VSSTrainer(TRAINED_MODELS["themask_t1"].build(), training_arguments(), processor, train_dataset=clips((-3, 0)))
    with pytest.raises(ValueError, match=r"`reference_offsets` .* and 0, \[-2, -1, 0\]\. Got \[-4, -2, 0\]\."):
        VSSTrainer(TRAINED_MODELS["cffm"].build(), training_arguments(), processor, train_dataset=clips((-4, -2, 0)))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_run_with_nan_weights_stops(name, pixel_classifier, clips, training_arguments, processor):
    weight = pixel_classifier.classifier.weight
    if name == "loss":
        weight.data.fill_(float("nan"))
    else:
        weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer = VSSTrainer(pixel_classifier, training_arguments(max_steps=4), processor, train_dataset=clips())
    with pytest.raises(
        ValueError, match=r"Loss and gradients must be finite\. Got 1 steps with non-finite gradients up to"
    ):
        trainer.train()


@pytest.mark.parametrize("fields", [{"save_strategy": "steps", "save_steps": 2, "max_steps": 4}, {"max_steps": 2}])
def test_nan_weights_are_not_saved_even_without_logging(
    fields, pixel_classifier, clips, training_arguments, processor
):
    pixel_classifier.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    args = training_arguments(logging_steps=50, **fields)
    trainer = VSSTrainer(pixel_classifier, args, processor, train_dataset=clips())
    with pytest.raises(ValueError, match="Got 2 steps with non-finite gradients up to step 2"):
        trainer.train()
    assert not list(Path(args.output_dir).glob("checkpoint-*"))
