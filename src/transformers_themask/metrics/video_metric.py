# SPDX-License-Identifier: Apache-2.0
"""Base of the two `evaluate` modules, which `evaluate.load` copies along with the module that imports it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

CITATION = """@inproceedings{miao2021vspw,
  title={VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild},
  author={Miao, Jiaxu and Wei, Yunchao and Wu, Yu and Liang, Chen and Li, Guangrui and Yang, Yi},
  booktitle={CVPR},
  year={2021}
}"""


class VideoMetric(evaluate.Metric, ABC):
    """A metric that accumulates counts of whole videos and stores no predictions.

    The base class writes every pixel to an Arrow cache, which for the VSPW validation set would be tens of gigabytes.
    The docstring of a subclass is its description for `evaluate`: the metric, then inputs, options and scores.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process != 1:
            raise ValueError(f"`num_process` must be 1. Got {self.num_process}. Merge the processes' counts instead.")

    @abstractmethod
    def count(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Count one video."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Score everything that was counted, and reset the counts."""

    def _info(self) -> evaluate.MetricInfo:
        description, _, inputs_description = (inspect.getdoc(type(self)) or "").partition("\n\n")
        frames = datasets.List(datasets.List(datasets.List(datasets.Value("uint8"))))
        return evaluate.MetricInfo(
            description=description,
            citation=CITATION,
            inputs_description=inputs_description,
            features=datasets.Features({"predictions": frames, "references": frames}),
        )

    # `evaluate.combine` calls `add` with the plural names, users with the singular ones.
    def add(
        self,
        *,
        prediction: ArrayLike | None = None,
        reference: ArrayLike | None = None,
        predictions: ArrayLike | None = None,
        references: ArrayLike | None = None,
    ) -> None:
        """Add one video."""
        prediction = predictions if prediction is None else prediction
        reference = references if reference is None else reference
        if prediction is None or reference is None:
            raise ValueError("`prediction` and `reference` must both be given. Got None for at least one of them.")
        self.count(prediction, reference)

    def add_batch(self, *, predictions: Iterable[ArrayLike], references: Iterable[ArrayLike]) -> None:
        """Add several videos."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.count(prediction, reference)

    def compute(
        self, *, predictions: Iterable[ArrayLike] | None = None, references: Iterable[ArrayLike] | None = None
    ) -> dict[str, Any]:
        """Score all videos since the last call and those given here, and reset the metric."""
        if (predictions is None) != (references is None):
            raise ValueError("`predictions` and `references` must be given together. Got only one of them.")
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        return self.finish()


def as_ids(name: str, ids: ArrayLike) -> np.ndarray:
    """Return `ids` as an integer array."""
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must hold integer ids. Got dtype {array.dtype}; take the argmax of scores first.")
    return array
