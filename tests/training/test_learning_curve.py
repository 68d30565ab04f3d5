# SPDX-License-Identifier: Apache-2.0
import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tiny import tiny_model
from transformers_themask.training.learning_curve import draw_learning_curve, write_learning_curve
from transformers_themask.training.trainer import VSSTrainer

SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    {"step": 10, "epoch": 0.5, "loss": 8.0, "loss_class": 5.0, "loss_mask": 3.0, "primary_query_share": 0.1},
    {"step": 20, "epoch": 1.0, "loss": 4.0, "loss_class": 3.0, "loss_mask": 1.0, "primary_query_share": 0.2},
    {"step": 20, "epoch": 1.0, "eval_mean_iou": 0.25, "eval_vc8": 0.5, "eval_num_videos": 3.0},
    {"step": 30, "epoch": 1.5, "loss": 2.0, "loss_class": 1.5, "loss_mask": 0.5, "primary_query_share": 0.2},
    {"step": 40, "epoch": 2.0, "eval_mean_iou": 0.75, "eval_vc8": 1.0, "eval_num_videos": 3.0},
    {"step": 40, "epoch": 2.0, "train_runtime": 7.0, "train_loss": 4.7},
]


def curve_in(svg: Path, name: str) -> np.ndarray:
    """Points of the curve with identifier `name`, in units of the picture, upwards: `(points, 2)`."""
    (group,) = [element for element in ElementTree.parse(svg).iter(f"{SVG}g") if element.get("id") == name]
    drawn = group.find(f"{SVG}path").get("d")
    return np.array(re.findall(r"[ML] (\S+) (\S+)", drawn), dtype=float) * (1, -1)


def assert_proportional(drawn, values):
    """Drawn lengths are those of the values but for a shift and a positive scale."""
    drawn, values = np.asarray(drawn) - drawn[0], np.asarray(values) - values[0]
    assert drawn[-1] / values[-1] > 0
    np.testing.assert_allclose(drawn / drawn[-1], values / values[-1], atol=1e-4)


def test_plot_holds_every_logged_point_of_losses_scores_and_shares(tmp_path):
    draw_learning_curve(HISTORY, tmp_path / "curve")
    svg = tmp_path / "curve.svg"
    for name, transform in (
        ("loss", np.log),
        ("loss_class", np.log),
        ("loss_mask", np.log),
        ("eval_mean_iou", np.asarray),
        ("eval_vc8", np.asarray),
        ("primary_query_share", np.asarray),
    ):
        entries = [entry for entry in HISTORY if name in entry]
        points = curve_in(svg, name)
        assert_proportional(points[:, 0], [entry["step"] for entry in entries])
        assert_proportional(points[:, 1], transform([entry[name] for entry in entries]))
    words = {element.text for element in ElementTree.parse(svg).iter(f"{SVG}text")}
    assert {"optimiser step", "loss", "loss_mask", "eval_vc8", "share of queries with a target"} <= words
    assert not words & {"train_loss", "eval_num_videos"}
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 6


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0])
def test_plot_handles_infinite_and_missing_losses(tmp_path, loss):
    draw_learning_curve([HISTORY[0], {"step": 20, "epoch": 1.0, "loss": loss}], tmp_path / "curve")
    assert len(curve_in(tmp_path / "curve.svg", "loss_class")) == 1


def test_run_without_losses_and_scores_has_no_plot(tmp_path):
    draw_learning_curve(HISTORY[-1:], tmp_path / "curve")
    assert list(tmp_path.iterdir()) == []


def test_table_has_one_row_per_step_and_a_column_per_loss_term(tmp_path):
    write_learning_curve(HISTORY, tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "30", "40"]
    assert [row["loss_mask"] for row in rows] == ["3.0", "1.0", "0.5", ""]
    assert [row["eval_mean_iou"] for row in rows] == ["", "0.25", "", "0.75"]
    assert "train_runtime" not in rows[0]


def test_a_run_leaves_table_and_plot_with_each_checkpoint(clips, training_arguments, processor):
    args = training_arguments(max_steps=3, save_strategy="steps", save_steps=2, seed=1)
    trainer = VSSTrainer(tiny_model(num_labels=8), args, processor, train_dataset=clips())
    trainer.train()
    folder = Path(args.output_dir)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    points = curve_in(folder / "learning_curve.svg", "loss")
    assert len(points) == len(losses) == 3
    assert_proportional(
        points[:, 1] if losses[-1] > losses[0] else -points[:, 1], np.sign(losses[-1] - losses[0]) * np.log(losses)
    )
    Image.open(folder / "learning_curve.png").verify()
    assert "primary_query_share" in (folder / "learning_curve.csv").read_text().splitlines()[0].split(",")
