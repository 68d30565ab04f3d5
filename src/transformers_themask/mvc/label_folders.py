# SPDX-License-Identifier: Apache-2.0
"""Videos with folders of existing label maps."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformers_themask.data.image_folder import MASK_SUFFIXES, list_images
from transformers_themask.data.images import read_mask
from transformers_themask.data.labelled_videos import LabelledVideos, VideoFrames
from transformers_themask.files.plain_names import inside
from transformers_themask.videos.frame_source import Camera
from transformers_themask.videos.source import FrameSource, IncompleteVideoError

REMEDY = "`themask segment --labels` writes the label maps of a video, `run_vss.py --do_predict` those of a data set."


@dataclass(frozen=True)
class WholeVideo:
    """The frames of a video file or a folder, none of which may be missing."""

    source: FrameSource

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames as `uint8` RGB arrays `(height, width, 3)`; a `ValueError` if the video is damaged.

        Not an `IncompleteVideoError`, which promises that the readable part has been put to use.
        """
        try:
            yield from self.source
        except IncompleteVideoError as error:
            raise ValueError(f"{error} No output was written: every frame is needed.") from error

    def frame_name(self, index: int) -> str:
        """Name for files that belong to a frame, without suffix."""
        return self.source.frame_name(index)


@dataclass(frozen=True)
class ResultVideo:
    """A video of which label maps exist.

    `name` is the folder of its label maps, relative to that of all of them: the video's id in a data set, `""` for a
    single video, of which the number of classes is not known.
    """

    name: str
    frames: WholeVideo | VideoFrames
    num_labels: int | None = None

    def label_path(self, folder: Path, index: int) -> Path:
        """Where a folder of results has the label map of a frame."""
        return folder / self.name / f"{self.frames.frame_name(index)}.png"

    def new_label_path(self, folder: Path, index: int) -> Path:
        """Where to write the label map of a frame; a `ValueError` if a link leads out of the folder."""
        return inside(folder, self.label_path(folder, index))


def single_video(source: FrameSource) -> list[ResultVideo]:
    """A video file or folder of frames, no camera, whose label maps lie in the results' folder itself."""
    if isinstance(source, Camera):
        raise ValueError(f"`source` must be a video that can be read again. Got {source.path}; record it first.")
    return [ResultVideo("", WholeVideo(source))]


def videos_of_data_set(videos: LabelledVideos) -> list[ResultVideo]:
    """The videos of a split, whose label maps lie in `<video_id>/<frame>.png`, as for VSPW's scripts."""
    return [ResultVideo(row["video_id"], VideoFrames(videos, row), videos.num_labels) for row in videos.rows]


def frames_with_label_maps(
    video: ResultVideo, folders: Sequence[Path], on_frame: Callable[[], object] = lambda: None
) -> Generator[tuple[np.ndarray, list[np.ndarray]], None, None]:
    """Yield every frame of a video with its label map `(height, width)` from each folder of results.

    Raises a `FileNotFoundError` for a frame without label map, and a `ValueError` where a label map has another size
    than its frame or a folder has more maps than the video has frames.
    """
    num_frames = 0
    for index, frame in enumerate(video.frames):
        paths = [video.label_path(folder, index) for folder in folders]
        yield frame, [read_label_map(path, (frame.shape[0], frame.shape[1])) for path in paths]
        on_frame()
        num_frames += 1
    for folder in folders:
        num_maps = len(label_files(folder / video.name))
        if num_maps != num_frames:
            raise ValueError(
                f"{folder / video.name} must hold the label maps of {num_frames} frames. Got {num_maps}. Is it the "
                "result of another video?"
            )


def check_label_folder(folder: Path, videos: Sequence[ResultVideo]) -> None:
    """Raise a `FileNotFoundError` unless a folder has label maps of every video, whichever they are."""
    for video in videos:
        path = folder / video.name
        if not path.is_dir() or not label_files(path):
            raise FileNotFoundError(f"{path} must be a folder of label maps, one PNG per frame. Got none. {REMEDY}")


def label_files(folder: Path) -> list[Path]:
    """The label maps of one video, in the order of their frames."""
    return [folder / name for name in list_images(folder, MASK_SUFFIXES)]


def read_label_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read class indices that `write_label_map` wrote, of the given height and width."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist, as every frame has a label map. Got no such file. {REMEDY}")
    label_map = read_mask(path)
    if label_map.shape != size:
        raise ValueError(f"{path} must have the size of its frame, {size[0]}x{size[1]}. Got {label_map.shape}.")
    return label_map
