# SPDX-License-Identifier: Apache-2.0
"""`themask segment`: label every frame of a video, and show, keep or count the labels."""

import argparse

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.inference.loading import load_model
from transformers_themask.mvc.passes import check_repeatable, open_passes, segment_video_in_passes
from transformers_themask.mvc.tta import TTA
from transformers_themask.sinks.outputs import Coloring, Outputs
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import Camera, open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

from .command import autocast, check_apart, usable_device

# What each output is called on the command line.
ARGUMENTS = {
    "overlay": "--output",
    "labels": "--labels",
    "label_track": "--label-track",
    "statistics": "--statistics",
    "contact_sheet": "--contact-sheet",
    "timeline": "--timeline",
}


def run(options: argparse.Namespace) -> None:
    """Label every frame of a video, and show, keep or count the labels."""
    _check_options(options)
    tta = TTA(options.tta, options.flip, options.tta_combine)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    if isinstance(source, Camera) and options.max_frames is None:
        raise ValueError(
            f"`--max-frames` must be given for a camera, which never ends. Got camera {options.input} without it."
        )
    if len(tta.passes) > 1:
        check_repeatable(source)
    model, processor = load_model(options.model, argument="--model")
    clips = options.mode, options.num_frames, options.frame_stride
    sessions = open_passes(model.to(device), processor, tta, *clips)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    coloring = Coloring(names, named_palette(options.palette, len(names)), options.alpha)
    outputs = _outputs(options)
    sinks = outputs.open(source, coloring, legend=options.legend, cut_sound=options.max_frames is not None)
    try:
        with autocast(device, options.bf16):
            num_frames = segment_video_in_passes(
                sessions, source, list(sinks.values()), tta.combine, max_frames=options.max_frames, progress=True
            )
    except IncompleteVideoError:
        _report(outputs, None)
        raise
    _report(outputs, num_frames)
    overlay = sinks.get("overlay")
    if isinstance(overlay, OverlayVideo) and options.legend and not overlay.has_legend:
        print("The pictures are too small for a legend. Their colours are:")
        for name, color in overlay.class_colors.items():
            print(f"  {color}  {name}")


def _check_options(options: argparse.Namespace) -> None:
    """Find what is wrong before anything is loaded."""
    outputs = _outputs(options)
    if not outputs.paths():
        raise ValueError("At least one output must be given, such as `-o OUT.mp4` for the overlay video.")
    for name, path in outputs.paths().items():
        if name != "labels":
            check_apart(ARGUMENTS[name], path, options.input)
    outputs.check(ARGUMENTS)


def _outputs(options: argparse.Namespace) -> Outputs:
    return Outputs(
        overlay=options.output,
        labels=options.labels,
        label_track=options.label_track,
        statistics=options.statistics,
        contact_sheet=options.contact_sheet,
        timeline=options.timeline,
    )


def _report(outputs: Outputs, num_frames: int | None) -> None:
    for path in outputs.paths().values():
        print(path if num_frames is None else f"{path}: {counted(num_frames, 'frame')}")
