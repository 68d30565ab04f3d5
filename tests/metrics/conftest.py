# SPDX-License-Identifier: Apache-2.0
"""Numbers recorded from the official scoring scripts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def recorded_arrays() -> dict[str, np.ndarray]:
    return load_file(FIXTURES / "metrics" / "metrics.safetensors")


@pytest.fixture(scope="session")
def recorded_scores() -> dict:
    return json.loads((FIXTURES / "metrics" / "manifest.json").read_text())


@pytest.fixture(scope="session")
def recorded_themask_arrays() -> dict[str, np.ndarray]:
    return load_file(FIXTURES / "themask" / "metrics.safetensors")


@pytest.fixture(scope="session")
def clips(recorded_arrays, recorded_scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions (class indices) and raw labels of the recorded videos."""
    return {
        name: (recorded_arrays[f"clip.{name}.pred"], recorded_arrays[f"clip.{name}.gt"])
        for name in recorded_scores["clip_lengths"]
    }


@pytest.fixture(scope="session")
def shifted():
    """Reduce raw ids the way the metric specification words it: 0 to 255, 255 to 255, k to k - 1."""

    def shift(raw: np.ndarray) -> np.ndarray:
        return np.where((raw == 0) | (raw == 255), 255, raw.astype(np.int64) - 1).astype(np.uint8)

    return shift


@pytest.fixture(scope="session")
def class_indices(shifted):
    """Class index of every raw id."""
    return shifted(np.arange(256))
