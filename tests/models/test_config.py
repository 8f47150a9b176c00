"""A config is checked before anything is built, and building costs no more than the file holds."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import psutil
import pytest
import torch
from torch import nn

from tests.mutations.resign import resign
from tests.tiny import tiny_model
from vlp_gym.errors import CheckpointError
from vlp_gym.models import budget, registry
from vlp_gym.models.checkpoint import CheckpointMixin, load_checkpoint, save_checkpoint
from vlp_gym.models.config import check_config
from vlp_gym.models.embedding import EmbeddingModel
from vlp_gym.models.ensemble import EnsembleModel
from vlp_gym.models.furl import FuRLModel
from vlp_gym.models.registry import load_reward_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(tiny_model(), tmp_path / "saved")


def changed(folder: Path, **entries: Any) -> Path:
    """The folder with entries of its config changed, and its hashes right."""
    document = json.loads((folder / "config.json").read_text())
    document["config"].update(entries)
    resign(folder, document)
    return folder


@pytest.mark.parametrize(
    ("entry", "value", "fault"),
    [
        ("sharpness", [], "expected a valid number, got []"),
        ("sharpness", 1e30, "expected less than or equal to 1000000, got 1e+30"),
        ("sharpness", True, "expected a valid number, got True"),
        ("window", 8.5, "expected a valid integer, got 8.5"),
        ("window", True, "expected a valid integer, got True"),
        ("window", 0, "expected greater than or equal to 1, got 0"),
        ("window", 10**30, f"expected less than or equal to 4096, got {10**30}"),
        ("hidden", "160", "expected a valid integer, got '160'"),
        ("history", "whole", "expected 'sliding', 'prefix' or 'prefix-floor', got 'whole'"),
        ("history", [0] * 99, "expected 'sliding', 'prefix' or 'prefix-floor', got [0, 0, 0, 0, 0, 0, ...]"),
        ("truncate", 1, "expected a valid boolean, got 1"),
        ("truncate", None, "expected a valid boolean, got None"),
    ],
)  # fmt: skip
def test_types_and_ranges(folder: Path, entry: str, value: object, fault: str) -> None:
    message = f"{folder / 'config.json'}: config: {entry}: {fault}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(changed(folder, **{entry: value}))


@pytest.mark.parametrize("value", ["\ud800", [[]] * 5, {"a": 1}])
def test_what_no_argument_is(folder: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder / 'config.json'))}: config: "):
        load_reward_model(changed(folder, window=value))


@pytest.mark.parametrize("name", sorted(registry._CLASSES))
def test_every_number_of_every_family_has_a_range(name: str) -> None:
    model_class = registry.resolve_name(registry._CLASSES[name])
    for argument, hint in get_type_hints(model_class.__init__, include_extras=True).items():
        for part in (hint, *get_args(hint)):
            limited = get_origin(hint) is Annotated or get_origin(part) is Annotated
            assert part not in (int, float) or limited, f"{model_class.__name__}({argument}: {hint})"


class Plain(nn.Module, CheckpointMixin):
    """Without annotations, as of another package."""

    model_type = "plain"

    def __init__(self, width=3, size=(1, 2)):
        super().__init__()
        self.layer = nn.Linear(width, 1)


class Sized(Plain):
    def __init__(self, width: int = 3, size: tuple[int, int] = (1, 2)) -> None:
        super().__init__(width, size)


@pytest.mark.parametrize("model_class", [Plain, Sized])
def test_models_of_others_load(tmp_path: Path, model_class: type[Plain]) -> None:
    save_checkpoint(model_class(4, (5, 6)), tmp_path)
    assert load_checkpoint(model_class, tmp_path).config == {"width": 4, "size": [5, 6]}
    check_config(Plain, {"width": 4, "size": "anything"}, "here")
    with pytest.raises(CheckpointError, match=r"^here: config: size: expected a valid array, got 'anything'$"):
        check_config(Sized, {"width": 4, "size": "anything"}, "here")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model(sharpness=1e9)
    message = "StagedRewardModel was not saved: config: sharpness: expected less than or equal to 1000000, got 1e+09"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message[:-5])}1000000000.0$"):
        save_checkpoint(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entries", [{"hidden": 2**20}, {"channels": 2**19}, {"buckets": 2**20, "embedding": 2**20}])
def test_a_model_larger_than_its_file_is_not_built(folder: Path, entries: dict[str, int]) -> None:
    numbers = sum(weight.numel() for weight in tiny_model().state_dict().values())
    before = psutil.Process(os.getpid()).memory_info().rss
    message = (
        f"{folder}: its config does not fit StagedRewardModel (it asks for a larger model than the {numbers:,} "
        "numbers of its file fill)"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(changed(folder, **entries))
    assert psutil.Process(os.getpid()).memory_info().rss - before < 2**28  # the model would have taken 4 TiB, 4 GiB


@pytest.mark.parametrize("width", [0, 1])
def test_endless_layers_end(width: int) -> None:
    made = []
    message = r"^many \(it asks for a larger model than the 10 numbers of its file fill\)$"
    with pytest.raises(CheckpointError, match=message), budget.building("many", 10):
        made.extend(torch.empty(width, width) for _ in itertools.count())
    assert len(made) < 10_000


def test_weights_with_a_file_of_their_own_are_counted_apart() -> None:
    with budget.building("outer", 10):
        with budget.within(10**7):
            torch.zeros(2 * 10**7)
        with pytest.raises(budget.OverBudgetError), budget.within(10):
            torch.zeros(2 * 10**7)
        torch.zeros(2**22)


@pytest.mark.parametrize(
    "error", [AssertionError("no"), RecursionError(), OverflowError("far"), KeyError("x"), MemoryError()]
)
def test_whatever_a_constructor_raises(tmp_path: Path, error: Exception) -> None:
    class Raises(Plain):
        def __init__(self, fails: bool = False) -> None:
            super().__init__()
            if fails:
                raise error

    save_checkpoint(Raises(), tmp_path)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path))}: its config does not fit Raises \(.+\)$"):
        load_checkpoint(Raises, changed(tmp_path, fails=True))


# Models that name models


@pytest.fixture
def small(tmp_path: Path) -> str:
    model = EmbeddingModel(image_size=32, channels=8, reduced=4, hidden=16, embedding=8, buckets=64)
    return str(save_checkpoint(model, tmp_path / "small"))


def ensemble(folder: Path, small: str, members: list[str]) -> Path:
    save_checkpoint(EnsembleModel([small] * len(members)), folder)
    return changed(folder, members=members)


def test_a_model_that_is_its_own_part(tmp_path: Path, small: str) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    ensemble(a, small, [small, str(b)])
    ensemble(b, small, [small, str(a)])
    message = f"{a}: it is a part of itself, by the names in its config; nothing was loaded"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(a)
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(f"ensemble:mean|{small}|{a}")
    ensemble(b, small, [small, small])  # the failed attempts left nothing behind, and parts may come twice
    assert load_reward_model(a).window == 8
    furl = FuRLModel(small, widths=(4,))
    save_checkpoint(furl, tmp_path / "furl")
    changed(tmp_path / "furl", base=str(tmp_path / "furl" / ".." / "furl"))
    with pytest.raises(CheckpointError, match=r"furl: it is a part of itself, by the names in its config"):
        load_reward_model(tmp_path / "furl")


def test_parts_that_double_at_every_level(tmp_path: Path, small: str) -> None:
    names = [small, *(str(tmp_path / f"level-{level}") for level in range(12))]
    for inner, outer in itertools.pairwise(names):
        ensemble(Path(outer), small, [inner, inner])
    assert load_reward_model(names[3]).window == 8  # 14 models
    message = f"{names[-1]}: it names over 64 models, counted through all levels"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(names[-1])


def test_many_members(tmp_path: Path, small: str) -> None:
    folder = ensemble(tmp_path / "many", small, [small] * 2)
    fault = r"config: members: .*at most 32 items.*"
    with pytest.raises(CheckpointError, match=fault):
        load_reward_model(changed(folder, members=[small] * 33))


def test_ranks_that_are_no_quantiles(tmp_path: Path, small: str) -> None:
    model = EnsembleModel([small, small])
    model.progress_ranks[1, 5] = -1
    save_checkpoint(model, tmp_path / "both")
    message = f"{tmp_path / 'both'}: progress_ranks: expected quantiles in ascending order"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model(tmp_path / "both")


# Files that are none


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_devices_and_links(folder: Path, name: str) -> None:
    blob = folder.parent / "blob"
    (folder / name).rename(blob)
    (folder / name).symlink_to(blob)  # as in the hub's cache
    assert load_reward_model(folder).window == 4
    message = f"{folder / name}: expected a file, but it is a folder, a pipe or a device"
    os.mkfifo(folder.parent / "pipe")
    for target in ("/dev/zero", folder.parent / "pipe", folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            load_reward_model(folder)
