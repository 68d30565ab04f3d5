# SPDX-License-Identifier: Apache-2.0
"""`themask export`: write a model as graphs that run without this package."""

import argparse

from transformers_themask.export.export_model import MANIFEST, export_model
from transformers_themask.inference.loading import load_model


def run(options: argparse.Namespace) -> None:
    """Export a model, and print how far each graph's scores differ from the model's."""
    model, processor = load_model(options.model, argument="--model")
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
