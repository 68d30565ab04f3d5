# SPDX-License-Identifier: Apache-2.0
"""The command line answers at once: help and typing mistakes never import PyTorch."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import themask_command
from benchmarks.start_up import BASE
from themask_command import commands, option_types
from transformers_themask.drawing.palettes import PALETTES
from transformers_themask.export.export_model import EXPORTED_MODES
from transformers_themask.export.formats import SUFFIXES
from transformers_themask.metrics.prediction_folder import score_prediction_folder
from transformers_themask.models.streaming import STEPWISE_MODES, StreamingMixin
from transformers_themask.mvc.aggregation import DIRECTIONS
from transformers_themask.mvc.tta import COMBINATIONS
from transformers_themask.registry import families
from transformers_themask.videos.camera import MAX_FRAME_RATE

SCRIPT = Path(sys.executable).with_name("themask")
HEAVY = {"torch", "transformers", "transformers_themask", "numpy", "PIL", "av"}


def imported_modules(arguments, exit_code):
    """Run the interpreter; the modules that it imports, and the rest of what it writes to stderr."""
    result = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    assert result.returncode == exit_code, result.stderr[-2000:]
    lines = result.stderr.splitlines()
    names = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return names, "\n".join(line for line in lines if not line.startswith("import time:"))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--help"], 0, ""),
        (["segment", "--help"], 0, ""),
        (["segment", "clip.mp4", "--model", "model", "--unknown"], 2, "unrecognized arguments: --unknown"),
        (["segmnet", "clip.mp4"], 2, "invalid choice: 'segmnet'"),
    ],
    ids=["help", "help_of_segment", "unknown_option", "mistyped_command"],
)
def test_installed_command_answers_within_a_second_without_importing_torch(arguments, exit_code, message):
    modules, error = imported_modules([SCRIPT, *arguments], exit_code)
    assert "themask_command.commands" in modules and not modules & HEAVY
    assert message in error
    with subprocess.Popen([SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == exit_code
    assert usage.ru_utime + usage.ru_stime <= 1  # seconds of CPU time


def test_module_can_be_run_in_place_of_the_installed_command():
    modules, _ = imported_modules(["-m", "themask_command", "--version"], 0)
    assert not modules & HEAVY


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_sub_command_has_a_module_that_runs_it_and_a_help(name, capsys):
    module = importlib.import_module(f"transformers_themask.cli.{name.replace(' ', '_')}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as end:
        themask_command.main([*name.split(), "--help"])
    assert end.value.code == 0
    assert " ".join(commands.COMMANDS[name].__doc__.split()) in " ".join(capsys.readouterr().out.split())


def test_command_line_parser_imports_only_the_standard_library():
    for path in Path(themask_command.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= sys.stdlib_module_names, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.partition(".")[0] in sys.stdlib_module_names, path


def test_help_names_no_model_family(capsys):
    names = {row.name for row in families()} - {"themask"} | {"the-mask", "mask2former", "segformer"}
    for command in commands.COMMANDS:
        with pytest.raises(SystemExit):
            themask_command.main([*command.split(), "--help"])
        text = capsys.readouterr().out.lower()
        assert not [name for name in names if name in text], command


def test_choices_are_those_of_the_package():
    assert commands.PALETTES == PALETTES
    assert commands.EXPORTED_MODES == EXPORTED_MODES
    assert commands.TTA_COMBINATIONS == COMBINATIONS
    assert set(commands.EXPORT_FORMATS) == SUFFIXES.keys()
    assert commands.FLOW_DIRECTIONS == DIRECTIONS
    assert get_args(get_type_hints(score_prediction_folder)["prediction_ids"]) == commands.PREDICTION_IDS
    assert set(commands.MODES) == {*StreamingMixin.stream_modes, *STEPWISE_MODES}
    assert option_types.MAX_FRAME_RATE == MAX_FRAME_RATE


def test_package_imports_no_library_that_only_some_commands_need():
    def modules_after(imports):
        code = f"{imports}\nimport sys\nprint(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(result.stdout.split())

    base, modules = modules_after(BASE), modules_after("import transformers_themask")
    assert "torch" in modules
    # Transformers itself imports PyAV where its torchvision does.
    assert not (modules - base) & {"datasets", "evaluate", "av", "matplotlib", "pyarrow", "cv2"}
