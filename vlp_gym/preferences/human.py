"""Labels by a person, on a web page that only this computer can open."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import webbrowser
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import import_extra
from vlp_gym.preferences.human_server import LabelServer, Round
from vlp_gym.preferences.segments import Segments, Span
from vlp_gym.text import normalize_instruction

PAUSE_MS = 700  # how long a clip's last frame is shown before it starts again


class HumanLabeler:
    """Shows pairs of segments on a page at `url`, which opens at the first call and stays for later ones.

    Keys: left or right arrow for the better one, up or E for equal, space or S to skip, U or backspace to undo, Q to
    stop.

    Example:
        >>> with HumanLabeler("press the button", open_browser=False) as labeler:
        ...     labeler.url[:17]
        'http://127.0.0.1:'

    Args:
        instruction: what the agent should do; the heading of the page.
        port: port on 127.0.0.1; 0 takes a free one. From another computer: ``ssh -L PORT:127.0.0.1:PORT HOST``.
        fps: environment steps shown per second, greater than 0.
        open_browser: open the page if there is a screen; its address is printed in any case.

    Raises:
        InstructionError: for an instruction with nothing visible in it.
        ValueError: for a port or speed out of range.
        OSError: if the port is taken.
        MissingExtraError: without Pillow.
    """

    def __init__(self, instruction: str, *, port: int = 0, fps: float = 20.0, open_browser: bool = True) -> None:
        instruction = normalize_instruction(instruction)
        if not 0 <= port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {port}")
        if not 0 < fps < float("inf"):
            raise ValueError(f"fps: expected a number greater than 0, got {fps}")
        _pillow()
        self.fps, self.open_browser = fps, open_browser
        self._server = LabelServer(instruction, port)
        self._closed = False
        self.interrupted = False
        """Whether Ctrl-C ended the last call."""

    @property
    def url(self) -> str:
        """The page's address, with a secret token: anyone on this computer who knows it can label."""
        return self._server.url

    def __call__(self, first: Segments, second: Segments, /) -> NDArray[np.float64]:
        """Wait until every pair is labelled, or the person stops on the page or with Ctrl-C in the terminal.

        Args:
            first: N segments, shown on the left.
            second: N segments, shown on the right.

        Returns:
            float64 ``[N]``: 1 (left is better), 0 (right), 0.5 (equal) or NaN (skipped or not reached).

        Raises:
            ValueError: for different numbers of segments, a segment without frames, or after `close`.
        """
        if self._closed:
            raise ValueError("the page was taken down by close(); make another HumanLabeler")
        if len(first) != len(second):
            raise ValueError(f"expected pairs, got {len(first)} first and {len(second)} second segments")
        _check_frames(first)
        _check_frames(second)
        sides = {"left": first, "right": second}

        def clip(pair: int, side: str) -> bytes:
            record, span = sides[side].episodes[pair], sides[side].spans[pair]
            steps = max(shown.spans[pair].stop - shown.spans[pair].start for shown in sides.values())
            return encode_clip({} if record is None else record.frames, span, steps, self.fps)

        asked = self._server.round = Round(self._server.round.number + 1, len(first), clip)
        self.interrupted = False
        try:
            print(f"{len(first)} pairs to label at {self.url}", flush=True)
            # Without a screen, `webbrowser` may start a text browser, which blocks the terminal.
            screen = sys.platform == "darwin" or not {"DISPLAY", "WAYLAND_DISPLAY"}.isdisjoint(os.environ)
            if self.open_browser and screen and asked.number == 1:
                with contextlib.suppress(webbrowser.Error):
                    webbrowser.open(self.url)
            if asked.pairs:
                asked.ended.wait()
        except KeyboardInterrupt:
            self.interrupted = True
            print(f"stopped: {len(asked.labels)} of {asked.pairs} pairs are labelled", file=sys.stderr)
        return np.array(asked.close(), np.float64)

    def close(self) -> None:
        """Stop the server; an open page shows that it has stopped."""
        self._closed = True
        self._server.close()

    def __enter__(self) -> HumanLabeler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def encode_clip(frames: Mapping[int, NDArray[np.uint8]], span: Span, steps: int, fps: float) -> bytes:
    """The frames of a segment as an animated WebP that repeats.

    Args:
        frames: number of steps before a frame to the frame, uint8 ``[H, W, 3]``; a frame stays until the next.
        span: the segment; at least one frame lies in it.
        steps: length of the clip in steps, at least the segment's; clips of equal length stay in step.
        fps: steps per second.
    """
    shown = sorted(step for step in frames if span.start <= step <= span.stop)
    edges = np.array([0, *(step - span.start for step in shown[1:]), steps + 1])
    durations = np.diff(np.round(edges * 1000 / fps).astype(int)).tolist()  # rounded before: errors do not add up
    durations[-1] += PAUSE_MS
    pictures = [_pillow().fromarray(frames[step]) for step in shown]
    file = io.BytesIO()
    options = {"duration": durations, "loop": 0, "quality": 85, "method": 0}
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def _check_frames(segments: Segments) -> None:
    for span, record in zip(segments.spans, segments.episodes, strict=True):
        if record is None or not any(span.start <= step <= span.stop for step in record.frames):
            raise ValueError(
                f"{span}: expected frames to show, found none; keep them where the agent acts: "
                "SegmentStore(frame_size=224)"
            )


def _pillow() -> Any:
    return import_extra("PIL.Image", "labels by a person need Pillow", "viz")
