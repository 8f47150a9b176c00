"""P-IQL: a reward learned from preferences, and implicit Q-learning on it, in one loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.policies.data import Pairs
from vlp_gym.policies.iql import ActorCritic, IQLOptions, Rows, critic_loss
from vlp_gym.policies.learner import Losses, double_sum
from vlp_gym.policies.networks import StackedMLP
from vlp_gym.training.options import check_at_least


def pair_loss(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``P(first > second) = sigmoid(first - second)``, the mean over the pairs (VLP, eqs. 2 and 3).

    Args:
        first: summed rewards of the first segments, float ``[E, ..., B]``.
        second: the same of the second ones.
        labels: P(first > second), float ``[E, B]``.

    Returns:
        float64 ``[E]``.
    """
    logits = first.double() - second.double()  # see `double_sum`
    target = labels.double().view(len(labels), *(1,) * (logits.ndim - 2), -1).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def check_sub_steps(count: int) -> None:
    """Raise ValueError unless so many steps of a segment can be taken, with a next state."""
    if count < 0 or count == 1:
        raise ValueError(f"--sub-steps: expected at least 2, or 0 for all, got {count}; a step needs the next state")


@dataclass(frozen=True, kw_only=True)
class PIQLOptions(IQLOptions):
    """Implicit Q-learning on a reward learned from preferences.

    Attributes:
        reward_steps: updates in which the reward learns, then it stays. VLP's table 11 has 30 without a unit; the code
            of "Contrastive preference learning" has a tenth of all updates.
        learn_on: the policy learns from the steps of the labelled pairs, as in the papers, or of the whole data set.
        rows: steps of an update of the policy; 0: all steps of the pairs of the batch, as in the papers, which takes
            many times longer. With learn-on data, 0 is the batch.
        sub_steps: steps of each segment in an update of the reward, at a random place; 0: all, as in VLP. The code of
            "Inverse preference learning" has 16, at a third of the cost.
    """

    reward_steps: int = 10_000
    learn_on: Literal["pairs", "data"] = "pairs"
    rows: int = 0
    sub_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, reward_steps=self.reward_steps)
        check_at_least(0, rows=self.rows)
        check_sub_steps(self.sub_steps)


class PIQL(ActorCritic[PIQLOptions]):
    """Learns r(s, a) from `pairs`, and from r the policy."""

    name = "p-iql"

    def needs(self) -> tuple[str, ...]:
        """Pairs, and transitions if it learns on all data."""
        return ("pairs",) if self.options.learn_on == "pairs" else ("pairs", "transitions")

    def add_networks(self) -> None:
        """Also the reward r(s, a)."""
        super().add_networks()
        self.reward = StackedMLP(self.state_dim + self.action_dim, 1, self.options.hidden, self.generators)

    def trained(self) -> dict[str, nn.Module]:
        """Also the reward."""
        return {**super().trained(), "reward": self.reward}

    def rates(self, step: int) -> Mapping[str, float]:
        """The actor's learning rate falls in a cosine to 0."""
        return {"actor": 0.5 * (1 + math.cos(math.pi * min(step / self.options.steps, 1)))}

    def update(self, step: int) -> Iterator[Losses]:
        """The reward and V, then actor and critics on the reward of before its step."""
        options, whole = self.options, self.options.learn_on == "pairs" and not self.options.rows
        beside: Losses = {}
        segments = self.draw_segments(options.sub_steps) if step < options.reward_steps or whole else None
        if segments is not None and step < options.reward_steps:
            paid = self.rewards(segments.states, segments.actions)
            first, second = double_sum(paid * segments.mask).unbind(2)
            beside = {"reward": pair_loss(first, second, segments.labels)}
        rows = self._rows(segments if whole else None)
        with torch.no_grad():
            rewards = self.rewards(rows.states, rows.actions)

        def loss(q: Tensor, next_v: Tensor) -> Losses:
            return {"critic": critic_loss(q, rewards + options.discount * next_v, rows.mask)}

        yield from self.improve(rows, loss, beside)

    def rewards(self, states: Tensor, actions: Tensor) -> Tensor:
        """r(s, a), float ``[E, ...]``, for states ``[E, ..., S]`` and actions ``[E, ..., A]``."""
        inputs = torch.cat([states, actions], dim=-1)
        paid: Tensor = self.reward(inputs.flatten(1, -2))
        return paid[:, 0, :, 0].view(inputs.shape[:-1])

    @torch.no_grad()
    def label_accuracy(self) -> list[float]:
        """For each seed, the share of the pairs with an order that the reward orders as labelled."""
        pairs, count = self.pairs, len(self.seeds)
        paid = self.rewards(*(block.expand(count, *block.shape) for block in (pairs.states, pairs.actions)))
        first, second = (paid * pairs.mask).sum(3).unbind(2)
        ordered = pairs.labels != 0.5
        right = ((first > second) == (pairs.labels > 0.5)) & ordered
        return (right.sum(1) / ordered.sum()).tolist()

    def _rows(self, segments: Pairs | None) -> Rows:
        if segments is not None:
            return segment_rows(segments)
        options, pairs = self.options, self.pairs
        if options.learn_on == "data":
            chosen, data = self.draw_rows(options.rows or options.batch), self.transitions
            return Rows(data.states[chosen], data.actions[chosen], data.next_states[chosen])
        # A place in the N x 2 segments, and one in its L - 1 steps with a next state.
        sides, length = 2 * len(pairs), pairs.mask.shape[2]
        drawn = [torch.randint(sides * (length - 1), (options.rows,), generator=g) for g in self.generators]
        place = torch.stack(drawn).to(self.device)
        place += place // (length - 1)
        states, actions, mask = (block.flatten(0, 2) for block in (pairs.states, pairs.actions, pairs.mask))
        return Rows(states[place], actions[place], states[place + 1], mask[place + 1])


def segment_rows(segments: Pairs) -> Rows:
    """The steps of segments ``[E, B, 2, L, ...]`` that have a next state, ``[E, B * 2 * (L - 1), ...]``."""
    now, following = segments.states[..., :-1, :], segments.states[..., 1:, :]
    states, actions, next_states = (x.flatten(1, 3) for x in (now, segments.actions[..., :-1, :], following))
    return Rows(states, actions, next_states, segments.mask[..., 1:].flatten(1))
