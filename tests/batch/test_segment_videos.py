# SPDX-License-Identifier: Apache-2.0
"""Many videos: found, shared out, finished one by one, and nothing done twice or mixed up."""

import csv
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_themask import THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.batch.video_batch import (
    VideoRecord,
    check_result_folders,
    divide_work,
    find_videos,
    summarise,
    write_summary,
)
from transformers_themask.batch.worker_group import WorkerGroup
from transformers_themask.inference.model_fingerprint import model_fingerprint
from transformers_themask.inference.segment import segment_frames
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.video_writer import VideoWriter

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/segment_videos.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("segment_videos", ROOT / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(script, model_dir, tmp_path, monkeypatch):
    """Runs the script in this process; results are in `tmp_path / "out"`."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(folder, *flags, output=tmp_path / "out"):
        arguments = [folder, "--model", model_dir, "--output", output, "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
        return script.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def videos(frames, tmp_path):
    """Two videos whose names differ in the suffix only, one in frames, one of text, and one that breaks off."""
    folder = tmp_path / "videos"
    (folder / "trip" / "frames").mkdir(parents=True)
    write_video(folder / "trip" / "a.mp4", frames)
    write_video(folder / "a.mov.mp4", frames[:4])
    (folder / "a.mov.mp4").rename(folder / "trip" / "a.mov")
    for index, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(folder / "trip" / "frames" / f"{index}.png")
    (folder / "text.mp4").write_text("no video")
    (folder / "cut.mkv").write_bytes(cut_matroska(frames, tmp_path))
    return folder


def write_video(path, frames):
    with VideoWriter(path, 10) as writer:
        for frame in frames:
            writer.write(frame)


def cut_matroska(frames, tmp_path):
    """The first 60 % of a file that declares how long it is."""
    path = tmp_path / "whole.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    return content[: len(content) * 6 // 10]


def summary(output):
    content = json.loads((output / "summary.json").read_text())
    with (output / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [row["video"] for row in content["videos"]]
    assert [row["status"] for row in rows] == [row["status"] for row in content["videos"]]
    return content["totals"], {row["video"]: row for row in content["videos"]}


def label_maps(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


def written(output):
    return {path.parent: path.stat().st_mtime_ns for path in output.rglob("record.json")}


def test_every_video_has_its_own_results_and_a_line_in_the_summary(call, videos, segmenter, tmp_path, capsys):
    assert call(videos, "--labels", "--label-track", "--statistics", "--overlay") == 1
    output = tmp_path / "out"
    totals, rows = summary(output)
    assert {name: row["status"] for name, row in rows.items()} == {
        "cut.mkv": "incomplete",
        "text.mp4": "failed",
        "trip/a.mov": "complete",
        "trip/a.mp4": "complete",
        "trip/frames": "complete",
    }
    assert totals["videos"] == 5 and totals["complete"] == 3 and totals["unfinished"] == 0
    assert totals["frames"] == sum(row["frames"] for row in rows.values())
    for name, row in rows.items():
        if row["status"] == "failed":
            assert row["frames"] == 0 and "`path` must name a video file" in row["error"]
            assert [path.name for path in (output / name).iterdir()] == ["record.json"]
            continue
        files = {path.name for path in (output / name).iterdir()}
        assert files == {"record.json", "labels", "labels.mkv", "statistics.csv", "overlay.mp4"}
        readable = itertools.islice(open_frame_source(videos / name), row["frames"])
        expected = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, readable)]
        np.testing.assert_array_equal(label_maps(output / name / "labels"), expected)
    assert 0 < rows["cut.mkv"]["frames"] < 11 and "cut.mkv" in rows["cut.mkv"]["error"]
    assert rows["trip/a.mov"]["frames"] == 4 and rows["trip/a.mp4"]["frames"] == 11
    assert "3 complete, 1 incomplete, 1 failed" in capsys.readouterr().out
    assert not list(output.rglob(".*"))


def test_only_what_is_not_complete_is_done_again(call, videos, frames, tmp_path):
    assert call(videos, "--labels") == 1
    first = written(tmp_path / "out")
    for broken in ("text.mp4", "cut.mkv"):
        (videos / broken).unlink()
    write_video(videos / "text.mp4", frames[:2])
    assert call(videos, "--labels") == 0
    second = written(tmp_path / "out")
    again = {folder.name for folder, moment in second.items() if first.get(folder) != moment}
    assert again == {"text.mp4"}
    totals, rows = summary(tmp_path / "out")
    assert totals["complete"] == totals["videos"] == 4 and rows["text.mp4"]["frames"] == 2


@pytest.mark.parametrize("flags", [["--num-frames", "1"], ["--mode", "sliding"], ["--statistics"], ["--bf16"]])
def test_results_of_other_options_are_replaced(call, videos, tmp_path, flags):
    trip = videos / "trip"
    assert call(trip, "--labels") == 0
    first = written(tmp_path / "out")
    assert call(trip, "--labels", *flags) == 0
    assert {folder for folder, moment in written(tmp_path / "out").items() if first[folder] == moment} == set()
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.slow
def test_two_processes_share_the_work_and_one_of_them_sums_up(call, videos, model_dir, tmp_path):
    output = tmp_path / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, SCRIPT, str(videos), "--model", str(model_dir), "--output", str(output), "--labels"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[process ")]
    assert sorted(line.partition("] ")[2].partition(":")[0] for line in lines) == sorted(
        ["cut.mkv", "text.mp4", "trip/a.mov", "trip/a.mp4", "trip/frames"]
    )
    assert {line[:10] for line in lines} == {"[process 0", "[process 1"}
    totals, _ = summary(output)
    assert totals["complete"] == 3 and totals["incomplete"] == 1 and totals["failed"] == 1
    # A single process finds everything done.
    first = written(output)
    assert call(videos / "trip", "--labels", output=output / "trip") == 0
    assert written(output) == first


@pytest.mark.slow
def test_stopped_run_leaves_no_partial_outputs(videos, frames, model_dir, tmp_path):
    write_video(videos / "trip" / "long.mp4", np.tile(frames, (60, 1, 1, 1)))
    output = tmp_path / "out"
    command = [sys.executable, SCRIPT, str(videos / "trip"), "--model", str(model_dir), "--output", str(output)]
    process = subprocess.Popen([*command, "--labels", "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    digest = hashlib.sha256(b"long.mp4").hexdigest()[:16]
    while not list(output.glob(f".{digest}.*.unfinished/**/*.png")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    assert "long.mp4: unfinished" in process.communicate()[0]
    assert process.returncode == 1
    _, rows = summary(output)
    finished = ["a.mov", "a.mp4", "frames"]
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(finished, "complete"),
        "long.mp4": "unfinished",
    }
    assert sorted(path.name for path in output.iterdir()) == [*finished, "summary.csv", "summary.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "recurrent"], "`mode` must be one that"),
        (["--device", "nowhere"], "`--device` must be"),
    ],
)
def test_bad_arguments_are_one_sentence_before_work_starts(call, videos, tmp_path, capsys, flags, message):
    assert call(videos, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("segment_videos.py: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "2"], "argument --alpha: must be between 0 and 1. Got 2."),
        (["--num-frames", "0"], "argument --num-frames: must be at least 1. Got 0."),
    ],
)
def test_options_out_of_range_are_errors_of_the_parser(call, videos, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        call(videos, *flags)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_go_to_a_folder_of_their_own(call, videos, tmp_path, capsys):
    assert call(videos, output=videos) == 2
    assert "`--output` must differ from the folder of videos" in capsys.readouterr().err
    (tmp_path / "out" / "text.mp4").mkdir(parents=True)
    (tmp_path / "out" / "text.mp4" / "diary.txt").touch()
    assert call(videos) == 2
    assert "neither and would be replaced" in capsys.readouterr().err
    assert call(tmp_path / "out" / "text.mp4") == 2
    assert "`folder` must hold video files" in capsys.readouterr().err


def test_videos_are_files_and_folders_of_nothing_but_frames(tmp_path):
    files = ("a.mp4", "deep/er/B.MOV", "deep/poster.jpg", "x/1.png", "x/notes.txt", ".hidden/c.mp4", "out/d.mp4")
    for name in (*files, "y/origin/1.jpg", "y/mask/1.png", "masks/1.png", "masks/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.mkv").symlink_to(tmp_path / "nowhere")
    found = find_videos(tmp_path, tmp_path / "out")
    assert [(video.name, video.num_bytes) for video in found] == [
        ("a.mp4", 4),
        ("deep/er/B.MOV", 4),
        ("gone.mkv", 0),
        ("masks/e.mp4", 4),
        ("x", 8),
        ("y/origin", 4),
    ]
    (itself,) = find_videos(tmp_path / "x", tmp_path / "out")
    assert itself.name == "x" and itself.path == tmp_path / "x"


def test_work_is_divided_evenly_without_duplicates():
    """Largest-first is at most 4/3 - 1/(3m) worse than the best division (Graham, 1969), found here by trying all."""
    rng = np.random.default_rng(0)
    for num_shares in (1, 2, 3):
        amounts = rng.integers(0, 50, 7).tolist()
        shares = divide_work(amounts, num_shares)
        assert sorted(itertools.chain(*shares)) == list(range(7))
        best = min(
            max(sum(amounts[i] for i in range(7) if owners[i] == share) for share in range(num_shares))
            for owners in itertools.product(range(num_shares), repeat=7)
        )
        largest = max(sum(amounts[i] for i in share) for share in shares)
        assert largest <= best * (4 / 3 - 1 / (3 * num_shares))
    assert divide_work([], 2) == [[], []]


def test_a_folder_without_a_record_is_not_replaced(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ValueError, match="neither and would be replaced"):
        check_result_folders("output", [tmp_path / "a.mp4"])


def test_a_name_that_is_not_text_is_escaped_in_the_summary(tmp_path):
    record = VideoRecord("caf\udce9.mp4", "complete", 3, 1.0)
    write_summary(tmp_path, summarise([record]))
    assert "caf\\udce9.mp4,complete,3" in (tmp_path / "summary.csv").read_text(encoding="utf-8")
    (row,) = json.loads((tmp_path / "summary.json").read_text())["videos"]
    assert row["video"] == record.video


def test_totals_are_sums_over_the_videos():
    records = [
        VideoRecord("a", "complete", 30, 2.0),
        VideoRecord("b", "incomplete", 10, 3.0, "cut"),
        VideoRecord("c", "failed", 0, 0.5, "text"),
        VideoRecord("d", "unfinished"),
    ]
    result = summarise(records)
    counts = {"videos": 4, "complete": 1, "incomplete": 1, "failed": 1, "unfinished": 1}
    assert result["totals"] == {**counts, "frames": 40, "seconds": 5.5, "frames_per_second": pytest.approx(7.273)}
    assert [row["frames_per_second"] for row in result["videos"]] == [15.0, pytest.approx(3.333), None, None]


def test_the_main_process_waits_for_the_others_but_not_for_the_dead():
    store = torch.distributed.HashStore()
    main, busy, dead = (WorkerGroup(rank, 3, store=store, patience=0.5) for rank in range(3))
    codes = []
    worker = threading.Thread(target=lambda: codes.append(busy.finish()))
    store.set("alive/1", "1")
    store.set("alive/2", "1")
    threading.Timer(0.2, worker.start).start()
    main.wait_for_others()
    assert store.check(["finished/1"]) and not store.check(["finished/2"])
    store.add("readers", 1)  # nobody waits for the dead to read
    main.conclude(1)
    worker.join()
    assert codes == [1] and dead.rank == 2


def test_a_fingerprint_knows_weights_and_preprocessing_but_not_places(model_dir, tmp_path):
    def load(folder):
        model = THEMaskForVideoSemanticSegmentation.from_pretrained(folder)
        return model, THEMaskVideoProcessor.from_pretrained(folder)

    shutil.copytree(model_dir, tmp_path / "copy")
    model, processor = load(model_dir)
    fingerprint = model_fingerprint(model, processor)
    assert model_fingerprint(*load(tmp_path / "copy")) == fingerprint
    assert model_fingerprint(model.bfloat16(), processor) != fingerprint
    model, other_processor = load(model_dir)
    other_processor.image_mean = [0.5, 0.5, 0.5]
    assert model_fingerprint(model, other_processor) != fingerprint
    with torch.no_grad():
        model.class_predictor.bias[0] += 1
    assert model_fingerprint(model, processor) != fingerprint
