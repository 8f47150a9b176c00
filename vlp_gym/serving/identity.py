"""What a server says of its model, with a fingerprint of everything that its scores depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

import vlp_gym
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.models.checkpoint import hash_weights
from vlp_gym.models.protocol import AnchoredModel, GoalModel, RangedModel, Truncating
from vlp_gym.serving.wire import PROTOCOL, Served


def describe(guard: GuardedModel, name: str, *, max_body: int, max_places: int) -> Served:
    """What clients are told of a model.

    Args:
        guard: the model.
        name: as it was loaded.
        max_body: see `Served`.
        max_places: see there.

    Raises:
        ValueError: the model takes pictures as goals only, or is itself one on a server.
    """
    from vlp_gym.serving.remote import RemoteModel

    model = guard.model
    if isinstance(model, RemoteModel):
        raise ValueError(f"{name} is served already; give its clients that address")
    if isinstance(model, GoalModel) and model.needs_goal:
        raise ValueError(f"{name} takes pictures of goals only, and clients of a served model send sentences")
    parts = list(model.modules()) if isinstance(model, nn.Module) else [model]
    settings: dict[str, Any] = {
        "protocol": PROTOCOL,
        "version": vlp_gym.__version__,
        "window": model.window,
        "history": model.history,
        "frame_size": list(map(int, model.frame_size)),
        "value_range": list(map(float, model.value_range)) if isinstance(model, RangedModel) else None,
        "anchored": bool(model.anchored) if isinstance(model, AnchoredModel) else None,
        "pairwise": guard.pairwise,
        "knowing": guard.knowing,
        "truncates": any(isinstance(part, Truncating) for part in parts),
    }
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return Served(
        **settings, name=name, fingerprint=_fingerprint(model, [kind, settings, _named(model, name)]),
        max_body=max_body, max_places=max_places,
    )  # fmt: skip


def _named(model: Any, name: str) -> str:
    """A model without weights of its own, such as a prompted one, is known by its name alone."""
    return "" if isinstance(model, nn.Module) else name


def _fingerprint(model: Any, said: Any) -> str:
    """A hash of what was said and, for a module, its config and every weight."""
    found = hashlib.blake2b(json.dumps(said).encode(), digest_size=DIGITS // 2)
    if isinstance(model, nn.Module):
        found.update(repr(getattr(model, "config", None)).encode())
        hash_weights(found, model)
    return found.hexdigest()


DIGITS = 32
