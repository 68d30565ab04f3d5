# SPDX-License-Identifier: Apache-2.0
"""`themask compare`: two models on one video, side by side."""

import argparse
from pathlib import Path
from typing import Any

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.files.output_paths import check_output_file, check_output_folder
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.paired_session import PairedSession
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.comparison_video import ComparedModel, ComparisonVideo
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

from .command import check_apart, usable_device


def run(options: argparse.Namespace) -> None:
    """Draw what two models see in a video side by side, over maps of where each of them flickers."""
    _check_options(options)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    titles = [f"{letter}: {Path(path).name}" for letter, path in (("A", options.first), ("B", options.second))]
    loaded = [load_model(path, device, letter) for letter, path in (("A", options.first), ("B", options.second))]
    sessions = [
        model.stream(processor, options.mode, options.num_frames, options.frame_stride) for model, processor in loaded
    ]
    first, second = (
        _compared(title, model.config, options.palette) for title, (model, _) in zip(titles, loaded, strict=True)
    )
    sink = ComparisonVideo(options.output, source, (first, second), options.alpha)
    try:
        segment_video(PairedSession(*sessions), source, [sink], progress=True)
    except IncompleteVideoError:
        _report(options.output, titles, sink)
        raise
    _report(options.output, titles, sink)


def _check_options(options: argparse.Namespace) -> None:
    """Find what is wrong before anything is loaded."""
    check_apart("--output", options.output, options.input)
    check_output_file("--output", options.output, ".mp4")
    check_output_folder("--output", options.output.parent)


def _compared(title: str, config: Any, palette: str) -> Any:
    class_names = [config.id2label[index] for index in sorted(config.id2label)]
    return ComparedModel(title, class_names, named_palette(palette, len(class_names)))


def _report(output: Path, titles: list[str], sink: Any) -> None:
    print(f"{output}: {counted(sink.num_frames, 'frame')}")
    for title, changed_share in zip(titles, sink.mean_changed_shares, strict=True):
        share = "-" if changed_share is None else f"{changed_share:.2%}"
        print(f"{title}: {share} of the pixels change their label from frame to frame")
    if sink.has_same_classes:
        print(f"A and B agree on {sink.mean_agreement:.2%} of the pixels")
    else:
        print("Agreement is undefined: the models have different classes")
