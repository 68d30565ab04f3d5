# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from goldens import FIXTURES, json_file
from tiny import tiny_model
from tiny_segmenters import per_frame_model
from transformers_themask import CFFMConfig, CFFMForVideoSemanticSegmentation
from transformers_themask.families import cffm
from transformers_themask.families.themask import convert_state_dict
from transformers_themask.training.parameter_groups import backbones, parameter_groups


def settings_by_name(model, **settings):
    """Learning rate and weight decay of each trainable parameter."""
    arguments = {"learning_rate": 1e-4, "weight_decay": 0.05, "backbone_learning_rate_factor": 0.1, **settings}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in parameter_groups(model, **arguments)
        for parameter in group["params"]
    }


@pytest.mark.parametrize(("recorded", "num_frames"), [("1f", 1), ("video", 2)])
def test_groups_are_those_of_the_official_optimizer(official_facts, recorded, num_frames):
    # The settings travel through the checkpoint converter as if they were weights: six equal rows survive its splits.
    official = {
        name: torch.tensor([[facts["lr"], facts["weight_decay"]]] * 6, dtype=torch.float64)
        for name, facts in official_facts["optimizer_groups"][recorded].items()
        if facts["trainable"]
    }
    converted, _ = convert_state_dict(official)
    model = tiny_model(num_frames=num_frames)
    if num_frames > 1:
        model.freeze_pixel_level()
    ours = settings_by_name(model)
    # The recorded model has fewer decoder layers, and projects its features into the decoder.
    expected = {name: tuple(rows[0].tolist()) for name, rows in converted.items() if name in ours}
    assert len(expected) > 60
    assert {name: ours[name] for name in expected} == expected
    layers_only_here = {name for name in ours if name not in expected}
    assert all(".decoder.layers." in name for name in layers_only_here)


# The rules that CFFM's release gives its optimiser: learning rate and weight decay by what a name holds.
CFFM_RULES = {"head": (6e-4, 0.01), "norm": (6e-5, 0.0), "": (6e-5, 0.01)}


def test_groups_are_those_that_cffm_was_released_with():
    # Every official parameter is filled with the number of its rule and goes through the converter.
    patterns = list(CFFM_RULES)
    official = {
        name: torch.full(shape, next(index for index, part in enumerate(patterns) if part in name))
        for name, shape, _ in json_file("checkpoint_keys_B1", FIXTURES.parent / "cffm")
    }
    converted, _ = cffm.convert_state_dict(official)
    with torch.device("meta"):
        model = CFFMForVideoSemanticSegmentation(CFFMConfig(backbone="mit-b1", num_labels=124))
    ours = settings_by_name(model, learning_rate=6e-4, weight_decay=0.01, undecayed_norms="backbone")
    rules = {name: value.unique() for name, value in converted.items() if name in ours}
    assert ours == {name: CFFM_RULES[patterns[int(rule)]] for name, rule in rules.items()}
    assert {int(rule) for rule in rules.values()} == set(range(len(patterns)))


def test_the_norms_of_segformers_encoder_are_not_decayed_when_asked():
    settings = settings_by_name(per_frame_model("segformer"), undecayed_norms="backbone")
    undecayed = {name for name, (_, weight_decay) in settings.items() if weight_decay == 0}
    encoder = {name for name in settings if name.startswith("segmenter.segformer.")}
    assert undecayed == {name for name in encoder if "norm" in name}
    assert any("norm" in name for name in settings.keys() - encoder)


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = tiny_model(num_frames=2)
    model.freeze_pixel_level()
    grouped = [id(p) for group in parameter_groups(model, 1.0, 0.1, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_first_group_has_the_rate_that_is_logged():
    groups = parameter_groups(tiny_model(), 1.0, 0.1, 0.1)
    assert groups[0]["lr"] == 1.0
    assert {group["lr"] for group in groups} == {1.0, 0.1}


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("segformer", "segmenter.segformer."),
        ("beit", "segmenter.beit."),
        ("dpt", "segmenter.dpt."),
        ("upernet", "segmenter.backbone."),
        ("mask2former", "segmenter.model.pixel_level_module.encoder."),
        ("maskformer", "segmenter.model.pixel_level_module.encoder."),
    ],
)
def test_the_encoder_of_an_image_model_is_its_backbone(name, encoder):
    settings = settings_by_name(per_frame_model(name))
    slow = {name for name, (learning_rate, _) in settings.items() if learning_rate == 1e-5}
    assert slow == {name for name in settings if name.startswith(encoder)}
    assert 0 < len(slow) < len(settings)


def test_an_image_model_without_a_separate_encoder_has_one_learning_rate():
    model = per_frame_model("eomt")
    assert backbones(model) == []
    assert {group["lr"] for group in parameter_groups(model, 1.0, 0.1, 0.1)} == {1.0}
