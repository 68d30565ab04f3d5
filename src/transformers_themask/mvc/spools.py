# SPDX-License-Identifier: Apache-2.0
"""Temporary files for the results of the passes of test-time augmentation."""

import tempfile
import zlib
from array import array
from typing import Self

import numpy as np
import torch

from transformers_themask.models.scores_to_labels import enlarged_argmax

from .voting import vote

# Label maps are flat: little effort makes them a tenth of their size, or less.
COMPRESSION_LEVEL = 1
NOT_SPOOLED = -1


class _Spool:
    """A temporary file as a context manager; it is gone at the end, whatever happens."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="transformers-themask-tta-")  # noqa: SIM115 (closed by `__exit__`)

    def _write(self, position: int, record: bytes | memoryview) -> None:
        self._file.seek(position)
        try:
            self._file.write(record)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"The passes of test-time augmentation must have room for their results in {tempfile.gettempdir()}. "
                f"Got: {error.strerror}. Set the environment variable TMPDIR to another folder."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class LabelSpool(_Spool):
    """The label maps of all passes, compressed, in one temporary file; the result is their vote.

    It takes a hundredth to a tenth of a byte per pixel and pass, depending on how flat the label maps are.
    """

    # The size at which passes must give scores: none, they give label maps.
    grid: tuple[int, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._end = 0
        # For each pass, where the record of each frame begins and ends.
        self._bounds: list[array[int]] = []

    def start_pass(self) -> None:
        """Begin the next pass, from the start of the video."""
        self._bounds.append(array("q"))

    def put(self, index: int, values: np.ndarray) -> None:
        """Keep the label map `(height, width)` of a frame; frames may come in any order."""
        bounds = self._bounds[-1]
        bounds.extend([NOT_SPOOLED] * (2 * index + 2 - len(bounds)))
        record = zlib.compress(np.ascontiguousarray(values).data, COMPRESSION_LEVEL)
        self._write(self._end, record)
        bounds[2 * index : 2 * index + 2] = array("q", [self._end, self._end + len(record)])
        self._end += len(record)
        self._dtype, self._shape = values.dtype, values.shape

    @property
    def num_frames(self) -> int:
        """Number of frames of the pass."""
        return len(self._bounds[-1]) // 2

    def combined(self, index: int) -> np.ndarray:
        """The label map of a frame `(height, width)`."""
        # Every class votes: with 256 of them, 255 is one.
        label_maps = np.stack([self._read(bounds, index) for bounds in self._bounds])
        return vote(label_maps, range(len(label_maps)), ignore_index=None)

    def _read(self, bounds: "array[int]", index: int) -> np.ndarray:
        begin, end = bounds[2 * index : 2 * index + 2]
        self._file.seek(begin)
        return np.frombuffer(zlib.decompress(self._file.read(end - begin)), self._dtype).reshape(self._shape)


class ScoreSpool(_Spool):
    """The sum over passes of each frame's class scores on a grid, in a temporary file; the result is the best class.

    It takes `4 * num_labels` bytes per cell and frame: for 124 classes and a network input of 576x1024, 17 MiB per
    frame, or 15 GiB per minute at 15 frames per second.
    """

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]):
        self.grid = grid
        self._size = size
        super().__init__()
        self._num_passes = 0
        self._num_labels = 0
        self.num_frames = 0

    def start_pass(self) -> None:
        """Begin the next pass, from the start of the video."""
        self._num_passes += 1
        self.num_frames = 0

    def put(self, index: int, values: np.ndarray) -> None:
        """Add the class scores `(num_labels, *grid)` of a frame; frames may come in any order."""
        self._num_labels = len(values)
        self.num_frames = max(self.num_frames, index + 1)
        total = np.ascontiguousarray(values)
        if self._num_passes > 1:
            total = total + self._read(index)
        self._write(index * total.nbytes, total.data)

    def combined(self, index: int) -> np.ndarray:
        """The label map of a frame `(height, width)`."""
        steps = self.grid[0] / self._size[0], self.grid[1] / self._size[1]
        return enlarged_argmax(torch.from_numpy(self._read(index)), self._size, steps).numpy()

    def _read(self, index: int) -> np.ndarray:
        total = np.empty((self._num_labels, *self.grid), np.float32)
        self._file.seek(index * total.nbytes)
        self._file.readinto(total.data)
        return total
