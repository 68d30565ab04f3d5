# SPDX-License-Identifier: Apache-2.0
import shutil
from fractions import Fraction

import numpy as np
import pytest

from hostile_videos import COLORS
from themask_command import main
from tiny import tiny_model
from transformers_themask.drawing.flicker import FlickerMap
from transformers_themask.drawing.palettes import class_palette
from transformers_themask.drawing.visualization import draw_contours, overlay
from transformers_themask.inference.paired_session import PairedSession
from transformers_themask.inference.segment import segment_frames
from transformers_themask.inference.segment_video import segment_video
from transformers_themask.sinks.comparison_video import ComparedModel, ComparisonVideo
from transformers_themask.sinks.sink import LabelledFrame
from transformers_themask.videos.frames_in_memory import FramesInMemory
from transformers_themask.videos.video_reader import VideoReader
from transformers_themask.videos.video_writer import VideoWriter

NAMES = ["sky", "meadow", "stripes", "dots", "checks", "bricks"]


class Collector:
    """Keeps the frames it is given."""

    def __init__(self):
        self.frames = []

    def write(self, frame):
        self.frames.append(frame)

    def close(self):
        pass

    def abandon(self):
        pass


def compared(names=NAMES, title="A: one"):
    return ComparedModel(title, names, class_palette(len(names)))


def paired_maps(count=6):
    cells = np.random.default_rng(0).integers(0, 6, (count, 2, 4, 6), dtype=np.uint8)
    return cells.repeat(40, axis=2).repeat(40, axis=3)


def written(path, label_maps, first, second, **options):
    """Write label maps of two models over coloured frames; returns the sink and the pictures of the file."""
    pictures = [np.full((*label_maps.shape[2:], 3), color, np.uint8) for color in COLORS]
    source = FramesInMemory(pictures, Fraction(10))
    sink = ComparisonVideo(path, source, (first, second), **options)
    for index, pair in enumerate(label_maps):
        sink.write(LabelledFrame(index, Fraction(index, 10), "", pictures[index], pair))
    sink.close()
    return sink, pictures, [*VideoReader(path)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"mode": "sliding"}, {"mode": "interleaved", "frame_stride": 3}),
        ({"mode": "contiguous", "num_frames": 4}, {"mode": "contiguous", "num_frames": 3}),
    ],
)
def test_paired_session_gives_every_frame_the_labels_of_both_sessions(segmenter, frames, first, second):
    session = PairedSession(*(segmenter.model.stream(segmenter.processor, **options) for options in (first, second)))
    collector = Collector()
    for _ in range(2):  # a session can be used again
        segment_video(session, FramesInMemory(frames), [collector])
    expected = [
        [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, frames, **options)]
        for options in (first, second)
    ]
    assert [frame.index for frame in collector.frames] == 2 * list(range(len(frames)))
    for frame, *pair in zip(collector.frames, 2 * expected[0], 2 * expected[1], strict=True):
        assert np.array_equal(frame.label_map, pair)


def test_paired_session_holds_back_no_more_than_its_longer_block(segmenter, frames):
    options = {"mode": "interleaved", "num_frames": 2, "frame_stride": 3}
    session = PairedSession(
        segmenter.model.stream(segmenter.processor, mode="sliding"),
        segmenter.model.stream(segmenter.processor, **options),
    )
    assert session.max_held_frames == 6
    num_given = 0
    for index, frame in enumerate(frames):
        for clip in session.advance(session.prepare(frame)):
            num_given += len(session.label(clip))
        assert index + 1 - num_given < 6
        assert sum(map(len, session._label_maps)) <= index + 1 - num_given


def test_overlays_stand_above_the_flicker_maps(tmp_path):
    label_maps = paired_maps()
    sink, pictures, video = written(tmp_path / "out.mp4", label_maps, compared(), compared(title="B: two"))
    assert len(video) == len(label_maps) == sink.num_frames
    palette = class_palette(6)
    flicker = FlickerMap(), FlickerMap()
    for picture, pair, shown in zip(pictures, label_maps, video, strict=False):
        for side, label_map in enumerate(pair):
            flicker[side].update(label_map)
            columns = slice(0, 240) if side == 0 else slice(244, 484)
            expected = draw_contours(overlay(picture, label_map, palette), label_map, palette)
            # Titles of one line stand above either; the codec smears colours over edges, so whole areas are compared.
            for top, panel in ((18, expected), (18 + 160 + 18, flicker[side].draw(picture))):
                difference = np.abs(shown[top : top + 160, columns].astype(int) - panel)
                assert difference.mean() < 5, (side, top)


def test_shares_are_those_of_the_label_maps(tmp_path):
    label_maps = paired_maps()
    sink, _, _ = written(tmp_path / "out.mp4", label_maps, compared(), compared())
    changed = (label_maps[1:] != label_maps[:-1]).mean(axis=(0, 2, 3))
    assert sink.mean_changed_shares == pytest.approx(changed.tolist())
    assert sink.mean_agreement == pytest.approx((label_maps[:, 0] == label_maps[:, 1]).mean())


def test_agreement_is_undefined_between_models_of_different_classes(tmp_path):
    others = compared([*NAMES[1:], "road", "railway", "bicyclist", "pedestrian", "pavement"])
    sink, _, different = written(tmp_path / "a.mp4", paired_maps(2), compared(), others)
    assert not sink.has_same_classes and sink.mean_agreement is None
    same, _, alike = written(tmp_path / "b.mp4", paired_maps(2), compared(), compared())
    assert same.has_same_classes
    # Each has a legend in half the width instead of one in the whole width: more rows.
    assert different[0].shape[0] > alike[0].shape[0] and different[0].shape[1] == alike[0].shape[1]


def test_size_stays_the_same_while_classes_come_and_go_and_panels_are_not_larger_than_a_screen(tmp_path):
    names = [f"a rather long name {index}" for index in range(124)]
    label_maps = np.zeros((3, 2, 720, 960), dtype=np.uint8)
    label_maps[1] = np.arange(960) // 8
    _, _, video = written(tmp_path / "out.mp4", label_maps, compared(names), compared(names))
    assert {frame.shape for frame in video} == {video[0].shape}
    height, width, _ = video[0].shape
    assert width == pytest.approx(2 * 720, abs=12) and 2 * 540 < height < 2 * 540 + 250


def test_abandoned_comparison_leaves_no_files(tmp_path):
    sink = ComparisonVideo(
        tmp_path / "out.mp4", FramesInMemory(paired_maps()[:, 0, ..., None].repeat(3, -1)), (compared(),) * 2
    )
    sink.abandon()
    picture = np.zeros((160, 240, 3), dtype=np.uint8)
    sink.write(LabelledFrame(0, Fraction(0), "", picture, paired_maps()[0]))
    sink.abandon()
    assert not list(tmp_path.iterdir())


def test_a_comparison_has_the_times_and_the_length_of_its_source(segmenter, frames, tmp_path):
    path, output = tmp_path / "held.mp4", tmp_path / "out.mp4"
    times = [Fraction(0), Fraction(1, 10), Fraction(4, 10)]
    writer = VideoWriter(path, 10)
    for time, frame in zip(times, frames, strict=False):
        writer.write(frame, time)
    writer.close(end=Fraction(42, 10))
    source = VideoReader(path)
    session = PairedSession(*(segmenter.model.stream(segmenter.processor) for _ in range(2)))
    segment_video(session, source, [ComparisonVideo(output, source, (compared(), compared()))])
    written_times, _, ends = zip(*VideoReader(output).timed_frames(), strict=True)
    assert list(written_times) == times and ends[-1] == Fraction(42, 10)


def test_compare_writes_the_video_and_says_how_the_models_differ(segmenter, model_dir, video_path, tmp_path, capsys):
    other_dir = tmp_path / "other"
    tiny_model(seed=3, num_frames=1, **{key: getattr(segmenter.model.config, key) for key in ("id2label", "label2id")}
               ).save_pretrained(other_dir)  # fmt: skip
    segmenter.processor.save_pretrained(other_dir)
    output = tmp_path / "out.mp4"
    assert (
        main(["compare", str(model_dir), str(other_dir), str(video_path), "-o", str(output), "--device", "cpu"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 11 frames"
    assert lines[1].startswith(f"A: {model_dir.name}: ") and lines[2].startswith("B: other: 0.00%")
    assert lines[3].startswith("A and B agree on ") and len(lines) == 4
    times = [time for time, *_ in VideoReader(output).timed_frames()]
    assert times == [time for time, *_ in VideoReader(video_path).timed_frames()]


def test_compare_delivers_what_a_damaged_folder_still_has(model_dir, frame_folder, tmp_path, capsys):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for position, file in enumerate(sorted(frame_folder.iterdir())):
        folder.joinpath(file.name).write_bytes(b"damaged" if position == 5 else file.read_bytes())
    output = tmp_path / "out.mp4"
    arguments = ["compare", str(model_dir), str(model_dir), str(folder), "-o", str(output), "--device", "cpu"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == f"{output}: 5 frames" and "5 frames could be read" in captured.err
    assert "A and B agree on 100.00% of the pixels" in captured.out
    assert len([*VideoReader(output)]) == 5


def test_compare_rejects_a_bad_output_name_before_it_loads_the_weights(model_dir, video_path, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    shutil.copy(model_dir / "config.json", tmp_path / "model")
    models = [str(tmp_path / "model")] * 2
    assert main(["compare", *models, str(video_path), "-o", str(tmp_path / "out.avi")]) == 2
    assert "`--output` must be a file whose name ends in .mp4" in capsys.readouterr().err
