"""Read videos of unknown origin within limits; write a rollout with its reward curve beside it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Generator, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_gym.errors import DatasetError, import_extra
from vlp_gym.figures import COLOURS, FAINT, new_figure, show_at_least, style
from vlp_gym.storage import write_atomic

MAX_FRAMES = 2_000
MAX_PIXELS = 4096 * 2304  # per coded frame
LONGEST_SIDE = 320  # pixels; frames are shrunk to this while decoding: 2,000 of them take at most 614 MB
PATIENCE = 15.0  # seconds of computing without a new frame, or four times as long asleep
MEMORY = 896 * 2**20  # bytes for the decoder and the frames together, of MAX_PIXELS; 384 MiB at least for the decoder


def read_video(
    path: str | Path,
    *,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    longest_side: int = LONGEST_SIDE,
    start_s: float = 0.0,
    end_s: float = math.inf,
    fps: float | None = None,
) -> NDArray[np.uint8]:
    """Decode a video file as a player shows it: turned as its display matrix says, with square pixels.

    A process of its own decodes the file, within limits: 1 GiB of memory, frames included (more if a limit below is
    raised), and 15 seconds of computing for each frame. Transparency is dropped, interlaced fields are not taken apart,
    and all frames must have the size that the header says.

    A file that was cut off is refused wherever its container tells its length or marks its end. Nothing tells that a
    bare stream (MPEG, H.264, HEVC), a transport stream, or a live recording (mkv, webm, flv, fragmented mp4) was cut
    exactly between two packets: the frames before the cut are read. Nor does a codec without checksums tell wrong bits.

    Args:
        path: a local file: mp4, mov, mkv, webm, avi, flv, wmv, mpg, ts, ogv, gif, apng, or a bare MPEG, H.264 or HEVC
            stream.
        max_frames: longer videos are refused.
        max_pixels: videos with more pixels per frame are refused before decoding.
        longest_side: larger frames are shrunk to this many pixels.
        start_s: the first frame to read, in seconds from the video's beginning, by the frames' own times.
        end_s: the frames from here on are left out, in seconds.
        fps: at most so many frames per second are read: the first one at or after each multiple of 1 / fps seconds, and
            the last one, which shows how it ends; None: all.

    Returns:
        uint8 ``[F, H, W, 3]``, RGB.

    Raises:
        ValueError: times or rate out of range.
        DatasetError: the file is missing, no video, truncated, damaged, over the limits, or contradicts its header.
        MissingExtraError: PyAV is not installed.
    """
    if not 0 <= start_s < end_s or math.isinf(start_s):
        raise ValueError(f"expected 0 <= start_s < end_s, got {start_s} and {end_s}")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps: expected more than 0, got {fps}")
    _av()
    path = Path(path)
    memory = round(MEMORY * max(1.0, max_pixels / MAX_PIXELS))
    limits: dict[str, float] = {"max_frames": max_frames, "max_pixels": max_pixels, "longest_side": longest_side}
    limits |= {"memory": memory, "patience": PATIENCE}
    limits |= {"start_s": start_s, "end_s": end_s, "every_s": 0.0 if fps is None else 1 / fps}
    pixels, shape = bytearray(), ()
    with contextlib.closing(_decoded(path, limits)) as frames:
        for frame in frames:
            shape = frame.shape
            pixels += np.ascontiguousarray(frame).data
    return np.frombuffer(pixels, np.uint8).reshape(-1, *shape)


def overlay_video(
    frames: NDArray[np.uint8],
    rewards: ArrayLike,
    path: str | Path,
    *,
    fps: float = 20.0,
    title: str = "",
    ylabel: str = "reward",
    height: int = 320,
    reward_range: tuple[float, float] | None = None,
) -> None:
    """Write a video of a rollout with its growing reward curve beside it.

    Args:
        frames: uint8 ``[F, H, W, 3]``.
        rewards: reward at each frame, float ``[F]``.
        path: ``.mp4`` or ``.gif``, replaced atomically.
        fps: frames per second, greater than 0.
        title: above the curve, such as the instruction.
        ylabel: label of the curve's vertical axis.
        height: height of the video in pixels; odd ones are raised by 1.
        reward_range: the vertical axis shows at least this; None fits it to the rewards.

    Raises:
        ValueError: lengths differ, there is no frame, or the file's suffix is another.
        MissingExtraError: matplotlib, PyAV or Pillow is not installed.
    """
    values = np.asarray(rewards, dtype=np.float64)
    path = Path(path)
    if len(frames) == 0 or values.shape != (len(frames),):
        raise ValueError(f"expected one reward for each frame, got {len(frames)} frames and rewards {values.shape}")
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{path}: expected a file ending in .mp4 or .gif")
    pictures = _with_curve(frames, values, height + height % 2, title, ylabel, reward_range)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _encode_mp4(pictures, fps) if path.suffix == ".mp4" else _encode_gif(pictures, fps))


def _decoded(path: Path, limits: Mapping[str, float]) -> Generator[NDArray[np.uint8], None, None]:
    """Frames as they come from the process that decodes them; it ends with this generator."""
    from vlp_gym.frames import video_decoder as decoder

    if not os.path.isfile(path):  # reading a pipe or a device may never end
        found = "something else" if os.path.lexists(path) else "none"
        raise DatasetError(f"{path}: expected a video file, found {found}")
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DatasetError(f"{path}: cannot be opened ({error.strerror})") from error
    start = "import sys; sys.path[:] = sys.argv[2:]; from vlp_gym.frames.video_decoder import main; main()"
    command = [sys.executable, "-I", "-c", start, json.dumps(limits), *map(str, sys.path)]
    # In a session of its own, Ctrl-C does not reach it: it is killed here, however this block is left.
    with (
        file,
        subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, pipesize=2**20, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        kind = b""
        try:
            while len(head := process.stdout.read(decoder.HEADER.size)) == decoder.HEADER.size:
                kind, length, height, width, turn = decoder.HEADER.unpack(head)
                data = process.stdout.read(length)
                if kind == decoder.END:
                    return
                if kind == decoder.REFUSED:
                    raise DatasetError(f"{path}: {data.decode()}")
                if kind == decoder.FRAME and len(data) == length:
                    rows = np.frombuffer(data, np.uint8).reshape(height, -1)  # padded at the right
                    yield _turned(rows[:, : 3 * width].reshape(height, width, 3), turn)
            code = process.wait()
        finally:
            process.kill()
    if not kind:
        raise RuntimeError(f"{path}: the process that decodes videos did not start, see above; it was {command}")
    if -code in decoder.OUT_OF_TIME:
        raise DatasetError(f"{path}: no new frame in {limits['patience']:g} s; it is damaged, or too costly to decode")
    raise DatasetError(f"{path}: the decoder died of it (exit code {code}); it is damaged")


def _turned(frame: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    from vlp_gym.frames.video_decoder import MIRRORED, TRANSPOSED, UPSIDE_DOWN

    frame = frame.transpose(1, 0, 2) if turn & TRANSPOSED else frame
    frame = frame[::-1] if turn & UPSIDE_DOWN else frame
    return frame[:, ::-1] if turn & MIRRORED else frame


def _with_curve(
    frames: NDArray[np.uint8],
    values: NDArray[np.float64],
    height: int,
    title: str,
    ylabel: str,
    reward_range: tuple[float, float] | None,
) -> Iterator[NDArray[np.uint8]]:
    """Pictures, uint8 ``[height, width, 3]``, width even: the frame on the left, the curve so far on the right."""
    from PIL import Image

    dpi = 100
    panel_width = round(height * 1.35 / 2) * 2
    with style():
        figure = new_figure(panel_width / dpi, height / dpi, dpi=dpi)
        axes = figure.add_subplot()
        axes.set(xlabel="frame", ylabel=ylabel)
        axes.set_title(textwrap.fill(title, max(1, 11 * panel_width // dpi)))  # wrap=True takes $ for mathematics
        margin = 0.06 * max(float(np.ptp(values)), 1e-3)
        axes.set_xlim(0, max(1, len(values) - 1))
        axes.set_ylim(min(0.0, values.min()) - margin, values.max() + margin)
        show_at_least(axes, reward_range)
        axes.plot(values, color=FAINT, linewidth=1.4)  # the whole curve as a preview
        (line,) = axes.plot([], [], color=COLOURS[0], linewidth=2.2, animated=True)
        (dot,) = axes.plot([], [], "o", color=COLOURS[1], markersize=6, animated=True)
        canvas: Any = figure.canvas
        canvas.draw()
        background = canvas.copy_from_bbox(figure.bbox)  # axes and text are drawn only once
        width = round(height * frames.shape[2] / frames.shape[1] / 2) * 2
        for t, frame in enumerate(frames):
            canvas.restore_region(background)
            line.set_data(np.arange(t + 1), values[: t + 1])
            dot.set_data([t], [values[t]])
            axes.draw_artist(line)
            axes.draw_artist(dot)
            panel = np.asarray(canvas.buffer_rgba())[:height, :panel_width, :3]
            picture = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            yield np.concatenate([picture, panel], axis=1)


def _encode_mp4(pictures: Iterator[NDArray[np.uint8]], fps: float) -> bytes:
    from fractions import Fraction

    av = _av()
    buffer = io.BytesIO()
    first = next(pictures)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"  # plays in every browser
        stream.options = {"crf": "20", "preset": "fast"}
        for picture in chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _encode_gif(pictures: Iterator[NDArray[np.uint8]], fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(picture) for picture in pictures]
    # One palette for all frames: no flicker, smaller. The swatches keep the colours of the curve.
    swatches = [Image.new("RGB", (images[0].width, 12), colour) for colour in ("#FFFFFF", *COLOURS[:2])]
    sample = [images[0], images[len(images) // 2], images[-1], *swatches]
    stacked = Image.fromarray(np.concatenate([np.asarray(image) for image in sample]))
    palette = stacked.quantize(256, dither=Image.Dither.NONE)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def _av() -> Any:
    return import_extra("av", "reading and writing videos needs PyAV", "viz")
