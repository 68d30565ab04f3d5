# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ["segmented_clip"]

torch.set_num_threads(1)  # deterministic sums, and no fighting over few cores


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir",
        default=os.environ.get("THEMASK_GOLDEN_DIR"),
        help="folder with the full set of tensors recorded from the official codes; runs the `golden` tests",
    )


def pytest_collection_modifyitems(config, items):
    """Deselect, rather than skip, the tests that need recordings which are not there."""
    if config.getoption("--golden-dir"):
        return
    golden = [item for item in items if item.get_closest_marker("golden")]
    if golden:
        config.hook.pytest_deselected(items=golden)
        items[:] = [item for item in items if item not in golden]


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    return Path(request.config.getoption("--golden-dir"))
