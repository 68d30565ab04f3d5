# SPDX-License-Identifier: Apache-2.0
"""FFmpeg opens the file or the address that was given and no other one."""

import av
import numpy as np
import pytest
from PIL import Image

from hostile_videos import flat_frame, write_video
from local_server import serve
from transformers_themask.files import media_files
from transformers_themask.files.media_files import FILE_FORMATS
from transformers_themask.videos.frame_source import open_frame_source
from transformers_themask.videos.video_reader import VideoReader

SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
    "<Period><AdaptationSet><Representation id='0' bandwidth='1' mimeType='video/mp4'><BaseURL>{0}</BaseURL>"
    "<SegmentBase/></Representation></AdaptationSet></Period></MPD>"
)


def playlist(*names):
    entries = "".join(f"#EXTINF:1,\n{name}\n" for name in names)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{entries}#EXT-X-ENDLIST\n"


@pytest.fixture
def private(tmp_path):
    """A video that no other file may lead to."""
    (tmp_path / "private").mkdir()
    return write_video(tmp_path / "private" / "private.ts", [flat_frame(index) for index in range(5)])


def lists_of(private):
    """Files that name another one."""
    addresses = (
        str(private),
        f"file://{private}",
        "../private/private.ts",
        f"concat:{private}",
        f"subfile,,:{private}",
    )
    for index, address in enumerate([*addresses, "../private/private.ts"]):
        yield f"{index}.m3u8", playlist(address)
        yield f"{index}.mp4", playlist(address)  # FFmpeg looks at the content, not at the name
    yield "list.ffconcat", f"ffconcat version 1.0\nfile '{private}'\n"
    yield "list.mp4", f"ffconcat version 1.0\nfile '{private}'\n"
    yield "list.mpd", DASH.format(private)
    yield "list.sdp", SDP
    yield "notes.txt", "hello world\n" * 100
    yield "notes.mp4", "hello world\n" * 100
    yield "subtitles.srt", "1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    yield "script.avs", f'AviSource("{private}")'
    yield "filter.mp4", "testsrc"


def test_files_that_name_other_files_and_text_are_rejected(private, tmp_path):
    (tmp_path / "uploads").mkdir()
    for name, content in lists_of(private):
        path = tmp_path / "uploads" / name
        path.write_text(content)
        with pytest.raises(ValueError, match=r"must name a video file that FFmpeg can read") as caught:
            open_frame_source(path)
        assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("scheme", ["file", "concat", "subfile", "data", "pipe", "ftp", "cache", "FILE"])
def test_addresses_of_other_protocols_are_rejected(private, scheme):
    with pytest.raises(ValueError, match="must be a file or an address of http, https"):
        VideoReader(f"{scheme}://{private}")


def test_a_remote_playlist_reads_its_server_and_no_file_of_this_machine(private, tmp_path):
    (tmp_path / "site").mkdir()
    write_video(tmp_path / "site" / "own.ts", [flat_frame(index) for index in range(5)])
    (tmp_path / "site" / "own.m3u8").write_text(playlist("own.ts"))
    (tmp_path / "site" / "other.m3u8").write_text(playlist(f"file://{private}"))
    with serve(tmp_path / "site") as (url, _):
        assert len(list(VideoReader(f"{url}/own.m3u8"))) == 5
        with pytest.raises(ValueError):
            list(VideoReader(f"{url}/other.m3u8"))


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_pictures_beyond_the_limit_are_rejected(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"large.{suffix}"
    if suffix == "gif":
        images = [Image.fromarray(np.full((200, 300), index, np.uint8)) for index in range(3)]
        images[0].save(path, save_all=True, append_images=images[1:])
    else:
        write_video(path, [np.zeros((200, 300, 3), np.uint8)] * 3)
    assert len(list(VideoReader(path))) == 3
    monkeypatch.setattr(media_files, "MAX_PIXELS", 200 * 300 - 1)
    with pytest.raises(ValueError, match=f"large.{suffix}"):
        list(VideoReader(path))


def test_every_allowed_format_is_one_that_ffmpeg_has():
    known = {name for names in av.formats_available for name in names.split(",")}
    # Demuxers that some builds of FFmpeg leave out.
    assert set(FILE_FORMATS.split(",")) - known <= {"webp", "jpegxl_anim", "vvc", "obu", "avif", "m4a", "mj2"}
