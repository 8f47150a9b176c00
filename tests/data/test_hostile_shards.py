"""Shards of unknown origin: read as they are named, within limits, or refused by a DatasetError that names them."""

from __future__ import annotations

import io
import os
import re
import sys
import zlib

import numpy as np
import psutil
import pytest

pytest.importorskip("datasets")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from prompting.test_pictures import chunk
from rollouts import painted, write_tasks

from vlp_gym.data import rows, shards
from vlp_gym.data.shards import load_trajectories, shard_path, shard_tasks, stream_trajectories, write_shard
from vlp_gym.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    write_tasks(tmp_path / "made", [painted("fold", "expert", 7, frames=3)])
    return tmp_path / "made"


@pytest.fixture
def file(folder):
    return shard_path(folder, "fold", "expert")


def refusal(folder):
    with pytest.raises(DatasetError) as caught:
        load_trajectories(folder, progress_bar=False)
    return str(caught.value)


def changed(file, name, values, kind=None, **options):
    """Write a shard with another column."""
    table = pq.read_table(file)
    column = pa.array(values, kind or table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), file, **options)


def with_frame(file, data):
    (row,) = pq.read_table(file).column("frames").to_pylist()
    changed(file, "frames", [[row[0], {"bytes": data, "path": None}, row[2]]])


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


NAMES = ("s[12]", "s*", "s?", "a b", "%41#x", "-x", "ü{a}", "a::b", "file:", "x,y", "~", "..s", "$HOME")


class TestNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_folder_is_read_by_its_exact_name(self, tmp_path, monkeypatch, name):
        for neighbour in ("s1", "s2", "a", "x", "A#x"):
            write_tasks(tmp_path / neighbour, [painted("other", "expert")])
        write_tasks(tmp_path / name, [painted("fold", "expert")])
        link = tmp_path / "link"
        link.symlink_to(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        for folder in (name, f"{name}/", f"./{name}", tmp_path / name, link):
            assert [t.task for t in load_trajectories(folder, progress_bar=False)] == ["fold"]
            assert shard_tasks(folder) == ["fold"]

    @pytest.mark.parametrize("name", ["s[1]", "s*", "s?"])
    def test_what_is_no_folder_is_no_pattern(self, tmp_path, name):
        write_tasks(tmp_path / "s1", [painted("fold", "expert")])
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: expected parquet shards in ")

    def test_a_task_of_any_name(self, tmp_path):
        tasks = ["[ab]*", "file:x", "--out", "a.parquet", "...", "100% #1"]
        write_tasks(tmp_path, [painted(task, "expert") for task in tasks])
        assert shard_tasks(tmp_path) == sorted(tasks)
        assert [t.task for t in stream_trajectories(tmp_path, tasks=["[ab]*"])] == ["[ab]*"]

    def test_shards_that_are_links_as_in_the_hubs_cache(self, folder, file, tmp_path):
        file.rename(tmp_path / "blob")
        file.symlink_to(tmp_path / "blob")
        assert [t.task for t in load_trajectories(folder, progress_bar=False)] == ["fold"]

    @pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dead link"])
    def test_what_is_no_file(self, folder, file, kind):
        file.unlink()
        {
            "pipe": lambda: os.mkfifo(file),
            "folder": file.mkdir,
            "device": lambda: file.symlink_to("/dev/zero"),
            "dead link": lambda: file.symlink_to(file.name),
        }[kind]()
        assert refusal(folder) == f"{file}: expected a file; remove the folder, pipe, device or dead link"

    @pytest.mark.parametrize("name", ["train-00000-of-00001", "fold", "fold-novice"])
    def test_names_that_tell_no_task(self, folder, file, name):
        other = file.rename(file.with_name(f"{name}.parquet"))
        assert refusal(folder) == f"{other}: expected a name TASK-TIER.parquet, such as push-v3-expert.parquet"

    @pytest.mark.parametrize("name", ["unfold-expert", "fold-random"])
    def test_rollouts_of_another_task_or_tier_than_the_name_says(self, folder, file, name):
        other = file.rename(file.with_name(f"{name}.parquet"))
        assert refusal(folder) == (
            f"{other}, row 0: task fold, expert, seed 7: expected it in a shard fold-expert.parquet, got {name}.parquet"
        )

    def test_a_folder_that_cannot_be_read(self):
        assert refusal("x" * 300) == f"{'x' * 300}: the folder cannot be read ([Errno 36] File name too long: " + (
            f"'{'x' * 300}/data')"
        )
        assert refusal("a\0b") == "a\0b: the folder cannot be read (embedded null byte)"


class TestColumns:
    @pytest.mark.parametrize("kind", [pa.float64(), pa.float16(), pa.int32()])
    def test_numbers_of_other_widths(self, folder, file, kind):
        values = [[0, 2, 4]]
        changed(file, "reward", pa.array(values).cast(pa.large_list(kind)).to_pylist(), pa.large_list(kind))
        changed(file, "step", [[0, 5, 10]], pa.list_(pa.uint16(), 3))
        changed(file, "task", ["fold"], pa.dictionary(pa.int8(), pa.large_string()))
        (read,) = load_trajectories(folder, progress_bar=False)
        assert (read.reward.tolist(), read.reward.dtype) == ([0.0, 2.0, 4.0], np.float32)
        assert (read.step.tolist(), read.step.dtype, read.task) == ([0, 5, 10], np.int64, "fold")

    @pytest.mark.parametrize(
        ("name", "values", "kind", "expected"),
        [
            ("reward", [["1", "2", "3"]], pa.list_(pa.string()), "list<element: float>"),
            ("success", [[0, 1, 1]], pa.list_(pa.int64()), "list<element: bool>"),
            ("step", [[0.0, 5.0, 10.0]], pa.list_(pa.float64()), "list<element: int64>"),
            ("task", [b"fold"], pa.binary(), "string"),
            ("seed", ["7"], pa.string(), "int64"),
            ("positions", [[0.0] * 3], pa.list_(pa.float32()), "list<element: list<element: float>>"),
            ("sentences", [[1, 2]], pa.list_(pa.int64()), "list<element: string>"),
            ("frames", [[b""]], pa.list_(pa.binary()), "list<element: struct<bytes: binary, path: string>>"),
        ],
    )
    def test_columns_of_other_types(self, folder, file, name, values, kind, expected):
        changed(file, name, values, kind)
        got = str(pq.read_schema(file).field(name).type)
        assert refusal(folder) == (
            f"{folder}: a shard cannot be read ({file.name}: column {name}: expected "
            f"{expected.replace('element', 'item')}, got {got}); delete it and collect again"
        )

    def test_columns_that_are_missing_or_there_twice(self, folder, file):
        table = pq.read_table(file)
        pq.write_table(table.append_column("task", table.column("tier")), file)
        expected = f"{folder}: a shard cannot be read ({file.name}: {{}}); delete it and collect again"
        assert refusal(folder) == expected.format("two columns have one name")
        pq.write_table(table.drop_columns(["step", "camera"]), file)
        assert refusal(folder) == expected.format("expected the columns camera, step, found none")
        pq.write_table(table.slice(0, 0), file)
        assert refusal(folder) == expected.format("it has no rows")

    def test_other_columns_are_not_even_decoded(self, folder, file):
        table = pq.read_table(file)
        pq.write_table(table.append_column("more", pa.array(["x" * 10**8])), file, compression="zstd")
        assert [t.task for t in load_trajectories(folder, progress_bar=False)] == ["fold"]

    def test_the_file_and_the_row_are_named(self, folder, file):
        table = pq.read_table(file)
        later = table.set_column(table.column_names.index("step"), "step", pa.array([[0, 5, 4]]))
        pq.write_table(pa.concat_tables([table, later.cast(table.schema)]), file)
        read = stream_trajectories(folder)
        assert next(read).step.tolist() == [0, 5, 10]
        with pytest.raises(DatasetError) as caught:
            next(read)
        assert str(caught.value) == (
            f"{file}, row 1: fold/expert/7: step: expected rising numbers from 0 to 10, the number of environment "
            "steps, got [0 5 4]"
        )


class TestFrames:
    @pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "BMP", "WEBP", "PPM", "PDF"])
    def test_other_formats_are_not_opened(self, folder, file, kind):  # fault 63
        with_frame(file, encoded(Image.new("RGB", (16, 16)), kind))
        assert refusal(folder) == (
            f"{file}, row 0: fold/expert/7: frame 1 cannot be decoded (expected a PNG or JPEG picture, got another "
            "kind of file); collect this shard again"
        )

    def test_a_path_in_place_of_bytes_is_not_opened(self, folder, file, tmp_path):
        Image.new("RGB", (16, 16)).save(tmp_path / "frame.png")
        changed(file, "frames", [[{"bytes": None, "path": str(tmp_path / "frame.png")}] * 3])
        assert refusal(folder) == (
            f"{file}, row 0: fold/expert/7: frame 0 cannot be decoded (expected its bytes, got null); collect this "
            "shard again"
        )

    def test_frames_are_turned_as_their_camera_says(self, folder, file):
        picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        exif = Image.Exif()
        exif[0x112] = 6  # shown after a quarter turn clockwise
        with_frame(file, encoded(Image.fromarray(picture), "PNG", exif=exif))
        (read,) = load_trajectories(folder, progress_bar=False)
        assert np.array_equal(read.frames[1], np.rot90(picture, -1))

    def test_grey_of_16_bits_is_not_cut_off(self, folder, file):
        with_frame(file, encoded(Image.fromarray(np.full((16, 16), 300, np.uint16)), "PNG"))
        assert refusal(folder) == (
            f"{file}, row 0: fold/expert/7: frame 1 cannot be decoded (expected 8 bits a colour, got grey of more "
            "(Pillow's mode I;16)); collect this shard again"
        )

    def test_a_frame_of_too_many_pixels(self, folder, file):
        with_frame(file, flat_png(1001, 1000))  # the first frame has fewer
        assert refusal(folder) == (
            f"{file}, row 0: fold/expert/7: frame 1 cannot be decoded (expected at most 1 megapixels, got "
            "1001 x 1000); collect this shard again"
        )
        changed(file, "frames", [[{"bytes": flat_png(4097, 2304), "path": None}] * 3])
        assert refusal(folder) == (
            f"{file}, row 0: fold/expert/7: frame 0 cannot be decoded (expected at most 9.43718 megapixels, got "
            "4097 x 2304); collect this shard again"
        )


def flat_png(width, height):
    """A black picture in RGB: a thousandth of its size in memory."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = zlib.compress(bytes((width * 3 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class TestBombs:
    """Files of some kilobytes; what they unfold to is far more than a gigabyte, or than a minute."""

    @pytest.mark.parametrize("codec", ["zstd", "gzip", "brotli"])
    def test_a_long_text(self, folder, file, codec):
        changed(file, "task", ["x" * 3 * 10**8], compression=codec)
        assert file.stat().st_size < 10**6
        assert refusal(folder).startswith(f"{folder}: a shard cannot be read ({file.name}: ")

    def test_a_list_of_one_value(self, folder, file):
        changed(file, "reward", [pa.array(np.zeros(2 * 10**7, np.float32))])
        assert file.stat().st_size < 10**6
        reason = r"expected at most 64 MiB in a row, got \d+"
        expected = (
            rf"{re.escape(f'{folder}: a shard cannot be read ({file.name}')}: {reason}\); delete it and collect again"
        )
        assert re.fullmatch(expected, refusal(folder))

    def test_one_frame_a_million_times(self, folder, file):
        frame = pq.read_table(file).column("frames").to_pylist()[0][0]
        changed(file, "frames", [[frame] * 50_000])
        assert file.stat().st_size < 10**5
        assert refusal(folder) == (f"{file}, row 0: fold/expert/7: frames: expected at most 50000 entries, got 100001")

    def test_one_row_a_million_times(self, folder, file):
        table = pq.read_table(file)
        pq.write_table(pa.concat_tables([table] * 20_000), file)
        size = file.stat().st_size
        message = "the shard unfolds to much more than its size; collect it again"
        cost = (
            3 * 16 * 16 * 3 + 3 * (8 + 4 + 1 + 24) + 10 * 4 + 2**14 * (3 + 8)
        )  # frames, numbers, and what a row costs
        read = (2**28 + 200 * size) // cost
        assert read < 20_000
        assert refusal(folder) == f"{file}, row {read}: {message}"

    def test_a_shard_of_pictures_of_one_colour_is_no_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "FREE_BYTES", 0)
        flat = [painted("fold", "expert", number, size=size) for number, size in enumerate((16, 112, 224, 512))]
        for made in flat:
            write_tasks(tmp_path / str(made.seed), [made])
            assert len(load_trajectories(tmp_path / str(made.seed), progress_bar=False)) == 1

    def test_memory_while_many_rows_are_read(self, folder, file):
        """The process that reads is never larger than its limit."""
        table = pq.read_table(file)
        pq.write_table(pa.concat_tables([table] * 300), file)
        process, largest = psutil.Process(), 0
        for _ in stream_trajectories(folder):
            largest = max(largest, *(child.memory_info().rss for child in process.children()))
        assert 0 < largest < rows.MAX_MEMORY


class TestProcess:
    def test_it_ends_with_its_reader(self, folder, file):
        before = psutil.Process().children()
        read = stream_trajectories(folder)
        next(read)
        (child,) = [process for process in psutil.Process().children() if process not in before]
        read.close()
        assert not child.is_running()

    def test_its_death_is_an_error(self, folder, file, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        assert refusal(folder) == (
            f"{folder}: a shard cannot be read ({file.name}: the process that reads it ended: 1); delete it and "
            "collect again"
        )

    def test_the_working_folder_brings_no_code(self, folder, tmp_path, monkeypatch):
        (tmp_path / "pyarrow.py").write_text("raise SystemExit(3)")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        assert [t.task for t in load_trajectories(folder, progress_bar=False)] == ["fold"]

    def test_a_row_at_the_limit_of_a_process(self, tmp_path):
        """300 frames of noise, 224 px: 30 MB in the row; it is read, and no page of it is much larger than a frame."""
        rng = np.random.default_rng(0)
        made = painted("fold", "expert", frames=300)
        made = type(made)(**{**vars(made), "frames": rng.integers(0, 256, (300, 224, 224, 3), np.uint8)})
        write_shard([made] * 2, shard_path(tmp_path, "fold", "expert"))
        assert [len(t.frames) for t in load_trajectories(tmp_path, progress_bar=False)] == [300, 300]
