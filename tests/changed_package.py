# SPDX-License-Identifier: Apache-2.0
"""Copies of the package with other families, and tests that run against such a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import transformers_themask

ROOT = Path(__file__).parents[1]
CONTRACT = "tests/family_contract.py"


def copied_source(folder: Path) -> Path:
    """Copy the package; returns the copy's root, which Python finds it in."""
    source = Path(transformers_themask.__file__).parents[1]
    shutil.copytree(ROOT / "model_cards", folder / "model_cards")  # which the package of a checkout looks for there
    return shutil.copytree(source, folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


def files_of(family: str, source: Path) -> list[Path]:
    """The files that belong to one family: its row, and its networks by their names."""
    package = source / "transformers_themask"
    networks = sorted(package.glob(f"models/*_{family}.py"))
    return [package / "families" / f"{family}.py", *networks]


def run_tests(source: Path, *arguments: str) -> str:
    """Run tests in a process that finds modules in `source` first; returns what pytest prints.

    Raises:
        AssertionError: If one of them fails.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    return process.stdout
