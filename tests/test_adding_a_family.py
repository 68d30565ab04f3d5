# SPDX-License-Identifier: Apache-2.0
"""A family made of a configuration, a model and a row keeps what the package promises of every family."""

import re
import shutil
from pathlib import Path

import pytest

from changed_package import CONTRACT, copied_source, run_tests

TOY = Path(__file__).parent / "toy_family"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the package with the toy family, and no other difference."""
    source = copied_source(tmp_path_factory.mktemp("with_toy"))
    package = source / "transformers_themask"
    shutil.copy(TOY / "toy.py", package / "families")
    for name in ("configuration_toy.py", "modeling_toy.py"):
        shutil.copy(TOY / name, package / "models")
    return source


@pytest.mark.slow
def test_new_family_trains_streams_exports_and_is_used_by_pipeline_and_command(source):
    output = run_tests(source, "--noconftest", CONTRACT, "-k", "toy")
    assert "6 passed" in output


@pytest.mark.slow
def test_new_family_passes_the_tests_of_every_family(source):
    output = run_tests(source, "tests/models/test_every_family.py", "-k", "toy")
    assert "passed" in output


@pytest.mark.slow
def test_family_of_another_package_is_registered_by_its_row(tmp_path):
    """The toy as a package of its own, whose plugin for pytest registers it."""
    package = tmp_path / "toy_package"
    package.mkdir()
    for path in TOY.glob("*.py"):
        code = re.sub(r"transformers_themask\.models\.(\w+_toy)", r"toy_package.\1", path.read_text())
        code = re.sub(r"from \.(?!configuration_toy)", "from transformers_themask.models.", code)
        (package / path.name).write_text(code)
    plugin = "from toy_package.toy import FAMILY\nfrom transformers_themask import register_family\n"
    (tmp_path / "register_toy.py").write_text(f"{plugin}register_family(FAMILY)\n")
    output = run_tests(tmp_path, "--noconftest", "-p", "register_toy", CONTRACT, "-k", "toy")
    assert "6 passed" in output
