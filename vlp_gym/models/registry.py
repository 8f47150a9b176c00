"""Reward models by name: shipped models, local folders, hub ids, and entry points of other packages."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch

from vlp_gym.assets_path import asset_path
from vlp_gym.errors import CheckpointError, did_you_mean
from vlp_gym.models.ambient import usual_torch
from vlp_gym.models.checkpoint import fetch_folder, is_hub_id, load_checkpoint, read_model_config
from vlp_gym.models.protocol import RewardModel

ENTRY_POINT_GROUP = "vlp_gym.reward_models"

_SHIPPED = {
    "vlp-compact": "default; trained on all 50 Meta-World tasks",
    "vlp-compact-45": "VLP's split: button-press, door-close, drawer-close, faucet-close and window-open are unseen",
}
# "model_type" of a config.json -> its class, imported only when such a model is loaded.
_CLASSES = {
    "staged": "vlp_gym.models.staged:StagedRewardModel",
    "vlp": "vlp_gym.models.vlp:VLPModel",
    "liv": "vlp_gym.models.liv:LIVModel",
    "vip": "vlp_gym.models.vip:VIPModel",
    "r3m": "vlp_gym.models.r3m:R3MModel",
    "roboclip": "vlp_gym.models.roboclip:RoboCLIPModel",
    "rewind": "vlp_gym.models.rewind:ReWiNDModel",
    "embedding": "vlp_gym.models.embedding:EmbeddingModel",
    "siglip2-lora": "vlp_gym.models.siglip2:SigLIP2Model",
    "furl": "vlp_gym.models.furl:FuRLModel",
    "ensemble": "vlp_gym.models.ensemble:EnsembleModel",
    "spur": "vlp_gym.models.spur:SPURModel",
    "robometer": "vlp_gym.models.robometer:RobometerModel",
}
_REPLACED = {"compact": "staged"}
"""Kinds of models that are no more -> the one to train instead."""
# "family:SPEC" -> a class whose `from_spec(SPEC)` makes the model.
_FAMILIES = {
    "clip": ("vlp_gym.models.clip:CLIPModel", "clip:NAME/TAG of open_clip: the cosine of frame and sentence"),
    "vlm-rm": (
        "vlp_gym.models.vlm_rm:VLMRMModel",
        "vlm-rm:NAME/TAG?baseline=a robot arm&alpha=0.5: CLIP similarity, regularised by a baseline sentence",
    ),
    "gvl": ("vlp_gym.models.prompted.gvl:GVLModel", "gvl:MODEL: a chat model rates the progress of shuffled frames"),
    "rl-vlm-f": (
        "vlp_gym.models.prompted.rl_vlm_f:RLVLMFModel",
        "rl-vlm-f:MODEL: a chat model chooses one of two frames",
    ),
    "topreward": ("vlp_gym.models.prompted.topreward:TOPRewardModel", "topreward:MODEL: log P(True) of a chat model"),
    "furl": (
        "vlp_gym.models.furl:FuRLModel",
        "furl:MODEL: new heads on a frozen model such as LIV; FuRLCallback trains them",
    ),
    "ensemble": (
        "vlp_gym.models.ensemble:EnsembleModel",
        "ensemble:mean|MODEL|MODEL: mean (or min, or lower) of rank-normalised models",
    ),
    "cascade": (
        "vlp_gym.models.cascade:CascadeModel",
        "cascade:SMALL|LARGE|band=0.25|budget=500: LARGE decides the pairs that SMALL is unsure of",
    ),
    "http": ("vlp_gym.serving.remote:RemoteModel", "http://HOST:PORT: the model that `vlp-gym serve` has there"),
    "https": ("vlp_gym.serving.remote:RemoteModel", "https://HOST:PORT: the same"),
}

_ON_ENDPOINTS = ("gvl", "rl-vlm-f", "topreward", "http", "https")
_MAX_NAMED = 64
"""Models that a checkpoint may name, those that they name in turn included."""


@dataclass
class _Loading:
    """The checkpoint folders being loaded, each named by the one before it, and the number of models named so far."""

    folders: tuple[Path, ...] = ()
    named: int = 0


_loading: ContextVar[_Loading | None] = ContextVar("_loading", default=None)
"""Set while a model is loaded that was named by a checkpoint, not by the user."""


class ModelInfo(NamedTuple):
    """One row of `vlp-gym models`."""

    name: str
    where: str
    description: str


@torch.inference_mode(False)
@usual_torch()
def load_reward_model(name: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> RewardModel:
    """Load a reward model, in eval mode.

    Args:
        name: a shipped name ("vlp-compact", "vlp-compact-45"), the name of an entry point of the group
            ``vlp_gym.reward_models`` (a callable that takes ``device=`` and returns a model), "FAMILY:SPEC" such as
            "clip:ViT-B-32/openai" (`vlp-gym models` lists the families), the address of a server ("http://..."), a
            folder with ``config.json`` and ``model.safetensors``, or a hub id "org/name". They are tried in this order.
        device: device of the model.

    Raises:
        ValueError: the name is none of these.
        CheckpointError: the folder or the hub repository is missing, damaged or unsafe.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name: expected a str or a path, got {type(name).__name__}")
    text = os.fspath(name)
    if (loading := _loading.get()) is not None:
        loading.named += 1
        if loading.named > _MAX_NAMED:
            raise CheckpointError(
                f"{loading.folders[0]}: it names over {_MAX_NAMED} models, counted through all levels"
            )
    if text in _SHIPPED:
        return load_folder(_shipped_folder(text), device=device)
    extensions = _entry_points()
    if text in extensions:
        return extensions[text].load()(device=device)
    family, colon, spec = text.partition(":")
    if colon and family in _FAMILIES:
        if loading is not None:
            check_storable([text])
        spec = text if family in ("http", "https") else spec  # an address whole
        model: Any = resolve_name(_FAMILIES[family][0]).from_spec(spec)
        if isinstance(model, torch.nn.Module):
            model.to(device).eval()
        return model
    if text in _CLASSES and not Path(text).exists():
        from vlp_gym.models.published.convert import CONVERTERS

        how = f"convert {text} FILE" if text in CONVERTERS else f"train {text} --data FOLDER"
        raise ValueError(
            f"{text!r} is a kind of model: make one with `vlp-gym {how} --out runs/{text}`, then name that folder"
        )
    looks_like_path = isinstance(name, os.PathLike) or text.startswith((".", "~", os.sep)) or Path(text).exists()
    if looks_like_path or is_hub_id(text):
        return load_folder(fetch_folder(text), device=device)
    known = [*_SHIPPED, *sorted(extensions), *(f"{name}:..." for name in _FAMILIES)]
    raise ValueError(
        f"unknown reward model {text!r}: expected one of {known}, a folder with config.json and model.safetensors, "
        f"or a hub id 'org/name'{did_you_mean(text, known)}"
    )


def best_device() -> str:
    """The default device: "cuda" if available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place_model(model: str | os.PathLike[str] | RewardModel, device: str | torch.device = "auto") -> RewardModel:
    """Load a model if it is a name, and put it on its device; the only place that decides devices.

    Args:
        model: a live model, or a name for `load_reward_model`.
        device: "auto" leaves a live model on its device and loads a named one on `best_device`.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(model, (str, os.PathLike)):
        with torch.random.fork_rng(devices=[]):  # building a model draws random weights
            return load_reward_model(model, device=best_device() if device == "auto" else device)  # type: ignore[no-any-return]
    if not isinstance(model, RewardModel):
        raise TypeError(
            f"expected the model as a name, a path, a RewardModel or a QueryEngine, got {type(model).__name__}"
        )
    if device != "auto" and isinstance(model, torch.nn.Module):
        model.to(device)
    return model


def load_folder(folder: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """Load the model of a checkpoint folder; the "model_type" in ``config.json`` gives its class.

    Raises:
        CheckpointError: the folder is missing, damaged or unsafe, or its model_type is unknown or no more.
    """
    model_type = read_model_config(folder)["model_type"]
    if instead := _REPLACED.get(model_type):
        raise CheckpointError(
            f"{folder}: models of type {model_type!r} were replaced by {instead!r}, and cannot be loaded any more; "
            f"train anew with `vlp-gym train {instead}`"
        )
    if model_type not in _CLASSES:
        raise CheckpointError(f"{folder}: expected a model_type of {sorted(_CLASSES)}, got {model_type!r}")
    loading = _loading.get() or _Loading()
    outer, place = loading.folders, Path(folder).resolve()
    if place in outer:
        raise CheckpointError(f"{folder}: it is a part of itself, by the names in its config; nothing was loaded")
    loading.folders = (*outer, place)
    token = _loading.set(loading)
    try:
        return load_checkpoint(resolve_name(_CLASSES[model_type]), folder, device=device)
    finally:
        loading.folders = outer
        _loading.reset(token)


def check_storable(names: Iterable[str]) -> None:
    """Raise CheckpointError if a checkpoint may not name one of these models.

    A model on an endpoint would send the user's frames and API key to an address that the checkpoint's author chose.
    """
    for name in names:
        if any(f"{family}:" in name for family in _ON_ENDPOINTS):
            raise CheckpointError(
                f"a checkpoint may not name a model on an endpoint, such as {name!r}: it would decide where your "
                "frames and your key go; name it yourself, as in model='ensemble:mean|...'"
            )


def available_models() -> list[ModelInfo]:
    """The names that `load_reward_model` knows: shipped models, families, entry points."""
    shipped = [ModelInfo(name, _where(name), description) for name, description in _SHIPPED.items()]
    others = [ModelInfo(name, point.value, "entry point") for name, point in sorted(_entry_points().items())]
    families = [ModelInfo(f"{name}:...", "made when named", text) for name, (_, text) in _FAMILIES.items()]
    return shipped + families + others


def _shipped_folder(name: str) -> Path:
    try:
        return asset_path(name)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error


def _where(name: str) -> str:
    try:
        return str(asset_path(name))
    except FileNotFoundError:
        return "missing from this installation"


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in _SHIPPED}
