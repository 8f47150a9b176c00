"""Checkpoints survive what happens to files, and a resumed training equals one that never stopped."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import filter_repo_objects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor, nn

from tests.mutations.resign import resign
from vlp_gym import storage
from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import (
    CheckpointMixin,
    fetch_folder,
    is_hub_id,
    load_checkpoint,
    load_state,
    load_weights,
    read_model_config,
    save_checkpoint,
)
from vlp_gym.models.compact import CompactRewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.training.state import load_training_state, save_training_state


class Tiny(nn.Module, CheckpointMixin):
    """Two layers, dropout and an integer buffer."""

    model_type = "tiny"

    def __init__(self, width: int = 4, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.config = {"width": width, "sizes": list(sizes)}
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("count", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.first(x))))


class Partial(Tiny):
    """Stores its second layer alone, as a model over a frozen backbone does."""

    model_type = "partial"

    def checkpoint_state(self) -> dict[str, Tensor]:
        return self.second.state_dict()

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        self.second.load_state_dict(state)


class Renamed(Partial):
    load_checkpoint_state = None


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def refused(folder: Path, message: str) -> None:
    """Neither loads as a new model nor into a live one, with the message whole; the live model stays as it was."""
    live = Tiny()
    before = state_bytes(live)
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        load_weights(live, folder)
    assert state_bytes(live) == before
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        load_checkpoint(Tiny, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(Tiny(), tmp_path / "saved")


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(0)
    original = Tiny()
    before = torch.get_rng_state()
    loaded = load_checkpoint(Tiny, folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert state_bytes(loaded) == state_bytes(original)
    assert not loaded.training
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json", "model.safetensors"]
    assert read_model_config(folder)["config"] == {"width": 4, "sizes": [1, 2]}
    live = Tiny()
    load_weights(live, folder)
    assert state_bytes(live) == state_bytes(original)


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(Tiny, folder), tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_half_precision_on_disk_full_precision_in_memory(tmp_path: Path) -> None:
    model = Tiny()
    save_checkpoint(model, tmp_path, dtype="float16")
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["first.weight"].dtype == torch.float16
    assert stored["count"].dtype == torch.int64
    loaded = load_checkpoint(Tiny, tmp_path)
    assert torch.equal(loaded.first.weight, model.first.weight.half().float())


def test_weights_too_large_for_half_precision(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = Tiny()
    model.second.bias.data.fill_(1e5)
    with pytest.raises(CheckpointError, match=r"^Tiny was not saved: NaN or infinite weights in second\.bias$"):
        save_checkpoint(model, folder, dtype="float16")
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_model_may_choose_what_is_stored(tmp_path: Path) -> None:
    model = Partial()
    save_checkpoint(model, tmp_path)
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}
    loaded = load_checkpoint(Partial, tmp_path)
    assert torch.equal(loaded.second.weight, model.second.weight)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_compact_model(tmp_path: Path, dtype: Literal["float16"] | None) -> None:
    model = tiny_model().eval()
    model.save_pretrained(tmp_path, dtype=dtype)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, CompactRewardModel)
    assert loaded.config == model.config
    frames = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.inference_mode():
        first, second = (
            m.score(m.encode_frames(frames)[None], m.encode_text(["press the button"]), mask).preference
            for m in (model, loaded)
        )
    torch.testing.assert_close(first, second, rtol=0, atol=0.0 if dtype is None else 0.05)


def test_pretrained_methods(tmp_path: Path) -> None:
    model = Tiny(width=5)
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, dtype="float32")
    loaded = Tiny.from_pretrained(tmp_path)
    assert state_bytes(loaded) == state_bytes(model)
    assert loaded.config["width"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock", "README.md", "config.json", "model.safetensors", "notes.txt",
    ]  # fmt: skip
    assert "library_name: vlp_gym" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("my card")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my card"
    with pytest.raises(ValueError, match=r"^config: expected None, the model's own config is written$"):
        model.save_pretrained(tmp_path, config={"width": 6})  # type: ignore[arg-type]


def test_push_to_hub_uploads_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, list[str]] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **_: object) -> str:
            names = [path.name for path in folder_path.iterdir()]
            uploaded[repo_id] = sorted(filter_repo_objects(names, ignore_patterns=ignore_patterns))
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert Tiny().push_to_hub("org/tiny") == "url"
    assert uploaded == {"org/tiny": ["README.md", "config.json", "model.safetensors"]}
    Tiny().push_to_hub("org/tiny", ignore_patterns="*.json")
    assert uploaded == {"org/tiny": ["README.md", "model.safetensors"]}


# What happens to files (faults 53-57)


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_at_any_byte(folder: Path, name: str, cut: float) -> None:  # fault 53
    whole = (folder / name).read_bytes()
    # The last byte of config.json is a newline, which no one misses.
    (folder / name).write_bytes(whole[: int(cut * (len(whole.rstrip()) - 1))])
    try:
        refused(folder, f"{re.escape(str(folder / name))}: .*")
    finally:
        (folder / name).write_bytes(whole)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bit_flip_in_the_weights(folder: Path, place: float, bit: int) -> None:  # fault 54
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        refused(
            folder,
            f"{re.escape(str(path))}: truncated or damaged \\({len(whole)} bytes do not have the SHA-256 that "
            "config.json states\\); fetch or save the checkpoint again",
        )
    finally:
        path.write_bytes(whole)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bit_flip_in_the_config_never_changes_the_model(folder: Path, place: float, bit: int) -> None:
    path = folder / "config.json"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        document = read_model_config(folder)
        load_checkpoint(Tiny, folder)
    except CheckpointError:
        pass
    else:  # only white space may differ unnoticed
        path.write_bytes(whole)
        assert document == read_model_config(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    model = Tiny()
    model.first.weight.data[0, 0] = value
    with pytest.raises(CheckpointError, match=r"^Tiny was not saved: NaN or infinite weights in first\.weight$"):
        save_checkpoint(model, folder)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    resign(folder)
    refused(folder, f"{re.escape(str(folder))}: NaN or infinite weights in first\\.weight")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


def save_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, NumPy would add ".npy" to it
        np.save(file, array)


def foreign_files(mark: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "a pickle": lambda path: path.write_bytes(pickle.dumps(Bomb(mark))),
        "a zip archive, as torch.save writes it": lambda path: torch.save({"bomb": Bomb(mark)}, path),
        "a NumPy .npy file": lambda path: save_npy(path, np.array([Bomb(mark)], dtype=object)),
    }


@pytest.mark.parametrize("kind", list(foreign_files(Path())))
def test_pickles_under_any_name(folder: Path, tmp_path: Path, kind: str) -> None:  # fault 55
    mark = tmp_path / "executed"
    path = folder / "model.safetensors"
    foreign_files(mark)[kind](path)
    refused(folder, f"{re.escape(str(path))}: expected a safetensors file, but it is {kind}; nothing of it was loaded")
    resign(folder)
    refused(folder, f"{re.escape(str(path))}: not a valid safetensors file \\(.*\\)")
    path.rename(folder / "pytorch_model.bin")
    refused(folder, f"{re.escape(str(path))}: missing; pytorch_model.bin may hold pickles, which are never loaded")
    assert not mark.exists()


def tamper(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    resign(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.pop("count"), "missing count"),
        (lambda s: s.update(third=torch.zeros(1)), "unexpected third"),
        (lambda s: s.update(fisrt=s.pop("first.bias")), "missing first.bias; unexpected fisrt"),
        (lambda s: s.update({"first.bias": torch.zeros(5)}), "first.bias is (5,) instead of (4,)"),
        (lambda s: s.update(count=torch.zeros(3)), "count is torch.float32 instead of torch.int64"),
    ],
)
def test_keys_and_shapes_are_strict(folder: Path, change: Callable[[dict[str, Tensor]], object], found: str) -> None:
    # fault 56
    tamper(folder, change)
    refused(folder, re.escape(f"{folder}: made for another architecture than this Tiny: {found}"))


def test_many_wrong_keys_are_counted(folder: Path) -> None:
    tamper(folder, lambda state: state.update({f"x{i}": torch.zeros(1) for i in range(10)}))
    found = "unexpected x0, x1, x2, x3, x4, x5, x6, x7 and 2 more"
    refused(folder, re.escape(f"{folder}: made for another architecture than this Tiny: {found}"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"format_version": 2},
            "{path}: format_version 2 is newer than this vlp_gym reads (1); update vlp_gym",
        ),
        ({"format_version": "1"}, "{path}: expected format_version 1, got '1'"),
        ({"format_version": True}, "{path}: expected format_version 1, got True"),
        ({"config": []}, '{path}: expected the entries "model_type" (a string) and "config" (an object)'),
        (
            {"auto_map": {}},
            "{path}: asks for code of its own (auto_map); vlp_gym never runs code from a checkpoint",
        ),
    ],
)
def test_config_entries(folder: Path, entries: dict[str, object], message: str) -> None:  # fault 57
    path = folder / "config.json"
    resign(folder, {**json.loads(path.read_text()), **entries})
    refused(folder, re.escape(message.format(path=path)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "expected an object, got list"),
        ('{"a": NaN}', "NaN is no JSON value"),
    ],
)
def test_config_that_is_no_document(folder: Path, text: str, reason: str) -> None:
    path = folder / "config.json"
    path.write_text(text)
    refused(folder, re.escape(f"{path}: not a valid JSON document ({reason})"))


def test_config_of_another_program(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text('{"model_type": "clip", "sha256": "../../../etc/passwd"}')
    refused(folder, re.escape(f"{path}: not a vlp_gym checkpoint, the entry 'sha256' is missing or no SHA-256"))
    path.write_text("[" * 100_000)
    refused(folder, re.escape(f"{path}: not a valid JSON document (") + ".*")


def test_config_edited_by_hand(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"width": 4', '"width": 5'))
    refused(
        folder,
        re.escape(
            f"{path}: damaged or edited (its entries do not have the SHA-256 that it states); "
            "change a model in Python and save it again"
        ),
    )


def test_wrong_class_and_wrong_arguments(folder: Path) -> None:
    expected = (
        f"{folder}: expected a model of type 'partial' for Partial, got 'tiny'; "
        "vlp_gym.load_reward_model finds the class by itself"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_checkpoint(Partial, folder)
    expected = f"{folder}: expected a model of type 'partial', got 'tiny'"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_weights(Partial(), folder)
    path = folder / "config.json"
    resign(folder, {**json.loads(path.read_text()), "config": {"width": 4}})  # a default may not mean what it meant
    expected = f"{path}: its config does not say ['sizes']; it is of another vlp_gym"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_checkpoint(Tiny, folder)
    resign(folder, {**json.loads(path.read_text()), "config": {"width": 4, "sizes": [1], "widht": 4}})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: config: widht: an unknown entry$"):
        load_checkpoint(Tiny, folder)


def test_config_that_is_no_json(folder: Path) -> None:
    model = Tiny()
    model.config["width"] = np.float32(1)
    with pytest.raises(CheckpointError, match=r"^Tiny was not saved: a config takes JSON values only \(.*float32.*\)$"):
        save_checkpoint(model, folder)
    load_checkpoint(Tiny, folder)


@pytest.mark.parametrize(
    ("name", "expected"), [("org/name", True), ("a", False), ("../x", False), ("/a/b", False), ("a/b/c", False)]
)
def test_hub_ids(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected
    if not expected:
        assert fetch_folder(name) == Path(name)


# What happens while a checkpoint is written (fault 58)


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


# Resuming a training (fault 59)


class Run:
    """A small training that draws from three generators; its schedule is a function of the step."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Tiny()
        self.optimizer = torch.optim.AdamW(
            [{"params": [self.model.first.weight]}, {"params": [*self.model.second.parameters()]}], lr=1e-2
        )
        self.order = np.random.default_rng(seed)
        self.legacy = np.random.Generator(np.random.MT19937(seed))
        self.noise = torch.Generator().manual_seed(seed)
        self.step = 0
        self.losses: list[float] = []

    @property
    def generators(self) -> dict[str, np.random.Generator | torch.Generator]:
        return {"order": self.order, "legacy": self.legacy, "noise": self.noise}

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-2 / (1 + self.step)
            x = torch.from_numpy(self.order.random((8, 4), dtype=np.float32))
            x += torch.randn(8, 4, generator=self.noise) * float(self.legacy.random())
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.losses.append(loss.item())

    def save(self, folder: Path) -> None:
        save_training_state(
            folder, model=self.model, optimizer=self.optimizer, step=self.step, generators=self.generators,
            extra={"losses": self.losses},
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        self.step, extra = load_training_state(
            folder, model=self.model, optimizer=self.optimizer, generators=self.generators
        )
        self.losses = extra["losses"]


def test_resumed_training_is_bitwise_equal(tmp_path: Path) -> None:
    whole = Run()
    whole.train(10)
    stopped = Run()
    stopped.train(4)
    stopped.save(tmp_path)
    resumed = Run(seed=1)
    torch.manual_seed(99)
    resumed.load(tmp_path)
    resumed.train(6)
    assert resumed.step == 10
    assert resumed.losses == whole.losses
    assert state_bytes(resumed.model) == state_bytes(whole.model)
    assert resumed.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_saving_does_not_disturb_the_training(tmp_path: Path) -> None:
    whole, saving = Run(), Run()
    torch.manual_seed(0)
    whole.train(4)
    torch.manual_seed(0)
    for _ in range(4):
        saving.train(1)
        saving.save(tmp_path)
    assert saving.losses == whole.losses


def test_names_of_its_own_need_a_way_back(tmp_path: Path) -> None:
    model = Renamed()
    before = state_bytes(model)
    with pytest.raises(
        TypeError, match=r"^Renamed\.checkpoint_state\(\) has names of its own, such as bias: expected a"
    ):
        load_state(model, model.checkpoint_state(), "here")
    assert state_bytes(model) == before


def test_training_state_of_something_else_changes_nothing(tmp_path: Path) -> None:
    run = Run()
    run.train(1)
    run.save(tmp_path)
    path = tmp_path / "training.json"
    other = Tiny(width=5)
    before = state_bytes(other)
    message = f"{path}: made for another model; these weights differ: first.bias, first.weight, second.weight"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=other, optimizer=torch.optim.AdamW(other.parameters()))
    assert state_bytes(other) == before

    same = Tiny()
    before = state_bytes(same)
    message = f"{path}: made for AdamW with [1, 2] parameters in its groups, got SGD with [4]"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=same, optimizer=torch.optim.SGD(same.parameters()))
    fresh = Run(seed=2)
    message = f"{path}: expected the generators ['legacy', 'noise', 'order'], got []"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=same, optimizer=fresh.optimizer)
    assert state_bytes(same) == before

    document = json.loads(path.read_text())
    resign(tmp_path, {**document, "format_version": 9}, stem="training")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: expected format_version 1, got 9$"):
        fresh.load(tmp_path)


def test_training_state_truncated(tmp_path: Path) -> None:
    run = Run()
    run.train(1)
    run.save(tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: truncated or damaged .*$"):
        run.load(tmp_path)
