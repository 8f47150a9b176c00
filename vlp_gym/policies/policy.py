"""A trained policy: the actors of all seeds on disk, and `predict` as Stable-Baselines3 has it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor

from vlp_gym.errors import CheckpointError
from vlp_gym.policies.networks import LOG_STD, Head
from vlp_gym.schema import Count, Document, Positive, Spec, check_tensors
from vlp_gym.storage import Packed

if TYPE_CHECKING:
    from vlp_gym.policies.learner import Learner

FORMAT = 1
MOST_WEIGHT = 1e6  # beyond, finite weights can give NaN


Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


class _Saved(Document):
    format: Literal[1]
    learner: str
    step: Count
    state_dim: Positive
    action_dim: Positive
    hidden: list[Positive] = Field(min_length=1)
    head: Head
    seeds: list[int] = Field(min_length=1)


class Policy(Packed):
    """The actors of E seeds, of which one acts.

    Attributes:
        document: what is known about them: learner, step, sizes, head and seeds.
        seed: the seed that acts.
    """

    stem = "policy"

    def __init__(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.document, self._tensors = document, tensors
        layers = range(len(document["hidden"]) + 1)
        self._layers = [tuple(tensors[f"{name}.{layer}"].numpy() for name in ("weights", "biases")) for layer in layers]
        self._log_std = tensors["log_std"].numpy() if "log_std" in tensors else None
        self._rng = np.random.default_rng(0)
        self.use_seed(document["seeds"][0])

    @classmethod
    def of(cls, learner: Learner[Any], step: int) -> Policy:
        """What a learner has learned so far, copied."""
        actor = learner.actor
        tensors: dict[str, Tensor] = {}
        for layer, (weight, bias) in enumerate(actor.net.layers()):
            tensors |= {f"weights.{layer}": weight, f"biases.{layer}": bias}
        if actor.log_std is not None:
            tensors["log_std"] = actor.log_std
        document = {
            "format": FORMAT, "learner": learner.name, "step": step, "state_dim": learner.state_dim,
            "action_dim": learner.action_dim, "hidden": list(actor.widths), "head": learner.options.head,
            "seeds": list(learner.seeds),
        }  # fmt: skip
        return cls(document, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were trained."""
        return tuple(self.document["seeds"])

    def use_seed(self, seed: int) -> Policy:
        """Let the actor of this seed act; returns the policy itself.

        Raises:
            ValueError: there is no such seed.
        """
        if seed not in self.seeds:
            raise ValueError(f"seed: expected one of {', '.join(map(str, self.seeds))}, got {seed}")
        self.seed, self._row = seed, self.seeds.index(seed)
        return self

    def predict(
        self,
        observation: ArrayLike,
        state: Any = None,
        episode_start: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], Any]:
        """The action for an observation, as an agent of Stable-Baselines3 gives it.

        Args:
            observation: float ``[S]``, or ``[N, S]`` of a vector environment.
            state: returned as it is; the policy has no memory.
            episode_start: not used.
            deterministic: the mean; False draws from the gaussian head's distribution (the other head has none).

        Returns:
            Actions, float32 ``[A]`` or ``[N, A]`` in [-1, 1], and `state`.

        Raises:
            ValueError: for an observation of another size.
        """
        rows = np.asarray(observation, np.float32)
        size = self.document["state_dim"]
        if rows.ndim not in (1, 2) or rows.shape[-1] != size:
            raise ValueError(f"expected observations [{size}] or [N, {size}], got {list(rows.shape)}")
        actions = mean_action(self.layers(), rows)
        if not deterministic and self._log_std is not None:
            deviation = np.exp(np.clip(self._log_std[self._row, 0], *LOG_STD))
            actions = np.clip(actions + deviation * self._rng.standard_normal(actions.shape), -1, 1)
        return actions.astype(np.float32), state

    def layers(self, seed: int | None = None) -> Layers:
        """Weights and biases of a seed's actor, float32 ``[inward, outward]`` and ``[outward]`` for each layer.

        Args:
            seed: one of `seeds`; default: the seed that acts.
        """
        row = self._row if seed is None else self.seeds.index(seed)
        return [(weight[row], bias[row, 0]) for weight, bias in self._layers]

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A JSON document and the actors' weights."""
        return self.document, self._tensors

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], where: str | Path) -> Policy:
        """The inverse of `pack`; `where` is named in errors."""
        saved = _Saved.parse(document, where)
        if len(set(saved.seeds)) < len(saved.seeds):
            raise CheckpointError(f"{where}: seeds: expected different ones, got {saved.seeds}")
        count, table = len(saved.seeds), {}
        for layer, (inward, outward) in enumerate(pairwise([saved.state_dim, *saved.hidden, saved.action_dim])):
            for name, rows in (("weights", inward), ("biases", 1)):
                table[f"{name}.{layer}"] = Spec(torch.float32, (count, rows, outward), -MOST_WEIGHT, MOST_WEIGHT)
        if saved.head == "gaussian":
            table["log_std"] = Spec(torch.float32, (count, 1, saved.action_dim), -MOST_WEIGHT, MOST_WEIGHT)
        check_tensors(tensors, table, where)
        return cls(document, tensors)


def mean_action(layers: Layers, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The actor's mean: ReLU between the layers, tanh after the last; float32 ``[..., S]`` to ``[..., A]``."""
    for number, (weight, bias) in enumerate(layers):
        rows = np.maximum(rows, 0) @ weight + bias if number else rows @ weight + bias
    return np.asarray(np.tanh(rows))


def load(folder: str | Path, seed: int | None = None) -> Policy:
    """Load a policy that `vlp-gym policy` has trained.

    Args:
        folder: of the run.
        seed: the seed that acts; default: the first.

    Raises:
        CheckpointError: the folder holds no policy, or a damaged one.
        ValueError: there is no such seed.
    """
    policy = Policy.load(folder)
    return policy if seed is None else policy.use_seed(seed)
