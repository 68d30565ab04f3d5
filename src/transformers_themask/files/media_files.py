# SPDX-License-Identifier: Apache-2.0
"""Opening of media: what FFmpeg may read, how long a server may take, and how large a picture may be."""

from pathlib import Path

import av

# Seconds that a server may take to answer, or to send the next piece.
SERVER_TIMEOUT = 30.0
# Pixels of a picture, in a video or alone: 8192 x 8192.
MAX_PIXELS = 2**26

# Formats that hold the pictures themselves. Playlists, scripts and lists of files, which name other files, are not
# among them, nor what FFmpeg makes of any text.
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mpeg1video,mpeg2video,m4v,h261,h263,h264,hevc,vvc,"
    "av1,obu,ivf,flv,asf,ogg,rm,mxf,dv,nut,wtv,vc1,mjpeg,mjpeg_2000,yuv4mpegpipe,gif,apng,webp,avif,jpegxl_anim,"
    "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
STREAM_FORMATS = f"{FILE_FORMATS},hls,dash,mpjpeg,rtsp,rtp,rtp_mpegts,sdp,live_flv,aac,mp3,ac3,webvtt"
# By how an address begins, the protocols that its server may lead to; never to files of this machine.
WEB = "http,https,httpproxy,tcp,tls,crypto,data"
LIVE = f"{WEB},rtsp,rtsps,rtp,srtp,rtmp,rtmps,udp,srt"
PROTOCOLS = {
    **dict.fromkeys(("http", "https"), WEB),
    **dict.fromkeys(("rtsp", "rtsps", "rtp", "srtp", "rtmp", "rtmps", "udp", "tcp", "srt"), LIVE),
}


def is_url(path: str | Path) -> bool:
    """Whether a path is the address of a video rather than the name of a file."""
    return "://" in str(path)


def ffmpeg_location(path: str | Path) -> str:
    """The location that FFmpeg is given: of a relative path it would take the part before a colon for a protocol."""
    return str(path) if is_url(path) else str(Path(path).absolute())


def open_media(path: str | Path) -> "av.container.InputContainer":
    """Open a file, or an address whose server must answer within [`SERVER_TIMEOUT`].

    Only [`FILE_FORMATS`] of regular files are read, and [`STREAM_FORMATS`] of the protocols in [`PROTOCOLS`]; pictures
    have at most [`MAX_PIXELS`]. Raises `av.FFmpegError` for anything else, and `ValueError` for another protocol.
    """
    formats, protocols, timeout = FILE_FORMATS, "file", None
    if is_url(path):
        scheme = str(path).partition("://")[0].lower()
        if scheme not in PROTOCOLS:
            raise ValueError(f"`path` must be a file or an address of {', '.join(PROTOCOLS)}. Got {path}.")
        formats, protocols, timeout = STREAM_FORMATS, PROTOCOLS[scheme], SERVER_TIMEOUT
    limits = {"max_pixels": str(MAX_PIXELS)}
    options = {"format_whitelist": formats, "protocol_whitelist": protocols, **limits}
    container = av.open(ffmpeg_location(path), options=options, timeout=timeout)
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = limits
    return container


def reason(error: "av.FFmpegError") -> str:
    """The reason that FFmpeg gives for an error."""
    # PyAV breaks off what takes too long, and reports the breaking off.
    if isinstance(error, av.ExitError):
        return f"no answer within {SERVER_TIMEOUT:g} s"
    if isinstance(error, av.ArgumentError):  # as FFmpeg calls a format that is not allowed
        return "invalid data, or a format that holds no pictures of its own"
    return str(error.strerror)
