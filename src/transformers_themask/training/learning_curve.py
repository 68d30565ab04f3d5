# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run as a table and a plot in its output folder."""

import csv
from pathlib import Path

from transformers import TrainerCallback

from transformers_themask.files.atomic import AtomicFile

from .curve_plot import draw_learning_curve

FILE_NAME = "learning_curve.csv"
# The first columns of every table; all other values logged with the loss follow in alphabetical order.
COLUMNS = ("step", "epoch", "loss", "learning_rate", "eval_mean_iou", "eval_weighted_iou", "eval_vc8", "eval_vc16")


def write_learning_curve(log_history: list[dict], path: Path) -> None:
    """Write a CSV row per logged optimiser step; a value that was not logged at a step is left empty."""
    others = {name for entry in log_history if "loss" in entry for name in entry} - set(COLUMNS)
    columns = [*COLUMNS, *sorted(others)]
    rows: dict[int, dict] = {}
    for entry in log_history:
        known = {column: entry[column] for column in columns if column in entry}
        if known.keys() - {"step", "epoch"}:
            rows.setdefault(entry["step"], {}).update(known)
    with AtomicFile(path) as hidden, hidden.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))


class LearningCurveCallback(TrainerCallback):
    """Keeps `learning_curve.csv`, `.svg` and `.png` in the output folder up to date.

    They are rewritten from the trainer's state, so a resumed run continues the curve without gaps.
    """

    def on_evaluate(self, args, state, control, **kwargs):
        """Write table and plot."""
        if state.is_world_process_zero and state.log_history:
            path = Path(args.output_dir) / FILE_NAME
            write_learning_curve(state.log_history, path)
            draw_learning_curve(state.log_history, path)

    on_save = on_train_end = on_evaluate
