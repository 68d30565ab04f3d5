# SPDX-License-Identifier: Apache-2.0
"""Decode a video stream as far as it is undamaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av

from transformers_themask.files.media_files import reason

from .containers import DeclaredEnds, hole_detector, stream_time_base

# A track may end a little before its declared end (rounded time stamps, B-frame delay): by this many frames, but not
# by more than this many seconds.
TOLERANCE_FRAMES = 2
TOLERANCE_SECONDS = Fraction(1, 2)


class DamageError(Exception):
    """Why a video cannot be decoded any further."""


def decoded_frames(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    declared: DeclaredEnds,
    skip_damage: bool = False,
) -> Iterator["av.VideoFrame"]:
    """Decode a video to its end or its first damage, without a gap before that; then raise a [`DamageError`].

    `skip_damage` leaves out damaged packets and frames instead. The container must decode in one thread, or in one
    per slice, as PyAV does by default: with a thread per frame, PyAV loses errors and the frames behind them.
    """
    clock = _Clock(stream_time_base(stream), stream.average_rate, declared)
    damage: DamageError | None = None
    try:
        for packet in _packets(container, stream, clock, skip_damage):
            for frame in _frames(stream, packet, skip_damage):
                yield frame
                clock.pass_frame(frame)
    except DamageError as error:
        damage = error
    try:
        for frame in _frames(stream, None, skip_damage):  # that the decoder has held back
            # Those of the packets that did not come may be missing between them.
            if (damage or clock.is_cut_off()) and clock.is_after_gap(frame):
                raise DamageError("frames are missing")
            yield frame
            clock.pass_frame(frame)
    except DamageError as error:
        damage = damage or error
    damage = damage or clock.shortfall(clock.end_of_frames)
    if damage is not None:
        raise damage


@dataclass
class _Clock:
    """How far a video has been read, compared with its declared length."""

    time_base: Fraction
    frame_rate: Fraction | None
    declared: DeclaredEnds
    end_of_packets: Fraction = Fraction(0)
    end_of_frames: Fraction = Fraction(0)
    end_of_file: Fraction = Fraction(0)

    def pass_packet(self, packet: "av.Packet") -> None:
        # Packets come in the order of decoding.
        self.end_of_packets = max(self.end_of_packets, self._end(packet) or Fraction(0))

    def pass_frame(self, frame: "av.VideoFrame") -> None:
        self.end_of_frames = self._end(frame) or self.end_of_frames

    def pass_any_packet(self, packet: "av.Packet") -> None:
        if packet.pts is not None:
            self.end_of_file = max(self.end_of_file, (packet.pts + (packet.duration or 0)) * packet.time_base)

    def shortfall(self, end: Fraction) -> DamageError | None:
        """An error, if a video that ends at this time ends too early."""
        tolerance = TOLERANCE_SECONDS
        if self.frame_rate:
            tolerance = min(tolerance, TOLERANCE_FRAMES / self.frame_rate)
        return _shortfall(self.declared.video, end, tolerance)

    def is_cut_off(self) -> bool:
        """Whether not even the packets reach the declared end."""
        if self.declared.video is None or not self.frame_rate:
            return False
        return self.end_of_packets < self.declared.video - 1 / (2 * self.frame_rate)

    def is_after_gap(self, frame: "av.VideoFrame") -> bool:
        """Whether a frame begins later than the one before ends."""
        if frame.pts is None or not frame.duration:
            return False
        return (frame.pts - Fraction(frame.duration, 2)) * self.time_base > self.end_of_frames

    def _end(self, piece: "av.Packet | av.VideoFrame") -> Fraction | None:
        return None if piece.pts is None else (piece.pts + (piece.duration or 0)) * self.time_base


def _shortfall(declared_end: Fraction | None, end: Fraction, tolerance: Fraction) -> DamageError | None:
    if declared_end is None or end >= declared_end - tolerance:
        return None
    return DamageError(f"the file declares {float(declared_end):.2f} s but ends after {float(end):.2f} s")


def _packets(
    container: "av.container.InputContainer", stream: "av.VideoStream", clock: _Clock, skip_damage: bool
) -> Iterator["av.Packet"]:
    is_after_hole = hole_detector(container, stream)
    packets = container.demux(stream) if clock.declared.file is None else container.demux()
    try:
        for packet in packets:
            clock.pass_any_packet(packet)
            if packet.stream_index != stream.index:
                continue
            if (packet.is_corrupt or is_after_hole(packet)) and not skip_damage:
                raise DamageError("a piece of the file is missing")
            # An empty packet would end the decoding.
            if packet.size:
                yield packet
                clock.pass_packet(packet)
    except av.FFmpegError as error:
        raise DamageError(reason(error)) from error
    damage = clock.shortfall(clock.end_of_packets)
    damage = damage or _shortfall(clock.declared.file, clock.end_of_file, TOLERANCE_SECONDS)
    if damage is not None:
        raise damage


def _frames(stream: "av.VideoStream", packet: "av.Packet | None", skip_damage: bool) -> Iterator["av.VideoFrame"]:
    """The frames that a packet completes, or for `None` those that the decoder still holds."""
    try:
        frames = stream.decode(packet)
    except av.FFmpegError as error:
        if not skip_damage:
            raise DamageError(reason(error)) from error
        return
    for frame in frames:
        if not frame.is_corrupt:
            yield frame
        elif not skip_damage:
            raise DamageError("damaged picture data")
