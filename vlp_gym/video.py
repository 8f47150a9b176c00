"""Read videos of unknown origin within limits; write a rollout with its reward curve beside it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
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
# Containers that hold their frames. Playlists (m3u8, concat, dash) would open other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,ogg"


def read_video(
    path: str | Path, *, max_frames: int = MAX_FRAMES, max_pixels: int = MAX_PIXELS, longest_side: int = LONGEST_SIDE
) -> NDArray[np.uint8]:
    """Decode a video file within limits on time and memory.

    Args:
        path: a local file: mp4, mov, mkv, webm, avi, gif, ts or ogv.
        max_frames: longer videos are refused.
        max_pixels: videos with more pixels per frame are refused before decoding.
        longest_side: larger frames are shrunk to this many pixels.

    Returns:
        uint8 ``[F, H, W, 3]``, RGB.

    Raises:
        DatasetError: the file is missing, not a video, truncated, over the limits, or contradicts its header.
        MissingExtraError: PyAV is not installed.
    """
    av = _av()
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: expected a video file, found none")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path.resolve()), options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise DatasetError(f"{path}: expected a video, but it has no picture stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DatasetError(f"{path}: cannot be decoded, no decoder for its pictures is known")
            declared = stream.frames
            if declared > max_frames:
                raise DatasetError(f"{path}: {declared} frames, at most {max_frames} are read; cut or thin the video")
            frames, count = None, 0
            for frame in _decode(container, stream, path, max_pixels, longest_side):
                if count == max_frames:
                    raise DatasetError(f"{path}: more than {max_frames} frames; cut or thin the video")
                if frames is None:  # untouched memory is not allocated
                    frames = np.empty((max_frames, *frame.shape), np.uint8)
                frames[count] = frame
                count += 1
            # With an audio stream, the container's duration may be that of the audio.
            known = container.duration is not None and len(container.streams) == 1
            expected = declared or round(known and container.duration / av.time_base * (stream.average_rate or 0))
    except av.error.FFmpegError as error:
        raise DatasetError(f"{path}: cannot be decoded, it is damaged or no video ({error.strerror})") from error
    # An intact cut may lack two frames, or two per cent; a duration is less exact.
    slack = max(2, expected // (50 if declared else 10))
    if frames is None or count < expected - slack:
        raise DatasetError(f"{path}: truncated, its header promises {expected} frames and {count} can be decoded")
    return frames[:count]


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


def _decode(container: Any, stream: Any, path: Path, max_pixels: int, longest_side: int) -> Iterator[NDArray[np.uint8]]:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise DatasetError(
            f"{path}: frames of {width}x{height}, at most {max_pixels} pixels are read; shrink the video"
        )
    scale = min(1.0, longest_side / max(width, height, 1))
    small = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    for count, frame in enumerate(container.decode(stream)):
        if (frame.width, frame.height) != (width, height):
            raise DatasetError(
                f"{path}: frame {count} is {frame.width}x{frame.height}, but the header says {width}x{height}"
            )
        yield frame.to_ndarray(format="rgb24", **small)


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
