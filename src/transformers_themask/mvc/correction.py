# SPDX-License-Identifier: Apache-2.0
"""Correction of classes that a model confuses: a vision-language model says which it is (MVC, Section 2.5)."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from transformers_themask.data.images import read_mask
from transformers_themask.files.atomic import AtomicFolder
from transformers_themask.files.plain_names import inside
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.sinks.output_folder import check_new_folder

from .confusable_groups import MIN_CANDIDATES, ConfusableGroup, check_groups, spoken
from .label_folders import ResultVideo, frames_with_label_maps

LOG_FILE = "corrections.json"
DEFAULT_MINIMUM_SHARE = 0.01
# Marks pixels without a class in label maps of 8 bits.
IGNORE_INDEX = 255

# Answers a question about an RGB picture, such as [`VisionLanguageModel`].
VisualQuestionAnswerer = Callable[[Image.Image, str], str]


@dataclass(frozen=True)
class Correction:
    """One question about a video, and what follows from the answer: an entry of the log.

    `video` is `""` for a single one; `picture` is a copy of the frame that was shown, relative to the log; `shares`
    are those of the group's classes in all pixels of the video, 0 to 1. `decision` is the class that the answer names,
    if any; `num_pixels` in `num_frames` frames change by it, or would but for a dry run.
    """

    video: str
    group: str
    frame_index: int
    frame_name: str
    picture: str
    shares: Mapping[str, float]
    model: str
    question: str
    answer: str
    decision: str | None
    num_pixels: int
    num_frames: int
    is_dry_run: bool


def question_of(group: ConfusableGroup) -> str:
    """The question about a group, as in MVC, Section 2.5, without the class of the group's own name.

    Its example: "Is the water in the image a river, lake or sea? Please give me the only answer."
    """
    *others, last = map(spoken, group.candidates)
    choice = f"{', '.join(others)} or {last}"
    article = "an" if choice[0] in "aeiou" else "a"
    return f"Is the {spoken(group.name)} in the image {article} {choice}? Please give me the only answer."


def parse_answer(answer: str, group: ConfusableGroup) -> str | None:
    """The class that an answer names (MVC, Section 2.5), or `None` unless it names exactly one of the candidates.

    Names are whole words in upper or lower case, singular or with a plural "s". Nothing else is read: a denial that
    names one class counts as naming it.
    """
    longest_first = sorted(map(spoken, group.candidates), key=len, reverse=True)  # "other plant" is no "plant"
    pattern = "|".join(map(re.escape, longest_first))
    named = set(re.findall(rf"(?<![\w-])({pattern})s?(?![\w-])", spoken(answer)))
    return next((name for name in group.candidates if named == {spoken(name)}), None)


def relabel(label_map: np.ndarray, members: Sequence[int], decision: int) -> np.ndarray:
    """A copy of a label map in which all pixels of the classes `members` have the class `decision`."""
    return np.where(np.isin(label_map, members), label_map.dtype.type(decision), label_map)


class _GroupInVideo:
    """Pixel counts of one group over the frames seen so far, and the frame with its largest area."""

    def __init__(self, group: ConfusableGroup, class_names: Sequence[str]):
        self.group = group
        self.members = [class_names.index(name) for name in group.classes]
        # Of each member: its pixels, and the frames that would change if it were the answer.
        self.num_pixels, self.num_frames_of_others = np.zeros((2, len(self.members)), dtype=np.int64)
        self.largest_area = self.frame_index = 0
        self.frame = np.empty((0, 0, 3), dtype=np.uint8)

    def add(self, index: int, frame: np.ndarray, class_pixels: np.ndarray) -> None:
        """Take in the next frame, given its pixels of every class."""
        num_pixels = class_pixels[self.members]
        area = num_pixels.sum()
        self.num_pixels += num_pixels
        self.num_frames_of_others += area > num_pixels
        if area > self.largest_area:
            self.largest_area, self.frame_index, self.frame = area, index, frame

    def changes(self, decision: str | None) -> tuple[int, int]:
        """Number of pixels that a decision changes, and number of frames with such pixels."""
        if decision is None:
            return 0, 0
        position = self.group.classes.index(decision)
        num_pixels = self.num_pixels.sum() - self.num_pixels[position]
        return int(num_pixels), int(self.num_frames_of_others[position])


@dataclass(frozen=True)
class VideoCorrector:
    """Finds the groups whose classes compete within a video, asks, and relabels.

    Args:
        groups: What may compete, as from [`read_groups`].
        class_names: All classes in the order of their indices in label maps.
        answer: Answers a question about a picture.
        model_name: What to call `answer` in the log.
        minimum_share: Share of all pixels of a video, 0 to 1, that the classes of a group must have together for a
            question, at least two of them being there.

    Raises:
        ValueError: If a group has classes that the data set lacks, or the share is not between 0 and 1.
    """

    groups: Sequence[ConfusableGroup]
    class_names: Sequence[str]
    answer: VisualQuestionAnswerer
    model_name: str
    minimum_share: float = DEFAULT_MINIMUM_SHARE

    def __post_init__(self):
        check_groups(self.groups, self.class_names)
        if not 0 <= self.minimum_share <= 1:
            raise ValueError(f"`minimum_share` must be between 0 and 1. Got {self.minimum_share}.")

    def correct_video(self, video: ResultVideo, labels: Path, output: Path | None, log: Path) -> list[Correction]:
        """Ask about one video and write its label maps anew; returns one entry for every question.

        The frames are read once, the label maps twice; memory does not grow with the length of the video.

        Args:
            video: The video.
            labels: Folder of label maps, see [`ResultVideo`].
            output: Folder for label maps in the same layout; `None` for a dry run, which asks and logs but writes
                none.
            log: Folder for the pictures that are shown: `<video>/<group>.png`.

        Raises:
            ValueError: If there is no answer, a frame or label map cannot be read, or a label is no class.
        """
        seen, num_frames, total = self._look_at(video, labels)
        competing = [group for group in seen if self._competes(group, total)]
        corrections = [self._ask(video, group, total, log, is_dry_run=output is None) for group in competing]
        if output is not None:
            decisions = [
                (group.members, self.class_names.index(correction.decision))
                for group, correction in zip(competing, corrections, strict=True)
                if correction.decision is not None
            ]
            _write_label_maps(video, num_frames, labels, output, decisions)
        return corrections

    def _look_at(self, video: ResultVideo, labels: Path) -> tuple[list[_GroupInVideo], int, int]:
        """What the video shows of each group, its number of frames and that of its pixels."""
        seen = [_GroupInVideo(group, self.class_names) for group in self.groups]
        num_frames = total = 0
        for frame, (label_map,) in frames_with_label_maps(video, [labels]):
            class_pixels = np.bincount(label_map.ravel(), minlength=len(self.class_names))
            self._check_labels(class_pixels, video.label_path(labels, num_frames))
            for group in seen:
                group.add(num_frames, frame, class_pixels)
            num_frames += 1
            total += label_map.size
        return seen, num_frames, total

    def _check_labels(self, class_pixels: np.ndarray, path: Path) -> None:
        num_classes = len(self.class_names)
        unknown = set(np.flatnonzero(class_pixels[num_classes:]) + num_classes) - {IGNORE_INDEX}
        if unknown:
            raise ValueError(
                f"{path} must hold indices of the {num_classes} classes, or {IGNORE_INDEX}. Got {min(unknown)}. Are "
                "these the classes of the model that wrote it?"
            )

    def _competes(self, seen: _GroupInVideo, total: int) -> bool:
        num_present = np.count_nonzero(seen.num_pixels)
        return bool(num_present >= MIN_CANDIDATES and seen.num_pixels.sum() / total >= self.minimum_share)

    def _ask(self, video: ResultVideo, seen: _GroupInVideo, total: int, log: Path, *, is_dry_run: bool) -> Correction:
        group = seen.group
        image = Image.fromarray(seen.frame)
        picture = Path(video.name) / f"{group.name}.png"
        inside(log, log / picture).parent.mkdir(parents=True, exist_ok=True)
        image.save(log / picture)  # before the model can draw on it
        question = question_of(group)
        answer = self._answer(video, group, image, question)
        decision = parse_answer(answer, group)
        num_pixels, num_frames = seen.changes(decision)
        return Correction(
            video=video.name,
            group=group.name,
            frame_index=seen.frame_index,
            frame_name=video.frames.frame_name(seen.frame_index),
            picture=picture.as_posix(),
            shares=dict(zip(group.classes, (seen.num_pixels / total).tolist(), strict=True)),
            model=self.model_name,
            question=question,
            answer=answer,
            decision=decision,
            num_pixels=num_pixels,
            num_frames=num_frames,
            is_dry_run=is_dry_run,
        )

    def _answer(self, video: ResultVideo, group: ConfusableGroup, image: Image.Image, question: str) -> str:
        try:
            answer = self.answer(image, question)
            if not isinstance(answer, str):
                raise TypeError(repr(answer))
        except Exception as error:
            where = f"video {video.name}" if video.name else "the video"
            raise ValueError(
                f"{self.model_name} must answer every question with text. Asked about group `{group.name}` of "
                f"{where}. Got {f'{type(error).__name__}: {error}'.rstrip('.')}. No label map has been written."
            ) from error
        return answer


def _write_label_maps(
    video: ResultVideo, num_frames: int, labels: Path, output: Path, decisions: Sequence[tuple[Sequence[int], int]]
) -> None:
    """Write relabelled label maps; without a decision, copies."""
    for index in range(num_frames):
        path, new_path = video.label_path(labels, index), video.new_label_path(output, index)
        if not decisions:
            new_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new_path)
            continue
        label_map = read_mask(path)
        for members, decision in decisions:
            label_map = relabel(label_map, members, decision)
        write_label_map(label_map, new_path)


def correct_results(
    corrector: VideoCorrector,
    videos: Sequence[ResultVideo],
    labels: str | Path,
    output: str | Path | None,
    log: str | Path,
    *,
    progress: bool = False,
) -> list[Correction]:
    """Correct the label maps of several videos, each on its own; returns one entry for every question.

    The folders appear when everything is written; after an error there is neither.

    Args:
        corrector: What asks and relabels.
        videos: The videos.
        labels: Folder of their label maps, which is only read.
        output: New or empty folder for all label maps, changed or not, in the same layout; `None` for a dry run, which
            asks and logs but writes none.
        log: New or empty folder for `corrections.json`, a list with every question, and the pictures that were shown.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: As in [`VideoCorrector.correct_video`], or if a folder holds files already.
        FileNotFoundError: If a frame has no label map.
    """
    folders = {"log": log} if output is None else {"log": log, "output": output}
    for argument, folder in folders.items():
        check_new_folder(argument, folder)
    corrections: list[Correction] = []
    with ExitStack() as unfinished:
        new = {argument: unfinished.enter_context(AtomicFolder(path)) for argument, path in folders.items()}
        for video in tqdm(videos, unit="video", disable=not progress):
            corrections += corrector.correct_video(video, Path(labels), new.get("output"), new["log"])
        entries = json.dumps([asdict(correction) for correction in corrections], indent=2)
        (new["log"] / LOG_FILE).write_text(f"{entries}\n", encoding="utf-8")
    return corrections
