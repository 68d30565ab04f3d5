# SPDX-License-Identifier: Apache-2.0
"""`themask segment`: label every frame of a video, and show, keep or count the labels."""

import argparse

import torch

from transformers_themask.inference.loading import load_class_names, load_model
from transformers_themask.mvc.passes import check_repeatable, open_passes, segment_video_in_passes
from transformers_themask.mvc.tta import TTA
from transformers_themask.sinks.outputs import Drawing, Outputs
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import Camera, open_frame_source
from transformers_themask.videos.source import IncompleteVideoError

from .command import check_apart, usable_device

ARGUMENTS = {
    "overlay": "--output",
    "labels": "--labels",
    "label_track": "--label-track",
    "statistics": "--statistics",
    "contact_sheet": "--contact-sheet",
    "timeline": "--timeline",
}


def run(options: argparse.Namespace) -> None:
    """Segment the video, and print what has been written."""
    outputs = _outputs(options)
    tta = TTA(options.tta, options.flip, options.tta_combine)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    if isinstance(source, Camera) and options.max_frames is None:
        raise ValueError(
            f"`--max-frames` must be given for a camera, which never ends. Got camera {options.input} without it."
        )
    if len(tta.passes) > 1:
        check_repeatable(source)
    # Before the weights are loaded: what is wrong with an output is found at once.
    sinks = outputs.open(
        source,
        load_class_names(options.model, "--model"),
        Drawing(options.palette, options.alpha, options.legend),
        cut_sound=options.max_frames is not None,
        arguments=ARGUMENTS,
    )
    model, processor = load_model(options.model, device, "--model")
    sessions = open_passes(model, processor, tta, options.mode, options.num_frames, options.frame_stride)
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.bf16):
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


def _outputs(options: argparse.Namespace) -> Outputs:
    values = {name: getattr(options, argument[2:].replace("-", "_")) for name, argument in ARGUMENTS.items()}
    outputs = Outputs(**values)
    if not outputs.paths():
        raise ValueError("At least one output must be given, such as `-o OUT.mp4` for the overlay video.")
    for name, path in outputs.paths().items():
        check_apart(ARGUMENTS[name], path, options.input)
    return outputs


def _report(outputs: Outputs, num_frames: int | None) -> None:
    for path in outputs.paths().values():
        print(path if num_frames is None else f"{path}: {counted(num_frames, 'frame')}")
