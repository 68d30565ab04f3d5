# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from transformers_themask.training.recipes import parse_recipe
from transformers_themask.training.starting_point import load_config

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = """
learning_rate: 3e-4
max_steps: 7
frame_offsets: [-3, 0]
photometric: false
config_overrides: {backbone: mit-b0, num_frames: 2}
lr_scheduler_kwargs: {power: 2.0, lr_end: 0.0}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_recipe_sets_arguments_of_every_kind(recipe):
    model_args, data_args, training_args = parse_recipe([recipe(RECIPE)])
    assert training_args.learning_rate == 3e-4
    assert training_args.max_steps == 7
    assert training_args.lr_scheduler_kwargs == {"power": 2.0, "lr_end": 0.0}
    assert data_args.frame_offsets == [-3, 0]
    assert data_args.photometric is False
    assert model_args.overrides == {"backbone": "mit-b0", "num_frames": 2}
    assert training_args.weight_decay == 0.05  # not in the recipe: the default


def test_flags_override_the_recipe(recipe):
    flags = ["--learning_rate", "0.5", "--frame_offsets", "-2", "-1", "0", "--photometric", "true"]
    flags += ["--config_overrides", "{num_frames: 3}"]
    model_args, data_args, training_args = parse_recipe([recipe(RECIPE), *flags])
    assert training_args.learning_rate == 0.5
    assert data_args.frame_offsets == [-2, -1, 0]
    assert data_args.photometric is True
    assert model_args.overrides == {"backbone": "mit-b0", "num_frames": 3}
    assert training_args.max_steps == 7


def test_fields_on_the_command_line_are_added_to_the_recipes(recipe):
    """Else the recipe's network would silently become the default one."""
    model_args, _, _ = parse_recipe([recipe(RECIPE), "--config_overrides", "{matching_rounds: 1, num_frames: 3}"])
    assert model_args.overrides == {"backbone": "mit-b0", "num_frames": 3, "matching_rounds": 1}
    model_args, _, _ = parse_recipe([recipe("max_steps: 3"), "--config_overrides", "{matching_rounds: 1}"])
    assert model_args.overrides == {"matching_rounds": 1}


def test_help_names_the_recipe(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    assert "run_vss.py [RECIPE.yaml] [--flag value ...]" in capsys.readouterr().out


def test_flags_alone_are_enough():
    _, data_args, training_args = parse_recipe(["--data_root", "videos", "--max_steps=3", "--do_train"])
    assert (data_args.data_root, training_args.max_steps, training_args.do_train) == ("videos", 3, True)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "lerning_rate: 1",
            [],
            r"recipe\.yaml must only set known arguments\. Got `lerning_rate`\. .*`learning_rate`",
        ),
        ("max_steps: few", [], "max_steps.*invalid int value: 'few'"),
        ("max_steps: 1", ["--max_stepz", "2"], "The command line must only set known arguments. Got `max_stepz`"),
        ("max_steps: 1", ["surplus"], r"must be \[recipe\.yaml\] \[--flag value \.\.\.\]\. Got 'surplus'"),
        ("- max_steps", [], r"recipe\.yaml must hold `name: value` lines. Got list"),
        ("a: b: c", [], r"recipe\.yaml must be YAML"),
        ("crop_size: [64]", [], r"`crop_size` must be two numbers. Got \[64\]"),
        ("crop_size: [64, 33]", [], r"`crop_size` must be multiples of 32, as a model's input. Got \[64, 33\]"),
        ("eval_shortest_edge: 64", [], "must be given together. Got 64 and None"),
        ("one_round_steps: -1", [], "`one_round_steps` must be at least 0. Got -1"),
        ("max_steps: 1", ["--config_overrides", "num_frames"], "`config_overrides` must be a mapping"),
        ("{model_name_or_path: a, backbone_name_or_path: b}", [], "must not be given together"),
    ],
)
def test_a_problem_is_one_sentence(recipe, text, flags, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_recipe([recipe(text), *flags])
    assert "\n" not in str(raised.value)


def test_a_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml is not a file"):
        parse_recipe(["nowhere.yaml"])


# The official models' sizes, 32.989 and 36.180 million (33.0 in the paper), less the parameters they never use: a
# 256-to-124 convolution and, in the temporal module, a 256-to-2 projection.
UNUSED = 124 * 256 + 124


@pytest.mark.parametrize(
    ("name", "millions", "steps", "one_round_steps", "offsets"),
    [
        ("vspw_themask_b1_t1", 32.989 - UNUSED / 1e6, 160_000, 30_000, [0]),
        ("vspw_themask_b1_t2", 36.180 - (UNUSED + 2 * 256 + 2) / 1e6, 12_000, 0, [-3, 0]),
    ],
)
def test_vspw_recipes_are_the_papers(name, millions, steps, one_round_steps, offsets):
    model_args, data_args, training_args = parse_recipe([str(RECIPES / f"{name}.yaml")])
    if model_args.model_name_or_path is not None:  # trained by the other recipe
        stage1, _, stage1_args = parse_recipe([str(RECIPES / "vspw_themask_b1_t1.yaml")])
        assert model_args.model_name_or_path == stage1_args.output_dir
        model_args.config_overrides = {**stage1.overrides, **model_args.overrides}
        model_args.model_name_or_path = None
    config = load_config(model_args, [f"class {index}" for index in range(124)])
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.0006)
    assert (training_args.max_steps, training_args.one_round_steps) == (steps, one_round_steps)
    assert data_args.frame_offsets == offsets and config.num_frames == len(offsets)
    assert data_args.crop_size == [480, 480] and data_args.ratio_range == [0.5, 2.0]
    assert (training_args.learning_rate, training_args.backbone_learning_rate_factor) == (1e-4, 0.1)
    assert (training_args.weight_decay, training_args.max_grad_norm) == (0.05, 0.01)
    assert training_args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0}
