# SPDX-License-Identifier: Apache-2.0
"""`themask compare`: two models on one video, side by side."""

import argparse
from pathlib import Path

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.inference.loading import load_class_names, load_model
from transformers_themask.inference.paired_session import PairedSession
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.comparison_video import ComparedModel, ComparisonVideo
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

from .command import check_apart, usable_device


def run(options: argparse.Namespace) -> None:
    """Draw both models' labels, and print how far they flicker and agree."""
    check_apart("--output", options.output, options.input)
    check_output_folder("--output", options.output.parent)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    paths = {"A": options.first, "B": options.second}
    first, second = (_compared(letter, path, options.palette) for letter, path in paths.items())
    # Before the weights are loaded: what is wrong with the output is found at once.
    sink = ComparisonVideo(options.output, source, (first, second), options.alpha, argument="--output")
    sessions = []
    for letter, path in paths.items():
        model, processor = load_model(path, device, letter)
        sessions.append(model.stream(processor, options.mode, options.num_frames, options.frame_stride))
    try:
        segment_video(PairedSession(*sessions), source, [sink], progress=True)
    except IncompleteVideoError:
        _report(options.output, sink)
        raise
    _report(options.output, sink)


def _compared(letter: str, path: str, palette: str) -> ComparedModel:
    class_names = load_class_names(path, letter)
    return ComparedModel(f"{letter}: {Path(path).name}", class_names, named_palette(palette, len(class_names)))


def _report(output: Path, sink: ComparisonVideo) -> None:
    print(f"{output}: {counted(sink.num_frames, 'frame')}")
    for model, changed_share in zip(sink.models, sink.mean_changed_shares, strict=True):
        share = "-" if changed_share is None else f"{changed_share:.2%}"
        print(f"{model.title}: {share} of the pixels change their label from frame to frame")
    if sink.has_same_classes:
        print(f"A and B agree on {sink.mean_agreement:.2%} of the pixels")
    else:
        print("Agreement is undefined: the models have different classes")
