from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.clips import CONTAINERS, clip, hidden, many_samples, turned, write
from vlp_gym import video, viz
from vlp_gym.errors import DatasetError, MissingExtraError
from vlp_gym.video import overlay_video, read_video

READ = "mp4, mov, mkv, webm, avi, flv, wmv, mpg, ts, ogv, gif, apng, or a bare MPEG, H.264 or HEVC stream"


def refusal(path, **options):
    """What the error says behind the path."""
    with pytest.raises(DatasetError) as error:
        read_video(path, **options)
    path, text = str(path), str(error.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def quarters(frame):
    """The mean colours of a picture's four quarters, row by row."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    parts = (frame[y : y + height, x : x + width] for y in (0, height) for x in (0, width))
    return np.array([part.mean(axis=(0, 1)) for part in parts])


def decoders():
    """The processes that decode for this one."""
    return [child for child in psutil.Process().children() if "video_decoder" in " ".join(child.cmdline())]


class TestReadVideo:
    @pytest.mark.parametrize("container", [name for name in CONTAINERS if name not in ("h264", "hevc", "mpg")])
    def test_a_part_at_a_rate(self, tmp_path, container):
        """By the frames' own times; mpg's encoder leaves a gap in them."""
        path = write(tmp_path / f"clip.{container}", clip(50))
        whole = read_video(path)
        assert np.array_equal(read_video(path, start_s=0.6, end_s=1.2), whole[15:30])
        assert np.array_equal(read_video(path, start_s=0.6, end_s=1.2, fps=10), whole[[15, 18, 20, 23, 25, 28, 29]])
        assert np.array_equal(read_video(path, fps=1), whole[[0, 25, 49]])
        assert np.array_equal(read_video(path, fps=1000), whole)
        assert len(read_video(path, fps=2, max_frames=5)) == 5
        with pytest.raises(DatasetError, match="no frame between 2 and 3 s"):
            read_video(path, start_s=2, end_s=3)

    @pytest.mark.parametrize("container", ["h264", "hevc"])
    def test_a_bare_stream_has_no_times(self, tmp_path, container):
        path = write(tmp_path / f"clip.{container}", clip(5))
        with pytest.raises(DatasetError, match="its frames have no times to choose by"):
            read_video(path, fps=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"start_s": -1}, "expected 0 <= start_s < end_s, got -1"),
            ({"start_s": 2, "end_s": 2}, "expected 0 <= start_s < end_s, got 2 and 2"),
            ({"start_s": float("nan")}, "expected 0 <= start_s"),
            ({"fps": 0}, "fps: expected more than 0, got 0"),
            ({"fps": float("inf")}, "fps: expected more than 0, got inf"),
        ],
    )
    def test_times_out_of_range(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / "clip.mp4", **options)

    @pytest.mark.parametrize("container", CONTAINERS)
    def test_every_container(self, tmp_path, container):
        frames = read_video(write(tmp_path / f"clip.{container}", clip(12)))
        assert frames.shape == (12, 48, 64, 3)
        assert frames.dtype == np.uint8
        assert frames.flags.writeable
        assert frames.mean(axis=(1, 2, 3)) == pytest.approx(clip(12).mean(axis=(1, 2, 3)), abs=8)

    def test_large_frames_are_shrunk(self, tmp_path):  # fault 65
        assert read_video(write(tmp_path / "clip.mp4", clip(3, 64, 128)), longest_side=32).shape == (3, 16, 32, 3)

    def test_colours_are_rgb(self, tmp_path):
        red = np.zeros((5, 32, 32, 3), np.uint8)
        red[..., 0] = 230
        assert read_video(write(tmp_path / "clip.mp4", red))[2].mean(axis=(0, 1)) == pytest.approx([230, 0, 0], abs=6)

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (33, 17), (2, 400)])
    def test_odd_sizes(self, tmp_path, height, width):
        frames = read_video(write(tmp_path / "clip.gif", np.full((2, height, width, 3), 90, np.uint8)))
        assert frames.shape == (2, height, min(width, 320), 3)
        assert frames.mean() == pytest.approx(90, abs=24)  # the palette is coarse

    @pytest.mark.parametrize("name", ["vid\u00e9 \u8996 \U0001f600.mp4", "a:b?c%d.mp4", "http:x.mp4", "b\udcff.mp4"])
    def test_odd_names(self, tmp_path, name):
        os.link(write(tmp_path / "clip.mp4", clip(3)), tmp_path / name)
        assert len(read_video(tmp_path / name)) == 3


class TestAsAPlayerShowsIt:
    @pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)])
    @pytest.mark.parametrize("across", [False, True])
    @pytest.mark.parametrize("container", ["mp4", "mov"])
    def test_turned(self, tmp_path, matrix, across, container):
        a, b, c, d = (matrix[1], matrix[0], matrix[3], matrix[2]) if across else matrix
        colours = np.array([[230, 0, 0], [0, 230, 0], [0, 0, 230], [230, 230, 230]])
        frame = colours.reshape(2, 2, 3).repeat(32, axis=0).repeat(48, axis=1).astype(np.uint8)
        path = write(tmp_path / f"clip.{container}", np.stack([frame] * 3))
        path.write_bytes(turned(path.read_bytes(), (a, b, c, d)))
        # A point at (x, y) from the middle is shown at (ax + cy, bx + dy).
        wanted = np.zeros((2, 2, 3))
        for colour, (x, y) in zip(colours, ((-1, -1), (1, -1), (-1, 1), (1, 1)), strict=True):
            wanted[(b * x + d * y + 1) // 2, (a * x + c * y + 1) // 2] = colour
        frames = read_video(path)
        assert frames.shape == ((3, 96, 64, 3) if across else (3, 64, 96, 3))
        assert np.abs(quarters(frames[1]) - wanted.reshape(4, 3)).max() < 12

    def test_turned_by_another_angle(self, tmp_path):
        path = write(tmp_path / "clip.mp4", clip(3))
        path.write_bytes(turned(path.read_bytes(), (1, 1, -1, 1)))
        assert refusal(path) == "is to be turned by -45 degrees; expected a multiple of 90"

    def test_turned_by_exif(self, tmp_path):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:24, :32] = 230
        exif, data = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6  # a quarter clockwise
        Image.fromarray(frame).save(data, "JPEG", exif=exif)
        with av.open(str(tmp_path / "clip.mov"), "w") as file:
            stream = file.add_stream("mjpeg", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
            packet = av.Packet(data.getvalue())
            packet.pts = packet.dts = 0
            packet.time_base, packet.stream = Fraction(1, 25), stream
            file.mux(packet)
        frames = read_video(tmp_path / "clip.mov")
        assert frames.shape == (1, 64, 48, 3)
        assert quarters(frames[0])[:, 0] == pytest.approx([0, 230, 0, 0], abs=12)

    @pytest.mark.parametrize(("aspect", "shape"), [((4, 3), (48, 85)), ((1, 2), (96, 64)), ((10, 1), (24, 320))])
    def test_pixels_become_square(self, tmp_path, aspect, shape):
        with av.open(str(tmp_path / "clip.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(clip(1)[0], format="rgb24")))
            file.mux(stream.encode())
        assert read_video(tmp_path / "clip.mp4").shape == (1, *shape, 3)

    @pytest.mark.parametrize("disposal", [1, 2, 3])
    def test_gif_with_transparency_and_disposal(self, tmp_path, disposal):
        path = tmp_path / "clip.gif"
        pictures = [Image.new("RGBA", (40, 30)) for _ in range(4)]
        for k, picture in enumerate(pictures):
            picture.paste((50 + 50 * k, 10, 200 - 40 * k, 255), (5 * k, 4 * k, 5 * k + 12, 4 * k + 10))
        pictures[0].save(path, save_all=True, append_images=pictures[1:], disposal=disposal)
        frames = read_video(path)
        with Image.open(path) as file:
            assert file.n_frames == len(frames)
            for number, frame in enumerate(frames):
                file.seek(number)
                rgba = np.asarray(file.convert("RGBA"))
                opaque = rgba[..., 3] == 255
                assert np.array_equal(frame[opaque], rgba[opaque][:, :3])
                assert (frame[~opaque] == 255).all()  # what shines through is white

    @pytest.mark.parametrize("container", ["mp4", "mov"])
    def test_lossless_cut(self, tmp_path, container):
        source, path = write(tmp_path / "long.mp4", clip(30)), tmp_path / f"cut.{container}"
        with av.open(str(source)) as original, av.open(str(path), "w", options={"avoid_negative_ts": "0"}) as file:
            stream = file.add_stream_from_template(original.streams.video[0])
            for packet in original.demux(video=0):
                if packet.size:  # as `ffmpeg -ss`: from a key frame on, with an edit list that leaves 10 frames out
                    packet.pts -= 10 * packet.duration
                    packet.dts -= 10 * packet.duration
                    packet.stream = stream
                    file.mux(packet)
        with av.open(str(path)) as file:
            assert file.streams.video[0].frames == 30  # what its table lists
        assert np.array_equal(read_video(path), read_video(source)[10:])

    @pytest.mark.parametrize("container", ["webm", "mkv", "mp4", "flv"])
    def test_variable_rate(self, tmp_path, container):
        times = [0, 1, 2, 50, 51, 52, 53, 200, 201, 500]
        assert len(read_video(write(tmp_path / f"clip.{container}", clip(10), times=times))) == 10


class TestDamaged:
    """Rows 61 and 64 of the fault table."""

    @pytest.mark.parametrize("container", [name for name in CONTAINERS if name not in ("h264", "hevc", "m2v", "m4v")])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
    def test_truncated(self, tmp_path, container, share):  # fault 64
        path = write(tmp_path / f"clip.{container}", clip(12))
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data)) | 1])  # no multiple of a packet's length
        assert re.match("cannot be decoded|truncated|is no video|expected a video", refusal(path))

    def test_says_how_much_is_there(self, tmp_path):
        path = write(tmp_path / "clip.mkv", clip())
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 7 // 10])
        sizes = f"ends at byte {len(data):,} and the file at {len(data) * 7 // 10:,}"
        assert refusal(path) == f"truncated, its last element {sizes}"

    @pytest.mark.parametrize("container", ["m2v", "m4v", "h264", "ts"])
    def test_cut_where_the_container_cannot_tell(self, tmp_path, container):
        path = write(tmp_path / f"clip.{container}", clip(12))
        data, whole = path.read_bytes(), read_video(path)
        refused = 0
        for share in (0.4, 0.6, 0.7, 0.8, 0.9, 0.97):
            path.write_bytes(data[: int(share * len(data) / 188) * 188])
            try:
                frames = read_video(path)
            except DatasetError:
                refused += 1
                continue
            assert len(frames) < 12
            assert {frame.tobytes() for frame in frames} <= {frame.tobytes() for frame in whole}
        assert refused  # the last frame, cut in two

    @pytest.mark.parametrize("container", ["m2v", "m4v"])
    def test_a_damaged_frame(self, tmp_path, container):
        path = write(tmp_path / f"clip.{container}", clip(12))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(100) + data[len(data) // 2 + 100 :])
        assert re.match(r"frame \d+ is damaged$|cannot be decoded, it is damaged", refusal(path))

    def test_size_that_changes_under_way(self, tmp_path):
        parts = [write(tmp_path / f"{side}.h264", clip(12, side, side)).read_bytes() for side in (64, 128)]
        path = tmp_path / "lie.h264"
        path.write_bytes(b"".join(parts))
        assert refusal(path) == "frame 12 is 128x128, but the header says 64x64"

    def test_playlists_open_nothing(self, tmp_path):  # fault 61
        write(tmp_path / "secret.ts", clip(10))
        path = tmp_path / "list.mp4"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
        assert re.match("cannot be decoded, it is damaged or no video|is no video, or", refusal(path))
        path.write_text("ffconcat version 1.0\nfile secret.ts\n")
        assert refusal(path) == f"is no video, or its container is not supported; expected {READ}"

    def test_containers_that_are_not_read(self, tmp_path):
        Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
        assert refusal(tmp_path / "a.png") == f"is no video, or its container is not supported; expected {READ}"

    def test_no_video_at_all(self, tmp_path):
        assert refusal(tmp_path / "absent.mp4") == "expected a video file, found none"
        assert refusal(tmp_path / ("x" * 5000)) == "expected a video file, found none"
        assert refusal(tmp_path) == "expected a video file, found something else"
        os.mkfifo(tmp_path / "pipe.mp4")
        assert refusal(tmp_path / "pipe.mp4") == "expected a video file, found something else"
        assert refusal("/dev/zero") == "expected a video file, found something else"
        (tmp_path / "text.mp4").write_text("not a video " * 1000)
        why = "Invalid data found when processing input"
        assert refusal(tmp_path / "text.mp4") == f"cannot be decoded, it is damaged or no video ({why})"

    @pytest.mark.parametrize("cover", [False, True])
    def test_sound_only(self, tmp_path, cover):
        path = tmp_path / "song.m4a"
        with av.open(str(path), "w", format="mp4") as file:
            sound = file.add_stream("aac", rate=8000)
            if cover:
                picture = file.add_stream("mjpeg", rate=1)
                picture.height, picture.width, picture.pix_fmt = 48, 64, "yuvj420p"
                picture.disposition = av.stream.Disposition.attached_pic
                file.mux(picture.encode(av.VideoFrame.from_ndarray(clip(1)[0], format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.rate = 8000
            file.mux(sound.encode(frame))
            file.mux(sound.encode())
        with av.open(str(path)) as file:
            assert len(file.streams.video) == cover
        assert refusal(path) == "expected a video, but it has no picture stream"


class TestLimits:
    """Rows 62 and 65 of the fault table."""

    def test_frames_and_pixels(self, tmp_path):
        path = write(tmp_path / "clip.mp4", clip(20))
        assert len(read_video(path, max_frames=20)) == 20
        assert refusal(path, max_frames=19) == "more than 19 frames; cut or thin the video"
        assert refusal(path, max_pixels=3071) == "frames of 64x48, at most 3071 pixels are read; shrink the video"

    def test_memory(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.gif", np.zeros((3, 1500, 2000, 3), np.uint8))
        assert len(read_video(path)) == 3
        monkeypatch.setattr(video, "MEMORY", 7 * 16 * 2**20)  # three sevenths are the decoder's at least
        assert refusal(path) == "takes more than 48 MiB to decode"

    @pytest.mark.parametrize("count", [2**20, 2**24, 2**31 - 1])
    def test_tables_without_end(self, tmp_path, count):
        path = write(tmp_path / "clip.mp4", clip(3))
        path.write_bytes(many_samples(path.read_bytes(), count))
        assert re.match("takes more than|cannot be decoded|expected a video, but no frame", refusal(path))

    def test_frames_that_are_never_shown(self, tmp_path, monkeypatch):
        path = hidden(tmp_path / "clip.webm", 3000)
        assert refusal(path, max_frames=100) == "101 packets without a picture after 0 frames"
        assert refusal(path, max_frames=3001) == "expected a video, but no frame of it can be decoded"
        monkeypatch.setattr(video, "PATIENCE", 0.05)
        why = "it is damaged, or too costly to decode"
        assert refusal(path, max_frames=3000) == f"no new frame in 0.05 s; {why}"


class TestProcess:
    def test_it_ends_with_the_reader(self, tmp_path):
        path = write(tmp_path / "clip.mp4", clip(12))
        read_video(path)
        refusal(path, max_frames=3)
        assert decoders() == []

    def test_killed(self, tmp_path):
        def kill():
            while not (found := decoders()):
                time.sleep(0.01)
            found[0].kill()

        path = hidden(tmp_path / "clip.webm", 20_000)
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(
            (DatasetError, RuntimeError), match=r"the decoder died of it \(exit code -9\)|did not start"
        ):
            read_video(path, max_frames=10**6)
        thread.join()

    def test_interrupted(self, tmp_path):
        path = hidden(tmp_path / "clip.webm", 20_000)
        code = f"from vlp_gym.video import read_video; read_video({str(path)!r}, max_frames=10**6)"
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True) as process:
            while not (children := psutil.Process(process.pid).children()):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)  # as the terminal does
            _, errors = process.communicate(timeout=60)
        assert errors.decode().rstrip().endswith("KeyboardInterrupt")
        assert psutil.wait_procs(children, timeout=10)[1] == []

    def test_not_started(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4", clip(3))
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RuntimeError, match=r"clip\.mp4: the process that decodes videos did not start, see above;"):
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


def test_a_small_file_of_endless_pixels(tmp_path):  # fault 62
    still = io.BytesIO()
    Image.new("P", (3000, 3000)).save(still, "gif")
    shown = b"\x21\xf9\x04\0\x05\0\0\0"  # for a moment
    dot = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"  # one pixel in the large picture
    path = tmp_path / "clip.gif"
    path.write_bytes(still.getvalue()[:-1] + 200 * (shown + dot) + b";")
    most = (2**30 + 20_000 * path.stat().st_size) // 10**6
    assert most < 9 * 200
    message = f"{path}: unpacks to more than {most} megapixels, too many for so small a file"
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
        read_video(path)
