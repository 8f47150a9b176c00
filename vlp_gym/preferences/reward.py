"""The reward learned from preferences: an ensemble of small networks r(s, a), computed together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vlp_gym.objectives.preference import bradley_terry_loss
from vlp_gym.preferences.buffer import EQUAL, PreferenceBuffer
from vlp_gym.preferences.segments import Segments
from vlp_gym.preferences.stacked import stacked_mlp
from vlp_gym.schema import Document, Positive, Spec, check_tensors, check_torch_generator
from vlp_gym.storage import Packed

FORMAT = 1
CHUNK = 16_384  # rows computed at once, which bounds the memory between two layers

LEAST_DEVIATION = 1e-3  # inputs that vary less are not scaled
MOST_WEIGHT, MOST_MEAN = 1e4, 1e9  # beyond, finite weights can give infinite rewards
_MOMENTS = {"step": 1.0, "exp_avg": -math.inf, "exp_avg_sq": 0.0}
"""What Adam keeps of each parameter, and its least value."""


class _Settings(Document):
    state_dim: Positive
    action_dim: Positive
    members: Positive
    hidden: list[Positive]
    learning_rate: float = Field(gt=0)
    standardize: bool
    seed: int = Field(ge=-(2**63), lt=2**64)


class _Saved(Document):
    format: Literal[1]
    settings: _Settings


@dataclass(frozen=True)
class FitReport:
    """The result of a fit; all but `epochs` belong to its last epoch, taken before each update as in B-Pref.

    Attributes:
        epochs: epochs run.
        loss: cross-entropy of the labelled pairs, mean over the members.
        accuracy: for each member, the share of pairs that it orders as labelled. Pairs labelled equal do not count;
            NaN if there are no others.
        pseudo_labelled: share of the unlabelled pairs that the members were sure of.
    """

    epochs: int
    loss: float
    accuracy: tuple[float, ...]
    pseudo_labelled: float = 0.0


class RewardEnsemble(Packed, nn.Module):
    """E networks r(s, a) in (-1, 1), by default three times 256 LeakyReLU and a tanh (PEBBLE, Lee et al., 2021).

    The members differ only in their first weights and in the order of the pairs. Both come from the seed; torch's
    global generators are not used.

    Args:
        state_dim: S.
        action_dim: A.
        members: E.
        hidden: widths of the hidden layers.
        learning_rate: Adam's learning rate.
        standardize: shift and scale each input by its mean and deviation in the pairs of the first fit. States in
            metres that differ by centimetres would take many more epochs. PEBBLE leaves inputs as they are.
        seed: seeds weights and orders.

    Raises:
        ValueError: for a size below 1, or a learning rate that is not above 0.
    """

    stem = "ensemble"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        members: int = 3,
        hidden: Sequence[int] = (256, 256, 256),
        learning_rate: float = 3e-4,
        standardize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(state_dim, action_dim, members, *hidden) < 1:
            raise ValueError(
                "state_dim, action_dim, members and hidden must be at least 1, "
                f"got {state_dim}, {action_dim}, {members} and {tuple(hidden)}"
            )
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
        self.settings: dict[str, Any] = {
            "state_dim": state_dim, "action_dim": action_dim, "members": members,
            "hidden": list(hidden), "learning_rate": learning_rate, "standardize": standardize, "seed": seed,
        }  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        sizes = [state_dim + action_dim, *hidden, 1]
        for inward, outward in pairwise(sizes):
            for layer, rows in ((self.weights, inward), (self.biases, 1)):
                values = torch.rand((members, rows, outward), generator=self.generator, dtype=torch.float32)
                layer.append(nn.Parameter((2 * values - 1) / math.sqrt(inward)))  # as nn.Linear starts
        self.register_buffer("mean", torch.zeros(state_dim + action_dim, dtype=torch.float32))
        self.register_buffer("deviation", torch.ones(state_dim + action_dim, dtype=torch.float32))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def forward(self, inputs: Tensor) -> Tensor:
        """Rewards ``[E, B]`` for states and actions, concatenated: ``[B, S + A]`` for all or ``[E, B, S + A]``."""
        rows = ((inputs - self.mean) / self.deviation).expand(self.settings["members"], -1, -1)
        rows = stacked_mlp(rows, self.weights, self.biases, lambda _, hidden: F.leaky_relu(hidden))
        return torch.tanh(rows).squeeze(2)

    @torch.no_grad()
    def members(self, states: Tensor, actions: Tensor) -> Tensor:
        """Rewards of each member, float32 ``[E, B]``.

        Args:
            states: ``[B, S]``.
            actions: ``[B, A]``.

        Raises:
            ValueError: for other shapes.
        """
        state_dim, action_dim = self.settings["state_dim"], self.settings["action_dim"]
        count = len(states)
        if states.shape != (count, state_dim) or actions.shape != (count, action_dim):
            raise ValueError(
                f"expected states [B, {state_dim}] and actions [B, {action_dim}], "
                f"got {list(states.shape)} and {list(actions.shape)}"
            )
        like = self.weights[0]
        inputs = torch.cat([states.to(like), actions.to(like)], dim=1)
        return torch.cat([self(rows) for rows in inputs.split(CHUNK)], dim=1)

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called."""
        return bool(self.optimizer.state)

    def predict(self, states: Tensor, actions: Tensor) -> Tensor:
        """The reward, float32 ``[B]``: the mean over the members; arguments as `members`."""
        return self.members(states, actions).mean(0)

    def bonus(self, states: Tensor, actions: Tensor) -> Tensor:
        """Standard deviation over the members, float32 ``[B]`` (RUNE, Liang et al., 2022); arguments as `members`."""
        return self.members(states, actions).std(0, correction=0)

    def preferences(self, first: Segments, second: Segments) -> NDArray[np.float64]:
        """P(first > second) for each member, float64 ``[E, N]`` for N pairs (Bradley-Terry)."""
        returns = []
        for side in (first, second):
            rewards = torch.zeros(self.settings["members"], *side.mask.shape, dtype=torch.float64)
            real = [torch.from_numpy(block[side.mask]) for block in (side.states, side.actions)]
            rewards[:, torch.from_numpy(side.mask)] = self.members(*real).cpu().double()
            returns.append(rewards.sum(2))
        return torch.sigmoid(returns[0] - returns[1]).numpy()

    @torch.enable_grad()  # a loop may collect without gradients
    def fit(
        self,
        buffer: PreferenceBuffer,
        epochs: int,
        batch: int = 128,
        target_accuracy: float = 0.97,
        *,
        unlabelled: tuple[Segments, Segments] | None = None,
        threshold: float = 0.99,
        weight: float = 1.0,
        progress: Callable[[int, float], None] | None = None,
    ) -> FitReport:
        """Learn from labelled pairs until the members order enough of them as labelled.

        With unlabelled pairs, each update also draws a random batch of them. Pairs that the members' mean is sure of
        are learned with its answer as label (SURF, Park et al., 2022).

        Args:
            buffer: the labelled pairs.
            epochs: most passes over them.
            batch: pairs per update.
            target_accuracy: training ends after an epoch with a mean accuracy above this.
            unlabelled: first and second segments of unlabelled pairs.
            threshold: least probability of a pseudo-label, exclusive (SURF's tau).
            weight: weight of the loss of unlabelled pairs (SURF's lambda).
            progress: called after each epoch with its number, from 1, and the mean accuracy.

        Raises:
            ValueError: without a labelled pair, or for epochs or a batch below 1.
        """
        if not len(buffer):
            raise ValueError("expected at least one labelled pair to learn from, got none")
        if epochs < 1 or batch < 1:
            raise ValueError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
        device = self.weights[0].device
        labelled = (buffer.inputs, buffer.mask, buffer.labels)
        inputs, mask, labels = (torch.from_numpy(block).to(device) for block in labelled)
        pool = None if unlabelled is None or not len(unlabelled[0]) else [t.to(device) for t in _pairs(*unlabelled)]
        if self.settings["standardize"] and not self.fitted:
            deviation, self.mean = torch.std_mean(inputs[mask], dim=0)
            self.deviation = torch.where(deviation > LEAST_DEVIATION, deviation, 1.0)
        members, size = self.settings["members"], len(buffer)
        for epoch in range(1, epochs + 1):
            # For each member: losses, pairs in the right order, pairs with an order. Unlabelled pairs: sure, drawn.
            sums, drawn = torch.zeros(3, members, device=device), torch.zeros(2, device=device)
            orders = torch.stack([torch.randperm(size, generator=self.generator) for _ in range(members)])
            for rows in orders.to(device).split(batch, dim=1):
                first, second = self._returns(inputs[rows], mask[rows])
                target = labels[rows]
                loss = members * bradley_terry_loss(first, second, target)  # the sum over the members
                total = loss
                if pool is not None:
                    extra, sure, count = self._pseudo_loss(pool, batch, threshold)
                    total = loss + weight * extra
                    drawn += torch.stack([sure, torch.full_like(sure, count)])
                self.optimizer.zero_grad()
                total.backward()
                self.optimizer.step()
                ordered = target != EQUAL
                right = ((first > second) == (target > EQUAL)) & ordered
                each = loss.detach() / members * rows.shape[1]
                sums += torch.stack([each.expand(members), right.sum(1), ordered.sum(1)])
            accuracy = (sums[1] / sums[2]).tolist()
            mean = sum(accuracy) / members
            if progress is not None:
                progress(epoch, mean)
            if mean > target_accuracy:
                break
        share = float(drawn[0] / drawn[1]) if pool is not None else 0.0
        return FitReport(epoch, float(sums[0, 0] / size), tuple(accuracy), share)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Weights, optimizer and generator, so that on a CPU a loaded ensemble goes on learning bit for bit."""
        tensors = {**self.state_dict(), "rng": self.generator.get_state()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        return {"format": FORMAT, "settings": self.settings}, tensors

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], where: str | Path) -> RewardEnsemble:
        """The inverse of `pack`; `where` is named in errors."""
        settings = _Saved.parse(document, where).settings
        # The tensors are compared before the networks are made: they may be of any size.
        fitted = any(name.startswith("adam.") for name in tensors)
        check_tensors(tensors, _table(settings, fitted), where)
        ensemble = cls(**settings.model_dump())
        check_torch_generator(tensors["rng"], ensemble.generator, where)
        moments: dict[int, dict[str, Tensor]] = {}
        if fitted:
            for number, _ in enumerate(ensemble.parameters()):
                moments[number] = {name: tensors[f"adam.{number}.{name}"] for name in _MOMENTS}
        ensemble.load_state_dict({name: tensors[name] for name in ensemble.state_dict()})
        ensemble.optimizer.load_state_dict({**ensemble.optimizer.state_dict(), "state": moments})
        ensemble.generator.set_state(tensors["rng"])
        return ensemble

    def _returns(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Summed rewards of the first and second segments, ``[E, B]`` each, from ``[(E,) B, 2, L, S + A]``."""
        rewards = self(inputs.flatten(-4, -2)).view(-1, *mask.shape[-3:])
        return (rewards * mask).sum(3).unbind(2)

    def _pseudo_loss(self, pool: Sequence[Tensor], batch: int, threshold: float) -> tuple[Tensor, Tensor, int]:
        """SURF's loss of a random batch, summed over the members; the number of sure pairs, and of all."""
        inputs, mask = pool
        rows = torch.randperm(len(inputs), generator=self.generator)[:batch].to(inputs.device)
        first, second = self._returns(inputs[rows], mask[rows])
        chance = torch.sigmoid(first - second).mean(0).detach()
        sure = torch.maximum(chance, 1 - chance) > threshold
        target = (chance > EQUAL).to(first).expand_as(first)
        losses = F.binary_cross_entropy_with_logits(first - second, target, reduction="none")
        return (losses * sure).mean(1).sum(), sure.sum(), len(rows)


def _pairs(first: Segments, second: Segments) -> list[Tensor]:
    """Inputs ``[N, 2, L, S + A]`` and masks ``[N, 2, L]``, as `PreferenceBuffer` keeps them."""
    blocks = (first.inputs, second.inputs), (first.mask, second.mask)
    return [torch.from_numpy(np.stack(sides, axis=1)) for sides in blocks]


def _table(settings: _Settings, fitted: bool) -> dict[str, Spec]:
    """The tensors of an ensemble, and of its optimizer after the first fit."""
    inputs = settings.state_dim + settings.action_dim
    widths = list(pairwise([inputs, *settings.hidden, 1]))
    shapes = {f"weights.{layer}": (settings.members, *width) for layer, width in enumerate(widths)}
    shapes |= {f"biases.{layer}": (settings.members, 1, width[1]) for layer, width in enumerate(widths)}
    table = {name: Spec(torch.float32, shape, -MOST_WEIGHT, MOST_WEIGHT) for name, shape in shapes.items()}
    if fitted:
        for number, shape in enumerate(shapes.values()):
            for name, low in _MOMENTS.items():
                table[f"adam.{number}.{name}"] = Spec(torch.float32, () if name == "step" else shape, low=low)
    table["mean"] = Spec(torch.float32, (inputs,), -MOST_MEAN, MOST_MEAN)
    table["deviation"] = Spec(torch.float32, (inputs,), low=LEAST_DEVIATION)
    table["rng"] = Spec(torch.uint8, ("bytes",))
    return table
