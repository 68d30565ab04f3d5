# SPDX-License-Identifier: Apache-2.0
"""`themask export`: write a model as graphs that run without this package."""

import argparse
from pathlib import Path
from typing import Any

from .command import add_command, load_model


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "export", run)
    command.add_argument("model", help="saved model (folder or Hub id)")
    command.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="new folder for the graphs and manifest.json")
    command.add_argument(
        "--format", nargs="+", choices=("onnx", "torch"), default=["onnx"], help="one or both (default: onnx)"
    )
    command.add_argument(
        "--size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="height and width of the network's input, for a graph of this size alone; may be given several times "
        "(default: one graph for all sizes)",
    )
    command.add_argument("--num-frames", type=int, metavar="T", help="frames of a window (default: the model's)")
    command.add_argument(
        "--mode",
        nargs="+",
        choices=("contiguous", "sliding", "recurrent"),
        help="whole clips, or the step of a stream (default: what the model has)",
    )


def run(options: argparse.Namespace) -> None:
    """Write a model as ONNX or torch.export graphs: whole clips, and the step of a stream."""
    from transformers_themask.export.export_model import MANIFEST, export_model

    model, processor = load_model(options.model)
    differences = export_model(
        model,
        processor,
        options.output,
        formats=options.format,
        sizes=options.size,
        num_frames=options.num_frames,
        modes=options.mode,
    )
    for path, difference in differences.items():
        print(f"{path}: scores differ from the model's by at most {difference:.1e}")
    print(f"{options.output / MANIFEST}")
