from __future__ import annotations

import io

import pytest

from tests.clips import CONTAINERS, clip, opened, write
from vlp_gym.frames.video_ends import missing_end

ENDLESS = ("h264", "hevc", "m2v", "m4v")  # bare streams: nothing tells where they end


@pytest.fixture(scope="module", params=[name for name in CONTAINERS if name not in ENDLESS])
def file(request, tmp_path_factory):
    name = request.param
    data = write(tmp_path_factory.mktemp("ends") / f"clip.{name}", clip(12)).read_bytes()
    return name, data, opened(data)


def cut(data, container):
    return missing_end(io.BytesIO(data), container)


def test_a_whole_file(file):
    _, data, container = file
    assert cut(data, container) == ""


def test_every_cut_within_the_pictures(file):
    name, data, container = file
    seen = [at for at in range(len(data) // 3, len(data) * 4 // 5) if cut(data[:at], container)]
    # Between two packets of a transport stream, tags of an flv or elements of a live mkv, nothing shows a cut.
    unseen = {"ts": 1 / 188, "m2ts": 1 / 192, "flv": 0.01, "live.mkv": 0.01, "mpg": 0.01}.get(name, 0.0)
    every = len(data) * 4 // 5 - len(data) // 3
    assert len(seen) >= every * (1 - unseen) - 1


def test_the_last_byte(file):
    name, data, container = file
    assert cut(data[:-1], container) != "" or name in ("avi", "apng")  # the end of an index, a checksum


def test_what_is_appended_does_no_harm(file):
    name, data, container = file
    if "ts" not in name:  # packets of another length are packets cut off
        assert cut(data + bytes(300), container) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mov", "its part 'mdat' ends at byte {mdat:,} and the file at {half:,}"),
        ("gif", "its end mark (3B) is absent"),
        ("apng", "its end mark (IEND) is absent"),
        ("ogv", "its last page is cut off or absent"),
        ("mkv", "its last element ends at byte {whole:,} and the file at {half:,}"),
        ("ts", "its last packet has {odd} of 188 bytes"),
    ],
)
def test_messages(tmp_path, name, message):
    data = write(tmp_path / f"clip.{name}", clip(12)).read_bytes()
    half = len(data) // 2 + (len(data) // 2 % 188 == 0)
    place = data.find(b"mdat") - 4
    mdat = place + int.from_bytes(data[place : place + 4], "big")
    wanted = message.format(mdat=mdat, half=half, whole=len(data), odd=half % 188)
    assert cut(data[:half], opened(data)) == wanted


def test_long_boxes_and_boxes_up_to_the_end():
    head = b"\x00\x00\x00\x08ftyp"
    long = b"\x00\x00\x00\x01mdat" + (16 + 5).to_bytes(8, "big") + b"12345"
    assert cut(head + long, "mov,mp4,m4a,3gp,3g2,mj2") == ""
    assert cut(head + long[:-1], "mov,mp4,m4a,3gp,3g2,mj2") == "its part 'mdat' ends at byte 29 and the file at 28"
    assert cut(head + b"\x00\x00\x00\x00mdat" + b"123", "mov,mp4,m4a,3gp,3g2,mj2") == ""


def test_nothing_is_known_of_other_containers():
    assert cut(b"", "h264") == ""
    assert cut(b"", "mpegts") == ""
