# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run as a table and a plot in its output folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from transformers_themask.files.atomic import AtomicFile

FILE_NAME = "learning_curve.csv"
# The first columns of every table; all other values logged with the loss follow in alphabetical order.
COLUMNS = ("step", "epoch", "loss", "learning_rate", "eval_mean_iou", "eval_weighted_iou", "eval_vc8", "eval_vc16")
# Panels: label of the axis, and prefixes of the logged names in the order of the legend.
PANELS = (
    ("loss", ("loss", "frame_loss")),
    ("score on the evaluation videos", ("eval_mean_iou", "eval_weighted_iou", "eval_vc")),
    ("share of queries with a target", ("primary_query_share", "secondary_query_share")),
)
FORMATS = ("svg", "png")
MAX_MARKED_POINTS = 60  # beyond that, dots on a line hide it
PANEL_SIZE = (9.0, 3.2)  # inches; the legend takes a quarter of the width
# Text stays text, and equal curves give equal files.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "learning curve"}


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


def draw_learning_curve(log_history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the curves, if any, at `path` as `.svg`, in groups whose ids are the logged names, and `.png`."""
    panels = {label: curves for label, prefixes in PANELS if (curves := curves_of(log_history, prefixes))}
    if not panels:
        return
    # Imported here because it takes a second.
    import matplotlib
    from matplotlib.figure import Figure

    width, height = PANEL_SIZE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (label, curves) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, label, curves)
        all_axes[-1].set_xlabel("optimiser step")
        for suffix in FORMATS:
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(path.with_suffix(f".{suffix}"), dpi=120, metadata=metadata)


def curves_of(
    log_history: Sequence[Mapping[str, float]], prefixes: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Points `(step, value)` per logged name that starts with one of the prefixes, in their order."""
    names = dict.fromkeys(name for entry in log_history for name in entry)
    chosen = [name for prefix in prefixes for name in names if name.startswith(prefix)]
    return {name: [(entry["step"], entry[name]) for entry in log_history if name in entry] for name in chosen}


def _draw_panel(axes, label: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for index, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            linestyle="-" if index < 10 else "--",
            linewidth=2.0 if index == 0 else 1.2,
            marker="." if len(points) <= MAX_MARKED_POINTS else None,
            label=name,
            gid=name,
        )
    if label == "loss":
        axes.set_yscale("log")  # the terms are a tenth to a hundredth of the whole
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)


class LearningCurveCallback(TrainerCallback):
    """Keeps the curve in the output folder up to date, from the trainer's state: a resumed run leaves no gap."""

    def on_evaluate(self, args, state, control, **kwargs):
        """Write table and plot."""
        if state.is_world_process_zero and state.log_history:
            path = Path(args.output_dir) / FILE_NAME
            write_learning_curve(state.log_history, path)
            draw_learning_curve(state.log_history, path)

    on_save = on_train_end = on_evaluate
