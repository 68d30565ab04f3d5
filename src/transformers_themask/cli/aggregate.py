# SPDX-License-Identifier: Apache-2.0
"""`themask aggregate`: of several results for each video, keep the one that is most consistent in time."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from transformers_themask.data.frame_checks import VOID_ID
from transformers_themask.data.sources import load_videos
from transformers_themask.files.atomic import AtomicFile, AtomicFolder
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.model_fingerprint import model_fingerprint
from transformers_themask.inference.segment import segment_frames
from transformers_themask.models.streaming import stream_options
from transformers_themask.mvc.aggregation import aggregate_video, consistency_settings, write_label_maps
from transformers_themask.mvc.label_folders import check_label_folder, single_video, videos_of_data_set
from transformers_themask.sinks.output_folder import check_new_folder, check_output_folder
from transformers_themask.videos.frame_source import open_frame_source

from .command import check_apart, counted, usable_device


def run(options: argparse.Namespace) -> None:
    """Keep the most stable of several results for each video. Stable is not accurate: a constant result scores 1."""
    output = options.output.resolve()
    scores_path = options.scores or output.with_name(f"{output.name}.json")
    _check_options(options, output, scores_path)
    settings = consistency_settings(options.flow)  # which asks for OpenCV
    videos, num_frames = _videos(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Gone even after an error.
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as spool:
        folders, records = _label_folders(options, videos, num_frames, Path(spool))
        with AtomicFolder(output) as unfinished:
            choices = _choose(options, videos, folders, unfinished, num_frames)
            report = {"results": records, **settings, "videos": [_entry(options, choice) for choice in choices]}
            with AtomicFile(scores_path) as hidden:
                hidden.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _report(options, output, scores_path, choices)


def _check_options(options: argparse.Namespace, output: Path, scores_path: Path) -> None:
    """Find what is wrong before anything is loaded."""
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


def _videos(options: argparse.Namespace) -> tuple[list[Any], int | None]:
    """The videos, and how many frames they have together as far as that is known."""
    if options.video is not None:
        source = open_frame_source(options.video)
        return single_video(source), source.num_frames
    labelled_videos = load_videos(options.data, options.split)
    return videos_of_data_set(labelled_videos), labelled_videos.num_frames


def _label_folders(
    options: argparse.Namespace, videos: Sequence[Any], num_frames: int | None, spool: Path
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Folder of the label maps of each result, which a model writes first, and what to record of the result."""
    device = usable_device(options.device)
    names = list(dict.fromkeys(options.results))  # a result that is given twice is made once
    folders = {name: Path(name) for name in names if not _is_model(name)}
    records: dict[str, dict[str, Any]] = {name: {"result": name, "kind": "label maps"} for name in folders}
    for folder in folders.values():
        check_label_folder(folder, videos)
    # What is wrong with the last one shall not be found after the first one has worked for hours.
    models = {name: load_model(name, argument="RESULT") for name in names if name not in folders}
    _check_classes({name: model.config.id2label for name, (model, _) in models.items()})
    asked = (options.mode, options.num_frames, options.frame_stride)
    clip_options = {name: stream_options(model, *asked) for name, (model, _) in models.items()}
    for index, (name, clips) in enumerate(clip_options.items()):
        model, processor = models.pop(name)
        folders[name] = spool / str(index)
        records[name] = {
            "result": name,
            "kind": "model",
            "fingerprint": model_fingerprint(model, processor),
            **dict(zip(("mode", "num_frames", "frame_stride"), clips, strict=True)),
        }
        with _bar(f"Labelling with {name}", num_frames) as bar:
            _label((model.to(device), processor), clips, videos, folders[name], bar)
    return [folders[name] for name in options.results], [records[name] for name in options.results]


def _is_model(result: str) -> bool:
    return not Path(result).is_dir() or (Path(result) / "config.json").is_file()


def _check_classes(classes: dict[str, dict[int, str]]) -> None:
    """Raise a `ValueError` unless all models mean the same by a class index, and none uses that of void."""
    for name, names in classes.items():
        first, first_names = next(iter(classes.items()))
        if names != first_names:
            raise ValueError(
                f"All models must have the same classes in the same order. Got others in {name} than in {first}. If "
                "only the names differ, label the videos with each model and give the folders."
            )
        if len(names) > VOID_ID:
            raise ValueError(
                f"Models must have at most {VOID_ID} classes, as {VOID_ID} stands for none. Got {len(names)} in "
                f"{name}."
            )


def _label(
    loaded: tuple[Any, Any], clips: tuple[str, int, int], videos: Sequence[Any], folder: Path, bar: Any
) -> None:

    mode, num_frames, frame_stride = clips
    for video in videos:
        label_maps = segment_frames(*loaded, video.frames, num_frames, frame_stride, mode)
        write_label_maps(label_maps, video, folder, bar.update)


def _choose(
    options: argparse.Namespace, videos: Sequence[Any], folders: list[Path], output: Path, num_frames: int | None
) -> list[Any]:
    """Copy what is chosen for each video, and print a line about it."""
    choices = []
    with _bar("Comparing", num_frames) as bar:
        for video in videos:
            choice = aggregate_video(video, folders, output, options.flow, bar.update)
            scores = "  ".join(f"{score:.4f}" for score in choice.scores)
            bar.write(f"{choice.video or options.video}: {scores}  {options.results[choice.chosen]}")
            choices.append(choice)
    return choices


def _bar(title: str, num_frames: int | None) -> Any:
    return tqdm(total=num_frames, desc=title, unit="frame", dynamic_ncols=True)


def _entry(options: argparse.Namespace, choice: Any) -> dict[str, Any]:
    return {
        "video": choice.video or options.video,
        "num_frames": choice.num_frames,
        "scores": choice.scores,
        "chosen": choice.chosen,
        "chosen_result": options.results[choice.chosen],
    }


def _report(options: argparse.Namespace, output: Path, scores_path: Path, choices: Sequence[Any]) -> None:
    num_frames = sum(choice.num_frames for choice in choices)
    print(f"{output}: {counted(len(choices), 'video')}, {counted(num_frames, 'frame')}")
    print(f"{scores_path}: scores")
    for index, result in enumerate(options.results):
        mean = sum(choice.scores[index] for choice in choices) / len(choices)
        num_chosen = sum(choice.chosen == index for choice in choices)
        print(f"{result}: chosen for {num_chosen} of {counted(len(choices), 'video')}, mean score {mean:.4f}")
