"""What happens while a checkpoint is written (fault 58)."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import Tiny, state_bytes

from vlp_gym import storage
from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(Tiny(), tmp_path / "saved")


@pytest.mark.parametrize("step", range(3))
def test_disk_full_at_any_step_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    old = state_bytes(load_checkpoint(Tiny, folder))
    new = Tiny()
    calls = {"replace": 0}
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        calls["replace"] += 1
        if calls["replace"] == step + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(storage.os, "replace", replace)
    message = f"{folder}: could not write the checkpoint (No space left on device); an earlier one there is intact"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        save_checkpoint(new, folder)
    monkeypatch.undo()
    # The second rename is the commit: after it, the new checkpoint is the one that loads.
    assert state_bytes(load_checkpoint(Tiny, folder)) == (old if step < 2 else state_bytes(new))
    save_checkpoint(new, folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json", "model.safetensors"]


def test_disk_full_while_bytes_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = state_bytes(load_checkpoint(Tiny, folder))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    message = f"{folder}: could not write the checkpoint (No space left on device); an earlier one there is intact"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        save_checkpoint(Tiny(), folder)
    monkeypatch.undo()
    assert state_bytes(load_checkpoint(Tiny, folder)) == old
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json", "model.safetensors"]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "saved"  # permissions do not hold root back; a file in the way does
    message = f"{folder}: could not write the checkpoint (Not a directory); an earlier one there is intact"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        save_checkpoint(Tiny(), folder)


KILLED = """
import os, signal, sys
import torch
from tests.mutations.resign import resign
from vlp_gym import storage

folder = sys.argv[1]
document = {"model_type": "tiny", "format_version": 1, "config": {}}

def save(value):
    storage.write_pair(folder, document, {"weight": torch.full((4,), value)}, stem="model")

def save_until_call(stop):
    count = 0
    def mortal(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    os.replace, os.fsync = mortal(os.replace), mortal(os.fsync)
    save(2.0)
    os._exit(0)

for stop in range(1, 20):
    save(1.0)  # over whatever a killed save left
    child = os.fork() or save_until_call(stop)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    weight = storage.read_pair(folder, stem="model")[1]["weight"].unique()
    print(code, *weight.tolist())
    if code == 0:
        break
"""


def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    # In an interpreter of its own, since a process that forks must have no threads.
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(-signal.SIGKILL)] * (len(rows) - 1) + ["0"]
    values = [float(row[1]) for row in rows]
    assert {1.0, 2.0} == set(values)
    assert values == sorted(values)  # one commit: the old checkpoint before it, the new one after it
    assert 0 < values.index(2.0) < len(values) - 1
