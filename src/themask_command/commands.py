# SPDX-License-Identifier: Apache-2.0
"""The sub-commands: a function for each adds its options to a parser; its docstring is its help."""

from argparse import ArgumentParser
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from .option_types import frame_rate, scales, share, whole_number

# As in the package, whose import takes seconds; a test compares them.
PALETTES = ("default", "vspw", "colour-blind")
MODES = ("contiguous", "interleaved", "sliding", "recurrent")
EXPORTED_MODES = ("contiguous", "sliding", "recurrent")
EXPORT_FORMATS = ("onnx", "torch")
TTA_COMBINATIONS = ("votes", "scores")
FLOW_DIRECTIONS = ("forward", "backward")
PREDICTION_IDS = ("reduced", "raw")


def segment(command: ArgumentParser) -> None:
    """Label every frame of a video, and show, keep or count the labels."""
    command.add_argument("input", help="video file or URL, folder of jpg or png frames, or number of a camera")
    command.add_argument("--model", required=True, metavar="DIR", help="saved model (folder or Hub id)")
    outputs = command.add_argument_group("outputs, at least one")
    outputs.add_argument("-o", "--output", type=Path, metavar="MP4", help="the video with the class colours on top")
    outputs.add_argument("--labels", type=Path, metavar="DIR", help="class indices, one PNG per frame; a new folder")
    outputs.add_argument("--label-track", type=Path, metavar="MKV", help="class indices of all frames, lossless")
    outputs.add_argument("--statistics", type=Path, metavar="FILE", help="class pixels per frame, as .csv or .parquet")
    outputs.add_argument("--contact-sheet", type=Path, metavar="PNG", help="frames from the whole video on one sheet")
    outputs.add_argument("--timeline", type=Path, metavar="PNG", help="plot of each class's share over time")
    command.add_argument(
        "--max-frames", type=whole_number(1), metavar="N", help="stop after N frames; required for a camera"
    )
    group = command.add_argument_group("test-time augmentation: several passes, and one result")
    group.add_argument(
        "--tta",
        type=scales,
        default=(1.0,),
        metavar="SCALES",
        help="input sizes relative to the network's usual one, such as 0.9,1.0,1.1,1.2; one pass each",
    )
    group.add_argument("--flip", action="store_true", help="also a pass with mirrored frames for each scale")
    group.add_argument(
        "--tta-combine",
        choices=TTA_COMBINATIONS,
        default="votes",
        help="how passes are combined: by majority vote, or by the highest average score, which takes more disk (17 "
        "MiB per frame for 124 classes at 576x1024) and is the only choice for two passes (default: votes)",
    )
    add_segmentation_options(command)


def add_segmentation_options(command: ArgumentParser) -> None:
    """Add the options of everything that segments videos, independent of its outputs."""
    _add_labelling_options(command)
    command.add_argument("--bf16", action="store_true", help="compute in bfloat16, which some devices do faster")
    command.add_argument("--no-legend", dest="legend", action="store_false", help="leave out the class names")


def _add_labelling_options(command: ArgumentParser) -> None:
    _add_clip_options(command)
    _add_palette_option(command)
    command.add_argument("--alpha", type=share, default=0.5, help="opacity of the colours, 0 to 1 (default: 0.5)")
    command.add_argument(
        "--frame-rate", type=frame_rate, default=Fraction(15), help="frames per second of a folder (default: 15)"
    )


def _add_clip_options(command: ArgumentParser) -> None:
    command.add_argument(
        "--mode",
        choices=MODES,
        help="how frames share a clip: contiguous blocks, the official interleaved blocks, each frame with the ones "
        "before it, or passed on from frame to frame (default: the model's first)",
    )
    _add_clip_length_option(command)
    command.add_argument(
        "--frame-stride",
        type=whole_number(1),
        metavar="N",
        help="distance between the frames of a clip (default: 3 for interleaved clips, otherwise 1; run_vss.py "
        "evaluates with the recipe's eval_frame_stride)",
    )
    _add_device_option(command)


def _add_clip_length_option(command: ArgumentParser) -> None:
    command.add_argument(
        "--num-frames", type=whole_number(1), metavar="N", help="frames per clip (default: the model's)"
    )


def _add_palette_option(command: ArgumentParser) -> None:
    command.add_argument("--palette", choices=PALETTES, default="default", help="class colours (default: default)")


def _add_device_option(command: ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")


def _add_labelled_video_options(command: ArgumentParser) -> None:
    videos = command.add_mutually_exclusive_group(required=True)
    videos.add_argument("--video", metavar="VIDEO", help="video file or URL, or folder of jpg or png frames")
    videos.add_argument("--data", type=Path, metavar="ROOT", help="data set")
    command.add_argument("--split", default="val", help="name of the split file of --data (default: val)")


def compare(command: ArgumentParser) -> None:
    """Draw the labels of two models side by side, over maps of where each of them flickers."""
    for argument, metavar in (("first", "A"), ("second", "B")):
        command.add_argument(argument, metavar=metavar, help=f"{argument} saved model (folder or Hub id)")
    command.add_argument("input", metavar="VIDEO", help="video file or URL, or folder of jpg or png frames")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="MP4", help="video to write")
    _add_labelling_options(command)


def aggregate(command: ArgumentParser) -> None:
    """Keep the most stable of several results for each video. Stable is not accurate: a constant result scores 1."""
    command.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="two or more: a folder of label maps (<frame>.png, or <video>/<frame>.png for a data set) or a saved "
        "model (folder or Hub id), which labels the videos first; the first wins where scores are equal",
    )
    _add_labelled_video_options(command)
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the chosen label maps; a new folder",
    )
    command.add_argument(
        "--flow",
        choices=FLOW_DIRECTIONS,
        default="forward",
        help="optical flow that carries label maps to the next frame: forward, as in the paper, or backward, which "
        "is exact (default: forward)",
    )
    command.add_argument("--scores", type=Path, metavar="FILE", help="all scores as JSON (default: OUTPUT.json)")
    _add_clip_options(command)


def correct(command: ArgumentParser) -> None:
    """Ask a vision-language model which of several look-alikes (river, lake, sea) a video shows, and relabel it."""
    command.add_argument(
        "labels", type=Path, metavar="LABELS", help="holds <frame>.png with --video, <video>/<frame>.png with --data"
    )
    _add_labelled_video_options(command)
    command.add_argument(
        "--class-names",
        type=Path,
        metavar="PATH",
        help="classes of --video: a text file with one name per line, or the folder of the model that labelled it",
    )
    command.add_argument("--vlm", required=True, type=Path, metavar="DIR", help="saved image-text-to-text model")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="label maps to write")
    command.add_argument(
        "--log",
        type=Path,
        metavar="DIR",
        help="questions, answers and the pictures that were shown; a new folder (default: OUTPUT_log, or "
        "OUTPUT_dry_run_log)",
    )
    command.add_argument(
        "--groups",
        type=Path,
        metavar="YAML",
        help="classes that look alike, as in `water: [river, lake, sea, water]` (default: this group)",
    )
    command.add_argument(
        "--minimum-share",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="share of a video's pixels, 0 to 1, that a group must have to be asked about (default: 0.01)",
    )
    command.add_argument("--dry-run", action="store_true", help="ask and log, but write no label map")
    _add_device_option(command)


def queries(command: ArgumentParser) -> None:
    """Draw the masks of the primary and the secondary query of each class in one frame."""
    command.add_argument("model", metavar="MODEL", help="saved model (folder or Hub id)")
    command.add_argument("input", metavar="INPUT", help="video file or URL, or folder of jpg or png frames")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write")
    command.add_argument("--frame", type=whole_number(0), default=0, metavar="N", help="frame index (default: 0)")
    command.add_argument("--class", dest="class_name", metavar="NAME", help="show only this class")
    _add_clip_length_option(command)
    _add_palette_option(command)
    _add_device_option(command)


def evaluate(command: ArgumentParser) -> None:
    """Score a folder of label maps against a data set."""
    command.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="holds <video>/<frame>.png")
    command.add_argument("--data", type=Path, required=True, metavar="ROOT", help="data set")
    command.add_argument("--split", default="val", help="name of the split file (default: val)")
    command.add_argument(
        "--prediction-ids",
        choices=PREDICTION_IDS,
        default="reduced",
        help="reduced: class indices, as `segment` writes them; raw: ids of the mask files; class index k is raw id "
        "k + 1 (default: reduced)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to a file")


def card(command: ArgumentParser) -> None:
    """Write the model card of a model from the results of its evaluation."""
    command.add_argument("results", type=Path, metavar="RESULTS", help="results.json of an evaluation")
    command.add_argument("--model", type=Path, metavar="DIR", help="model folder, if the results do not name it")
    command.add_argument("--license", metavar="ID", help="licence of the weights, e.g. mit (default: unknown)")
    command.add_argument("--repo-id", metavar="ID", help="repository that the usage example loads")
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="(default: README.md next to the model or the results)"
    )


def data_check(command: ArgumentParser) -> None:
    """Check every file of a data set; the exit code is 0 if it can be used and 1 if a run would fail."""
    command.add_argument("path", type=Path, metavar="PATH", help="data set in a layout that run_vss.py reads")
    command.add_argument("--split", nargs="+", default=[], metavar="NAME", help="splits to check (default: all)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write all findings to a file")
    command.add_argument("--skip-damaged", action="store_true", help="name undecodable frames in PATH/skip.txt")


def convert(command: ArgumentParser) -> None:
    """Turn an official checkpoint into a model folder; the exit code is 1 if some of its entries are unknown."""
    command.add_argument("checkpoint", type=Path, help="official .pth file")
    command.add_argument("output", type=Path, help="model folder to write")
    command.add_argument("--data", type=Path, metavar="ROOT", help="data set that names the classes")
    command.add_argument(
        "--config-overrides",
        default="{}",
        metavar="MAPPING",
        help="configuration fields that leave no trace in a checkpoint, e.g. '{num_attention_heads: 4}'",
    )
    command.add_argument(
        "--motion-encoder",
        type=Path,
        metavar="FLOWNETS",
        help="FlowNetS weights for the motion encoder of a model with optical flow. The checkpoint may then be one of "
        "its segmenter alone; the rest of the flow network is new, to be trained",
    )


def export(command: ArgumentParser) -> None:
    """Write a model as ONNX or torch.export graphs: whole clips, and the step of a stream."""
    command.add_argument("model", help="saved model (folder or Hub id)")
    command.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="new folder for the graphs and manifest.json")
    command.add_argument(
        "--format", nargs="+", choices=EXPORT_FORMATS, default=["onnx"], help="one or both (default: onnx)"
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
        choices=EXPORTED_MODES,
        help="whole clips, or the step of a stream (default: all modes of the model)",
    )


def demo(command: ArgumentParser) -> None:
    """Train on synthetic videos, score the model and draw its labels; with --web, serve a model in the browser."""
    command.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")
    web = command.add_argument_group("in the browser")
    web.add_argument("--web", action="store_true", help="serve a page that segments the videos of its visitors")
    web.add_argument("--model", metavar="DIR", help="saved model, folder or Hub id (default: the one trained in -o)")
    web.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this computer only)")
    web.add_argument("--port", type=int, metavar="N", help="port to listen on (default: the first free one from 7860)")


GROUPS = {"data": "Check data sets."}
# In the order of `themask --help`.
COMMANDS: dict[str, Callable[[ArgumentParser], None]] = {
    "segment": segment,
    "compare": compare,
    "aggregate": aggregate,
    "correct": correct,
    "queries": queries,
    "evaluate": evaluate,
    "card": card,
    "data check": data_check,
    "convert": convert,
    "export": export,
    "demo": demo,
}
