# SPDX-License-Identifier: Apache-2.0
"""Label tracks: the label maps of a video as one lossless file."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from transformers_themask.files.atomic import AtomicFile
from transformers_themask.files.file_names import check_suffix
from transformers_themask.files.media_files import ffmpeg_location, open_media
from transformers_themask.files.text_files import parse_json
from transformers_themask.videos.source import DEFAULT_FRAME_RATE, FrameSource

from .sink import LabelledFrame

# Names of the tags of the file.
CLASS_NAMES, PALETTE, TIME_BASE = "CLASS_NAMES", "PALETTE", "TIME_BASE"
# Matroska rounds times to milliseconds. A second stream of tiny pictures holds the exact ones: the number of ticks
# of the source's time base, big-endian, as eight grey pixels.
TICKS = np.dtype(">i8")


class LabelTrack:
    """Sink that writes the class indices of all frames as one lossless video: FFV1 in Matroska.

    Grey levels are class indices, in 8 bits for up to 256 classes and in 16 for more. [`read_label_track`] reads them
    again, with the exact times of the source. The file also names the classes and their colours.

    Args:
        path: The mkv file to write; its folder is made if needed.
        source: Where the frames come from: gives frame rate and unit of time.
        class_names: Name of each class.
        palette (`(num_classes, 3)`): RGB colour of each class.
        argument: Name of the argument that gives the path, for the errors.
    """

    def __init__(
        self,
        path: str | Path,
        source: FrameSource,
        class_names: Sequence[str],
        palette: np.ndarray,
        argument: str = "path",
    ):
        self.path = Path(path)
        check_suffix(self.path, (".mkv",), argument)
        self._unfinished = AtomicFile(self.path)
        self._frame_rate = source.frame_rate or DEFAULT_FRAME_RATE
        self._time_base = source.time_base
        has_bytes = len(class_names) <= 256
        self._dtype: type = np.uint8 if has_bytes else np.uint16
        self._format = "gray" if has_bytes else "gray16le"
        self._tags = {
            CLASS_NAMES: json.dumps(list(class_names)),
            PALETTE: json.dumps(["#" + bytes(color).hex() for color in palette]),
            TIME_BASE: str(source.time_base),
        }
        self._container: av.container.OutputContainer | None = None

    def write(self, frame: LabelledFrame) -> None:
        """Write the next label map."""
        if self._container is None:
            self._container = self._open(*frame.label_map.shape)
        labels, times = self._container.streams.video
        tick = round(frame.time / self._time_base)
        self._encode(labels, frame.label_map.astype(self._dtype, copy=False), self._format, tick)
        self._encode(times, np.array([[tick]], dtype=TICKS).view(np.uint8), "gray", tick)

    def close(self) -> None:
        """Finish the file."""
        if self._container is None:
            return
        for stream in self._container.streams.video:
            self._container.mux(stream.encode(None))
        self._container.close()
        self._unfinished.finish()

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        self._unfinished.remove(None if self._container is None else self._container.close)

    def _open(self, height: int, width: int) -> "av.container.OutputContainer":
        container = av.open(ffmpeg_location(self._unfinished.make()), "w", format="matroska")
        container.metadata.update(self._tags)
        for size, pixel_format in (((height, width), self._format), ((1, TICKS.itemsize), "gray")):
            stream = container.add_stream("ffv1", rate=self._frame_rate)
            stream.height, stream.width = size
            stream.pix_fmt = pixel_format
            stream.codec_context.time_base = self._time_base
        return container

    def _encode(self, stream: "av.VideoStream", values: np.ndarray, pixel_format: str, tick: int) -> None:
        assert self._container is not None
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=pixel_format)
        picture.pts, picture.time_base = tick, self._time_base
        self._container.mux(stream.encode(picture))


def read_label_track(path: str | Path) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yield the label maps of an mkv file that [`LabelTrack`] wrote, one at a time.

    Returns:
        Iterator over `(time, label_map)`: seconds, exact, and a `uint8` or `uint16` array of shape `(height, width)`.

    Raises:
        ValueError: If the file is no label track.
    """
    with _opened(path) as container:
        time_base = Fraction(container.metadata[TIME_BASE])
        waiting: tuple[deque[np.ndarray], deque[np.ndarray]] = (deque(), deque())
        label_maps, times = waiting
        for frame_packet in container.demux(*container.streams.video[:2]):
            for picture in frame_packet.decode():
                assert isinstance(picture, av.VideoFrame)
                waiting[frame_packet.stream.index].append(picture.to_ndarray())
            while label_maps and times:
                yield int(times.popleft().view(TICKS)[0, 0]) * time_base, label_maps.popleft()


def label_track_classes(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Names of the classes of a file that [`LabelTrack`] wrote, and their RGB colours `(num_classes, 3)`."""
    with _opened(path) as container:
        names, colors = (
            parse_json(container.metadata[tag], list, f"The metadata of {path}") for tag in (CLASS_NAMES, PALETTE)
        )
        return names, np.array([list(bytes.fromhex(color[1:])) for color in colors], dtype=np.uint8)


@contextmanager
def _opened(path: str | Path) -> Iterator["av.container.InputContainer"]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must name an existing label track. Got {path}.")
    try:
        container = open_media(path)
    except av.FFmpegError as error:
        raise ValueError(f"`path` must name a label track. Got {path} ({error.strerror}).") from error
    with container:
        if not {CLASS_NAMES, PALETTE, TIME_BASE} <= container.metadata.keys() or len(container.streams.video) < 2:
            raise ValueError(f"`path` must name a label track, as `LabelTrack` writes it. Got {path}, another video.")
        yield container
