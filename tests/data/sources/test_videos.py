"""A folder of videos: what each row of captions.csv says, and one clear error for each row that is wrong."""

from __future__ import annotations

import csv

import numpy as np
import pytest

pytest.importorskip("av")

from clips import clip, turned, write

from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.errors import DatasetError, InstructionError

EVERY = SourceOptions(size=48, fps=25)


def captions(folder, *rows, columns=("file", "sentence")):
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"videos:{folder}"


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.mp4", clip(20))
    write(tmp_path / "b.mkv", clip(10, 64, 48))
    return tmp_path


def greys(frames):
    return frames.mean((1, 2, 3))


def test_each_row_is_a_trajectory(folder):
    columns = ("file", "sentence", "success", "tier", "group", "start_s", "end_s")
    name = captions(
        folder,
        ("a.mp4", "Fold the towel", "", "", "towel", "", "0.4"),
        ("a.mp4", "lay the towel together", "no", "", "towel", "0.4", ""),
        ("b.mkv", "öffne die Tür", "", "medium", "", "", ""),
        columns=columns,
    )
    source = open_source(name, EVERY)
    assert source.tasks() == ["towel", "öffne die Tür"]
    first, second, third = source.stream()
    whole = greys(clip(20))
    assert np.abs(greys(first.frames) - whole[:10]).max() < 2
    assert np.abs(greys(second.frames) - whole[10:]).max() < 2
    assert [t.frames.shape[1:] for t in (first, second, third)] == [(48, 48, 3)] * 3
    assert first.sentences == second.sentences == ("Fold the towel", "lay the towel together")
    assert [t.tier for t in (first, second, third)] == ["expert", "near_miss", "medium"]
    assert [bool(t.success.any()) for t in (first, second, third)] == [True, False, False]
    assert first.success.tolist() == [False] * 9 + [True]
    assert len({t.seed for t in (first, second, third)}) == 3
    assert np.isnan(first.positions).all()
    (only,) = source.stream(["öffne die Tür"])
    assert only.sentences == ("öffne die Tür",)


def test_one_sentence_for_all(folder):
    (folder / "notes.txt").write_text("no video")
    source = open_source(f"videos:{folder}", SourceOptions(instruction=" press the button ", size=32))
    assert source.tasks() == ["press the button"]
    assert [(t.tier, len(t.frames)) for t in source.stream()] == [("expert", 5), ("expert", 3)]  # of 5 a second


def test_an_uneven_pace_and_a_turned_video(tmp_path):
    write(tmp_path / "uneven.mp4", clip(4), times=[0, 1, 20, 50])
    path = write(tmp_path / "turned.mp4", clip(3))
    path.write_bytes(turned(path.read_bytes(), (0, 1, -1, 0)))
    source = open_source(f"videos:{tmp_path}", SourceOptions(instruction="go", size=48, fps=5))
    turned_one, uneven = source.stream()
    assert np.abs(greys(uneven.frames) - greys(clip(4))[[0, 2, 3]]).max() < 2
    assert np.abs(greys(turned_one.frames) - greys(clip(3))[[0, 2]]).max() < 2


def test_the_rest_goes_on_after_a_broken_video(folder):
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    write(folder / "d.mp4", clip(1))
    name = captions(folder, ("c.mp4", "x"), ("a.mp4", "x"), ("d.mp4", "y"), ("b.mkv", "y"))
    source, broken = open_source(name, EVERY), []
    assert [len(t.frames) for t in source.stream(on_broken=broken.append)] == [20, 10]
    assert str(broken[0]).startswith(f"captions.csv, line 2: {folder / 'c.mp4'}: ")
    assert str(broken[1]).startswith(f"captions.csv, line 4: {folder / 'd.mp4'}: expected at least 2 frames, got 1")
    with pytest.raises(DatasetError, match=r"captions\.csv, line 2: .*c\.mp4"):
        list(source.stream())


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("file", "sentence"), ("a.mp4", "  "), "line 2: the instruction is empty"),
        (("file", "sentence"), ("z.mp4", "x"), "line 2: expected a video file in .*, got 'z.mp4'"),
        (("file", "sentence"), ("", "x"), "line 2: expected a video file in .*, got ''"),
        (("file", "sentence"), ("a.mp4",), "line 2: expected as many entries as there are columns, got 1"),
        (("file", "sentence"), ("a.mp4", "x", "y"), "line 2: expected as many entries as there are columns, got 3"),
        (("file", "sentense"), ("a.mp4", "x"), "unknown column 'sentense', expected .*; did you mean sentence?"),
        (("file",), ("a.mp4",), "expected the columns file and sentence in the first line, found no sentence"),
        (("file", "sentence", "file"), ("a.mp4", "x", "a.mp4"), "the column file is there twice"),
        (("file", "sentence", "success"), ("a.mp4", "x", "maybe"), "line 2: success: expected yes, no or nothing"),
        (("file", "sentence", "tier"), ("a.mp4", "x", "best"), "line 2: tier: expected one of expert, .*, got 'best'"),
        (("file", "sentence", "start_s"), ("a.mp4", "x", "-1"), "line 2: start_s: expected seconds from 0 on"),
        (("file", "sentence", "end_s"), ("a.mp4", "x", "nan"), "line 2: end_s: expected seconds from 0 on, got 'nan'"),
        (("file", "sentence", "start_s", "end_s"), ("a.mp4", "x", "2", "1"), "line 2: expected start_s before end_s"),
    ],
)
def test_a_wrong_row_is_named(folder, columns, row, message):
    with pytest.raises((DatasetError, InstructionError), match=rf"captions\.csv: {message}"):
        open_source(captions(folder, row, columns=columns))


def test_a_video_has_one_sentence(folder):
    with pytest.raises(DatasetError, match=r"line 3: a\.mp4 is already in line 2; one row a video"):
        open_source(captions(folder, ("a.mp4", "x"), ("a.mp4", "y")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the columns file and sentence"),
        (b"file,sentence\n", "expected a row for each video, found none"),
        (b"file,sentence\na.mp4,\xff\n", "captions.csv: 'utf-8' codec can't decode"),
        (b'file,sentence\na.mp4,"x\n', "captions.csv: "),
    ],
)
def test_a_file_that_is_no_table(folder, content, message):
    (folder / "captions.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_source(f"videos:{folder}")


def test_a_folder_without_sentences(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"expected captions\.csv .*, found none; write it, or convert"):
        open_source(f"videos:{folder}")
    with pytest.raises(DatasetError, match="expected a folder of videos, found none"):
        open_source(f"videos:{tmp_path / 'none'}")
    with pytest.raises(DatasetError, match="expected a folder of videos, found a file"):
        open_source(f"videos:{folder / 'a.mp4'}")
    with pytest.raises(DatasetError, match=r"videos:: expected a folder of videos with captions\.csv"):
        open_source("videos:")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"expected videos \(.*\), found none"):
        open_source(f"videos:{tmp_path / 'empty'}", SourceOptions(instruction="go"))
    captions(folder, ("a.mp4", "x"))
    with pytest.raises(DatasetError, match=r"--instruction: .* has a sentence for each video"):
        open_source(f"videos:{folder}", SourceOptions(instruction="go"))


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 8}, "--size: expected 16"), ({"fps": 0}, "--fps: expected")]
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        SourceOptions(**options)
