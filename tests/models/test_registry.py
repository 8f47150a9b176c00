"""Models by name, folder, hub id and entry point."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models import checkpoint, registry
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.registry import available_models, load_folder, load_reward_model


class Tiny(nn.Module):
    """Stands in for the class of model_type "staged"."""

    model_type = "staged"

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.config = {"width": width}
        self.layer = nn.Linear(width, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved Tiny, with the registry knowing its class."""
    module = ModuleType("tiny_models")
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_models", module)
    monkeypatch.setitem(registry._CLASSES, "staged", "tiny_models:Tiny")
    return save_checkpoint(Tiny(), tmp_path / "saved")


def test_folder_as_text_and_as_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_reward_model(str(folder)), Tiny)
    assert isinstance(load_reward_model(folder, device="cpu"), Tiny)
    monkeypatch.chdir(folder.parent)
    assert isinstance(load_reward_model("saved"), Tiny)
    assert isinstance(load_reward_model("./saved"), Tiny)


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load_reward_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_shipped_name_is_its_asset_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "asset_path", lambda name: {"vlp-compact": folder}[name])
    assert isinstance(load_reward_model("vlp-compact"), Tiny)


def test_shipped_name_without_its_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise FileNotFoundError(f"asset {name!r} is not part of this installation")

    monkeypatch.setattr(registry, "asset_path", missing)
    with pytest.raises(CheckpointError, match=r"^asset 'vlp-compact' is not part of this installation$"):
        load_reward_model("vlp-compact")
    assert available_models()[0].where == "missing from this installation"


def test_unknown_name_suggests_a_near_one() -> None:
    expected = (
        "unknown reward model 'vlp-compct': expected one of ['vlp-compact', 'vlp-compact-45', 'clip:...', "
        "'vlm-rm:...', 'gvl:...', 'rl-vlm-f:...', 'topreward:...', 'furl:...', 'ensemble:...', 'cascade:...', "
        "'http:...', 'https:...'], a folder with config.json and model.safetensors, or a hub id 'org/name'; did you "
        "mean vlp-compact or vlp-compact-45?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_reward_model("vlp-compct")
    expected = expected.replace("vlp-compct", "zzz").partition("; did you")[0]
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_reward_model("zzz")


@pytest.mark.parametrize("path", [*registry._CLASSES.values(), *(path for path, _ in registry._FAMILIES.values())])
def test_every_system_is_where_the_registry_says(path: str) -> None:
    model_class = registry.resolve_name(path)
    names = {name for name, place in registry._CLASSES.items() if place == path}
    assert names <= {model_class.model_type} if names else callable(model_class.from_spec)


def test_a_name_that_is_no_text() -> None:
    with pytest.raises(TypeError, match=r"^name: expected a str or a path, got int$"):
        load_reward_model(3)  # type: ignore[arg-type]


def test_missing_folder() -> None:
    expected = (
        "nowhere: expected a folder with config.json and model.safetensors, but it is missing; "
        "pickle files (.bin, .pt, .pth) are never loaded"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_reward_model("./nowhere")


def test_a_pt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, path)
    expected = (
        f"{path}: expected a folder with config.json and model.safetensors, but it is a file; "
        "pickle files (.bin, .pt, .pth) are never loaded"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_reward_model(str(path))


def test_unknown_model_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "model_type", "mystery")
    save_checkpoint(Tiny(), folder)
    expected = f"{folder}: expected a model_type of {sorted(registry._CLASSES)}, got 'mystery'"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_folder(folder)


def test_a_model_type_that_is_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "model_type", "compact")
    folder = save_checkpoint(Tiny(), tmp_path / "old")
    expected = (
        f"{folder}: models of type 'compact' were replaced by 'staged', and cannot be loaded any more; "
        "train anew with `vlp-gym train staged`"
    )
    for name in (folder, str(folder), f"ensemble:mean|vlp-compact|{folder}"):
        with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
            load_reward_model(name)


def test_hub_id_downloads_two_files_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repo: str, **options: object) -> str:
        calls.append((repo, options))
        return str(folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    assert isinstance(load_reward_model("org/name"), Tiny)
    assert calls == [("org/name", {"allow_patterns": ["config.json", "model.safetensors"]})]


def test_hub_repository_that_wants_remote_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fault 66
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "modeling.Evil"}}))
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda repo, **options: str(folder))
    expected = f"{config}: asks for code of its own (auto_map); vlp_gym never runs code from a checkpoint"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_reward_model("org/name")


def test_hub_repository_with_pickles_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()  # the .bin beside it is not among the files asked for
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda repo, **options: str(folder))
    expected = "org/name: this hub repository has no model.safetensors; pickle files (.bin, .pt) are never loaded"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_reward_model("org/name")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, **options: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    expected = (
        f"org/name: no such folder in {Path.cwd()}, and the hub delivered no model of this name (no route to host); "
        "give the path of a folder, or connect this machine and check the name"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        load_reward_model("org/name")


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("third_party")
    module.build = lambda device: ("built on", device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party", module)
    point = EntryPoint("theirs", "third_party:build", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.ENTRY_POINT_GROUP else [])
    assert load_reward_model("theirs", device="cpu") == ("built on", "cpu")
    assert available_models()[-1] == ("theirs", "third_party:build", "entry point")
    with pytest.raises(ValueError, match=r"did you mean theirs\?$"):
        load_reward_model("their")


def test_available_models_start_with_the_default() -> None:
    assert [row.name for row in available_models()][:2] == ["vlp-compact", "vlp-compact-45"]


@pytest.mark.parametrize("name", ["vlp-compact", "vlp-compact-45"])
def test_shipped_models_load(name: str) -> None:
    if available_models()[name == "vlp-compact-45"].where.startswith("missing"):
        pytest.skip(f"{name} is not part of this checkout")
    model = load_reward_model(name)
    assert not model.training  # type: ignore[attr-defined]
    assert model.window >= 1


@pytest.mark.parametrize(
    ("name", "command"),
    [("liv", "convert liv FILE"), ("r3m", "convert r3m FILE"), ("spur", "train spur --data FOLDER"),
     ("rewind", "convert rewind FILE"), ("siglip2-lora", "train siglip2-lora --data FOLDER")],
)  # fmt: skip
def test_a_kind_of_model_says_how_to_make_one(name, command):
    message = f"{name!r} is a kind of model: make one with `vlp-gym {command} --out runs/{name}`, then name that folder"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_reward_model(name)
