# SPDX-License-Identifier: Apache-2.0
"""The `themask` command: parse, call, print."""

# What a sub-command alone needs is imported inside it.
import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

INPUT_ERROR = 2
UNUSABLE_DATA = 1
# More lines than that are read in a file.
MAX_SHOWN_FINDINGS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. A problem with the input is one sentence on stderr and exit code 2.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line without the program's name. Defaults to `sys.argv[1:]`.

    Returns:
        `int`: The exit code: 0, or 2 for a problem with the input; `data check` ends with 1 when it finds one.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        print(f"themask {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return INPUT_ERROR
    return 0 if code is None else code


def segment(options: argparse.Namespace) -> None:
    """Write a video again with the class colours on top."""
    from transformers_themask.data.clips import check_clip_options
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
    device = _device(options.device)
    source = open_frame_source(options.input, options.frame_rate)
    model, processor = _load_model(options.model)
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
    print(f"{options.output}: {_counted(written.num_frames, 'frame')}")
    if options.labels is not None:
        print(f"{options.labels}: {_counted(written.num_frames, 'label map')}")
    if options.legend and not written.has_legend:
        print("The pictures are too small for a legend. Their colours are:")
        for name, color in written.class_colors.items():
            print(f"  {color}  {name}")


def evaluate(options: argparse.Namespace) -> None:
    """Score a folder of label maps against a data set."""
    import torch

    from transformers_themask import THEMaskVideoProcessor
    from transformers_themask.data.sources import load_videos
    from transformers_themask.inference.output_folder import check_output_folder
    from transformers_themask.metrics.prediction_folder import score_prediction_folder
    from transformers_themask.metrics.video_scores import named_scores
    from transformers_themask.publishing.results import write_results

    if options.json is not None:
        check_output_folder("--json", options.json.parent)
    videos = load_videos(options.data, options.split)
    class_indices = THEMaskVideoProcessor().reduce_labels(torch.arange(256))
    scores = score_prediction_folder(options.predictions, videos, class_indices, options.prediction_ids)
    scores = named_scores(scores, videos.class_names)
    for line in _score_table(scores):
        print(line)
    if options.json is not None:
        write_results(options.json, scores, data_set=options.data.resolve().name, split=options.split)


def card(options: argparse.Namespace) -> None:
    """Write the model card of a model from the results of its evaluation."""
    from transformers_themask.inference.output_folder import check_output_folder
    from transformers_themask.publishing.model_card import build_model_card
    from transformers_themask.publishing.results import read_results, saved_model_facts

    results = read_results(options.results)
    if options.model is not None:
        results["model"] = saved_model_facts(options.model)
    output = options.output or (options.model or options.results.parent) / "README.md"
    check_output_folder("--output", output.parent)
    with _naming(options.results):
        text = str(build_model_card(results, license_id=options.license, repo_id=options.repo_id))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"model card: {output}")


def check_data(options: argparse.Namespace) -> int:
    """Look at every file of a data set; the exit code is 0 if runs can use it and 1 if one would end with an error."""
    import json

    from transformers_themask.data.inspection import inspect_data_set
    from transformers_themask.data.skip_list import SKIP_FILE, add_to_skip_list
    from transformers_themask.inference.output_folder import check_output_folder

    if options.json is not None:
        check_output_folder("--json", options.json.parent)
    inspection = inspect_data_set(options.path, options.split, progress=True)
    for line in _inspection_table(inspection):
        print(line)
    findings = [(report.split, finding) for report in inspection.splits for finding in report.findings]
    findings.sort(key=lambda named: not named[1].stops_run)
    for split, finding in findings[:MAX_SHOWN_FINDINGS]:
        print(f"{split}: {'error' if finding.stops_run else 'note'}: {finding.message}")
    if len(findings) > MAX_SHOWN_FINDINGS:
        print(f"and {len(findings) - MAX_SHOWN_FINDINGS} more; `--json FILE` writes all of them")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(inspection.to_dict(), indent=2) + "\n", encoding="utf-8")
    stops_run = inspection.stops_run
    if options.skip_damaged and inspection.damaged:
        add_to_skip_list(options.path, inspection.damaged)
        print(f"{options.path / SKIP_FILE}: {len(inspection.damaged)} added")
        stops_run = any(finding.stops_run and finding.damaged is None for _, finding in findings)
    return UNUSABLE_DATA if stops_run else 0


def convert(options: argparse.Namespace) -> None:
    """Turn a checkpoint of the official code into a model folder."""
    from transformers_themask import THEMaskVideoProcessor
    from transformers_themask.conversion.themask import (
        config_from_state_dict,
        convert_official_checkpoint,
        load_official_checkpoint,
    )
    from transformers_themask.data.vspw import read_class_names
    from transformers_themask.inference.output_folder import check_output_folder
    from transformers_themask.training.config_overrides import mapping_from_text

    check_output_folder("OUTPUT", options.output)
    overrides = mapping_from_text("--config-overrides", options.config_overrides)
    state_dict = load_official_checkpoint(options.checkpoint)
    with _naming(options.checkpoint):
        config = config_from_state_dict(state_dict, **overrides)
    if options.data is not None:
        class_names = read_class_names(options.data)
        if len(class_names) != config.num_labels:
            raise ValueError(
                f"`--data` must have the checkpoint's {config.num_labels} classes. Got {len(class_names)} in "
                f"{options.data}."
            )
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
    with _naming(options.checkpoint):
        model, report = convert_official_checkpoint(state_dict, config)
    if report.missing:
        raise ValueError(
            f"`CHECKPOINT` must fill every parameter of the model. Got {options.checkpoint} without "
            f"{len(report.missing)} of them, the first {report.missing[0]}."
        )
    model.save_pretrained(options.output)
    THEMaskVideoProcessor().save_pretrained(options.output)
    for name, keys in (("dropped", report.dropped), ("unknown", report.unknown)):
        if keys:
            print(f"{name}: {', '.join(keys)}")
    print(f"model: {options.output}")


def demo(options: argparse.Namespace) -> None:
    """Train on synthetic videos, score the model and draw what it sees."""
    from transformers_themask.demo import run_demo

    def announce(line: str) -> None:
        print(line, flush=True)  # before what the training processes print

    for name, path in run_demo(options.output, announce).items():
        print(f"{name}: {path.resolve()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="themask", description="Video semantic segmentation with THE-Mask.")
    parser.add_argument("--version", action="version", version=f"themask {version('transformers-themask')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _add_command(commands, "segment", segment)
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

    command = _add_command(commands, "evaluate", evaluate)
    command.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="holds <video>/<frame>.png")
    command.add_argument("--data", type=Path, required=True, metavar="ROOT", help="data set")
    command.add_argument("--split", default="val", help="name of the split file (default: val)")
    command.add_argument(
        "--prediction-ids",
        choices=("reduced", "raw"),
        default="reduced",
        help="reduced: class indices, as `segment` writes them; raw: ids of the mask files; class index k is raw id "
        "k + 1 (default: reduced)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to a file")

    command = _add_command(commands, "card", card)
    command.add_argument("results", type=Path, metavar="RESULTS", help="results.json of an evaluation")
    command.add_argument(
        "--model", type=Path, metavar="DIR", help="folder of the model, where the results do not name it"
    )
    command.add_argument(
        "--license", metavar="ID", help="licence of the weights, e.g. cc-by-nc-4.0 (default: unknown)"
    )
    command.add_argument("--repo-id", metavar="ID", help="repository that the usage example loads")
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="(default: README.md next to the model or the results)"
    )

    data_commands = commands.add_parser("data", help="Look after data sets.").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = _add_command(data_commands, "check", check_data)
    command.set_defaults(command="data check")
    command.add_argument("path", type=Path, metavar="PATH", help="data set in a layout that run_vss.py reads")
    command.add_argument("--split", nargs="+", default=[], metavar="NAME", help="splits to look at (default: all)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write everything found to a file")
    command.add_argument(
        "--skip-damaged", action="store_true", help="name the frames that cannot be decoded in PATH/skip.txt"
    )

    command = _add_command(commands, "convert", convert)
    command.add_argument("checkpoint", type=Path, help="official .pth file")
    command.add_argument("output", type=Path, help="model folder to write")
    command.add_argument("--data", type=Path, metavar="ROOT", help="data set that names the classes")
    command.add_argument(
        "--config-overrides",
        default="{}",
        metavar="MAPPING",
        help="configuration fields that leave no trace in a checkpoint, e.g. '{num_attention_heads: 4}'",
    )

    command = _add_command(commands, "demo", demo)
    command.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="(default: demo)")
    return parser


def _add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def _load_model(path: str) -> tuple[Any, Any]:
    from transformers import AutoVideoProcessor

    from transformers_themask import AutoModelForVideoSemanticSegmentation
    from transformers_themask.inference.loading import load_pretrained, loading_errors_as_sentences

    model = load_pretrained(AutoModelForVideoSemanticSegmentation, "--model", path)
    with loading_errors_as_sentences("--model", path):
        return model, AutoVideoProcessor.from_pretrained(path)


def _device(name: str | None) -> str:
    """The device asked for, or the best one there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, not compiled in, not there
        raise ValueError(
            f"`--device` must be a device that PyTorch can use here, such as cpu or cuda. Got {name!r}; `--debug` "
            "shows why not."
        ) from error
    return name


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Put a file's name before what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _inspection_table(inspection: Any) -> list[str]:
    """What the data set is, and one line per split."""
    num_classes = len(inspection.class_names)
    width = max(len("split"), *(len(report.split) for report in inspection.splits))
    lines = [
        f"{inspection.layout}, {num_classes} classes",
        f"{'split':<{width}}{'videos':>9}{'frames':>9}{'labelled':>10}{'classes':>10}  height x width (videos)",
    ]
    for report in inspection.splits:
        num_present = int((report.class_pixels[1 : num_classes + 1] > 0).sum())
        sizes = ", ".join(f"{size[0]}x{size[1]} ({count})" for size, count in report.videos_of_size.most_common())
        lines.append(
            f"{report.split:<{width}}{report.num_videos:>9}{report.num_frames:>9}{report.num_labelled_frames:>10}"
            f"{num_present:>10}  {sizes}"
        )
    return lines


def _score_table(scores: dict[str, Any]) -> list[str]:
    columns = {
        "mIoU": "mean_iou",
        "wIoU": "weighted_iou",
        "aAcc": "pixel_accuracy",
        "mAcc": "mean_accuracy",
        "VC8": "vc8",
        "VC16": "vc16",
    }
    lines = [f"{_counted(scores['num_videos'], 'video')}, {_counted(scores['num_frames'], 'frame')}"]
    lines.append("".join(f"{title:>8}" for title in columns))
    lines.append("".join(f"{_score_text(scores[name]):>8}" for name in columns.values()))
    name_width = max(map(len, scores["per_class_iou"]))
    lines += ["", f"{'class':<{name_width}}{'IoU':>8}"]
    lines += [f"{name:<{name_width}}{_score_text(iou):>8}" for name, iou in scores["per_class_iou"].items()]
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


if __name__ == "__main__":
    sys.exit(main())
