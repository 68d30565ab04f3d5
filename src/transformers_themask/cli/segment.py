# SPDX-License-Identifier: Apache-2.0
"""`themask segment`: write a video again with the class colours on top."""

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

from .command import add_command, counted, load_model, usable_device


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "segment", run)
    command.add_argument("input", help="video file or URL, or folder of jpg or png frames")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="MP4", help="overlay video to write")
    command.add_argument("--model", required=True, metavar="DIR", help="saved model (folder or Hub id)")
    command.add_argument(
        "--labels", type=Path, metavar="DIR", help="also write class indices, one PNG per frame, to a new folder"
    )
    command.add_argument("--num-frames", type=int, metavar="N", help="frames per clip (default: the model's)")
    command.add_argument(
        "--frame-stride",
        type=int,
        default=1,
        metavar="N",
        help="distance between the frames of a clip (default: 1; run_vss.py evaluates with the recipe's "
        "eval_frame_stride)",
    )
    command.add_argument("--alpha", type=float, default=0.5, help="opacity of the colours, 0 to 1 (default: 0.5)")
    command.add_argument("--no-legend", dest="legend", action="store_false", help="leave out the class names")
    command.add_argument("--frame-rate", type=Fraction, default=Fraction(15), help="of a folder (default: 15)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")


def run(options: argparse.Namespace) -> None:
    """Write a video again with the class colours on top."""
    from transformers_themask.models.streaming import check_clip_options
    from transformers_themask.inference.frame_source import open_frame_source
    from transformers_themask.inference.output_folder import check_new_folder, check_output_folder
    from transformers_themask.inference.overlay_video import write_overlay_video
    from transformers_themask.inference.video_io import check_mp4_path
    from transformers_themask.inference.visualization import check_alpha

    if Path(options.input).resolve() == options.output.resolve():
        raise ValueError(f"`--output` must differ from the input. Got {options.output} for both.")
    check_mp4_path(options.output, "--output")
    check_output_folder("--output", options.output.parent)
    if options.labels is not None:
        check_new_folder("--labels", options.labels)
    check_alpha(options.alpha)
    check_clip_options(1 if options.num_frames is None else options.num_frames, options.frame_stride)
    device = usable_device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    model, processor = load_model(options.model)
    written = write_overlay_video(
        model,
        processor,
        source,
        options.output,
        labels_dir=options.labels,
        num_frames=options.num_frames,
        frame_stride=options.frame_stride,
        alpha=options.alpha,
        legend=options.legend,
        device=device,
        progress=True,
    )
    print(f"{options.output}: {counted(written.num_frames, 'frame')}")
    if options.labels is not None:
        print(f"{options.labels}: {counted(written.num_frames, 'label map')}")
    if options.legend and not written.has_legend:
        print("The pictures are too small for a legend. Their colours are:")
        for name, color in written.class_colors.items():
            print(f"  {color}  {name}")
