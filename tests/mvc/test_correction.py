# SPDX-License-Identifier: Apache-2.0
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_themask.mvc.confusable_groups import ConfusableGroup, read_groups
from transformers_themask.mvc.correction import (
    VideoCorrector,
    correct_results,
    question_of,
    relabel,
)
from transformers_themask.mvc.label_folders import ResultVideo, single_video
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.frames_in_memory import FramesInMemory

SEA, RIVER, LAKE, WATERFALL, WATER = 35, 36, 37, 38, 39
VSPW_NAMES = [f"class_{index}" for index in range(124)]
VSPW_NAMES[SEA : WATER + 1] = ["sea", "river", "lake", "waterfall", "water"]
VSPW_NAMES[:3] = ["grass", "tree", "other_plant"]
MEMBERS = [SEA, RIVER, LAKE, WATER]
GROUP = ConfusableGroup("water", ("river", "lake", "sea", "water"))
PLANTS = ConfusableGroup("vegetation", ("grass", "tree", "other_plant"))


class Script:
    """Answers in order, and what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.shown, self.questions = [], []

    def __call__(self, image, question):
        self.shown.append(np.array(image))
        self.questions.append(question)
        image.paste((0, 0, 0), (0, 0, *image.size))  # whatever a model does to it
        answer = self.answers[len(self.questions) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def a_video(name, seed, classes, num_frames=6, size=(12, 16)):
    """A video of noise, and label maps of noise."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, *size, 3), dtype=np.uint8)
    return ResultVideo(name, FramesInMemory(frames)), rng.choice(
        np.array(classes, dtype=np.uint8), (num_frames, *size)
    )


def write(folder, video, label_maps):
    for index, label_map in enumerate(label_maps):
        path = video.label_path(folder, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_map).save(path)


def read(folder, video, num_frames):
    return np.array([np.array(Image.open(video.label_path(folder, index))) for index in range(num_frames)])


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(tmp_path):
    """Label maps, output and log."""
    return tmp_path / "labels", tmp_path / "new" / "corrected", tmp_path / "new" / "log"


def correct(folders, videos_and_maps, answer, *, groups=(GROUP,), dry_run=False, **options):
    """Write label maps and correct them."""
    labels, output, log = folders
    for video, label_maps in videos_and_maps:
        write(labels, video, label_maps)
    corrector = VideoCorrector(groups, VSPW_NAMES, answer, "a script", **options)
    videos = [video for video, _ in videos_and_maps]
    return correct_results(corrector, videos, labels, None if dry_run else output, log)


@pytest.mark.parametrize(
    ("name", "classes", "question"),
    [
        ("water", ("river", "water", "lake", "sea"), "Is the water in the image a river, lake or sea?"),
        ("water", ("river", "lake"), "Is the water in the image a river or lake?"),
        ("water", ("ocean", "lake"), "Is the water in the image an ocean or lake?"),
        (
            "wild_plant",
            ("other_plant", "Tree", "grass", "wild_plant"),
            "Is the wild plant in the image an other plant, tree or grass?",
        ),
    ],
)
def test_questions_are_the_papers(name, classes, question):
    assert question_of(ConfusableGroup(name, classes)) == f"{question} Please give me the only answer."


def test_the_default_group_has_the_question_of_the_paper():
    [group] = read_groups()
    assert question_of(group) == "Is the water in the image a river, lake or sea? Please give me the only answer."


def test_a_group_becomes_one_class_and_the_rest_stays():
    label_map = np.array([[SEA, RIVER], [WATER, 5]], dtype=np.uint8)
    relabelled = relabel(label_map, MEMBERS, SEA)
    assert relabelled.tolist() == [[SEA, SEA], [SEA, 5]] and relabelled.dtype == np.uint8
    assert label_map.tolist() == [[SEA, RIVER], [WATER, 5]]
    wide = np.array([[300, 7, 65535]], dtype=np.uint16)
    assert relabel(wide, [7, 300], 300).tolist() == [[300, 300, 65535]]


def test_labels_become_the_answer_in_the_indices_of_vspw(folders):
    video = ResultVideo("v", FramesInMemory(np.zeros((1, 1, 4, 3), dtype=np.uint8)))
    label_maps = np.array([[[SEA, RIVER, WATER, 5]]], dtype=np.uint8)
    [entry] = correct(folders, [(video, label_maps)], Script("The water in the image is a sea."))
    assert read(folders[1], video, 1).tolist() == [[[SEA, SEA, SEA, 5]]]
    assert (entry.decision, entry.num_pixels, entry.num_frames) == ("sea", 2, 1)
    assert entry.shares == {"river": 0.25, "lake": 0.0, "sea": 0.25, "water": 0.25}


def test_only_the_group_changes_and_only_in_its_video(folders):
    competing = a_video("a", 0, [SEA, LAKE, WATER, WATERFALL, 5, 255])
    others = [a_video("b", 1, [SEA, 5, 255]), a_video("c/d", 2, [0, WATERFALL, 123]), a_video("e", 3, [LAKE])]
    answer = Script("A lake.")
    [entry] = correct(folders, [others[0], competing, *others[1:]], answer)
    labels, output, _ = folders
    expected = competing[1].copy()
    for y, x, t in np.ndindex(12, 16, 6):
        if expected[t, y, x] in (SEA, RIVER, LAKE, WATER):
            expected[t, y, x] = LAKE
    assert np.array_equal(read(output, competing[0], 6), expected)
    changed = expected != competing[1]
    assert entry.num_pixels == changed.sum() > 0 and entry.num_frames == changed.any((1, 2)).sum() == 6
    before, after = files_in(labels), files_in(output)
    assert before.keys() == after.keys()
    for name in before.keys() - {f"a/{index:08d}.png" for index in range(6)}:
        assert before[name] == after[name]
    assert np.array_equal(read(labels, competing[0], 6), competing[1])  # what was read is as it was


def test_groups_are_decided_apart(folders):
    video = a_video("a", 4, [SEA, LAKE, 0, 1, 2, 7])
    answer = Script("It could be a lake or the sea.", "Trees.")
    water, plants = correct(folders, [video], answer, groups=(GROUP, PLANTS))
    assert answer.questions == [question_of(GROUP), question_of(PLANTS)]
    assert (water.decision, plants.decision) == (None, "tree")
    expected = np.where(video[1] <= 2, 1, video[1])
    assert np.array_equal(read(folders[1], video[0], 6), expected)
    both = Script("lake", "grass")
    corrector = VideoCorrector((GROUP, PLANTS), VSPW_NAMES, both, "a script")
    correct_results(corrector, [video[0]], folders[0], folders[1].with_name("both"), folders[2].with_name("both_log"))
    expected = np.where(video[1] <= 2, 0, np.where(np.isin(video[1], [SEA, LAKE]), LAKE, 7))
    assert np.array_equal(read(folders[1].with_name("both"), video[0], 6), expected)


@pytest.mark.parametrize(
    "answer", ["", "I'm sorry, I can't help with that.", "a lake or a river", "🌊\ud800", "x" * 100_000]
)
def test_an_answer_without_a_decision_changes_nothing_and_is_logged(folders, answer):
    video = a_video("a", 0, [SEA, LAKE, 5])
    labels, output, log = folders
    [entry] = correct(folders, [video], Script(answer))
    assert files_in(output) == files_in(labels)
    assert (entry.decision, entry.num_pixels, entry.num_frames) == (None, 0, 0)
    [logged] = json.loads((log / "corrections.json").read_text())
    assert logged["answer"] == answer and logged["decision"] is None


def test_a_dry_run_asks_and_logs_but_writes_no_label_map(folders):
    videos = [a_video("a", 0, [SEA, LAKE, 5]), a_video("b", 1, [LAKE, RIVER])]
    answers = ("lake", "It is a pond.")
    _, output, log = folders
    dry = correct(folders, videos, Script(*answers), dry_run=True)
    assert not output.exists() and sorted(files_in(log)) == ["a/water.png", "b/water.png", "corrections.json"]
    assert list(log.parent.iterdir()) == [log]
    dry_log = json.loads((log / "corrections.json").read_text())
    log.rename(log.with_name("dry"))
    wet = correct(folders, videos, Script(*answers))
    changed = read(output, videos[0][0], 6) != videos[0][1]
    assert dry[0].num_pixels == changed.sum() and dry[0].num_frames == changed.any((1, 2)).sum()
    assert [entry.is_dry_run for entry in dry + wet] == [True, True, False, False]
    wet_log = json.loads((log / "corrections.json").read_text())
    assert [entry | {"is_dry_run": False} for entry in dry_log] == wet_log


def test_the_frame_with_most_of_the_group_is_shown_and_logged(folders):
    video, label_maps = a_video("a", 5, [5], num_frames=5, size=(10, 10))
    for index, areas in enumerate([(3, 2), (10, 1), (4, 7), (5, 6), (0, 10)]):  # 11 first in frame 1
        flat = label_maps[index].reshape(-1)
        flat[: areas[0]] = SEA
        flat[50 : 50 + areas[1]] = WATER
        flat[90:] = WATERFALL  # in no group
    label_maps[4].reshape(-1)[70:73] = 0
    answer = Script("sea")
    [entry] = correct(folders, [(video, label_maps)], answer)
    frames = list(video.frames)
    assert len(answer.shown) == 1 and np.array_equal(answer.shown[0], frames[1])
    assert (entry.frame_index, entry.frame_name, entry.picture) == (1, "00000001", "a/water.png")
    assert np.array_equal(np.array(Image.open(folders[2] / entry.picture)), frames[1])
    assert entry.shares == {"river": 0, "lake": 0, "sea": 22 / 500, "water": 26 / 500}
    assert (entry.num_pixels, entry.num_frames) == (26, 5)


def test_the_log_has_everything(folders):
    video = a_video("a", 0, [SEA, LAKE, RIVER, 5])
    entries = correct(folders, [video, a_video("b", 1, [5])], Script("A «lake»."))
    [logged] = json.loads((folders[2] / "corrections.json").read_text())
    areas = np.isin(video[1], MEMBERS).sum((1, 2))
    assert logged == {
        "video": "a",
        "group": "water",
        "frame_index": int(areas.argmax()),
        "frame_name": f"{areas.argmax():08d}",
        "picture": "a/water.png",
        "shares": {name: (video[1] == VSPW_NAMES.index(name)).mean() for name in ("river", "lake", "sea", "water")},
        "model": "a script",
        "question": "Is the water in the image a river, lake or sea? Please give me the only answer.",
        "answer": "A «lake».",
        "decision": "lake",
        "num_pixels": int(np.isin(video[1], [SEA, RIVER]).sum()),
        "num_frames": 6,
        "is_dry_run": False,
    }
    assert sorted(files_in(folders[2])) == ["a/water.png", "corrections.json"] and len(entries) == 1


@pytest.mark.parametrize(
    ("num_sea", "num_lake", "options", "is_asked"),
    [
        (4, 3, {}, True),  # 7 of 700: exactly 1 %
        (3, 3, {}, False),
        (600, 0, {}, False),  # nothing competes
        (599, 1, {}, True),
        (1, 1, {"minimum_share": 0}, True),
        (0, 0, {"minimum_share": 0}, False),
        (349, 350, {"minimum_share": 1}, False),
        (350, 350, {"minimum_share": 1}, True),
    ],
)
def test_a_question_needs_two_classes_and_enough_pixels_of_the_whole_video(
    folders, num_sea, num_lake, options, is_asked
):
    video, label_maps = a_video("a", 0, [255], num_frames=2, size=(10, 35))
    label_maps.reshape(-1)[:num_sea] = SEA
    label_maps.reshape(-1)[num_sea : num_sea + num_lake] = LAKE
    assert len(correct(folders, [(video, label_maps)], Script("sea"), **options)) == is_asked
    assert (folders[2] / "corrections.json").is_file()
    expected = np.where(label_maps == LAKE, SEA, label_maps) if is_asked else label_maps
    assert np.array_equal(read(folders[1], video, 2), expected)


def test_frames_that_show_the_answer_already_are_not_counted(folders):
    video, label_maps = a_video("a", 0, [LAKE], num_frames=4)
    label_maps[1, 0, 0], label_maps[3] = SEA, 5
    [entry] = correct(folders, [(video, label_maps)], Script("lake"))
    assert (entry.num_pixels, entry.num_frames) == (1, 1)


def test_a_video_corrected_again_has_nothing_to_correct(folders):
    video = a_video("", 0, [SEA, LAKE, 5])
    [entry] = correct(folders, [video], Script("lake"))
    assert (entry.video, entry.picture) == ("", "water.png")
    _, output, log = folders
    again = VideoCorrector([GROUP], VSPW_NAMES, Script(), "a script")
    third = output.with_name("third")
    assert correct_results(again, [video[0]], output, third, log.with_name("third_log")) == []
    assert files_in(third) == files_in(output) and len(files_in(third)) == 6


def test_the_same_video_can_be_corrected_twice(folders):
    video = a_video("a", 0, [SEA, LAKE, 5])
    first = correct(folders, [video], Script("lake"))
    results = files_in(folders[1]) | files_in(folders[2])
    renewed = [folders[0], *(folder.with_name(f"second_{folder.name}") for folder in folders[1:])]
    assert correct(renewed, [video], Script("lake")) == first
    assert files_in(renewed[1]) | files_in(renewed[2]) == results


@pytest.mark.parametrize("problem", [RuntimeError("out of memory."), None, 7])
def test_missing_answer_is_an_error_and_no_file_is_written(folders, problem):
    videos = [a_video("a", 0, [SEA, LAKE, 5]), a_video("b", 1, [SEA, LAKE, 5])]
    with pytest.raises(ValueError) as caught:
        correct(folders, videos, Script("lake", problem))
    error = str(caught.value)
    assert error.startswith(
        "a script must answer every question with text. Asked about group `water` of video b. Got "
    )
    assert error.endswith("No label map has been written.") and ".." not in error
    assert list(folders[1].parent.iterdir()) == []


def test_interruption_leaves_no_files(folders):
    with pytest.raises(KeyboardInterrupt):
        correct(folders, [a_video("a", 0, [SEA, LAKE])], Script(KeyboardInterrupt()))
    assert list(folders[1].parent.iterdir()) == []


def test_no_more_than_one_picture_of_each_group_is_kept(folders):
    """Frames are made one by one; of those that are gone, at most the one to be shown is alive."""

    class Frame(np.ndarray):
        """An array whose end can be noticed."""

    class Frames:
        num_alive = most = 0

        def __iter__(self):
            for index in range(30):
                frame = np.full((12, 16, 3), index, dtype=np.uint8).view(Frame)
                weakref.finalize(frame, self.forget)
                self.num_alive += 1
                self.most = max(self.most, self.num_alive)
                yield frame
                del frame

        def forget(self):
            self.num_alive -= 1

        def frame_name(self, index):
            return f"{index}"

    frames = Frames()
    _, label_maps = a_video("a", 0, [5], num_frames=30)
    for index in range(30):  # every frame has more than the one before
        label_maps[index].reshape(-1)[: index + 2] = [SEA, LAKE] * (index // 2 + 1) if index % 2 == 0 else SEA
    answer = Script("sea")
    correct(folders, [(ResultVideo("a", frames), label_maps)], answer)
    assert answer.shown[0].max() == answer.shown[0].min() == 29
    assert frames.most <= 3  # the one to be shown, the last and the next


def test_label_maps_must_fit(folders):
    def error(change, kind=ValueError):
        video, label_maps = a_video("a", 0, [SEA, LAKE])
        write(folders[0], video, label_maps)
        change(video, label_maps)
        corrector = VideoCorrector([GROUP], VSPW_NAMES, Script("lake"), "a script")
        with pytest.raises(kind) as caught:
            correct_results(corrector, [video], *folders)
        assert list(folders[1].parent.iterdir()) == []
        for file in (folders[0] / "a").iterdir():
            file.unlink()
        return str(caught.value)

    def unknown_class(video, label_maps):
        label_maps[2, 0, 0] = 124
        write(folders[0], video, label_maps)

    path = folders[0] / "a" / "00000002.png"
    assert f"{path} must hold indices of the 124 classes, or 255. Got 124." in error(unknown_class)
    assert str(path) in error(lambda *_: path.unlink(), FileNotFoundError)
    assert str(path) in error(lambda *_: Image.new("L", (3, 3)).save(path))
    more = path.with_name("00000099.png")
    assert "must hold the label maps of 6 frames. Got 7." in error(lambda *_: Image.new("L", (16, 12)).save(more))


def test_a_damaged_video_is_not_corrected(folders, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 12)).save(frames / f"{index}.png")
    damaged = frames / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    [video] = single_video(FrameFolder(frames))
    with pytest.raises(ValueError, match=r"2 frames could be read\."):
        correct(folders, [(video, a_video("", 0, [SEA, LAKE])[1][:2])], Script("lake"))
    assert list(folders[1].parent.iterdir()) == []


def test_folders_with_files_are_not_replaced(folders):
    video = a_video("a", 0, [SEA, LAKE])
    for position, argument in ((1, "output"), (2, "log")):
        kept = folders[position] / "kept.txt"
        kept.parent.mkdir(parents=True)
        kept.touch()
        with pytest.raises(ValueError, match=f"`{argument}` must be a new or empty folder"):
            correct(folders, [video], Script("lake"))
        assert [path for path in Path(folders[1].parent).rglob("*") if path.is_file()] == [kept]
        kept.unlink()
        kept.parent.rmdir()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_between_0_and_1(share):
    with pytest.raises(ValueError, match="`minimum_share` must be between 0 and 1"):
        VideoCorrector([GROUP], VSPW_NAMES, Script(), "a script", share)


def test_groups_must_be_of_the_data_set():
    with pytest.raises(ValueError, match="Group `water` must have at least 2 classes of the data set"):
        VideoCorrector([GROUP], ["sky", "sea"], Script(), "a script")
