# SPDX-License-Identifier: Apache-2.0
from functools import reduce
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from selection import nightly_except
from transformers_themask.data.sources import load_videos
from transformers_themask.training.arguments import RECIPE_FIELDS
from transformers_themask.training.parameter_groups import backbones
from transformers_themask.training.preparation import prepare
from transformers_themask.training.recipe_files import merged, read_with_bases
from transformers_themask.training.recipes import parse_recipe
from transformers_themask.training.starting_point import load_config

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
RECIPE_FILES = sorted(RECIPES.glob("*.yaml"))
PUBLISHED = [path for path in RECIPE_FILES if path.name.startswith(("vspw", "camvid"))]
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


@pytest.fixture
def recipes(tmp_path):
    """Writes several files and returns the path of the first."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path / f"{next(iter(texts))}.yaml")

    return write


def test_a_recipe_builds_on_others(recipes, tmp_path):
    """Mappings are merged at every depth, the later file wins otherwise, and nothing takes a value back."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "network.yaml").write_text(
        "config_overrides: {backbone_config: {model_type: mit, depths: [1, 1, 1, 1]}, num_queries: 10}\nmax_steps: 1"
    )
    (tmp_path / "base" / "data.yaml").write_text("base: more.yaml\nmax_steps: 2\nframe_offsets: [-3, 0]")
    (tmp_path / "base" / "more.yaml").write_text("learning_rate: 0.5\nseed: 3\nframe_offsets: [-9, -6, 0]")
    path = recipes(
        top="base: [base/network.yaml, base/data.yaml]\nseed:\n"
        "config_overrides: {backbone_config: {depths: [2, 2, 2, 2]}, num_frames: 2}"
    )
    model_args, data_args, training_args = parse_recipe([path])
    assert model_args.overrides == {
        "backbone_config": {"model_type": "mit", "depths": [2, 2, 2, 2]},
        "num_queries": 10,
        "num_frames": 2,
    }
    assert (training_args.max_steps, training_args.learning_rate, training_args.seed) == (2, 0.5, 42)
    assert data_args.frame_offsets == [-3, 0]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "lerning_rate: 1",
            [],
            r"recipe\.yaml must only set known arguments\. Got `lerning_rate`\. Did you mean `learning_rate`",
        ),
        ("max_steps: few", [], r"recipe\.yaml must give values of the right type\. Got max_steps: .*'few'"),
        ("max_steps: true", [], r"recipe\.yaml must give values of the right type\. Got max_steps: .*'True'"),
        ("photometric: 3", [], r"recipe\.yaml must give values of the right type\. Got photometric: .*3"),
        ("frame_offsets: [-3, zero]", [], r"recipe\.yaml must give .*\. Got frame_offsets: .*'zero'"),
        ("frame_offsets: 0", [], r"`frame_offsets` in .*recipe\.yaml must be a list\. Got 0"),
        ("max_steps: [1, 2]", [], r"`max_steps` in .*recipe\.yaml must be one value\. Got \[1, 2\]"),
        ("data_root: {a: 1}", [], r"`data_root` in .*recipe\.yaml must be one value\. Got \{'a': 1\}"),
        ("config_overrides: 3", [], r"`config_overrides` in .*recipe\.yaml must be a mapping\. Got 3"),
        ("save_strategy: no", [], r"recipe\.yaml must give .* Got save_strategy: .*False.*choose from"),
        ("- max_steps", [], r"recipe\.yaml must hold `name: value` lines. Got list"),
        ("", [], r"recipe\.yaml must hold `name: value` lines. Got an empty file"),
        ("a: b: c", [], r"recipe\.yaml must be YAML"),
        ("crop_size: [64]", [], r"recipe\.yaml: `crop_size` must be two numbers. Got \[64\]"),
        ("crop_size: [64, 33]", [], r"recipe\.yaml: `crop_size` must be multiples of 32.* Got \[64, 33\]"),
        ("eval_shortest_edge: 64", [], r"recipe\.yaml: .*must be given together. Got 64 and None"),
        ("one_round_steps: -1", [], r"recipe\.yaml: `one_round_steps` must be at least 0. Got -1"),
        ("{model_name_or_path: a, backbone_name_or_path: b}", [], r"recipe\.yaml: .* must not be given together"),
        (
            "{do_train: true, config_overrides: {num_frames: 4}, frame_offsets: [-3, 0]}",
            [],
            r"recipe\.yaml: `frame_offsets` must have one entry per frame .* Got \[-3, 0\] for `num_frames` = 4",
        ),
        (
            "{do_train: true, model_type: cffm, frame_offsets: [-6, -3, -1, 0]}",
            [],
            r"recipe\.yaml: `frame_offsets` must be .* \[-9, -6, -3, 0\]\. Got \[-6, -3, -1, 0\]\.",
        ),
        ("max_steps: 1", ["--crop_size", "8", "8"], r"recipe\.yaml with the flags given: `crop_size` must be"),
        ("max_steps: 1", ["--max_stepz", "2"], "The command line must only set known arguments. Got `max_stepz`"),
        ("max_steps: 1", ["--max_steps", "few"], "The command line must give values .* Got max_steps: .*'few'"),
        ("max_steps: 1", ["surplus"], r"must be \[recipe\.yaml\] \[--flag value \.\.\.\]\. Got 'surplus'"),
        ("max_steps: 1", ["--config_overrides", "num_frames"], "`config_overrides` must be a mapping"),
        ("base: 3", [], r"`base` of .*recipe\.yaml must be the path of a recipe or a list of paths. Got \[3\]"),
    ],
)
def test_invalid_recipe_or_flag_is_rejected_with_one_line(recipe, text, flags, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_recipe([recipe(text), *flags])
    assert "\n" not in str(raised.value)


def test_error_in_a_base_names_the_base(recipes):
    with pytest.raises(ValueError, match=r"below\.yaml must only set known arguments\. Got `max_stepz`"):
        parse_recipe([recipes(top="base: below.yaml", below="max_stepz: 3")])


def test_circular_bases_are_rejected(recipes):
    with pytest.raises(
        ValueError, match=r"`base` of \S+b\.yaml must not lead back to \S+a\.yaml\. Got .*a.* -> .*b.*a"
    ):
        parse_recipe([recipes(a="base: b.yaml", b="base: a.yaml")])


def test_one_base_may_be_reached_twice(recipes):
    path = recipes(top="base: [a.yaml, b.yaml]", a="base: root.yaml", b="base: root.yaml", root="max_steps: 3")
    assert parse_recipe([path])[2].max_steps == 3


def test_missing_recipe_or_base_is_named_in_the_error(recipes):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml is not a file"):
        parse_recipe(["nowhere.yaml"])
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, the `base` of \S+top\.yaml, is not a file"):
        parse_recipe([recipes(top="base: gone.yaml")])


def test_an_unknown_field_of_the_network_gets_a_suggestion(recipe):
    model_args, _, _ = parse_recipe([recipe("config_overrides: {matching_round: 1}")])
    with pytest.raises(ValueError, match=r"Got 'matching_round'\. Did you mean `matching_rounds`\?"):
        load_config(model_args, ["a", "b"])


# What the paper reports on VSPW: mIoU in percent, and weighted IoU where it is given (Tables 1 to 4).
PAPER = {
    "vspw_themask_b0_t1": "39.76 mIoU, 61.3 wIoU",
    "vspw_themask_b1_t1": "44.06 mIoU, 64.2 wIoU",
    "vspw_themask_b2_t1": "48.53 mIoU, 66.2 wIoU",
    "vspw_themask_b0_t2": "39.94 mIoU",
    "vspw_themask_b1_t2": "44.68 mIoU",
    "vspw_themask_b2_t2": "48.99 mIoU",
    "vspw_themask_b5_t2": "52.1 mIoU, 67.2 wIoU",
    "vspw_themask_b0_t4": "40.68 mIoU",
    "vspw_themask_b1_t4": "45.19 mIoU",
    "vspw_themask_b2_t4": "49.11 mIoU",
    "vspw_themask_b1_t2_one_to_video": "43.40 mIoU",
    "vspw_themask_b1_t4_one_to_video": "43.90 mIoU",
    "vspw_themask_b1_t2_one_to_frame": "44.41 mIoU",
    "vspw_themask_b1_t4_one_to_frame": "44.84 mIoU",
    "vspw_themask_b0_t1_one_round": "38.9 mIoU, 60.9 wIoU",
    "vspw_themask_b1_t1_one_round": "43.26 mIoU, 63.56 wIoU",
    "vspw_themask_b2_t1_one_round": "47.6 mIoU, 65.4 wIoU",
    "vspw_themask_b1_t1_original_loss": "43.70 mIoU, 63.77 wIoU",
}
# Millions of parameters of the official models, and of those they never use: a 256-to-124 convolution and, in
# the temporal module, a 256-to-2 projection.
SINGLE_FRAME_MILLIONS = {"b0": 23.026, "b1": 32.989, "b2": 44.034, "b5": 101.281}
TEMPORAL_MILLIONS = {"b0": 26.217, "b1": 36.180, "b2": 47.225, "b5": 104.472}
UNUSED_MILLIONS = (124 * 256 + 124) / 1e6
UNUSED_TEMPORAL_MILLIONS = UNUSED_MILLIONS + (2 * 256 + 2) / 1e6
OFFSETS = {"t1": [0], "t2": [-3, 0], "t4": [-9, -6, -3, 0]}


def config_from_scratch(model_args, class_names):
    """The configuration a run has, with that of stage 1 built instead of loaded."""
    if model_args.model_name_or_path is not None:
        stage1, _, _ = parse_recipe([str(RECIPES / f"{Path(model_args.model_name_or_path).name}.yaml")])
        below = {"segmenter_config": stage1.overrides} if model_args.model_type == "mpvss" else stage1.overrides
        model_args.config_overrides = merged(below, model_args.overrides)
        model_args.model_name_or_path = None
    return load_config(model_args, class_names)


def test_every_number_of_the_paper_has_a_recipe():
    named = {path.stem for path in RECIPES.glob("vspw_themask_*.yaml")}
    assert named == PAPER.keys() | {"vspw_themask_b5_t1"}  # no number, but the start of B5 with two frames
    for name, numbers in PAPER.items():
        assert f"# paper: {numbers}; not measured here." in (RECIPES / f"{name}.yaml").read_text().splitlines()


@pytest.mark.parametrize("name", [*PAPER, "vspw_themask_b5_t1"])
def test_vspw_recipes_are_the_papers(name):
    backbone, frames, *variant = name.removeprefix("vspw_themask_").split("_", 2)
    variant = "".join(variant)
    model_args, data_args, training_args = parse_recipe([str(RECIPES / f"{name}.yaml")])
    start = model_args.model_name_or_path
    assert start == (None if frames == "t1" else f"runs/vspw_themask_{backbone}_t1")
    assert model_args.backbone_name_or_path == (f"nvidia/mit-{backbone}" if frames == "t1" else None)
    assert model_args.freeze == ([] if frames == "t1" else ["pixel_level"])

    config = config_from_scratch(model_args, [f"class {index}" for index in range(124)])
    assert config.num_frames == int(frames[1:])
    assert config.temporal_mode == (variant if variant.startswith("one_to") else "video_frame")
    assert config.matching_rounds == (1 if variant == "one_round" else 2)
    assert config.secondary_loss == ("original" if variant == "original_loss" else "soft")
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    has_temporal_module = frames != "t1" and not variant
    millions = (TEMPORAL_MILLIONS if has_temporal_module else SINGLE_FRAME_MILLIONS)[backbone]
    millions -= UNUSED_TEMPORAL_MILLIONS if has_temporal_module else UNUSED_MILLIONS
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.0006)

    steps = (160_000, 0 if variant == "one_round" else 30_000) if frames == "t1" else (12_000, 0)
    assert (training_args.max_steps, training_args.one_round_steps) == steps
    assert training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * 4 == 8
    assert training_args.clips_per_step == 8
    assert (training_args.learning_rate, training_args.backbone_learning_rate_factor) == (1e-4, 0.1)
    assert (training_args.weight_decay, training_args.max_grad_norm) == (0.05, 0.01)
    assert training_args.lr_scheduler_type == "polynomial" and training_args.warmup_steps == 0
    assert training_args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0}
    assert not training_args.bf16 and training_args.seed == 0 and training_args.output_dir == f"runs/{name}"
    assert data_args.frame_offsets == OFFSETS[frames] and data_args.eval_frame_stride == 3
    assert data_args.base_size == [853, 480] and data_args.crop_size == [480, 480]
    assert data_args.ratio_range == [0.5, 2.0] and data_args.flip_probability == 0.5 and data_args.photometric
    assert (data_args.eval_shortest_edge, data_args.eval_longest_edge) == (480, 853)
    assert (data_args.train_split, data_args.eval_split) == ("train", "val")


# What CFFM's paper reports on VSPW in percent (Tables 1, 3 and 4); the offsets; the number of mining layers, if any.
CFFM_PAPER = {
    "vspw_cffm_b0": ("35.4 mIoU, 58.5 wIoU, 87.7 VC8, 82.9 VC16", [-9, -6, -3, 0], 1),
    "vspw_cffm_b1": ("38.5 mIoU, 60.0 wIoU, 88.6 VC8, 84.1 VC16", [-9, -6, -3, 0], 2),
    "vspw_cffm_b2": ("44.9 mIoU, 64.9 wIoU, 89.8 VC8, 85.8 VC16", [-9, -6, -3, 0], 2),
    "vspw_cffm_b5": ("49.3 mIoU, 65.8 wIoU, 90.8 VC8, 87.1 VC16", [-9, -6, -3, 0], 4),
    "vspw_cffm_b0_2_layers": ("35.7 mIoU, 87.7 VC8, 83.0 VC16", [-9, -6, -3, 0], 2),
    "vspw_cffm_b1_1_layer": ("37.8 mIoU, 88.3 VC8, 83.6 VC16", [-9, -6, -3, 0], 1),
    "vspw_cffm_b1_3_layers": ("38.7 mIoU, 88.6 VC8, 84.1 VC16", [-9, -6, -3, 0], 3),
    "vspw_cffm_b1_4_layers": ("38.8 mIoU, 88.5 VC8, 83.9 VC16", [-9, -6, -3, 0], 4),
    "vspw_cffm_b1_frame_3": ("37.4 mIoU, 87.4 VC8, 82.4 VC16", [-3, 0], 2),
    "vspw_cffm_b1_frame_6": ("37.7 mIoU, 88.0 VC8, 83.3 VC16", [-6, 0], 2),
    "vspw_cffm_b1_frame_9": ("37.9 mIoU, 88.4 VC8, 83.9 VC16", [-9, 0], 2),
    "vspw_cffm_b1_frames_3_2_1": ("37.7 mIoU, 88.3 VC8, 83.6 VC16", [-3, -2, -1, 0], 2),
    "vspw_segformer_b0": ("32.9 mIoU, 56.8 wIoU, 82.7 VC8, 77.3 VC16", [0], None),
    "vspw_segformer_b1": ("36.5 mIoU, 58.8 wIoU, 84.7 VC8, 79.9 VC16", [0], None),
    "vspw_segformer_b2": ("43.9 mIoU, 63.7 wIoU, 86.0 VC8, 81.2 VC16", [0], None),
    "vspw_segformer_b5": ("48.2 mIoU, 65.1 wIoU, 87.8 VC8, 83.7 VC16", [0], None),
}
# Millions of parameters in the paper's Tables 1 and 3. CFFM's include a 128-to-124 convolution that it never uses.
CFFM_MILLIONS = {
    "vspw_cffm_b0": 4.7,
    "vspw_cffm_b1": 15.5,
    "vspw_cffm_b2": 26.5,
    "vspw_cffm_b5": 85.5,
    "vspw_cffm_b0_2_layers": 5.5,
    "vspw_cffm_b1_1_layer": 14.6,
    "vspw_cffm_b1_3_layers": 16.3,
    "vspw_cffm_b1_4_layers": 17.2,
    "vspw_segformer_b0": 3.8,
    "vspw_segformer_b1": 13.8,
    "vspw_segformer_b2": 24.8,
    "vspw_segformer_b5": 82.1,
}


def check_numbers_of_the_paper(numbers_of_recipe):
    """What the paper reports stands in the recipe and in its row of the table."""
    table = (RECIPES / "README.md").read_text()
    for name, numbers in numbers_of_recipe.items():
        assert f"# paper: {numbers}; not measured here." in (RECIPES / f"{name}.yaml").read_text().splitlines()
        scores = [part.split()[0] for part in numbers.split(", ")]
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert [cell for cell in cells[3:] if cell != "–"] == scores


def test_every_number_of_cffms_paper_has_a_recipe():
    named = {path.stem for pattern in ("vspw_cffm_*", "vspw_segformer_*") for path in RECIPES.glob(f"{pattern}.yaml")}
    assert named == CFFM_PAPER.keys()
    check_numbers_of_the_paper({name: numbers for name, (numbers, _, _) in CFFM_PAPER.items()})


@pytest.mark.parametrize("name", CFFM_PAPER)
def test_vspw_recipes_of_cffm_and_its_baseline_are_the_papers(name):
    _, frame_offsets, num_layers = CFFM_PAPER[name]
    model_args, data_args, training_args = parse_recipe([str(RECIPES / f"{name}.yaml")])
    config = load_config(model_args, [f"class {index}" for index in range(124)])
    assert data_args.frame_offsets == frame_offsets and config.num_frames == len(frame_offsets)
    assert getattr(config, "mining_layers", None) == num_layers
    assert model_args.backbone_name_or_path == f"nvidia/mit-{name.split('_')[2]}"
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    (backbone,) = backbones(model)
    assert backbone.config.drop_path_rate == 0.1
    if name in CFFM_MILLIONS:
        unused = 0 if num_layers is None else 128 * 124 + 124
        millions = (sum(parameter.numel() for parameter in model.parameters()) + unused) / 1e6
        assert millions == pytest.approx(CFFM_MILLIONS[name], abs=0.1)
    baseline = parse_recipe([str(RECIPES / "vspw_segformer_b1.yaml")])[2]
    for field in {*RECIPE_FIELDS, "max_steps", "clips_per_step"}:
        assert getattr(training_args, field) == getattr(baseline, field), field
    assert (training_args.learning_rate, training_args.backbone_learning_rate_factor) == (6e-4, 0.1)
    assert (training_args.weight_decay, training_args.undecayed_norms) == (0.01, "backbone")
    assert (training_args.max_steps, training_args.warmup_steps, training_args.clips_per_step) == (160_000, 1500, 8)
    assert training_args.lr_scheduler_kwargs == {"power": 1.0, "lr_end": 0.0} and training_args.max_grad_norm == 0
    assert data_args.base_size == [853, 480] and data_args.crop_size == [480, 480] and data_args.photometric


# What MPVSS' paper reports on VSPW in percent (Tables 1 and 3) for it and its baseline, Mask2Former.
MPVSS_PAPER = {
    "vspw_mask2former_r50": "38.5 mIoU, 60.2 wIoU, 81.3 VC8, 76.4 VC16",
    "vspw_mask2former_r101": "39.3 mIoU, 60.1 wIoU, 82.5 VC8, 77.6 VC16",
    "vspw_mask2former_swin_t": "41.2 mIoU, 62.6 wIoU, 84.5 VC8, 80.0 VC16",
    "vspw_mask2former_swin_s": "42.1 mIoU, 63.1 wIoU, 84.7 VC8, 79.3 VC16",
    "vspw_mask2former_swin_b": "54.1 mIoU, 70.3 wIoU, 86.6 VC8, 82.9 VC16",
    "vspw_mask2former_swin_l": "56.1 mIoU, 70.8 wIoU, 87.6 VC8, 84.1 VC16",
    "vspw_mpvss_r50": "37.5 mIoU, 59.0 wIoU, 84.1 VC8, 77.2 VC16",
    "vspw_mpvss_r101": "38.8 mIoU, 59.0 wIoU, 84.8 VC8, 79.6 VC16",
    "vspw_mpvss_swin_t": "39.9 mIoU, 62.0 wIoU, 85.9 VC8, 80.4 VC16",
    "vspw_mpvss_swin_s": "40.4 mIoU, 62.0 wIoU, 86.0 VC8, 80.7 VC16",
    "vspw_mpvss_swin_b": "52.6 mIoU, 68.4 wIoU, 89.5 VC8, 85.9 VC16",
    "vspw_mpvss_swin_l": "53.9 mIoU, 69.1 wIoU, 89.6 VC8, 85.8 VC16",
    "vspw_mpvss_swin_t_copy": "37.5 mIoU",
    "vspw_mpvss_swin_t_optical_flow": "38.4 mIoU",
    "vspw_mpvss_swin_t_query_random": "38.1 mIoU",
    "vspw_mpvss_swin_t_query_learned": "39.2 mIoU",
    "vspw_mpvss_swin_t_query_for_pixel_flow": "38.5 mIoU",
}
BACKBONE_WEIGHTS = {
    "r50": "microsoft/resnet-50",
    "r101": "microsoft/resnet-101",
    "swin_t": "microsoft/swin-tiny-patch4-window7-224",
    "swin_s": "microsoft/swin-small-patch4-window7-224",
    "swin_b": "microsoft/swin-base-patch4-window12-384-in22k",
    "swin_l": "microsoft/swin-large-patch4-window12-384-in22k",
}
# Millions of parameters, counted in the released code: of the segmenters, and of their class and mask heads, which are
# what MPVSS trains of them; and of the flows in Table 3. There "Query-for-PF" has 40.08, as many as the full design,
# with a part that it does not use.
SEGMENTER_MILLIONS = {
    "r50": 44.034685,
    "r101": 63.026813,
    "swin_t": 47.432951,
    "swin_s": 68.750855,
    "swin_b": 106.915509,
    "swin_l": 215.482097,
}
HEADS_MILLIONS = 40.314647 - 40.085146
FLOW_MILLIONS = {
    "full": 40.085146,
    "copy": 0,
    "optical_flow": 38.68,
    "query_random": 37.56,
    "query_learned": 37.56,
    "query_for_pixel_flow": 38.97,
}


def test_every_number_of_mpvsss_paper_has_a_recipe():
    named = {
        path.stem for pattern in ("vspw_mpvss_*", "vspw_mask2former_*") for path in RECIPES.glob(f"{pattern}.yaml")
    }
    assert named == MPVSS_PAPER.keys()
    check_numbers_of_the_paper(MPVSS_PAPER)


@pytest.mark.parametrize("name", MPVSS_PAPER)
def test_vspw_recipes_of_mpvss_and_its_baseline_are_the_papers(name):
    _, family, *rest = name.split("_")
    backbone = "_".join(rest[: 1 + (rest[0] == "swin")])
    propagation = name.removeprefix(f"vspw_mpvss_{backbone}").removeprefix("_") or "full"
    is_mpvss = family == "mpvss"
    model_args, data_args, training_args = parse_recipe([str(RECIPES / f"{name}.yaml")])
    assert model_args.model_type == ("mpvss" if is_mpvss else "themask")
    assert model_args.model_name_or_path == (f"runs/vspw_mask2former_{backbone}" if is_mpvss else None)
    assert model_args.backbone_name_or_path == (None if is_mpvss else BACKBONE_WEIGHTS[backbone])

    config = config_from_scratch(model_args, [f"class {index}" for index in range(124)])
    segmenter = config.segmenter_config if is_mpvss else config
    assert segmenter.num_labels == 124
    if is_mpvss:
        assert segmenter.model_type == "query_segmenter"
    else:
        assert (segmenter.num_frames, segmenter.matching_rounds) == (1, 1)
    assert getattr(segmenter.backbone_config, "drop_path_rate", 0.3) == 0.3
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    # A norm of Transformers' Swin, which its backbone does not use, is not counted.
    sizes = {name: part.numel() for name, part in model.named_parameters() if ".swin.layernorm." not in name}
    flow = sum(size for name, size in sizes.items() if name.startswith("flow."))
    assert (sum(sizes.values()) - flow) / 1e6 == pytest.approx(SEGMENTER_MILLIONS[backbone], abs=1e-9)
    if is_mpvss:
        assert (config.propagation, config.key_frame_interval, config.key_frame_threshold) == (propagation, 5, None)
        assert (config.corrected_warp, config.flow_init) == (False, "released")
        tolerance = 1e-9 if propagation in ("full", "copy") else 0.0075
        assert flow / 1e6 == pytest.approx(FLOW_MILLIONS[propagation], abs=tolerance)
        trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
        assert (trained - flow) / 1e6 == pytest.approx(HEADS_MILLIONS, abs=1e-9)

    assert (data_args.frame_offsets, data_args.draw_distance) == (([-10, 0], True) if is_mpvss else ([0], False))
    baseline = parse_recipe([str(RECIPES / "vspw_mask2former_r50.yaml")])[2]
    for field in {*RECIPE_FIELDS, "max_steps", "clips_per_step"}:
        assert getattr(training_args, field) == getattr(baseline, field), field
    assert (training_args.learning_rate, training_args.backbone_learning_rate_factor) == (5e-5, 0.1)
    assert (training_args.weight_decay, training_args.undecayed_norms) == (0.05, "all")
    assert (training_args.max_steps, training_args.warmup_steps, training_args.clips_per_step) == (90_000, 0, 16)
    assert training_args.lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0} and training_args.max_grad_norm == 0.01
    assert data_args.base_size == [960, 540] and data_args.ratio_range == [1.0, 1.0] and data_args.photometric
    assert data_args.crop_size == [480, 480] and data_args.cat_max_ratio == 1 and data_args.sample_by == "video"
    assert (data_args.eval_shortest_edge, data_args.eval_longest_edge) == (480, 853)
    assert data_args.eval_mode is None  # recurrent, the only one of MPVSS


@pytest.mark.parametrize("variant", ["", "_one_to_frame", "_one_to_video"])
def test_stage_2_takes_over_all_of_stage_1(variant):
    """Each weight of the single-frame model has its place in the temporal one."""
    shapes = []
    for name in ("vspw_themask_b1_t1", f"vspw_themask_b1_t2{variant}"):
        model_args, _, _ = parse_recipe([str(RECIPES / f"{name}.yaml")])
        with torch.device("meta"):
            model = AutoModel.from_config(config_from_scratch(model_args, ["a", "b"]))
        shapes.append({(key, tuple(value.shape)) for key, value in model.state_dict().items()})
    stage1, stage2 = shapes
    assert stage1 <= stage2 and (stage1 < stage2) == (variant == "")


def test_every_recipe_is_complete_and_says_how_to_run_it():
    """What a run depends on stands in the recipe or its bases, so that no default can change what it is."""
    data = {"train_split", "eval_split", "frame_offsets", "clips_per_video", "sample_by", "eval_frame_stride"}
    augmentation = {"base_size", "ratio_range", "crop_size", "cat_max_ratio", "flip_probability", "photometric"}
    schedule = {"max_steps", "learning_rate", "backbone_learning_rate_factor", "weight_decay", "lr_scheduler_type"}
    schedule |= {"lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "per_device_train_batch_size", "bf16", "seed"}
    size = {"eval_shortest_edge", "eval_longest_edge"}
    needed = data | augmentation | schedule | size | {"model_type", "output_dir", "do_train"}
    recipes = {path: reduce(merged, [fields for _, fields in read_with_bases(path)]) for path in PUBLISHED}
    missing = {path.stem: needed - recipe.keys() for path, recipe in recipes.items()}
    assert not {stem: fields for stem, fields in missing.items() if fields}
    described = (RECIPES / "README.md").read_text()
    assert not [path.stem for path in PUBLISHED if f"`{path.stem}`" not in described]
    for path in PUBLISHED:
        command = f"recipes/{path.name} --data_root"
        assert any(line.startswith("#") and command in line for line in path.open()), f"{path} must show {command}"


def test_every_base_is_used():
    used = {source for path in RECIPE_FILES for source, _ in read_with_bases(path)}
    assert {path.resolve() for path in RECIPES.rglob("*.yaml")} == {source.resolve() for source in used}


# Instead of the published ones, whose size is counted above.
SMALL_BACKBONES = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 24, "depths": [1, 1, 1, 1], "window_size": 2},
}
SMALL_FLOW = {"motion_channels": [8, 16, 32, 32, 32, 64], "motion_decoder_channels": [8] * 4, "motion_layers": 3}


def shrink(model_args):
    """Make the network of a recipe small where it is published in large sizes, and its loss cheap."""
    backbone = SMALL_BACKBONES.get(model_args.overrides.get("backbone_config", {}).get("model_type"))
    small = {"themask": {"train_num_points": 256}, "mpvss": SMALL_FLOW}.get(model_args.model_type, {})
    if backbone is not None:
        small = small | {"backbone_config": backbone, "encoder_layers": 1, "decoder_layers": 3}
    model_args.config_overrides = merged(model_args.overrides, small)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, data_root):
    """Saves what the recipe of stage 1 would, with random weights, once for all recipes that start from it."""
    recipes = {parse_recipe([str(path)])[2].output_dir: path for path in RECIPE_FILES}
    saved: dict[str, Path] = {}

    def save(output_dir):
        if output_dir not in saved:
            model_args, _, _ = parse_recipe([str(recipes[output_dir])])
            model_args.backbone_name_or_path = None
            shrink(model_args)
            saved[output_dir] = tmp_path_factory.mktemp("stage1")
            config = load_config(model_args, load_videos(data_root, "val").class_names)
            AutoModel.from_config(config).save_pretrained(saved[output_dir])
        return str(saved[output_dir])

    return save


QUICK = ["--use_cpu", "--disable_tqdm", "true", "--do_eval", "false", "--eval_strategy", "no", "--save_strategy", "no"]
QUICK += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--clips_per_step", "1"]
QUICK += ["--warmup_steps", "0"]
QUICK += ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false"]
QUICK += ["--base_size", "80", "64", "--crop_size", "64", "64", "--logging_steps", "1"]


def first_of_every_base():
    """The first recipe of each file in `recipes/base/`, and of each model type."""
    seen, chosen = set(), []
    for path in RECIPE_FILES:
        sources = read_with_bases(path)
        kinds = {source.name for source, _ in sources if source.parent.name == "base"}
        kinds.add(reduce(merged, [fields for _, fields in sources]).get("model_type"))
        if not kinds <= seen:
            chosen.append(path)
            seen |= kinds
    return chosen


@pytest.mark.parametrize(
    "path", nightly_except(RECIPE_FILES, first_of_every_base()), ids=[path.stem for path in RECIPE_FILES]
)
def test_every_recipe_takes_a_step(path, untrained, data_root, tmp_path):
    """The recipe's network and loss on small crops: what may learn moves, what is frozen does not."""
    # As released, only the fusion of a new flow learns in the first step.
    num_steps = 2 if "mpvss" in path.stem else 1
    flags = [
        "--max_steps",
        str(num_steps),
        "--one_round_steps",
        "0",
        "--data_root",
        str(data_root),
        "--output_dir",
        str(tmp_path),
    ]
    model_args, data_args, training_args = parse_recipe([str(path), *QUICK, *flags])
    model_args.backbone_name_or_path = None
    shrink(model_args)
    if model_args.model_name_or_path is not None:
        model_args.model_name_or_path = untrained(model_args.model_name_or_path)
    trainer, _ = prepare(model_args, data_args, training_args, print)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not parameter.equal(before[name])}
    frozen = {name for name in before if "pixel_level_module" in name} if model_args.freeze else set()
    if model_args.model_type == "mpvss":
        heads = ("segmenter.class_predictor.", "segmenter.model.transformer_module.decoder.mask_predictor.")
        frozen = {name for name in before if not name.startswith(("flow.", *heads))}
    assert moved and moved <= before.keys() - frozen
    assert len(moved) > 0.9 * len(before.keys() - frozen)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == num_steps and all(0 < entry["loss"] < float("inf") for entry in entries)
    has_second_round = getattr(trainer.model.config, "matching_rounds", 1) == 2
    assert any("loss_secondary" in name for name in entries[0]) == has_second_round
