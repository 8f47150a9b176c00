"""Files written together: the lock of their folder, readers beside writers, and what is no file."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from vlp_gym import storage
from vlp_gym.errors import CheckpointError
from vlp_gym.storage import locked, read_document, read_file, read_pair, write_atomic, write_pair

SPAWN = multiprocessing.get_context("spawn")
SECONDS = 1.5


def refused(action: object, message: str) -> None:
    """Calling the action raises CheckpointError with this whole message."""
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        action()  # type: ignore[operator]


def save(folder: Path, value: float) -> None:
    write_pair(folder, {"value": value}, {"value": torch.full((100,), value)}, stem="it")


def write_for_a_while(folder: Path, first: int) -> None:
    """Save pairs of equal numbers, others in each writer, until the time is over."""
    end, value = time.monotonic() + SECONDS, first
    while time.monotonic() < end:
        save(folder, float(value))
        value += 2


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    save(tmp_path, 0.0)
    writers = [SPAWN.Process(target=write_for_a_while, args=(tmp_path, first)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        document, tensors = read_pair(tmp_path, stem="it")
        assert tensors["value"].unique().tolist() == [document["value"]]
        seen.add(document["value"])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {value % 2 for value in seen} == {0.0, 1.0}
    assert sorted(os.listdir(tmp_path)) == [".lock", "it.json", "it.safetensors"]


def test_a_locked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1.0)
    monkeypatch.setattr(storage, "_WAIT_S", 0.0)
    message = f"{tmp_path}: process {os.getpid()} is writing there; wait for its end, or choose another folder"
    with locked(tmp_path):
        refused(lambda: save(tmp_path, 2.0), message)
        assert read_pair(tmp_path, stem="it")[0] == {"value": 1.0}
    save(tmp_path, 2.0)
    with FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock").write_text("")
        refused(lambda: save(tmp_path, 3.0), message.replace(str(os.getpid()), "unknown"))


def test_leftovers_of_killed_saves_are_deleted(tmp_path: Path) -> None:
    host = re.sub(r"\W", "_", os.uname().nodename)
    dead = SPAWN.Process(target=int)
    dead.start()
    dead.join()
    mine = [
        f".it-{'0' * 16}.safetensors", f"..it-{'1' * 16}.safetensors.{host}-{dead.pid}-1.tmp",
        f".it.json.{host}-{dead.pid}-1.tmp",
    ]  # fmt: skip
    kept = [
        f".it-2-{'0' * 16}.safetensors",  # of another pair, whose last save may have died before its last step
        f".it.json.{host}-{os.getpid()}-1.tmp",  # of a process that may still write it
        f".it.json.elsewhere-{dead.pid}-1.tmp", "it.txt",
    ]  # fmt: skip
    for name in mine + kept:
        (tmp_path / name).write_text("")
    save(tmp_path, 1.0)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".lock", "it.json", "it.safetensors"])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 8))  # two files and their folder, each synced; the seventh is the last rename
def test_an_interrupted_save_leaves_one_pair_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, before: bool
) -> None:
    save(tmp_path, 1.0)
    calls = 0

    def interrupted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls == at and before:
                raise KeyboardInterrupt
            function(*arguments)
            if calls == at:
                raise KeyboardInterrupt

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, interrupted(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2.0)
    assert sorted(os.listdir(tmp_path)) == [".lock", "it.json", "it.safetensors"]
    document, tensors = read_pair(tmp_path, stem="it")
    assert tensors["value"].unique().tolist() == [document["value"]] == [1.0 if at < 5 or (at == 5 and before) else 2.0]


def test_a_pair_renamed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1.0)
    real, values = read_file, iter([2.0, 3.0])

    def read(path: Path, limit: float) -> bytes:
        data = real(path, limit)
        if path.name == "it.json" and (value := next(values, None)):
            save(tmp_path, value)
        return data

    monkeypatch.setattr(storage, "read_file", read)
    document, tensors = read_pair(tmp_path, stem="it")
    assert document == {"value": 3.0}
    assert tensors["value"][0] == 3.0


def test_a_pair_that_never_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 0.0)
    real, count = read_file, iter(range(1, 1000))

    def read(path: Path, limit: float) -> bytes:
        data = real(path, limit)
        if path.name == "it.json":
            save(tmp_path, next(count))
        return data

    monkeypatch.setattr(storage, "read_file", read)
    monkeypatch.setattr(storage, "_READS", 5)
    refused(lambda: read_pair(tmp_path, stem="it"), f"{tmp_path}: another process wrote it.json during each of 5 reads")


@pytest.mark.parametrize("name", ["it.json", "it.safetensors"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1.0)
    path = tmp_path / name
    path.unlink()
    special = f"{path}: expected a file, but it is a folder, a pipe or a device"

    os.mkfifo(path)
    refused(lambda: read_pair(tmp_path, stem="it"), special)
    path.unlink()
    loop = f"{path}: could not be read ({os.strerror(errno.ELOOP)})"
    for target, message in {"/dev/zero": special, name: loop, "gone": f"{path}: missing"}.items():
        path.symlink_to(target)
        refused(lambda message=message: read_pair(tmp_path, stem="it"), message)  # type: ignore[misc]
        path.unlink()
    path.mkdir()
    refused(lambda: read_pair(tmp_path, stem="it"), special)
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        refused(lambda: read_pair(tmp_path, stem="it"), special)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**43)  # holes: 8 TiB, more than any memory
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: {2**43} bytes are more than the \d+ that"):
        read_pair(tmp_path, stem="it")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ("[]", "expected an object, got list"),
        ('{"a": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ('{"a": \x00}', "Expecting value"),
    ],
)
def test_hostile_json(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "it.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: not a valid JSON document \({why}.*\)$"):
        read_document(tmp_path, stem="it")


def test_a_number_that_is_inf(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    path.write_text(json.dumps({"sha256": "0" * 64, "config_sha256": "0" * 64}).replace("}", ', "a": 1e999}'))
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: a checkpoint's config takes JSON values on"):
        read_document(tmp_path, stem="it")


def test_a_signed_file_with_a_false_header(tmp_path: Path) -> None:
    save(tmp_path, 1.0)
    path = tmp_path / "it.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[100]", b"[900]"))
    document = json.loads((tmp_path / "it.json").read_text())
    document["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "it.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: not a valid safetensors file \(.*\)$"):
        read_pair(tmp_path, stem="it")


def test_a_file_replaced_by_writers_at_once(tmp_path: Path) -> None:
    writers = [SPAWN.Process(target=replace_often, args=(tmp_path / "it", byte)) for byte in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (tmp_path / "it").read_bytes() in (b"a" * 1000, b"b" * 1000)
    assert os.listdir(tmp_path) == ["it"]


def replace_often(path: Path, byte: bytes) -> None:
    """Write a file 20 times."""
    for _ in range(20):
        write_atomic(path, byte * 1000)


def test_saves_that_are_killed() -> None:
    """Of every kind; `python -m tests.kills` does it 100 times."""
    command = [sys.executable, "-m", "tests.kills", "--kills", "3"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    lines = re.findall(r"(\w+): 3 kills, \d+ versions", done.stdout)
    assert lines == ["checkpoint", "preferences", "segments", "ensemble", "training", "learner", "cache"]
