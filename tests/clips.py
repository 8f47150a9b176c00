"""Small videos, one for each container that is read, and hostile ones."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

# ending: codec, FFmpeg's name of the format (None: by the ending), its options
CONTAINERS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "mp4": ("libx264", None, {}),
    "fast.mp4": ("libx264", None, {"movflags": "faststart"}),
    "fragmented.mp4": ("libx264", None, {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("libx264", None, {}),
    "mkv": ("libx264", None, {}),
    "live.mkv": ("libx264", "matroska", {"live": "1"}),
    "webm": ("libvpx", None, {}),
    "avi": ("mpeg4", None, {}),
    "flv": ("libx264", None, {}),
    "wmv": ("wmv2", "asf", {}),
    "mpg": ("mpeg2video", "mpeg", {}),
    "ts": ("libx264", None, {}),
    "m2ts": ("libx264", "mpegts", {"mpegts_m2ts_mode": "1"}),
    "ogv": ("libvpx", "ogg", {}),
    "gif": ("gif", None, {}),
    "apng": ("apng", "apng", {}),
    "h264": ("libx264", "h264", {}),
    "hevc": ("libx265", "hevc", {}),
    "m2v": ("mpeg2video", "mpeg2video", {}),
    "m4v": ("mpeg4", "m4v", {}),
}
_PIXELS = {"gif": "rgb8", "apng": "rgb24"}


def clip(count: int = 30, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Each frame is a grey of its own, with noise, so that frames keep their size after compression."""
    noise = np.random.default_rng(0).integers(0, 30, (count, height, width, 1))
    return (noise + 6 * np.arange(count)[:, None, None, None] % 200).repeat(3, axis=3).astype(np.uint8)


def write(path: Path, frames: NDArray[np.uint8], container: str = "", times: list[int] | None = None) -> Path:
    """Write frames into a container of the table, by default that of the path's ending, at 25 a second or `times`."""
    codec, name, options = CONTAINERS[container or path.name.partition(".")[2]]
    with av.open(str(path), "w", format=name, options=options) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
        stream.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        for count, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[count], Fraction(1, 25)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


def hidden(path: Path, count: int) -> Path:
    """A webm of `count` VP8 key frames that are not to be shown: each is decoded, none comes out."""
    source = write(path.with_name("source.webm"), clip(1))
    with av.open(str(source)) as original, av.open(str(path), "w", format="webm") as file:
        stream = file.add_stream_from_template(original.streams.video[0])
        data = bytearray(bytes(next(original.demux(video=0))))
        data[0] &= ~0x10  # the bit "show_frame"
        for number in range(count):
            packet = av.Packet(bytes(data))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            file.mux(packet)
    return path


def turned(data: bytes, matrix: tuple[int, ...]) -> bytes:
    """An mp4 or mov with another display matrix (a, b, c, d) in its track header."""
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    new = b"".join(value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    return data[:place] + new + data[place + 36 :]


def many_samples(data: bytes, count: int) -> bytes:
    """An mp4 whose tables, without getting longer, list `count` samples of one size."""
    changed = bytearray(data)
    for name, skip, values in (("stsz", 4, (1, count)), ("stts", 8, (count,)), ("stsc", 12, (count,))):
        place = data.index(name.encode()) + 4 + skip
        for number, value in enumerate(values):
            changed[place + 4 * number : place + 4 * number + 4] = value.to_bytes(4, "big")
    return bytes(changed)


def opened(data: bytes) -> str:
    """FFmpeg's name of the container of a file."""
    with av.open(io.BytesIO(data)) as file:
        return str(file.format.name)
