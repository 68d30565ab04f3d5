# SPDX-License-Identifier: Apache-2.0
"""`themask correct`: ask a vision-language model about classes that compete within a video."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from transformers_themask.data.sources import load_videos
from transformers_themask.files.text_files import parse_json, read_lines, read_text
from transformers_themask.mvc.confusable_groups import DEFAULT_GROUPS_FILE, check_groups, read_groups
from transformers_themask.mvc.correction import Correction, VideoCorrector, correct_results
from transformers_themask.mvc.label_folders import ResultVideo, check_label_folder, single_video, videos_of_data_set
from transformers_themask.mvc.vision_language import VisionLanguageModel
from transformers_themask.sinks.output_folder import check_new_folder
from transformers_themask.terminal_text import counted, naming
from transformers_themask.videos.frame_source import open_frame_source

from .command import check_apart, usable_device

# Longer answers are truncated; the log has all of them.
MAX_SHOWN_CHARACTERS = 100


def run(options: argparse.Namespace) -> None:
    """Correct the label maps, and report every question with its answer."""
    output = options.output.resolve()
    log = options.log or output.with_name(f"{output.name}{'_dry_run' if options.dry_run else ''}_log")
    _check_options(options, log)
    device = usable_device(options.device)
    groups = read_groups(options.groups or DEFAULT_GROUPS_FILE)
    videos, class_names = _open_videos(options)
    # Before a large model is loaded.
    check_groups(groups, class_names)
    check_label_folder(options.labels, videos)
    answer = VisionLanguageModel(options.vlm, device, argument="--vlm")
    corrector = VideoCorrector(groups, class_names, answer, str(options.vlm), options.minimum_share)
    written = None if options.dry_run else output
    corrections = correct_results(corrector, videos, options.labels, written, log, progress=True)
    _report(corrections, options.dry_run)
    num_decided = sum(correction.decision is not None for correction in corrections)
    counts = f"{counted(len(videos), 'video')}, {counted(len(corrections), 'question')}, {num_decided} decided"
    print(f"dry run: {counts}" if options.dry_run else f"{options.output}: {counts}")
    print(f"log: {log}")


def _check_options(options: argparse.Namespace, log: Path) -> None:
    inputs = [str(options.labels), *([options.video] if options.video is not None else [])]
    for argument, path in (("--output", options.output), ("--log", log)):
        for source in inputs:
            check_apart(argument, path, source)
        check_new_folder(argument, path)
    output, log = options.output.resolve(), log.resolve()
    if output == log or output in log.parents or log in output.parents:
        raise ValueError(f"`--output` and `--log` must be folders side by side. Got {output} and {log}.")
    if (options.class_names is None) == (options.video is not None):
        raise ValueError(
            "`--class-names` must be given with `--video` and left out with `--data`, which has names of its own. Got "
            f"{'no value' if options.class_names is None else options.class_names}."
        )


def _open_videos(options: argparse.Namespace) -> tuple[list[ResultVideo], Sequence[str]]:
    if options.data is not None:
        videos = load_videos(options.data, options.split)
        return videos_of_data_set(videos), videos.class_names
    return single_video(open_frame_source(options.video)), _class_names(options.class_names)


def _class_names(path: Path) -> list[str]:
    with naming(path):
        names = _names_of_model(path / "config.json") if path.is_dir() else read_lines(path)
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("`--class-names` must give every class a distinct name, without empty lines.")
    return names


def _names_of_model(file: Path) -> list[str]:
    rule = "be a model whose configuration names its classes in `id2label`"
    names = parse_json(read_text(file), dict, "`--class-names`", rule).get("id2label")
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise ValueError(f"`--class-names` must {rule}.")
    return [names[str(index)] for index in range(len(names))]


def _report(corrections: Sequence[Correction], is_dry_run: bool) -> None:
    for correction in corrections:
        # As ASCII in quotes: a model may answer with any characters.
        answer = json.dumps(correction.answer[:MAX_SHOWN_CHARACTERS])
        place = f"{correction.video}, {correction.group}" if correction.video else correction.group
        effect = "unchanged"
        if correction.decision is not None:
            pixels, frames = counted(correction.num_pixels, "pixel"), counted(correction.num_frames, "frame")
            effect = f"{correction.decision}, {pixels} in {frames} {'would change' if is_dry_run else 'changed'}"
        print(f"{place}: {answer} -> {effect}")
