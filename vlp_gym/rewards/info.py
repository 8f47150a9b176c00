"""What a wrapper puts into ``info``: the same keys at every reset and step, and numbers only.

So the infos can be stacked, sent and stored by anything. `env_reward`, `score`, `progress` and `relevance` are NumPy's
float64, 0 where there is none yet; a head that the model lacks has no key. `success` is a bool, because Gymnasium's
vectors make object arrays of NumPy's. Where rewards may come late, `env`, `episode` and `step`, int64, name the
transition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from vlp_gym.engine.tickets import FrameScore, Ticket
from vlp_gym.rewards.delivery import Delivery

KEY = "vlp"
HEADS = ("progress", "relevance")
"""Those that a model may lack."""
KINDS: dict[str, type] = {
    "env_reward": np.float64, "score": np.float64, "progress": np.float64, "relevance": np.float64, "success": np.bool_,
    "env": np.int64, "episode": np.int64, "step": np.int64,
}  # fmt: skip
"""Of the arrays of a vector environment."""
FLAT = "vlp/"
"""What the keys begin with under ``flat_info=True``."""


class Taker(Protocol):
    """Gives the late rewards of one of its environments."""

    def take(self, env: int) -> list[Delivery]:
        """What has come for it and was not taken yet."""
        ...


TAKERS: WeakValueDictionary[int, Taker] = WeakValueDictionary()
"""By the number of the environment, which no other of this process has."""


class Numbers(dict[str, Any]):
    """The ``info["vlp"]`` of one environment.

    Some keys are answered that are not among its keys, which can so be stacked and compared: NaN for a head that the
    model lacks; where rewards may come late "ticket", and "delivered", the late rewards of this environment that have
    come by now, as from `poll`.
    """

    def __missing__(self, key: str) -> Any:
        if key in HEADS:
            return np.float64(np.nan)
        if "step" in self:
            if key == "ticket":
                return ticket_in(self)
            if key == "delivered":
                if (taker := TAKERS.get(int(self["env"]))) is None:
                    raise KeyError("delivered: the wrapper is in another process or gone; take late rewards by poll()")
                return taker.take(int(self["env"]))
        raise KeyError(key)


def numbers(
    env_reward: float | None,
    score: float,
    scored: FrameScore | None,
    *,
    heads: Iterable[str],
    success: bool,
    ticket: Ticket | None,
) -> Numbers:
    """The ``info["vlp"]`` of one environment.

    Args:
        env_reward: the environment's own; None where it gave none, which becomes NaN.
        score: the number that the reward is made of.
        scored: the model's scores behind it; None before the first.
        heads: those of `HEADS` that the model has.
        success: whether the score is over the threshold.
        ticket: names the transition where rewards may come late; None elsewhere.
    """
    own = np.nan if env_reward is None else env_reward
    values = {"env_reward": own, "score": score, **{head: getattr(scored, head, None) or 0.0 for head in heads}}
    info = Numbers(zip(values, map(np.float64, values.values()), strict=True))
    info["success"] = bool(success)
    if ticket is not None:
        info.update(zip(ticket._fields, map(np.int64, ticket), strict=True))
    return info


def put(info: Mapping[str, Any], ours: Mapping[str, Any], *, flat: bool) -> dict[str, Any]:
    """An info with our numbers in it: under "vlp", or flat, as "vlp/score" and so on."""
    return {**info, **{FLAT + name: value for name, value in ours.items()}} if flat else {**info, KEY: ours}


def join_infos(
    infos: Mapping[str, Any], each: Sequence[Mapping[str, Any] | None], names: Sequence[str], *, flat: bool
) -> dict[str, Any]:
    """The infos of a vector environment with our numbers, as arrays with masks, in Gymnasium's form.

    Args:
        infos: the environment's own.
        each: our numbers of each environment; None where there are none.
        names: their keys.
        flat: see `put`.
    """
    present = np.array([ours is not None for ours in each])
    joined: dict[str, Any] = {}
    for name in names:
        key = FLAT + name if flat else name
        joined[key] = np.array([0 if ours is None else ours[name] for ours in each], KINDS[name])
        joined[f"_{key}"] = present.copy()
    return {**infos, **joined} if flat else {**infos, KEY: joined, f"_{KEY}": present}


def ours_in(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our numbers in an info, in either form; None if there are none."""
    if KEY in info:
        nested: dict[str, Any] = info[KEY]
        return nested
    return {name[len(FLAT) :]: value for name, value in info.items() if name.startswith(FLAT)} or None


def ticket_in(ours: Mapping[str, Any] | None) -> Ticket | None:
    """The ticket of the transition that our numbers belong to; None where the reward came with the step."""
    if ours is None or "step" not in ours:
        return None
    return Ticket(int(ours["env"]), int(ours["episode"]), int(ours["step"]))
