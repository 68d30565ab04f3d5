# SPDX-License-Identifier: Apache-2.0
"""Each family can be deleted, with its row, and the rest of the package works on."""

import ast

import pytest

from changed_package import CONTRACT, copied_source, files_of, run_tests

# The slow set has those that no other part of the package once began with.
FAMILIES = ["themask", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cffm", "mpvss", "per_frame"))]
NAMES = ("themask", "cffm", "mpvss", "per_frame")


def imported_modules(path):
    """The last part of every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from {(node.module or "").split(".")[-1], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[-1] for alias in node.names)


@pytest.mark.parametrize("family", NAMES)
def test_no_other_file_imports_a_family(family, tmp_path):
    source = copied_source(tmp_path)
    own = files_of(family, source)
    modules = {path.stem for path in own}
    assert len(own) >= 3 and all(path.is_file() for path in own)
    others = set(source.rglob("*.py")) - set(own)
    offenders = {path.name: found for path in others if (found := modules & set(imported_modules(path)))}
    assert offenders == {}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_package_without_a_family_converts_trains_and_streams_with_the_rest(family, tmp_path):
    source = copied_source(tmp_path)
    for path in files_of(family, source):
        path.unlink()
    chosen = "loads or converts or trains or streams"
    output = run_tests(source, "--noconftest", CONTRACT, "-rA", "-k", chosen)
    tested = {
        line.split("[")[1].split("]")[0] for line in output.splitlines() if line.startswith("PASSED") and "[" in line
    }
    assert tested == {*NAMES, "videomt"} - {family}
