"""Implicit Q-learning on rewards (Kostrikov et al., 2022), its updates in the order of CPL's code (Hejna et al.)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.policies.learner import Learner, LearnerOptions, Losses, Options, check_above_0, mean_over
from vlp_gym.policies.networks import StackedMLP
from vlp_gym.training.options import check_share


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """``|expectile - 1(u < 0)| u^2`` of u = q - V(s), of the same shape (IQL, eq. 5).

    >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.7)
    tensor([2.8000, 1.2000])
    """
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def advantage_weight(advantage: Tensor, temperature: float, most: float) -> Tensor:
    """``min(exp(advantage / temperature), most)``, of the same shape (IQL, eq. 7)."""
    return torch.exp(advantage.double() / temperature).clamp_max(most).to(advantage)  # see `double_sum`


def critic_loss(q: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum over the critics of ``mean (Q_k(s, a) - y)^2`` (IQL, eq. 6).

    Args:
        q: float ``[E, K, B]``.
        target: y, float ``[E, B]``.
        mask: which rows count, float ``[E, B]`` of 0 and 1; None counts all.

    Returns:
        float ``[E]``.
    """
    return mean_over((q - target[:, None]).square().sum(1), mask)


@torch.no_grad()
def move_towards(target: nn.Module, network: nn.Module, tau: float) -> None:
    """``target <- tau network + (1 - tau) target``, for each weight."""
    for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, tau)


@dataclass(frozen=True, kw_only=True)
class IQLOptions(LearnerOptions):
    """Implicit Q-learning on rewards.

    Attributes:
        discount: gamma; an episode's end is not terminal, as in Meta-World.
        expectile: towards which V is learned; 0.5 is the mean.
        temperature: beta, of the weights exp(advantage / beta) of imitation.
        most_weight: upper limit of these weights.
        tau: share of the critics in the target critics at each update.
    """

    discount: float = 0.99
    expectile: float = 0.7
    temperature: float = 0.3333
    most_weight: float = 100.0
    tau: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(discount=self.discount, expectile=self.expectile, tau=self.tau)
        check_above_0(temperature=self.temperature, most_weight=self.most_weight)


@dataclass(frozen=True)
class Rows:
    """Steps of an update.

    Attributes:
        states: float32 ``[E, B, S]``.
        actions: float32 ``[E, B, A]``.
        next_states: float32 ``[E, B, S]``.
        mask: float32 ``[E, B]``, 1 where the step and the next state are real; None if all are.
    """

    states: Tensor
    actions: Tensor
    next_states: Tensor
    mask: Tensor | None = None


class ActorCritic(Learner[Options]):
    """A learner with twin critics, their targets, and V; `options` are `IQLOptions`."""

    options: Any

    def add_networks(self) -> None:
        """Critics Q(s, a), their targets and V(s)."""
        hidden, inputs = self.options.hidden, self.state_dim + self.action_dim
        self.critic = StackedMLP(inputs, 1, hidden, self.generators, each=2)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.value = StackedMLP(self.state_dim, 1, hidden, self.generators)

    def trained(self) -> dict[str, nn.Module]:
        """Actor, critics and V."""
        return {"actor": self.actor, "critic": self.critic, "value": self.value}

    def improve(
        self, rows: Rows, critic_loss: Callable[[Tensor, Tensor], Losses], beside: Losses | None = None
    ) -> Iterator[Losses]:
        """V, then actor and critics, then the targets.

        The actor's weights take V from before its step, the critics' targets from after it.

        Args:
            rows: the steps.
            critic_loss: takes Q ``[E, 2, B]`` and V(s') ``[E, B]``, and returns the critics' losses.
            beside: losses of other networks, minimised together with V's.
        """
        options = self.options
        inputs = torch.cat([rows.states, rows.actions], dim=2)
        with torch.no_grad():
            q = self.target(inputs)[..., 0].amin(1)
        v = self.value(rows.states)[:, 0, :, 0]
        yield {"value": mean_over(expectile_loss(q - v, options.expectile), rows.mask), **(beside or {})}
        weight = advantage_weight(q - v.detach(), options.temperature, options.most_weight)
        log_probs = self.actor.log_prob(rows.states, rows.actions, self.draw_dropout(rows.states.shape[1]))
        with torch.no_grad():
            next_v = self.value(rows.next_states)[:, 0, :, 0]
        actor = mean_over(-weight * log_probs, rows.mask)
        yield {"actor": actor, **critic_loss(self.critic(inputs)[..., 0], next_v)}
        move_towards(self.target, self.critic, options.tau)


class IQL(ActorCritic[IQLOptions]):
    """Learns from the rewards of `transitions`."""

    name = "iql"

    def update(self, step: int) -> Iterator[Losses]:
        """V, then actor and critics."""
        chosen, data = self.draw_rows(self.options.batch), self.transitions
        rows, rewards = Rows(data.states[chosen], data.actions[chosen], data.next_states[chosen]), data.rewards[chosen]

        def loss(q: Tensor, next_v: Tensor) -> Losses:
            return {"critic": critic_loss(q, rewards + self.options.discount * next_v)}

        yield from self.improve(rows, loss)
