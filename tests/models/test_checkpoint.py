"""Checkpoints: what is stored, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
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
from tiny_checkpoints import Partial, Tiny, state_bytes
from torch import Tensor

from tests.mutations.resign import resign
from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import (
    fetch_folder,
    is_hub_id,
    load_checkpoint,
    load_weights,
    read_model_config,
    save_checkpoint,
)
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.staged import StagedRewardModel


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
def test_the_small_model(tmp_path: Path, dtype: Literal["float16"] | None) -> None:
    model = tiny_model().eval()
    model.save_pretrained(tmp_path, dtype=dtype)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, StagedRewardModel)
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
