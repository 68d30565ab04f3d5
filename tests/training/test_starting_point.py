# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from transformers import Mask2FormerConfig, SegformerConfig, SegformerModel, SwinConfig

from tiny import TINY_MIT, tiny_config, tiny_model
from transformers_themask import MiTConfig
from transformers_themask.training.arguments import DataArguments, ModelArguments
from transformers_themask.training.starting_point import (
    PROCESSOR_FILE,
    checkpoint_to_resume,
    load_config,
    load_model,
    load_processor,
)

NAMES = ["sky", "road", "car"]


@pytest.fixture
def stage1(tmp_path):
    """A saved one-frame model with three classes."""
    model = tiny_model(num_frames=1, num_labels=3)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: index for index, name in enumerate(NAMES)}
    model.save_pretrained(tmp_path / "stage1")
    return model, str(tmp_path / "stage1")


def test_stage_two_takes_over_every_weight_of_stage_one(stage1):
    model, path = stage1
    model_args = ModelArguments(model_name_or_path=path, config_overrides={"num_frames": 2}, freeze_pixel_level=True)
    continued = load_model(model_args, load_config(model_args, NAMES))
    weights = continued.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert len(weights) > len(model.state_dict())
    trainable = {name for name, parameter in continued.named_parameters() if parameter.requires_grad}
    assert trainable and not any("pixel_level_module" in name for name in trainable)


def test_a_new_model_has_the_classes_of_the_data():
    overrides = {"backbone": "mit-b0", "num_frames": 2}
    config = load_config(ModelArguments(config_overrides=overrides), NAMES)
    assert config.id2label == {0: "sky", 1: "road", 2: "car"} and config.label2id["car"] == 2
    assert config.num_labels == 3 and config.num_frames == 2


def test_a_new_model_can_start_from_a_pretrained_backbone(tmp_path):
    torch.manual_seed(1)
    pretrained = SegformerModel(SegformerConfig(**TINY_MIT))
    pretrained.save_pretrained(tmp_path)
    model_args = ModelArguments(backbone_name_or_path=str(tmp_path))
    config = load_config(model_args, NAMES)
    config.backbone_config = MiTConfig(**TINY_MIT)
    backbone = load_model(model_args, config).model.pixel_level_module.encoder
    expected = {f"segformer.{name}": value for name, value in pretrained.state_dict().items()}
    loaded = backbone.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_other_classes_are_refused_unless_a_new_head_is_asked_for(stage1):
    _, path = stage1
    with pytest.raises(ValueError, match=r"2 classes must be those of .*at index 1: 'road' there, 'lane' in the data"):
        load_config(ModelArguments(model_name_or_path=path), ["sky", "lane"])
    model_args = ModelArguments(model_name_or_path=path, ignore_mismatched_sizes=True)
    model = load_model(model_args, load_config(model_args, ["sky", "lane"]))
    assert model.class_predictor.out_features == 2 + 1  # and "no object"


def test_sizes_that_are_not_the_checkpoints_are_refused(stage1):
    _, path = stage1
    model_args = ModelArguments(model_name_or_path=path, config_overrides={"num_queries": 5})
    with pytest.raises(ValueError, match="must fit the configuration") as raised:
        load_model(model_args, load_config(model_args, NAMES))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config_overrides": {"hidden_dims": 64}}, "must hold fields of THEMaskConfig. Got 'hidden_dims'"),
        (
            {"config_overrides": {"num_frames": "two"}},
            "fields of the right type. Got .*'num_frames' expected int, got str",
        ),
        ({"config_overrides": {"matching_rounds": 7}}, "`matching_rounds` must be 1 or 2. Got 7"),
        ({"config_overrides": {"backbone": "mit-b9"}}, "`backbone` must be one of"),
        ({"model_type": "unet"}, "`model_type` must be a registered architecture. Got 'unet'"),
    ],
)
def test_an_impossible_model_is_refused(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_config(ModelArguments(**fields), NAMES)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ignore_mismatched_sizes", [False, True])
def test_damaged_weights_are_refused(stage1, ignore_mismatched_sizes):
    _, path = stage1
    (Path(path) / "model.safetensors").write_bytes(b"junk" * 9)
    model_args = ModelArguments(model_name_or_path=path, ignore_mismatched_sizes=ignore_mismatched_sizes)
    with pytest.raises(ValueError, match=f"`model_name_or_path` must be .* Got {path}, which cannot be loaded"):
        load_model(model_args, load_config(model_args, NAMES))


def test_a_damaged_processor_is_refused(stage1):
    _, path = stage1
    (Path(path) / PROCESSOR_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"`model_name_or_path` must be .* Got {path}, which cannot be loaded"):
        load_processor(ModelArguments(model_name_or_path=path), DataArguments())


def test_a_missing_backbone_is_named(tmp_path):
    model_args = ModelArguments(backbone_name_or_path=str(tmp_path / "nope"))
    config = load_config(model_args, NAMES)
    config.backbone_config = MiTConfig(**TINY_MIT)
    with pytest.raises(ValueError, match=f"`backbone_name_or_path` must be .* Got {tmp_path / 'nope'}, which cannot"):
        load_model(model_args, config)


def test_only_training_may_start_from_part_of_a_model(stage1):
    _, path = stage1
    model_args = ModelArguments(model_name_or_path=path, config_overrides={"num_frames": 2})
    config = load_config(model_args, NAMES)
    assert load_model(model_args, config).config.num_frames == 2
    with pytest.raises(ValueError, match=f"The weights in {path} must fill the whole model. Got none for"):
        load_model(model_args, config, for_training=False)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"must be a saved model. Got {tmp_path}"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path)), NAMES)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    SegformerConfig(id2label=dict(enumerate(NAMES))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold a themask or mask2former model\. Got 'segformer'"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path)), NAMES)


def test_a_mask2former_checkpoint_can_be_fine_tuned(tmp_path):
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4)
    swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
    Mask2FormerConfig(backbone_config=swin, hidden_dim=64, id2label=dict(enumerate(NAMES))).save_pretrained(tmp_path)
    config = load_config(ModelArguments(model_name_or_path=str(tmp_path)), NAMES)
    assert config.model_type == "themask" and config.hidden_dim == 64
    assert config.backbone_config.model_type == "swin" and config.backbone_config.embed_dim == 8


def test_the_processor_is_the_checkpoints_unless_a_size_is_given(tmp_path):
    new = load_processor(ModelArguments(), DataArguments())
    assert dict(new.size) == {"shortest_edge": 480, "longest_edge": 853}
    small = load_processor(ModelArguments(), DataArguments(eval_shortest_edge=64, eval_longest_edge=96))
    small.save_pretrained(tmp_path)
    model_args = ModelArguments(model_name_or_path=str(tmp_path))
    assert dict(load_processor(model_args, DataArguments()).size) == {"shortest_edge": 64, "longest_edge": 96}
    other = load_processor(model_args, DataArguments(eval_shortest_edge=32, eval_longest_edge=64))
    assert dict(other.size) == {"shortest_edge": 32, "longest_edge": 64}


@pytest.fixture
def saved_checkpoint(tmp_path, training_arguments):
    """Arguments of a run whose output folder holds `checkpoint-3`."""
    folder = tmp_path / "run" / "checkpoint-3"
    tiny_config(num_queries=8).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))

    def arguments(resume=None):
        return training_arguments(output_dir=str(tmp_path / "run"), resume_from_checkpoint=resume)

    return folder, arguments


def test_auto_resumes_from_the_last_checkpoint_if_there_is_one(saved_checkpoint, training_arguments, tmp_path):
    folder, arguments = saved_checkpoint
    config = tiny_config(num_queries=8)
    assert checkpoint_to_resume(arguments("auto"), config) == str(folder)
    assert checkpoint_to_resume(arguments(str(folder)), config) == str(folder)
    fresh = training_arguments(output_dir=str(tmp_path / "new"), resume_from_checkpoint="auto")
    assert checkpoint_to_resume(fresh, config) is None


def test_checkpoints_of_an_earlier_run_are_not_overwritten(saved_checkpoint):
    _, arguments = saved_checkpoint
    with pytest.raises(ValueError, match=r"`output_dir` must hold no checkpoints .*checkpoint-3"):
        checkpoint_to_resume(arguments(), tiny_config())


def test_a_run_is_not_resumed_with_another_model(saved_checkpoint):
    _, arguments = saved_checkpoint
    with pytest.raises(ValueError, match="Got `num_queries` = 8 there and 9 here"):
        checkpoint_to_resume(arguments("auto"), tiny_config(num_queries=9))


def test_a_checkpoint_to_resume_from_must_exist(saved_checkpoint, tmp_path):
    _, arguments = saved_checkpoint
    with pytest.raises(FileNotFoundError, match=r"Got .*checkpoint-4"):
        checkpoint_to_resume(arguments(str(tmp_path / "run" / "checkpoint-4")), tiny_config())
