# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ["segmented_clip", "suite_plugin"]

torch.set_num_threads(1)  # deterministic sums, and no fighting over few cores


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir",
        default=os.environ.get("THEMASK_GOLDEN_DIR"),
        help="folder with the full set of tensors recorded from the official codes; runs the `golden` tests",
    )


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return Path(request.config.getoption("--golden-dir"))
