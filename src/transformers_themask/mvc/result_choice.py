# SPDX-License-Identifier: Apache-2.0
"""Choice between results for videos: folders of label maps, and models, which label the videos first."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from transformers_themask.data.frame_checks import VOID_ID
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.model_fingerprint import model_fingerprint
from transformers_themask.inference.segment import segment_frames
from transformers_themask.models.streaming import stream_options
from transformers_themask.sinks.label_maps import write_label_map

from .aggregation import VideoChoice, aggregate_video
from .label_folders import ResultVideo, check_label_folder


def label_results(
    results: Sequence[str],
    videos: Sequence[ResultVideo],
    spool: Path,
    device: str,
    clips: tuple[str | None, int | None, int | None] = (None, None, None),
    num_frames: int | None = None,
    progress: bool = False,
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Label the videos with every model among results, which are folders of label maps, and models.

    A model that is given twice is run once; its label maps go to `spool`. `clips` is mode, number of frames and stride
    of every model, `num_frames` that of all videos, for the progress bars. Returns the folder of label maps of each
    result, and a record of it. Raises a `ValueError` if a model cannot be loaded or classes differ, and a
    `FileNotFoundError` if a folder lacks a video.
    """
    names = list(dict.fromkeys(results))
    folders = {name: Path(name) for name in names if not _is_model(name)}
    records: dict[str, dict[str, Any]] = {name: {"result": name, "kind": "label maps"} for name in folders}
    for folder in folders.values():
        check_label_folder(folder, videos)
    # All are loaded before the first one runs for hours.
    models = {name: load_model(name, argument="RESULT") for name in names if name not in folders}
    _check_classes({name: model.config.id2label for name, (model, _) in models.items()})
    options = {name: stream_options(model, *clips) for name, (model, _) in models.items()}
    for index, (name, (mode, clip_length, frame_stride)) in enumerate(options.items()):
        model, processor = models.pop(name)
        folders[name] = spool / str(index)
        records[name] = {
            "result": name,
            "kind": "model",
            "fingerprint": model_fingerprint(model, processor),
            "mode": mode,
            "num_frames": clip_length,
            "frame_stride": frame_stride,
        }
        model.to(device)
        with _bar(f"Labelling with {name}", num_frames, progress) as bar:
            for video in videos:
                label_maps = segment_frames(model, processor, video.frames, clip_length, frame_stride, mode)
                for frame, label_map in label_maps:
                    write_label_map(label_map, video.new_label_path(folders[name], frame))
                    bar.update()
    return [folders[name] for name in results], [records[name] for name in results]


def choose_results(
    videos: Sequence[ResultVideo],
    folders: Sequence[Path],
    output: Path,
    direction: str = "forward",
    num_frames: int | None = None,
    progress: bool = False,
) -> Iterator[VideoChoice]:
    """Choose a result for every video, see [`~transformers_themask.mvc.aggregation.aggregate_video`]."""
    with _bar("Comparing", num_frames, progress) as bar:
        for video in videos:
            yield aggregate_video(video, folders, output, direction, bar.update)


def _is_model(result: str) -> bool:
    return not Path(result).is_dir() or (Path(result) / "config.json").is_file()


def _check_classes(classes: Mapping[str, Mapping[int, str]]) -> None:
    """Raise a `ValueError` unless all models have the same classes and none has the index of void."""
    for name, names in classes.items():
        first, first_names = next(iter(classes.items()))
        if names != first_names:
            raise ValueError(
                f"All models must have the same classes in the same order. Those of {name} differ from those of "
                f"{first}. If only the names differ, label the videos with each model and give the folders."
            )
        if len(names) > VOID_ID:
            raise ValueError(
                f"Models must have at most {VOID_ID} classes, as {VOID_ID} stands for void. Got {len(names)} in "
                f"{name}."
            )


def _bar(title: str, num_frames: int | None, progress: bool) -> "tqdm[Any]":
    return tqdm(total=num_frames, desc=title, unit="frame", dynamic_ncols=True, disable=not progress)
