# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerModel,
    SwinConfig,
)

from tiny import TINY_MIT, tiny_model
from tiny_segmenters import SEGMENTERS, per_frame_model, save_native
from transformers_themask import MiTConfig, PerFrameConfig, THEMaskConfig
from transformers_themask.inference.loading import load_model as load_checkpoint
from transformers_themask.training.arguments import DataArguments, ModelArguments, recipe_of
from transformers_themask.training.starting_point import (
    PROCESSOR_FILE,
    load_config,
    load_model,
    load_processor,
)

NAMES = ["sky", "road", "car"]
SEGFORMER = {"model_type": "segformer", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


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
    model_args = ModelArguments(model_name_or_path=path, config_overrides={"num_frames": 2}, freeze=["pixel_level"])
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


def test_other_classes_are_rejected_without_a_new_head(stage1):
    _, path = stage1
    with pytest.raises(ValueError, match=r"2 classes must be those of .*at index 1: 'road' there, 'lane' in the data"):
        load_config(ModelArguments(model_name_or_path=path), ["sky", "lane"])
    model_args = ModelArguments(model_name_or_path=path, ignore_mismatched_sizes=True)
    model = load_model(model_args, load_config(model_args, ["sky", "lane"]))
    assert model.class_predictor.out_features == 2 + 1  # and "no object"


def test_sizes_other_than_the_checkpoints_are_rejected(stage1):
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
        ({"model_type": "unet"}, "`model_type` must be one of .*themask.* Got 'unet'"),
    ],
)
def test_invalid_config_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_config(ModelArguments(**fields), NAMES)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ignore_mismatched_sizes", [False, True])
def test_damaged_weights_are_rejected(stage1, ignore_mismatched_sizes):
    _, path = stage1
    (Path(path) / "model.safetensors").write_bytes(b"junk" * 9)
    model_args = ModelArguments(model_name_or_path=path, ignore_mismatched_sizes=ignore_mismatched_sizes)
    with pytest.raises(ValueError, match=f"`model_name_or_path` must be .* Got {path}, which cannot be loaded"):
        load_model(model_args, load_config(model_args, NAMES))


def test_damaged_processor_is_rejected(stage1):
    _, path = stage1
    (Path(path) / PROCESSOR_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"`model_name_or_path` must be .* Got {path}, which cannot be loaded"):
        load_processor(ModelArguments(model_name_or_path=path), DataArguments(), THEMaskConfig())


def test_missing_backbone_is_named_in_the_error(tmp_path):
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


def test_folder_without_a_model_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"must be a saved model. Got {tmp_path}"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path)), NAMES)


def test_checkpoint_of_another_kind_is_rejected(tmp_path):
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
    config = THEMaskConfig()
    new = load_processor(ModelArguments(), DataArguments(), config)
    assert dict(new.size) == {"shortest_edge": 480, "longest_edge": 853}
    small = load_processor(ModelArguments(), DataArguments(eval_shortest_edge=64, eval_longest_edge=96), config)
    small.save_pretrained(tmp_path)
    model_args = ModelArguments(model_name_or_path=str(tmp_path))
    assert dict(load_processor(model_args, DataArguments(), config).size) == {"shortest_edge": 64, "longest_edge": 96}
    other = load_processor(model_args, DataArguments(eval_shortest_edge=32, eval_longest_edge=64), config)
    assert dict(other.size) == {"shortest_edge": 32, "longest_edge": 64}


def test_unknown_part_to_freeze_is_rejected_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Got 'neck'\. It has pixel_level\."):
        load_config(ModelArguments(freeze=["neck"]), NAMES)
    with pytest.raises(ValueError, match=r"of a cffm model\. Got 'pixel_level'\. It has none\."):
        load_config(ModelArguments(model_type="cffm", freeze=["pixel_level"]), NAMES)


def test_freeze_pixel_level_is_a_name_for_freezing_that_part():
    assert ModelArguments(freeze_pixel_level=True).freeze == ["pixel_level"]
    assert ModelArguments(freeze=["pixel_level"], freeze_pixel_level=True).freeze == ["pixel_level"]


def test_defaults_that_are_not_given_are_those_of_the_architecture(training_arguments):
    resolved = {}
    for name in ("themask", "cffm", "mpvss"):
        model_args = ModelArguments(model_type=name)
        recipe = recipe_of(model_args, DataArguments(), training_arguments(), load_config(model_args, NAMES))
        resolved[name] = recipe["undecayed_norms"], recipe["clip_sampler"]
    assert resolved == {"themask": ("head", "offsets"), "cffm": ("backbone", "offsets"), "mpvss": ("all", "pair")}
    given = DataArguments(draw_distance=False), training_arguments(undecayed_norms="head")
    recipe = recipe_of(model_args, *given, load_config(model_args, NAMES))
    assert (recipe["undecayed_norms"], recipe["clip_sampler"]) == ("head", "offsets")


# ---- models that work frame by frame ----


def segmenter_arguments(folder=None, **fields):
    return ModelArguments(model_type="per_frame", model_name_or_path=folder and str(folder), **fields)


def test_an_image_model_is_built_from_its_fields():
    config = load_config(segmenter_arguments(config_overrides={"segmenter_config": SEGFORMER}), NAMES)
    assert config.num_frames == 1 and config.num_labels == config.segmenter_config.num_labels == 3
    assert config.segmenter_config.id2label == dict(enumerate(NAMES))
    assert load_model(segmenter_arguments(), config).segmenter.decode_head.classifier.out_channels == 3


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_an_image_model_is_taken_from_its_own_checkpoint(tmp_path, name):
    segmenter = named_segmenter(name)
    segmenter.save_pretrained(tmp_path)
    part = {"segmenter_config": {"initializer_range": 0.5}}
    model_args = segmenter_arguments(tmp_path, config_overrides=part)
    config = load_config(model_args, NAMES)
    assert config.segmenter_config.initializer_range == 0.5
    loaded = load_model(model_args, config, for_training=False).segmenter
    assert type(loaded) is type(segmenter)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in segmenter.state_dict().items())


@pytest.mark.parametrize("part", [SegformerForImageClassification, SegformerModel])
def test_an_encoder_is_enough_to_train_from(tmp_path, part):
    torch.manual_seed(1)
    pretrained = part(SegformerConfig(**TINY_MIT, decoder_hidden_size=8, num_labels=5))
    pretrained.save_pretrained(tmp_path)
    model_args = segmenter_arguments(tmp_path)
    config = load_config(model_args, NAMES)  # five classes of images are no classes of pixels
    encoder = load_model(model_args, config).segmenter.segformer.state_dict()
    expected = pretrained.base_model.state_dict()
    assert all(torch.equal(encoder[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="must fill the whole model"):
        load_model(model_args, config, for_training=False)


def test_a_new_image_model_can_start_from_a_pretrained_backbone(tmp_path):
    torch.manual_seed(1)
    fields = {**TINY_MIT, "decoder_hidden_size": 8}
    pretrained = SegformerForImageClassification(SegformerConfig(**fields))
    pretrained.save_pretrained(tmp_path)
    overrides = {"segmenter_config": {"model_type": "segformer", **fields}}
    model_args = segmenter_arguments(backbone_name_or_path=str(tmp_path), config_overrides=overrides)
    encoder = load_model(model_args, load_config(model_args, NAMES)).segmenter.segformer
    expected = pretrained.segformer.state_dict()
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in expected.items())


def test_other_classes_of_an_image_model_are_rejected_without_a_new_head(tmp_path):
    named_segmenter("segformer").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 classes must be those of .*at index 1: 'road' there, 'lane' in the data"):
        load_config(segmenter_arguments(tmp_path), ["sky", "lane"])
    model_args = segmenter_arguments(tmp_path, ignore_mismatched_sizes=True)
    model = load_model(model_args, load_config(model_args, ["sky", "lane"]))
    assert model.segmenter.decode_head.classifier.out_channels == 2


def test_fields_of_a_part_are_added_to_those_of_the_checkpoint(tmp_path):
    model = per_frame_model("segformer", num_labels=3)
    model.config.id2label = model.config.segmenter_config.id2label = dict(enumerate(NAMES))
    model.save_pretrained(tmp_path)
    overrides = {"segmenter_config": {"drop_path_rate": 0.3}}
    config = load_config(segmenter_arguments(tmp_path, config_overrides=overrides), NAMES)
    assert config.segmenter_config.drop_path_rate == 0.3
    assert tuple(config.segmenter_config.hidden_sizes) == (8, 16, 24, 32)
    overrides = {"segmenter_config": {"model_type": "upernet"}}
    config = load_config(segmenter_arguments(tmp_path, config_overrides=overrides), NAMES)
    assert config.segmenter_config.model_type == "upernet" and not hasattr(config.segmenter_config, "depths")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "segformer"},
            "`model_type` must be one of .* Got 'segformer'. An image model is trained as `per_frame`",
        ),
        (
            {"model_type": "per_frame", "config_overrides": {"segmenter_config": {"model_type": "detr"}}},
            "`segmenter_config` must describe a model that segments single images .* Got 'detr'",
        ),
        (
            {"model_type": "per_frame", "config_overrides": {"segmenter_config": {"depth": 3}}},
            "a mapping that names it as `model_type`. Got None",
        ),
        (
            {"model_type": "per_frame", "config_overrides": {"segmenter_config": {**SEGFORMER, "depths": 3}}},
            "`config_overrides` must give PerFrameConfig fields of the right type. Got .*'depths'",
        ),
        (
            {"model_type": "per_frame", "config_overrides": {"num_frames": 2}},
            "must hold fields of PerFrameConfig. Got 'num_frames'",
        ),
    ],
)
def test_invalid_image_model_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_config(ModelArguments(**fields), NAMES)
    assert "\n" not in str(raised.value)


def test_the_evaluation_size_reaches_the_image_processor_of_a_saved_model(tmp_path):
    save_native("segformer", tmp_path / "native", size={"height": 64, "width": 96})
    for part in load_checkpoint(tmp_path / "native"):
        part.save_pretrained(tmp_path / "video")
    model_args, config = segmenter_arguments(tmp_path / "video"), PerFrameConfig.from_pretrained(tmp_path / "video")
    assert load_processor(model_args, DataArguments(), config).resized_size(100, 200) == (64, 96)
    sized = DataArguments(eval_shortest_edge=40, eval_longest_edge=60)
    assert load_processor(model_args, sized, config).resized_size(100, 200) == (30, 60)
    assert load_checkpoint(tmp_path / "native", size={"shortest_edge": 32})[1].resized_size(100, 200) == (32, 64)


def test_task_of_oneformer_comes_from_its_checkpoint(tmp_path):
    save_native("oneformer", tmp_path, num_labels=2)
    model_args = segmenter_arguments(tmp_path, ignore_mismatched_sizes=True)
    model = load_model(model_args, load_config(model_args, NAMES))
    assert len(model.config.task_inputs) == model.config.segmenter_config.task_seq_len
    model_args = ModelArguments(
        model_type="per_frame", config_overrides={"segmenter_config": {"model_type": "oneformer"}}
    )
    with pytest.raises(ValueError, match="`task_inputs` must be the 77 token ids of 'the task is semantic'"):
        load_model(model_args, load_config(model_args, NAMES))


def test_video_model_as_image_segmenter_is_rejected(stage1):
    _, path = stage1
    with pytest.raises(ValueError, match=r"must describe a model that segments single images .* Got 'themask'"):
        load_config(segmenter_arguments(path), NAMES)


def test_options_without_effect_on_image_models_are_rejected(tmp_path):
    eomt = PerFrameConfig(segmenter_config=SEGMENTERS["eomt"](), num_labels=3)
    with pytest.raises(ValueError, match=r"`backbone_name_or_path` must be left out .* no separate backbone"):
        load_model(segmenter_arguments(backbone_name_or_path=str(tmp_path)), eomt)
    with pytest.raises(ValueError, match=r"`freeze` must name parts of a PerFrame\w+: none\. Got 'pixel_level'"):
        load_model(segmenter_arguments(freeze=["pixel_level"]), eomt)


def test_the_processor_has_the_square_size_that_an_image_model_needs():
    data_args = DataArguments(eval_shortest_edge=32, eval_longest_edge=64)
    eomt, segformer = (PerFrameConfig(segmenter_config=SEGMENTERS[name]()) for name in ("eomt", "segformer"))
    assert dict(load_processor(ModelArguments(), data_args, eomt).size) == {"height": 64, "width": 64}
    expected = {"shortest_edge": 32, "longest_edge": 64}
    assert dict(load_processor(ModelArguments(), data_args, segformer).size) == expected


def named_segmenter(name):
    """An image model with the three classes."""
    segmenter = per_frame_model(name, num_labels=3).segmenter
    segmenter.config.id2label = dict(enumerate(NAMES))
    return segmenter
