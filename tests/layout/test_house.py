# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that can be read off the source."""

import ast
import sys
from pathlib import Path

import transformers_themask

SOURCE = Path(transformers_themask.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# Every room may import from the rooms before it only.
ROOMS = [
    "files",
    "terminal_text",
    "models",
    "data",
    "metrics",
    "videos",
    "drawing",
    "sinks",
    "suggestions",
    "config_overrides",
    "registry",
    "conversion",
    "families",
    "auto",
    "inference",
    "mvc",
    "batch",
    "export",
    "publishing",
    "training",
    "demo",
    "web_demo",
    "cli",
]
MOST_LINES = 600
# These import nothing but what is named here.
LEAVES: dict[str, set[str]] = {"files": set(), "models": set(), "data": {"files", "models"}}
PAPERLESS = {"training", "inference", "mvc", "batch", "export", "videos", "drawing", "sinks", "data", "metrics"}
# Earlier places of documented names.
FORWARDING = {"inference/correction.py"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, node.lineno


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_model_files_survive_save_pretrained():
    """Saving copies, flat, what `from .name import` names; nothing else reaches those without the package."""
    allowed = {"torch", "torchvision", "scipy", "numpy", "PIL", "transformers", "huggingface_hub"}
    standard = {"collections", "copy", "dataclasses", "math", "pathlib", "typing"}
    offenders = [
        f"{path.name}:{line} imports {module!r}"
        for path in sorted((SOURCE / "models").glob("[!_]*.py"))
        for level, module, line in imports(path)
        if not (level == 1 and module and "." not in module)
        and not (level == 0 and module.split(".")[0] in allowed | standard)
    ]
    assert not offenders


def test_imports_point_in_one_direction():
    offenders = []
    for path in FILES:
        room = room_of(path)
        if room == "__init__" or path.relative_to(SOURCE).as_posix() in FORWARDING:
            continue
        for level, module, line in imports(path):
            other = module.split(".")[1] if level == 0 and module.startswith("transformers_themask.") else room
            is_backward = other != room and ROOMS.index(other) >= ROOMS.index(room)
            if is_backward or (other != room and room in LEAVES and other not in LEAVES[room]):
                offenders.append(f"{path}:{line}: {room} must not import {other}")
            if level > 1 and room != "metrics":
                offenders.append(f"{path}:{line} reaches out of its folder")
    assert not offenders


def test_no_module_is_too_long():
    lengths = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


def test_files_import_the_standard_library_yaml_and_pyav_only():
    allowed = {*sys.stdlib_module_names, "yaml", "av"}
    for path in (SOURCE / "files").glob("*.py"):
        for level, module, line in imports(path):
            assert level == 1 or module.split(".")[0] in allowed, f"{path.name}:{line}"


def test_file_names_say_their_subject():
    banned = {"utils", "misc", "common", "helpers", "modules"}
    assert not banned & {path.stem for path in FILES}


def test_only_scripts_and_the_command_line_print():
    printing = {
        room_of(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli", "demo"}


def test_training_and_inference_do_not_know_a_paper_by_name():
    for path in FILES:
        if room_of(path) in PAPERLESS:
            modules = [module for _, module, _ in imports(path)]
            assert not any("modeling_" in module or "configuration_" in module for module in modules), path
