"""Model checkpoints: ``config.json`` and ``model.safetensors``, loaded strictly, hashed, written atomically."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, reason
from vlp_gym.models.ambient import usual_torch
from vlp_gym.models.budget import building
from vlp_gym.models.config import check_config
from vlp_gym.schema import listed
from vlp_gym.storage import read_document, read_pair, write_atomic, write_pair

FORMAT_VERSION = 1
_HUB_FILES = ["config.json", "model.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

ModelT = TypeVar("ModelT", bound=nn.Module)


@runtime_checkable
class PartlyStored(Protocol):
    """A model that chooses which tensors a checkpoint stores, such as all but a frozen backbone's."""

    def checkpoint_state(self) -> Mapping[str, Tensor]:
        """Tensors by name; a model whose names differ from ``state_dict()`` must also be `Restoring`."""
        ...


@runtime_checkable
class Restoring(Protocol):
    """A model that loads the tensors of a checkpoint itself."""

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Load checked tensors with the names, shapes and dtypes of ``checkpoint_state()``.

        Raises:
            CheckpointError: their values make no sense; the model is then unchanged.
        """
        ...


def save_checkpoint(
    model: nn.Module, folder: str | Path, *, dtype: Literal["float16", "float32"] | None = None, card: str | None = None
) -> Path:
    """Save a model as ``config.json`` + ``model.safetensors``; an existing checkpoint is replaced whole or not at all.

    Args:
        model: has ``model_type`` (str) and ``config`` (its constructor's keyword arguments, JSON values). Stored are
            the tensors of ``checkpoint_state()`` if it has one, else of ``state_dict()``.
        folder: created if missing; other files in it stay.
        dtype: type in which floating-point weights are stored; None keeps theirs.
        card: text of ``README.md``; None keeps an existing file.

    Returns:
        The folder.

    Raises:
        CheckpointError: weights are not finite, also after conversion to float16, or the folder cannot be written.
    """
    state = {name: tensor.detach() for name, tensor in stored_state(model).items()}
    if dtype is not None:
        target = getattr(torch, dtype)
        state = {name: tensor.to(target) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    _check_finite(state, f"{type(model).__name__} was not saved")
    document = {"model_type": model.model_type, "format_version": FORMAT_VERSION, "config": stored_config(model)}
    check_config(type(model), stored_config(model), f"{type(model).__name__} was not saved")
    write_pair(folder, document, state, stem="model")
    if card is not None:
        write_atomic(Path(folder) / "README.md", card.encode())
    return Path(folder)


def read_model_config(folder: str | Path) -> dict[str, Any]:
    """Read and check a folder's ``config.json``: "model_type", "format_version" and "config".

    Raises:
        CheckpointError: it is missing, damaged, of a newer format, or names custom code.
    """
    document = read_document(folder, stem="model")
    path = Path(folder) / "config.json"
    version = document.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path}: expected format_version {FORMAT_VERSION}, got {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {version} is newer than this vlp_gym reads ({FORMAT_VERSION}); update vlp_gym"
        )
    if not isinstance(document.get("model_type"), str) or not isinstance(document.get("config"), dict):
        raise CheckpointError(f'{path}: expected the entries "model_type" (a string) and "config" (an object)')
    return document


@torch.inference_mode(False)
@usual_torch()
def load_checkpoint(model_class: type[ModelT], folder: str | Path, *, device: str | torch.device = "cpu") -> ModelT:
    """Build a model from a folder of `save_checkpoint`, in eval mode; global random generators stay untouched.

    Raises:
        CheckpointError: anything is wrong with the folder.
    """
    document = read_model_config(folder)
    expected_type = getattr(model_class, "model_type", None)
    if document["model_type"] != expected_type:
        raise CheckpointError(
            f"{folder}: expected a model of type {expected_type!r} for {model_class.__name__}, got "
            f"{document['model_type']!r}; vlp_gym.load_reward_model finds the class by itself"
        )
    config = {**getattr(model_class, "added_later", {}), **document["config"]}
    check_config(model_class, config, Path(folder) / "config.json")
    _, state = read_pair(folder, stem="model")
    _check_finite(state, str(folder))
    numbers = sum(tensor.numel() for tensor in state.values())
    with building(f"{folder}: its config does not fit {model_class.__name__}", numbers):
        model = model_class(**config)
    load_state(model, state, str(folder))
    return model.to(device).eval()


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load a folder's weights into a live model of the same architecture, all or none.

    Raises:
        CheckpointError: anything is wrong with the folder; the model is then unchanged.
    """
    document = read_model_config(folder)
    if document["model_type"] != model.model_type:
        raise CheckpointError(
            f"{folder}: expected a model of type {model.model_type!r}, got {document['model_type']!r}"
        )
    _, state = read_pair(folder, stem="model")
    _check_finite(state, str(folder))
    load_state(model, state, str(folder))


class CheckpointMixin(PyTorchModelHubMixin, library_name="vlp_gym", license="mit", tags=["reward-model", "robotics"]):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` over the checkpoint functions of this file.

    Mix it into an ``nn.Module`` with the class attribute ``model_type``. It replaces the hub's own versions, which
    delete ``config.json`` before writing, load keys loosely and fall back to pickles.
    """

    model_type: str
    not_stored: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments left out of the config."""
    added_later: ClassVar[Mapping[str, Any]] = {}
    """Constructor arguments that older checkpoints do not have, with the value that they were made with."""
    config: dict[str, Any]
    """The constructor's arguments, defaults included, which rebuild the model; recorded before ``__init__`` runs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments as ``config``."""
        model = super().__new__(cls, *args, **kwargs)
        bound = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)
        bound.apply_defaults()
        named = list(bound.arguments.items())[1:]
        model.__dict__["config"] = {
            name: list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value
            for name, value in named
            if name not in cls.not_stored
        }
        return model

    def save_pretrained(  # type: ignore[override]  # one option more (dtype), and no free-form config
        self,
        save_directory: str | Path,
        *,
        dtype: Literal["float16", "float32"] | None = None,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the model, see `save_checkpoint`; a ``README.md`` is added if there is none.

        The other arguments are those of the hub's method, but ``config`` must be None: the model's own is written.
        """
        if config is not None:
            raise ValueError("config: expected None, the model's own config is written")
        folder = Path(save_directory)
        has_card = (folder / "README.md").exists()
        card = None if has_card else str(self.generate_model_card(**(model_card_kwargs or {})))
        assert isinstance(self, nn.Module)
        save_checkpoint(self, folder, dtype=dtype, card=card)
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)
        return None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload the model, as the hub's own method does; the folder's lock stays behind."""
        ignored = options.pop("ignore_patterns", None) or []
        ignored = [ignored] if isinstance(ignored, str) else ignored
        return super().push_to_hub(repo_id, ignore_patterns=[*ignored, ".lock"], **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the architecture comes from the checkpoint, not from arguments
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> Any:
        """Load a model from a folder or a hub id; see `load_checkpoint` and `fetch_folder`."""
        folder = fetch_folder(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return load_checkpoint(cls, folder, device=device)  # type: ignore[type-var]


def is_hub_id(name: str) -> bool:
    """Whether a name has the form "org/name".

    >>> is_hub_id("org/name"), is_hub_id("./folder"), is_hub_id("a/b/c")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def fetch_folder(folder_or_id: str | Path, **download: Any) -> Path:
    """Find a local checkpoint folder, or download the two files of a hub repository.

    Args:
        folder_or_id: a folder, or a hub id "org/name" when no such folder exists.
        download: passed to `huggingface_hub.snapshot_download` (revision, token, cache_dir, ...).

    Raises:
        CheckpointError: it is neither, or the download fails.
    """
    name = str(folder_or_id)
    if Path(name).exists() or not is_hub_id(name):
        return Path(name).expanduser()
    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, **download))
    except Exception as error:  # httpx, requests, the hub's own and OSError, depending on the version and the network
        raise CheckpointError(
            f"{name}: no such folder in {Path.cwd()}, and the hub delivered no model of this name ({reason(error)}); "
            "give the path of a folder, or connect this machine and check the name"
        ) from error
    if missing := [file for file in _HUB_FILES if not (folder / file).is_file()]:
        raise CheckpointError(
            f"{name}: this hub repository has no {' and no '.join(missing)}; pickle files (.bin, .pt) are never loaded"
        )
    return folder


def stored_config(model: nn.Module) -> dict[str, Any]:
    """The constructor arguments that rebuild a model.

    Raises:
        CheckpointError: one of them is a live object, which a file cannot hold.
    """
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    for name, value in config.items():
        if not isinstance(value, (str, int, float, list, dict, np.generic, type(None))):
            raise CheckpointError(
                f"a {type(model).__name__} with a live {name} cannot be saved: name the {name} by a string"
            )
    return config


def stored_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The tensors that a checkpoint stores: ``checkpoint_state()`` if the model has one, else ``state_dict()``."""
    return model.checkpoint_state() if isinstance(model, PartlyStored) else model.state_dict()


def hash_weights(found: Any, model: nn.Module) -> None:
    """Add every weight's name, dtype, shape and bytes to a hash of `hashlib`; about a second for each GB."""
    for name, weight in model.state_dict().items():
        found.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        flat = weight.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    bad = [name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t.double()).all()]
    if bad:
        raise CheckpointError(f"{where}: NaN or infinite weights in {listed(bad)}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load tensors after checking every key, shape and dtype.

    Raises:
        CheckpointError: keys are missing or unexpected, or tensors do not fit; the message lists them.
    """
    expected = stored_state(model)
    pairs = [(name, state[name], tensor) for name, tensor in expected.items() if name in state]
    faults = [
        ("missing ", sorted(expected.keys() - state.keys())),
        ("unexpected ", sorted(state.keys() - expected.keys())),
        ("", [f"{key} is {tuple(x.shape)} instead of {tuple(y.shape)}" for key, x, y in pairs if x.shape != y.shape]),
        ("", [f"{key} is {x.dtype} instead of {y.dtype}" for key, x, y in pairs if not _same_kind(x, y)]),
    ]
    if found := "; ".join(fault + listed(keys) for fault, keys in faults if keys):
        raise CheckpointError(f"{where}: made for another architecture than this {type(model).__name__}: {found}")
    cast = {name: state[name].to(tensor.dtype) for name, tensor in expected.items()}
    if isinstance(model, Restoring):
        try:
            model.load_checkpoint_state(cast)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
    elif renamed := sorted(cast.keys() - model.state_dict().keys()):
        raise TypeError(
            f"{type(model).__name__}.checkpoint_state() has names of its own, such as {renamed[0]}: "
            "expected a load_checkpoint_state() that takes them back"
        )
    else:
        model.load_state_dict(cast, strict=False)  # checked above; tensors that no checkpoint stores stay


def _same_kind(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype or (x.is_floating_point() and y.is_floating_point())
