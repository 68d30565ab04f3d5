# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from transformers_themask.mvc.confusable_groups import (
    DEFAULT_GROUPS_FILE,
    ConfusableGroup,
    check_groups,
    read_groups,
)

VSPW_WATER = ["sea", "river", "lake", "waterfall", "water"]


def error_of(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    return str(caught.value)


def test_by_default_only_the_water_of_the_paper_is_asked_about():
    groups = read_groups()
    assert groups == [ConfusableGroup("water", ("river", "lake", "sea", "water"))]
    check_groups(groups, VSPW_WATER)


def test_the_candidates_in_the_comments_can_be_used(tmp_path):
    lines = DEFAULT_GROUPS_FILE.read_text().splitlines()
    commented = [line.removeprefix("# ") for line in lines if line.startswith("# ") and line.endswith("]")]
    (tmp_path / "groups.yaml").write_text("\n".join(commented))
    assert [group.name for group in read_groups(tmp_path / "groups.yaml")] == [
        "plant",
        "surface",
        "rock",
        "structure",
    ]


def test_the_default_groups_are_installed_with_the_package():
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert (
        '"src/transformers_themask"' in pyproject.read_text().partition("packages = ")[2]
    )  # hatch takes every file below
    assert DEFAULT_GROUPS_FILE.is_relative_to(pyproject.parent / "src" / "transformers_themask")


@pytest.mark.parametrize(
    ("name", "classes", "candidates"),
    [
        ("water", ("sea", "water", "lake"), ("sea", "lake")),
        ("Body_of_water", ("sea", "body of  WATER", "lake"), ("sea", "lake")),
        ("plants", ("grass", "other_plant"), ("grass", "other_plant")),
    ],
)
def test_the_class_with_the_name_of_the_group_is_no_candidate(name, classes, candidates):
    assert ConfusableGroup(name, classes).candidates == candidates


@pytest.mark.parametrize(
    ("name", "classes", "problem"),
    [
        ("water", ("sea", "water"), "must have at least 2 classes to choose from, besides one of its own name."),
        ("water", (), "Got none"),
        ("water", ("sea", "lake", "Sea"), "must name every class once. Got 'sea' again"),
        ("plant", ("other_plant", "other plant", "tree"), "Got 'other plant' again"),
        ("water", ("sea", "lake", "--_"), "must name classes with letters. Got '--_'"),
        ("../water", ("sea", "lake"), "must be letters, digits, underscores and hyphens. Got '../water'"),
        ("", ("sea", "lake"), "Got ''"),
    ],
)
def test_groups_that_cannot_be_asked_about(name, classes, problem):
    assert problem in error_of(ConfusableGroup, name, classes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must hold lines such as `water: [river, lake, sea]`. Got no group."),
        ("- sea\n- lake\n", "Got list."),
        ("water: sea, lake\n", "Got `water: sea, lake`"),
        ("water: {classes: [sea, lake]}\n", "must be a name and a list of class names"),
        ("water: [sea, no]\n", "put what YAML takes for a number or for yes and no in quotation marks"),
        ("1: [sea, lake]\n", "must be a name and a list of class names"),
        ("water: [sea, lake\n", "must be YAML. Got: "),
        ("water: [sea]\n", "groups.yaml: Group `water` must have at least 2 classes"),
    ],
)
def test_files_that_hold_no_groups(tmp_path, text, problem):
    file = tmp_path / "groups.yaml"
    file.write_text(text)
    error = error_of(read_groups, file)
    assert problem in error and str(file) in error and "\n" not in error


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a YAML file of groups"):
        read_groups(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    assert "must be a text file in UTF-8" in error_of(read_groups, tmp_path / "bytes.yaml")


def test_classes_must_be_those_of_the_data_set():
    water = ConfusableGroup("water", ("river", "lake", "see", "ocean"))
    error = error_of(check_groups, [water], VSPW_WATER)
    assert error == ("Group `water` must name classes of the data set. Got 'see' (did you mean sea?), 'ocean'.")
    road = ["road", "car", "lake"]
    assert "must have at least 2 classes of the data set. Got river, lake, see, ocean, of which it lacks river, " in (
        error_of(check_groups, [water], road)
    )


def test_a_class_competes_in_one_group_only():
    groups = [ConfusableGroup("water", ("river", "lake", "sea")), ConfusableGroup("coast", ("sea", "waterfall"))]
    assert "Got 'sea' in `water` and in `coast`" in error_of(check_groups, groups, VSPW_WATER)
    check_groups(groups[:1], VSPW_WATER)
