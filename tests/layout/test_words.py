# SPDX-License-Identifier: Apache-2.0
"""Only models, families and conversion know papers by name, and nothing inspects the signature of a model."""

import ast
import re
from pathlib import Path

import themask_command
import transformers_themask
from themask_command.commands import COMMANDS

PACKAGE = Path(transformers_themask.__file__).parent
ROOMS = ("training", "inference", "mvc", "batch", "export", "publishing", "sinks", "cli")
PAPERS = re.compile(r"the-?mask|cffm|mpvss|mask2former|segformer|videomt|eomt|dvis", re.IGNORECASE)
# The names of the package, of its command's module, and of the command: as `prog`, or before one of its sub-commands.
ALLOWED = re.compile(
    rf"transformers[-_]themask|\bthemask_command\b|prog='themask'|\bthemask (?=\{{|(?:{'|'.join(COMMANDS)})\b)"
)


def code_of(path: Path) -> str:
    """The code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        is_documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_documented and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def test_rooms_above_the_families_name_no_paper():
    files = [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    files += Path(themask_command.__file__).parent.rglob("*.py")
    assert len(files) > 50
    offenders = [
        f"{path.name}: {line.strip()}"
        for path in files
        for line in ALLOWED.sub("", code_of(path)).splitlines()
        if PAPERS.search(line)
    ]
    assert not offenders, "\n".join(offenders)


def test_no_code_inspects_signatures():
    inspecting = [path for path in PACKAGE.rglob("*.py") if re.search(r"\bsignature\(|getfullargspec", code_of(path))]
    assert not inspecting
