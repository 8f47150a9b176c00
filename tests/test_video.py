from __future__ import annotations

import contextlib
import re
import sys

import av
import numpy as np
import pytest

from vlp_gym import viz
from vlp_gym.errors import DatasetError, MissingExtraError
from vlp_gym.video import overlay_video, read_video


def write(path, frames, options=None, codec="libx264"):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def clip(count=30, height=48, width=64):
    """Each frame is a grey of its own, with noise, so that frames keep their size after compression."""
    noise = np.random.default_rng(0).integers(0, 30, (count, height, width, 1))
    return (noise + 6 * np.arange(count)[:, None, None, None] % 200).repeat(3, axis=3).astype(np.uint8)


class TestReadVideo:
    @pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
    def test_frames_come_back(self, tmp_path, ending):
        frames = read_video(write(tmp_path / f"clip.{ending}", clip()))
        assert frames.shape == (30, 48, 64, 3)
        assert frames.dtype == np.uint8
        assert frames.mean(axis=(1, 2, 3)) == pytest.approx(clip().mean(axis=(1, 2, 3)), abs=4)

    def test_large_frames_are_shrunk(self, tmp_path):
        assert read_video(write(tmp_path / "clip.mp4", clip(3, 64, 128)), longest_side=32).shape == (3, 16, 32, 3)

    def test_colours_are_rgb(self, tmp_path):
        red = np.zeros((5, 32, 32, 3), np.uint8)
        red[..., 0] = 230
        assert read_video(write(tmp_path / "clip.mp4", red))[2].mean(axis=(0, 1)) == pytest.approx([230, 0, 0], abs=6)

    @pytest.mark.parametrize(("ending", "options"), [("mp4", {"movflags": "faststart"}), ("mp4", {}), ("mkv", {})])
    @pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.85])
    def test_truncated(self, tmp_path, ending, options, share):
        path = write(tmp_path / f"clip.{ending}", clip(), options)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DatasetError, match=rf"^{re.escape(str(path))}: (cannot be decoded|truncated)"):
            read_video(path)

    def test_says_how_much_is_there(self, tmp_path):
        path = write(tmp_path / "clip.mkv", clip())
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
        with pytest.raises(DatasetError, match=r"truncated, its header promises 30 frames and \d+ can be decoded$"):
            read_video(path)

    @pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
    def test_flipped_bytes_never_raise_anything_else(self, tmp_path, ending):
        path = write(tmp_path / f"clip.{ending}", clip(8))
        data = path.read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(min(len(data), 1500), size=20)] = rng.integers(256, size=20)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(DatasetError):
                assert read_video(path).shape[3] == 3

    def test_size_that_changes_under_way(self, tmp_path):
        parts = [write(tmp_path / f"{k}.ts", clip(12, side, side)).read_bytes() for k, side in enumerate((64, 128))]
        path = tmp_path / "lie.ts"
        path.write_bytes(b"".join(parts))
        with pytest.raises(DatasetError, match=r": frame \d+ is 128x128, but the header says 64x64$"):
            read_video(path)

    def test_limits(self, tmp_path):
        path = write(tmp_path / "clip.mp4", clip(20))
        with pytest.raises(DatasetError, match=r"clip\.mp4: 20 frames, at most 10 are read; cut or thin the video$"):
            read_video(path, max_frames=10)
        with pytest.raises(
            DatasetError, match=r"clip\.mp4: frames of 64x48, at most 100 pixels are read; shrink the video$"
        ):
            read_video(path, max_pixels=100)
        stream = write(tmp_path / "clip.ts", clip(20))  # its header does not tell the number of frames
        with pytest.raises(DatasetError, match=r"clip\.ts: more than 10 frames; cut or thin the video$"):
            read_video(stream, max_frames=10)

    def test_playlists_open_nothing(self, tmp_path):
        write(tmp_path / "secret.ts", clip(10))
        path = tmp_path / "list.mp4"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(DatasetError, match="cannot be decoded, it is damaged or no video"):
            read_video(path)
        path.write_text("ffconcat version 1.0\nfile secret.ts\n")
        with pytest.raises(DatasetError, match="cannot be decoded, it is damaged or no video"):
            read_video(path)

    def test_no_video_at_all(self, tmp_path):
        with pytest.raises(DatasetError, match=r"absent\.mp4: expected a video file, found none$"):
            read_video(tmp_path / "absent.mp4")
        with pytest.raises(DatasetError, match=r"expected a video file, found none$"):
            read_video(tmp_path)
        (tmp_path / "text.mp4").write_text("not a video " * 1000)
        with pytest.raises(DatasetError, match="cannot be decoded, it is damaged or no video"):
            read_video(tmp_path / "text.mp4")

    def test_sound_only(self, tmp_path):
        path = tmp_path / "sound.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
        with pytest.raises(DatasetError, match=r"sound\.mkv: expected a video, but it has no picture stream$"):
            read_video(path)


class TestOverlayVideo:
    @pytest.mark.parametrize("ending", ["mp4", "gif"])
    def test_curve_grows_beside_the_frame(self, tmp_path, ending):
        path = tmp_path / "new" / f"overlay.{ending}"
        frames = np.zeros((8, 20, 20, 3), np.uint8)
        overlay_video(frames, np.linspace(0, 1, 8), path, fps=10, title="press the button", height=201)
        video = read_video(path, longest_side=2000).astype(int)
        height = video.shape[1]
        assert height == 202  # the codec wants even sides
        assert video[:, 20:-20, 20 : height - 20].max() < 12  # the frame
        wanted = [int(viz.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)]
        blue = (np.abs(video[:, :, height:] - wanted).max(axis=-1) < 40).sum(axis=(1, 2))
        assert blue[7] > blue[4] > blue[1]
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_frame_without_reward(self, tmp_path):
        message = r"^expected one reward for each frame, got 3 frames and rewards \(2,\)$"
        with pytest.raises(ValueError, match=message):
            overlay_video(np.zeros((3, 8, 8, 3), np.uint8), [0.0, 1.0], tmp_path / "a.mp4")

    def test_unknown_ending(self, tmp_path):
        with pytest.raises(ValueError, match=r"a\.webp: expected a file ending in \.mp4 or \.gif$"):
            overlay_video(np.zeros((1, 8, 8, 3), np.uint8), [0.0], tmp_path / "a.webp")

    def test_one_frame_of_constant_reward(self, tmp_path):
        overlay_video(np.zeros((1, 8, 8, 3), np.uint8), [0.0], tmp_path / "a.mp4")
        assert len(read_video(tmp_path / "a.mp4")) == 1


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        MissingExtraError, match=r'^reading and writing videos needs PyAV: pip install "vlp_gym\[viz\]"$'
    ):
        read_video(tmp_path / "a.mp4")


def test_dollars_in_a_sentence_are_no_mathematics(tmp_path):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    for suffix in ("gif", "mp4"):
        overlay_video(frames, [0.0, 1.0], tmp_path / f"o.{suffix}", title="take the $5 cup (50% off), not the $10 " * 3)
        assert (tmp_path / f"o.{suffix}").stat().st_size > 0


def test_a_reward_that_never_leaves_0_does_not_fill_the_picture(tmp_path):
    frames = np.zeros((2, 64, 64, 3), np.uint8)

    def rows(**options):
        overlay_video(frames, [0.0, 1e-4], tmp_path / "o.gif", **options)
        image = read_video(tmp_path / "o.gif")[-1].astype(int)
        wanted = [int(viz.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)]
        return np.flatnonzero((np.abs(image - wanted).max(axis=-1) < 60).any(axis=1))

    assert np.ptp(rows(reward_range=(0.0, 1.0))) < 10
    assert np.ptp(rows()) > 40
