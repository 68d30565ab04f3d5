# SPDX-License-Identifier: Apache-2.0
"""`themask segment`: label every frame of a video, and show, keep or count the labels."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .command import (
    add_command,
    add_labelling_options,
    autocast,
    check_apart,
    check_labelling_options,
    counted,
    load_model,
    usable_device,
)


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "segment", run)
    command.add_argument("input", help="video file or URL, folder of jpg or png frames, or number of a camera")
    command.add_argument("--model", required=True, metavar="DIR", help="saved model (folder or Hub id)")
    _add_outputs(command.add_argument_group("outputs, at least one"))
    command.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames; a camera needs it")
    _add_augmentation(command.add_argument_group("test-time augmentation: several passes, and one result"))
    add_segmentation_options(command)


def add_segmentation_options(command: argparse.ArgumentParser) -> None:
    """Add what can be said about every video, whatever its results are."""
    add_labelling_options(command)
    command.add_argument(
        "--bf16",
        action="store_true",
        help="compute in bfloat16 where little is lost: faster on devices that have instructions for it",
    )
    command.add_argument("--no-legend", dest="legend", action="store_false", help="leave out the class names")


def _add_outputs(group: Any) -> None:
    group.add_argument("-o", "--output", type=Path, metavar="MP4", help="the video with the class colours on top")
    group.add_argument("--labels", type=Path, metavar="DIR", help="class indices, one PNG per frame; a new folder")
    group.add_argument("--label-track", type=Path, metavar="MKV", help="class indices of all frames, lossless")
    group.add_argument(
        "--statistics", type=Path, metavar="FILE", help="pixels of each class in each frame, as .csv or .parquet"
    )
    group.add_argument("--contact-sheet", type=Path, metavar="PNG", help="frames from the whole video on one sheet")
    group.add_argument("--timeline", type=Path, metavar="PNG", help="plot of each class's share over time")


def _add_augmentation(group: Any) -> None:
    group.add_argument(
        "--tta",
        type=_scales,
        default=(1.0,),
        metavar="SCALES",
        help="sizes of the network's input against its usual one, such as 0.9,1.0,1.1,1.2; a pass for each",
    )
    group.add_argument("--flip", action="store_true", help="a pass with mirrored frames for each scale, too")
    group.add_argument(
        "--tta-combine",
        choices=("votes", "scores"),
        default="votes",
        help="what is made of the passes: the label of most, or that of the highest average score, which takes more "
        "disk (17 MiB per frame for 124 classes at 576x1024) and is the only choice for two passes (default: votes)",
    )


def _scales(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between them, such as 0.9,1.0,1.1,1.2. Got {text}."
        ) from None


def run(options: argparse.Namespace) -> None:
    """Label every frame of a video, and show, keep or count the labels."""
    from transformers_themask.mvc.tta import TTA, check_repeatable, open_passes, segment_video_in_passes
    from transformers_themask.videos.frame_source import Camera, open_frame_source
    from transformers_themask.videos.source import IncompleteVideoError

    _check_options(options)
    tta = TTA(options.tta, options.flip, options.tta_combine)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    if isinstance(source, Camera) and options.max_frames is None:
        raise ValueError(f"`--max-frames` must say when to stop, as a camera has no end. Got camera {options.input}.")
    if len(tta.passes) > 1:
        check_repeatable(source)
    model, processor = load_model(options.model)
    clips = options.mode, options.num_frames, options.frame_stride
    sessions = open_passes(model.to(device), processor, tta, *clips)
    sinks = open_sinks(options, source, model.config)
    try:
        with autocast(device, options.bf16):
            result = segment_video_in_passes(
                sessions, source, list(sinks.values()), tta.combine, max_frames=options.max_frames, progress=True
            )
    except IncompleteVideoError:
        _report(sinks, None)
        raise
    _report(sinks, result.num_frames)
    if options.output is not None and options.legend and not sinks[options.output].has_legend:
        print("The pictures are too small for a legend. Their colours are:")
        for name, color in sinks[options.output].class_colors.items():
            print(f"  {color}  {name}")


def _check_options(options: argparse.Namespace) -> None:
    """Find what is wrong before anything is loaded."""
    from transformers_themask.inference.segment_video import check_max_frames
    from transformers_themask.sinks.output_folder import check_new_folder, check_output_folder

    paths = {argument: path for argument, path, _ in _file_outputs(options)}
    if options.labels is not None:
        paths["--labels"] = options.labels
    if not paths:
        raise ValueError("At least one output must be named. Got none; `-o OUT.mp4` writes the overlay video.")
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
    check_max_frames(options.max_frames)
    check_labelling_options(options)


def _file_outputs(options: argparse.Namespace) -> list[tuple[str, Path, Callable[[Path, str], None]]]:
    """Argument, path and check of every output file that is asked for."""
    from transformers_themask.sinks.class_statistics import check_statistics_path
    from transformers_themask.sinks.contact_sheet import check_contact_sheet_path
    from transformers_themask.sinks.label_track import check_label_track_path
    from transformers_themask.sinks.timeline import check_timeline_path
    from transformers_themask.videos.video_writer import check_mp4_path

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
    from transformers_themask.drawing.palettes import named_palette
    from transformers_themask.sinks.class_statistics import ClassStatistics
    from transformers_themask.sinks.contact_sheet import ContactSheet
    from transformers_themask.sinks.label_maps import LabelFolder
    from transformers_themask.sinks.label_track import LabelTrack
    from transformers_themask.sinks.overlay_video import OverlayVideo
    from transformers_themask.sinks.timeline import ClassTimeline

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
