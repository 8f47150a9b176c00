"""The process that decodes one video, so that a hostile file costs no more than this process and its limits.

`vlp_gym.video` starts it with the file as standard input, and reads frames from its standard output. It imports little,
to start fast.
"""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

import av
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vlp_gym.frames.video_ends import missing_end

HEADER = struct.Struct("<cIIIB")  # kind, bytes that follow, height, width, turn
READY, FRAME, PASSED, END, REFUSED = b"R", b"F", b"P", b"E", b"X"
OUT_OF_TIME = (signal.SIGPROF, signal.SIGALRM)  # what ends the process when no frame comes
TRANSPOSED, UPSIDE_DOWN, MIRRORED = 1, 2, 4  # a frame's turn: first transposed, then flipped

# Containers that hold their frames. Playlists (m3u8, concat, dash) would open other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,ogg,flv,asf,mpeg,mpegvideo,m4v,h264,hevc"
_READ = "mp4, mov, mkv, webm, avi, flv, wmv, mpg, ts, ogv, gif, apng, or a bare MPEG, H.264 or HEVC stream"
_SEEKABLE = ("mov", "matroska")  # their index is exact; other containers are decoded from the beginning
_CPUS = 4
_NEARLY = 1e-3  # seconds by which the time of a frame may be rounded
_MAX_UNPACKED = 2**30, 20_000  # pixels of all frames: so many, and so many more for each byte of the file


class Refused(Exception):
    """The file is no video that may be read; the message is the reason."""


def main() -> None:
    """Decode standard input to standard output; the arguments are the limits as JSON."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # without a reader this process has no purpose
    for number in OUT_OF_TIME:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OUT_OF_TIME)
    limits = json.loads(sys.argv[1])
    patience = limits.pop("patience")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cpus = 2 * sorted(os.sched_getaffinity(0))  # every thread of a decoder costs memory, on any machine
    os.sched_setaffinity(0, cpus[os.getpid() % (len(cpus) // 2) :][:_CPUS])
    _bound(limits["memory"])
    out = sys.stdout.buffer

    def send(kind: bytes, data: Any = b"", height: int = 0, width: int = 0, turn: int = 0) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the reader may take its time
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(HEADER.pack(kind, memoryview(data).nbytes, height, width, turn))
        out.write(data)
        out.flush()
        signal.setitimer(signal.ITIMER_PROF, patience)
        signal.setitimer(signal.ITIMER_REAL, 4 * patience)  # a busy machine gives it less of the processor

    send(READY)
    try:
        for frame, turn in _decode(**limits):
            if frame is None:
                send(PASSED)
            else:
                send(FRAME, frame.planes[0], frame.height, frame.width, turn)
        send(END)
    except Refused as error:
        send(REFUSED, str(error).encode())
    except (MemoryError, BlockingIOError):  # the latter where there is none for another thread
        send(REFUSED, f"takes more than {resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20} MiB to decode".encode())
    except Exception as error:  # PyAV has no error of its own for some contents, such as unknown side data
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        send(REFUSED, f"cannot be decoded, it is damaged or no video ({why})".encode(errors="replace"))


def _bound(memory: int) -> None:
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (memory if most < 0 else min(memory, most), most))


def _decode(
    *, max_frames: int, max_pixels: int, longest_side: int, memory: int, start_s: float, end_s: float, every_s: float
) -> Iterator[tuple[Any, int]]:
    """Yield RGB frames and their turns, None for those outside of the chosen times.

    `memory` is for this process and for the frames that the reader keeps.
    """
    # No options for streams: older PyAV writes beyond its memory where streams appear late, as in flv and mpg.
    options: dict[str, Any] = {"container_options": {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}}
    if int(av.__version__.partition(".")[0]) < 19:  # later ones take any bytes
        options["metadata_errors"] = "replace"
    try:
        container = av.open("/dev/stdin", **options)
    except av.error.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Refused(f"is no video, or its container is not supported; expected {_READ}") from error
    with container, open("/dev/stdin", "rb") as file:
        if missing := missing_end(file, container.format.name):
            raise Refused(f"truncated, {missing}")
        pictures = Disposition.attached_pic | Disposition.timed_thumbnails  # the cover of a song
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            raise Refused("expected a video, but it has no picture stream")
        stream, coder = streams[0], streams[0].codec_context
        if coder is None:
            raise Refused("cannot be decoded, no decoder for its pictures is known")
        width, height = coder.width, coder.height
        if width * height > max_pixels:
            raise Refused(f"frames of {width}x{height}, at most {max_pixels} pixels are read; shrink the video")
        coder.options = {"max_pixels": str(max_pixels)}
        wide, high = _shown(width, height, stream.sample_aspect_ratio, longest_side)
        _bound(max(memory - 3 * wide * high * max_frames, memory * 3 // 7))
        most = _MAX_UNPACKED[0] + _MAX_UNPACKED[1] * os.fstat(file.fileno()).st_size
        rgb = VideoReformatter()  # one for all frames: each has threads of its own
        first_s = None if stream.start_time is None else float(stream.start_time * (stream.time_base or 0))
        choice = _Choice(first_s, start_s, end_s, every_s)
        if start_s > 0 and container.format.name.startswith(_SEEKABLE):
            container.seek(round((start_s + (first_s or 0)) * 1e6))  # to the key frame before
        count = turn = 0
        for frame, turn in _checked(container.demux(stream), width, height, most, max_frames):
            if choice.is_over(frame):
                break
            if not choice.takes(frame):
                yield None, turn
                continue
            if count == max_frames:
                raise Refused(f"more than {max_frames} frames; cut or thin the video")
            yield rgb.reformat(frame, wide, high, "rgb24"), turn
            count += 1
        if choice.last is not None and count < max_frames:  # it shows how the video ends
            yield rgb.reformat(choice.last, wide, high, "rgb24"), turn
            count += 1
        if count == 0:
            raise Refused(f"no frame between {start_s:g} and {end_s:g} s")


def _checked(
    packets: Iterator[Any], width: int, height: int, most: float, max_silent: int
) -> Iterator[tuple[Any, int]]:
    """Yield every frame and its turn; refuse what is damaged or contradicts its header.

    Args:
        packets: of one stream.
        width: of each frame, as its header says.
        height: the same.
        most: pixels in all frames.
        max_silent: packets without a frame in a row.
    """
    seen = silent = turn = angle = 0
    for packet in packets:
        if packet.is_corrupt:
            raise Refused(f"is damaged or truncated after {seen} frames")
        silent += 1
        for frame in packet.decode():
            if (seen + 1) * width * height > most:
                raise Refused(f"unpacks to more than {most // 10**6} megapixels, too many for so small a file")
            if frame.is_corrupt:
                raise Refused(f"frame {seen} is damaged")
            if (frame.width, frame.height) != (width, height):
                size = f"{frame.width}x{frame.height}"
                raise Refused(f"frame {seen} is {size}, but the header says {width}x{height}")
            if seen == 0:  # no more often: a frame whose side data was looked at lives on in a circle
                turn, angle = _turn(frame), frame.rotation
            if frame.rotation != angle:
                raise Refused(f"frame {seen} is turned by {frame.rotation} degrees, those before by {angle}")
            seen, silent = seen + 1, 0
            yield frame, turn
        if silent > max_silent:
            raise Refused(f"{silent} packets without a picture after {seen} frames")
    if seen == 0:
        raise Refused("expected a video, but no frame of it can be decoded")


class _Choice:
    """Which frames are read, by their own times.

    Args:
        first_s: time of the first frame; None: that of the first one that is asked about.
        start_s: seconds after that.
        end_s: the same.
        every_s: at least so many seconds between two frames; 0 takes all.

    Attributes:
        last: the newest frame, if it was left out between two that are taken.
    """

    def __init__(self, first_s: float | None, start_s: float, end_s: float, every_s: float) -> None:
        self.first_s, self.start_s, self.end_s, self.every_s = first_s, start_s, end_s, every_s
        self.all = start_s <= 0 and end_s == math.inf and not every_s
        self.due_s = start_s
        self.last: Any = None

    def is_over(self, frame: Any) -> bool:
        """Whether this frame and all after it are left out."""
        return not self.all and self._at_s(frame) >= self.end_s

    def takes(self, frame: Any) -> bool:
        """Whether this frame is read."""
        if self.all:
            return True
        if (at_s := self._at_s(frame)) < self.due_s:
            self.last = frame if self.every_s and at_s >= self.start_s else None
            return False
        self.last = None
        if self.every_s:
            self.due_s += self.every_s * (1 + (at_s - self.due_s) // self.every_s)
        return True

    def _at_s(self, frame: Any) -> float:
        if frame.time is None:
            raise Refused("its frames have no times to choose by; put it into an mp4 or mkv file")
        self.first_s = frame.time if self.first_s is None else self.first_s
        at_s: float = frame.time - self.first_s + _NEARLY
        return at_s


def _shown(width: int, height: int, aspect: Any, longest_side: int) -> tuple[int, int]:
    """The size in square pixels, within the longest side; `aspect` is the width of a stored pixel over its height."""
    aspect = aspect if aspect and aspect > 0 else 1
    wide, high = width * max(aspect, 1), height / min(aspect, 1)
    scale = min(1, longest_side / max(wide, high, 1))
    return max(1, round(wide * scale)), max(1, round(high * scale))


def _turn(frame: Any) -> int:
    """How a player turns the frame: by its display matrix, x' = ax + cy and y' = bx + dy."""
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV does not know every kind of side data, such as EXIF, but still tells the angle
        by_angle = {90: TRANSPOSED + UPSIDE_DOWN, 180: UPSIDE_DOWN + MIRRORED, 270: TRANSPOSED + MIRRORED}
        return by_angle.get(frame.rotation % 360, 0)
    if data is None:
        return 0
    a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5]
    straight, across = (abs(a), abs(d)), (abs(b), abs(c))
    if max(across) <= min(straight) / 50:
        return UPSIDE_DOWN * (d < 0) + MIRRORED * (a < 0)
    if max(straight) <= min(across) / 50:
        return TRANSPOSED + UPSIDE_DOWN * (b < 0) + MIRRORED * (c < 0)
    raise Refused(f"is to be turned by {frame.rotation} degrees; expected a multiple of 90")
