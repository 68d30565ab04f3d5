# SPDX-License-Identifier: Apache-2.0
"""The page, served as a user serves it, and used by visitors."""

import csv
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import Status
from PIL import Image

from transformers_themask.sinks.label_track import read_label_track
from transformers_themask.videos.video_reader import VideoReader
from web_demo.conftest import NAMES
from web_demo.visitors import find_browser, opened_page, seen_result, upload, visit_with_client

# With a browser where there is one, else through the client.
pytestmark = pytest.mark.slow

# Asks the video element of the result whether it has pictures and how far it has played.
VIDEO_STATE = "video => [video.readyState, video.videoWidth, video.videoHeight, video.duration, video.error]"


def check_result(visit, segmenter, clip):
    """Everything that was shown and downloaded follows from the label maps of the model."""
    session = segmenter.model.stream(segmenter.processor, "contiguous")
    expected = np.stack([label_map for _, label_map in [*session.step(list(VideoReader(clip))), *session.flush()]])
    assert np.array_equal([label_map for _, label_map in read_label_track(visit.files["labels"])], expected)
    shares = np.bincount(expected.ravel(), minlength=len(NAMES)) / expected.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    percent = [f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %" for share in shares]
    assert visit.legend == [(NAMES[index], percent[index]) for index in order]
    assert visit.num_areas == len(order) > 1
    with visit.files["statistics"].open(newline="") as file:
        counted = sum(int(row["pixels"]) for row in csv.DictReader(file) if row["class_name"] == NAMES[order[0]])
    assert counted == (expected == order[0]).sum()
    overlay = visit.files["overlay"]
    assert len(list(VideoReader(overlay))) == len(expected)
    # Players on the web begin before they have the whole file when the index comes first.
    assert 0 < overlay.read_bytes().find(b"moov") < overlay.read_bytes().find(b"mdat")
    assert [path.name for path in visit.files.values()] == [
        f"clip_{ending}" for ending in ("overlay.mp4", "labels.mkv", "statistics.csv", "shares.svg")
    ]


def test_a_visitor_uploads_a_video_and_gets_everything_back(server, segmenter, clip, tmp_path):
    check_result(visit_with_client(server.url, clip, tmp_path / "client"), segmenter, clip)
    browser = find_browser()
    if browser is None:
        return
    with opened_page(browser, server.url) as opened:
        opened.page.click("#start")  # too early
        opened.page.get_by_text("Upload a video or record one first.").first.wait_for()
        upload(opened.page, clip)
        visit = seen_result(opened.page, tmp_path)
        video = opened.page.locator("#overlay video")
        opened.page.wait_for_function("() => document.querySelector('#overlay video').currentTime > 0.1")
        ready_state, width, height, duration, error = video.evaluate(VIDEO_STATE)
        opened.page.screenshot(path=tmp_path / "page.png", full_page=True)
        video.screenshot(path=tmp_path / "overlay.png")
    check_result(visit, segmenter, clip)
    assert opened.problems == []
    assert ready_state >= 2 and (width, height) == (96, 72) and duration == pytest.approx(1.1) and error is None
    assert visit.notice == ""
    assert Image.open(tmp_path / "page.png").width == 1280
    # Half of what the screen shows is the blocks of the video under the colours, and not one plain colour.
    screen = Image.open(tmp_path / "overlay.png").convert("RGB").resize((96, 72), Image.Resampling.BOX)
    shown = np.asarray(screen, dtype=float)
    frames = np.array(list(VideoReader(visit.files["overlay"])), dtype=float)
    assert np.abs(frames - shown).mean(axis=(1, 2, 3)).min() < 12 < shown.std()


# Names a file of the server.
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hosts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.mp4", b"no video\n" * 99, "The upload must be a video file that FFmpeg can read. Got text.mp4"),
        ("nothing.mp4", b"", "The upload must be a video file that FFmpeg can read. Got nothing.mp4"),
        (
            "list.mp4",
            b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hosts\n",
            "The upload must be a video file that FFmpeg can read.",
        ),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n", "The upload must be a video file that FFmpeg can read."),
        (None, b"", "Upload a video or record one first."),
    ],
)
def test_page_answers_invalid_videos_with_one_sentence(server, tmp_path, name, content, sentence):
    file = None
    if name:
        (tmp_path / name).write_bytes(content)
        file = handle_file(tmp_path / name)
    with pytest.raises(AppError) as raised:
        Client(server.url, verbose=False).predict(file, api_name="/segment")
    assert str(raised.value).startswith(sentence) and "/" not in str(raised.value)


def test_of_a_damaged_video_the_readable_part_is_shown(server, clip, tmp_path):
    container = tmp_path / "cut.mkv"
    with av.open(str(clip)) as source, av.open(str(container), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    container.write_bytes(container.read_bytes()[: container.stat().st_size * 2 // 3])
    visit = visit_with_client(server.url, container, tmp_path / "client")
    num_frames = len(list(read_label_track(visit.files["labels"])))
    assert 0 < num_frames < 11
    assert visit.notice.startswith("Only a part of this video could be read. The upload must be an undamaged video.")
    assert f"Got cut.mkv, which cannot be decoded at frame {num_frames}" in visit.notice


def test_videos_are_segmented_one_after_another_and_a_job_can_be_cancelled(server, clip, long_video):
    first, second = Client(server.url, verbose=False), Client(server.url, verbose=False)
    long_job = first.submit(handle_file(long_video), api_name="/segment")
    wait_until(lambda: long_job.outputs())
    assert len(list(server.jobs.iterdir())) == 1
    short_job = second.submit(handle_file(clip), api_name="/segment")
    wait_until(lambda: short_job.status().code == Status.IN_QUEUE)
    assert not short_job.done() and long_job.cancel()
    assert short_job.result(timeout=60)
    wait_until(lambda: not list(server.jobs.iterdir()))


def wait_until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_visitor_stops_a_long_video_and_gets_the_part_up_to_there(server, long_video, tmp_path):
    browser = find_browser()
    if browser is None:
        return
    with opened_page(browser, server.url) as opened:
        upload(opened.page, long_video)
        opened.page.locator(".stage img").wait_for()
        facts = opened.page.locator(".facts").inner_text()
        opened.page.click("#stop")
        visit = seen_result(opened.page, tmp_path)
    assert " of 1000" in facts and " frames per second" in facts and " left" in facts
    assert visit.notice.startswith("You stopped here")
    assert 0 < len(list(read_label_track(visit.files["labels"]))) < 1000
    assert opened.problems == []


def test_a_recording_as_browsers_make_it_is_segmented(server, tmp_path):
    """A stream of VP8 in WebM, with uneven times and neither a duration nor an index."""
    recording = tmp_path / "sample.webm"
    times = [0, 33, 70, 230, 260, 400]
    with av.open(str(recording), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick in times:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), tick % 256, dtype=np.uint8), format="rgb24")
            picture.pts, picture.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    visit = visit_with_client(server.url, recording, tmp_path / "client")
    labelled = list(read_label_track(visit.files["labels"]))
    assert [time for time, _ in labelled] == [Fraction(tick, 1000) for tick in times]
    assert labelled[0][1].shape == (48, 64) and visit.notice == ""


def test_the_job_of_a_visitor_who_leaves_ends(server, long_video):
    browser = find_browser()
    if browser is None:
        return
    with opened_page(browser, server.url) as opened:
        upload(opened.page, long_video)
        opened.page.locator(".stage img").wait_for()
        assert len(list(server.jobs.iterdir())) == 1
    wait_until(lambda: not list(server.jobs.iterdir()))
