# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny import tiny_model
from transformers_themask.data.synthetic import render_synthetic_video, synthetic_class_names
from transformers_themask.demo import HELD_OUT_SEED, compare, draw_held_out_clip, training_command
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.training.recipes import parse_recipe
from transformers_themask.videos.video_reader import VideoReader


def test_held_out_clip_is_segmented_and_compared(segmenter, tmp_path):
    names = dict(enumerate(synthetic_class_names(8)))
    model = tiny_model(
        num_frames=2, num_labels=8, id2label=names, label2id={name: index for index, name in names.items()}
    )
    for part in (model, segmenter.processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "demo" / "label_maps").mkdir(parents=True)
    (tmp_path / "demo" / "label_maps" / "00009999.png").touch()  # of an earlier run
    paths = draw_held_out_clip(tmp_path / "model", tmp_path / "demo")
    frames, _ = render_synthetic_video(HELD_OUT_SEED, size=(384, 480))
    shown = VideoReader(paths["overlay video"])
    assert (len(list(shown)), shown.height, shown.width) == (len(frames), 384, 480)
    assert len(list(paths["label maps"].glob("*.png"))) == len(frames)
    comparison = np.asarray(Image.open(paths["comparison"]))
    middle = frames[len(frames) // 2]
    top = next(row for row in range(60) if np.array_equal(comparison[row : row + 384, :480], middle))
    assert comparison.shape[1] > 3 * 480 and comparison.shape[0] > top + 384


def test_comparison_shows_prediction_and_truth_in_class_colors():
    black = np.zeros((100, 200, 3), dtype=np.uint8)
    names = ["sky", "meadow", "dots"]
    prediction, truth = np.full((100, 200), 1, dtype=np.uint8), np.full((100, 200), 2, dtype=np.uint8)
    picture = np.asarray(compare(black, prediction, truth, names)).astype(int)
    palette = class_palette(3)
    middle = picture.shape[0] // 2
    assert np.abs(picture[middle, picture.shape[1] // 2] - 0.7 * palette[1]).max() <= 0.5
    assert np.abs(picture[middle, -100] - 0.7 * palette[2]).max() <= 0.5
    legend = picture[-picture.shape[0] // 10 :]
    assert [(legend == color).all(axis=2).any() for color in palette.tolist()] == [False, True, True]


@pytest.mark.parametrize(("recipe", "num_frames"), [("demo_stage1.yaml", 1), ("demo_stage2.yaml", 2)])
def test_training_script_accepts_the_demo_recipes(recipe, num_frames):
    command = training_command(recipe, ["--data_root", "elsewhere"])
    script = next(index for index, argument in enumerate(command) if Path(argument).name == "run_vss.py")
    model_args, data_args, training_args = parse_recipe(command[script + 1 :])
    assert command[0] == sys.executable
    assert data_args.data_root == "elsewhere" and training_args.do_train and training_args.do_eval
    assert model_args.config_overrides["num_frames"] == num_frames


def test_demo_outside_a_checkout_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"from a checkout of the repository. Got .*run_vss.py"):
        training_command("demo_stage1.yaml", [], checkout=tmp_path)
