# SPDX-License-Identifier: Apache-2.0
"""Groups of classes that a model confuses, read from a YAML file."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_themask.files.text_files import read_yaml

DEFAULT_GROUPS_FILE = Path(__file__).with_name("confusable_groups.yaml")
MIN_CANDIDATES = 2


@dataclass(frozen=True)
class ConfusableGroup:
    """Classes that look alike, of which a video most likely shows one (MVC, Section 2.5).

    A question calls all of them by `name` and lists the `classes` in their order. Raises a `ValueError` if the name
    cannot be a file's, a class comes twice, or fewer than two can be asked about.
    """

    name: str
    classes: tuple[str, ...]

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(
                f"The name of a group must be letters, digits, underscores and hyphens. Got {self.name!r}; pictures "
                "in the log are named after it."
            )
        unspeakable = [name for name in self.classes if not re.search(r"[^\W_]", name)]
        if unspeakable:
            raise ValueError(f"Group `{self.name}` must name classes with letters. Got {unspeakable[0]!r}.")
        repeated = [name for name, count in Counter(map(spoken, self.classes)).items() if count > 1]
        if repeated:
            raise ValueError(
                f"Group `{self.name}` must name every class once. Got {repeated[0]!r} again; remove the repetition."
            )
        if len(self.candidates) < MIN_CANDIDATES:
            raise ValueError(
                f"Group `{self.name}` must have at least {MIN_CANDIDATES} classes to choose from, besides one of its "
                f"own name. Got {', '.join(self.classes) or 'none'}; add classes that look like it."
            )

    @property
    def candidates(self) -> tuple[str, ...]:
        """The classes that a question offers: all but the one with the group's own name."""
        return tuple(name for name in self.classes if spoken(name) != spoken(self.name))


def spoken(name: str) -> str:
    """A class name as in a sentence: `other_plant` is "other plant"."""
    return " ".join(name.replace("_", " ").lower().split())


def read_groups(path: str | Path = DEFAULT_GROUPS_FILE) -> list[ConfusableGroup]:
    """Read groups from a YAML file of lines `name: [class, class, ...]`; by default the water of the paper.

    Raises a `FileNotFoundError` or, for another kind of file, a `ValueError`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} must be a YAML file of groups of classes. Got no such file.")
    lists = read_yaml(Path(path), object)
    if not isinstance(lists, dict) or not lists:
        raise ValueError(
            f"{path} must hold lines such as `water: [river, lake, sea]`. Got "
            f"{'no group' if not lists else type(lists).__name__}."
        )
    return [_group(path, name, classes) for name, classes in lists.items()]


def _group(path: str | Path, name: object, classes: object) -> ConfusableGroup:
    if not isinstance(name, str) or not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ValueError(
            f"Every group in {path} must be a name and a list of class names, as in `water: [river, lake, sea]`. Got "
            f"`{name}: {classes}`; put what YAML takes for a number or for yes and no in quotation marks."
        )
    try:
        return ConfusableGroup(name, tuple(classes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_groups(groups: Sequence[ConfusableGroup], class_names: Sequence[str]) -> None:
    """Raise a `ValueError` unless all classes of the groups are classes of a data set, each in one group only."""
    group_of: dict[str, str] = {}
    for group in groups:
        unknown = [name for name in group.classes if name not in class_names]
        if len(group.classes) - len(unknown) < MIN_CANDIDATES:
            raise ValueError(
                f"Group `{group.name}` must have at least {MIN_CANDIDATES} classes of the data set. Got "
                f"{', '.join(group.classes)}, of which it lacks {', '.join(unknown)}. Write a file "
                "with groups of its own classes."
            )
        if unknown:
            raise ValueError(
                f"Group `{group.name}` must name classes of the data set. Got "
                f"{', '.join(_with_close_names(name, class_names) for name in unknown)}."
            )
        for name in group.classes:
            if name in group_of:
                raise ValueError(
                    f"A class must be in one group only. Got {name!r} in `{group_of[name]}` and in `{group.name}`; "
                    "keep it in one, as answers about both could contradict each other."
                )
            group_of[name] = group.name


def _with_close_names(name: str, class_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, class_names)
    return f"{name!r} (did you mean {' or '.join(close)}?)" if close else f"{name!r}"
