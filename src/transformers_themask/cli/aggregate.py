# SPDX-License-Identifier: Apache-2.0
"""`themask aggregate`: of several results for each video, keep the one that is most consistent in time."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from transformers_themask.data.sources import load_videos
from transformers_themask.files.atomic import AtomicFile, AtomicFolder
from transformers_themask.mvc.aggregation import VideoChoice, consistency_settings
from transformers_themask.mvc.label_folders import ResultVideo, single_video, videos_of_data_set
from transformers_themask.mvc.result_choice import choose_results, label_results
from transformers_themask.sinks.output_folder import check_new_folder, check_output_folder
from transformers_themask.terminal_text import counted
from transformers_themask.videos.frame_source import open_frame_source

from .command import check_apart, usable_device


def run(options: argparse.Namespace) -> None:
    """Choose a result for each video, copy it, and write all scores."""
    output = options.output.resolve()
    scores_path = options.scores or output.with_name(f"{output.name}.json")
    _check_options(options, output, scores_path)
    settings = consistency_settings(options.flow)  # fails early without OpenCV
    videos, num_frames = _videos(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Removed even after an error.
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as spool:
        clips = (options.mode, options.num_frames, options.frame_stride)
        folders, records = label_results(
            options.results, videos, Path(spool), usable_device(options.device), clips, num_frames, progress=True
        )
        with AtomicFolder(output) as unfinished:
            choices = []
            for choice in choose_results(videos, folders, unfinished, options.flow, num_frames, progress=True):
                choices.append(choice)
                scores = "  ".join(f"{score:.4f}" for score in choice.scores)
                tqdm.write(f"{choice.video or options.video}: {scores}  {options.results[choice.chosen]}")
            report = {"results": records, **settings, "videos": [_entry(options, choice) for choice in choices]}
            with AtomicFile(scores_path) as hidden:
                hidden.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _report(options, output, scores_path, choices)


def _check_options(options: argparse.Namespace, output: Path, scores_path: Path) -> None:
    if len(options.results) < 2:
        raise ValueError(f"`RESULT` must be given twice or more, to choose from. Got {options.results[0]} alone.")
    for result in options.results:
        if not Path(result).exists() and result.count("/") != 1:
            raise ValueError(
                "`RESULT` must be a folder of label maps, that of a saved model, or a Hub id OWNER/NAME. "
                f"Got {result}."
            )
    if options.video is not None:
        check_apart("--output", options.output, options.video)
        check_apart("--scores", scores_path, options.video)
    check_new_folder("--output", output)
    if scores_path.is_dir() or output in (scores_path.resolve(), *scores_path.resolve().parents):
        raise ValueError(f"`--scores` must be a file outside the folder of `--output`. Got {scores_path}.")
    check_output_folder("--scores", scores_path.parent)
    if scores_path.suffix != ".json":
        raise ValueError(f"`--scores` must be a file whose name ends in .json. Got {scores_path}.")
    for folder in filter(os.path.isdir, [*options.results, *([] if options.data is None else [options.data])]):
        for argument, path in (("--output", output), ("--scores", scores_path.resolve())):
            if Path(folder).resolve() in (path, *path.parents):
                raise ValueError(f"`{argument}` must not lie in a result or in the data set. Got {path} in {folder}.")


def _videos(options: argparse.Namespace) -> tuple[list[ResultVideo], int | None]:
    """The videos, and the number of their frames if it is known."""
    if options.video is not None:
        source = open_frame_source(options.video)
        return single_video(source), source.num_frames
    labelled_videos = load_videos(options.data, options.split)
    return videos_of_data_set(labelled_videos), labelled_videos.num_frames


def _entry(options: argparse.Namespace, choice: VideoChoice) -> dict[str, Any]:
    entry = {**asdict(choice), "chosen_result": options.results[choice.chosen]}
    return entry if choice.video else {**entry, "video": options.video}


def _report(options: argparse.Namespace, output: Path, scores_path: Path, choices: Sequence[VideoChoice]) -> None:
    num_frames = sum(choice.num_frames for choice in choices)
    print(f"{output}: {counted(len(choices), 'video')}, {counted(num_frames, 'frame')}")
    print(f"{scores_path}: scores")
    for index, result in enumerate(options.results):
        mean = sum(choice.scores[index] for choice in choices) / len(choices)
        num_chosen = sum(choice.chosen == index for choice in choices)
        print(f"{result}: chosen for {num_chosen} of {counted(len(choices), 'video')}, mean score {mean:.4f}")
