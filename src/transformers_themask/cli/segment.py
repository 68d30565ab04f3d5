# SPDX-License-Identifier: Apache-2.0
"""`themask segment`: label every frame of a video, and show, keep or count the labels."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers_themask.drawing.palettes import named_palette
from transformers_themask.inference.loading import load_model
from transformers_themask.mvc.passes import check_repeatable, open_passes, segment_video_in_passes
from transformers_themask.mvc.tta import TTA
from transformers_themask.sinks.class_statistics import ClassStatistics, check_statistics_path
from transformers_themask.sinks.contact_sheet import ContactSheet, check_contact_sheet_path
from transformers_themask.sinks.label_maps import LabelFolder
from transformers_themask.sinks.label_track import LabelTrack, check_label_track_path
from transformers_themask.sinks.output_folder import check_new_folder, check_output_folder
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.sinks.timeline import ClassTimeline, check_timeline_path
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import Camera, open_frame_source
from transformers_themask.videos.source import IncompleteVideoError
from transformers_themask.videos.video_writer import check_mp4_path

from .command import autocast, check_apart, usable_device


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
    sinks = open_sinks(options, source, model.config)
    try:
        with autocast(device, options.bf16):
            num_frames = segment_video_in_passes(
                sessions, source, list(sinks.values()), tta.combine, max_frames=options.max_frames, progress=True
            )
    except IncompleteVideoError:
        _report(sinks, None)
        raise
    _report(sinks, num_frames)
    if options.output is not None and options.legend and not sinks[options.output].has_legend:
        print("The pictures are too small for a legend. Their colours are:")
        for name, color in sinks[options.output].class_colors.items():
            print(f"  {color}  {name}")


def _check_options(options: argparse.Namespace) -> None:
    """Find what is wrong before anything is loaded."""
    paths = {argument: path for argument, path, _ in _file_outputs(options)}
    if options.labels is not None:
        paths["--labels"] = options.labels
    if not paths:
        raise ValueError("At least one output must be given, such as `-o OUT.mp4` for the overlay video.")
    for argument, path, check in _file_outputs(options):
        check_apart(argument, path, options.input)
        if options.labels is not None and options.labels.resolve() in path.resolve().parents:
            raise ValueError(
                f"`{argument}` must not lie in the folder of `--labels`, which holds label maps only. Got {path}."
            )
        check(path, argument)
        check_output_folder(argument, path.parent)
    for (first, path), (second, other) in itertools.combinations(paths.items(), 2):
        if path.resolve() == other.resolve():
            raise ValueError(f"`{first}` and `{second}` must differ. Got {path} for both.")
    if options.labels is not None:
        check_new_folder("--labels", options.labels)


def _file_outputs(options: argparse.Namespace) -> list[tuple[str, Path, Callable[[Path, str], None]]]:
    """Argument, path and check of every output file that is asked for."""
    outputs = [
        ("--output", options.output, check_mp4_path),
        ("--label-track", options.label_track, check_label_track_path),
        ("--statistics", options.statistics, check_statistics_path),
        ("--contact-sheet", options.contact_sheet, check_contact_sheet_path),
        ("--timeline", options.timeline, check_timeline_path),
    ]
    return [output for output in outputs if output[1] is not None]


def open_sinks(options: argparse.Namespace, source: Any, config: Any) -> dict[Path, Any]:
    """What is asked for, by the path it is written to."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    palette = named_palette(options.palette, len(names))
    is_cut = options.max_frames is not None
    makers: list[tuple[Path | None, Callable[[Path], Any]]] = [
        (
            options.output,
            lambda path: OverlayVideo(
                path, source, names, palette, alpha=options.alpha, legend=options.legend, cut_sound=is_cut
            ),
        ),
        (options.labels, LabelFolder),
        (options.label_track, lambda path: LabelTrack(path, source, names, palette)),
        (options.statistics, lambda path: ClassStatistics(path, names)),
        (options.contact_sheet, lambda path: ContactSheet(path, names, palette, alpha=options.alpha)),
        (options.timeline, lambda path: ClassTimeline(path, names, palette)),
    ]
    return {path: make(path) for path, make in makers if path is not None}


def _report(sinks: dict[Path, Any], num_frames: int | None) -> None:
    for path in sinks:
        print(path if num_frames is None else f"{path}: {counted(num_frames, 'frame')}")
