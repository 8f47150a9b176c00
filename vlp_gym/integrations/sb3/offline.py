"""From offline to online: an agent with the networks of an offline learner, and batches in part from old data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from vlp_gym.integrations.sb3.buffers import VLPReplayBuffer
from vlp_gym.policies.data import Transitions
from vlp_gym.policies.iql import ActorCritic
from vlp_gym.policies.learner import Learner
from vlp_gym.policies.networks import StackedMLP


class OldDataReplayBuffer(VLPReplayBuffer):
    """A `VLPReplayBuffer` whose batches are in part from old transitions (RLPD, Ball et al., 2023).

    ``agent = SAC("MlpPolicy", env, replay_buffer_class=OldDataReplayBuffer)``, then
    ``agent.replay_buffer.use_old(transitions)``. Until then it is a `VLPReplayBuffer`.
    """

    _old: tuple[NDArray[Any], ...] = ()
    """Observations, actions, next observations, dones ``[M, 1]`` and rewards ``[M, 1]``."""
    _share = 0.0

    def use_old(self, old: Transitions, share: float = 0.5) -> None:
        """Draw a share of each batch from these transitions from now on.

        Args:
            old: transitions of this environment's observations and actions; their rewards those of its sentence. No
                episode of theirs ends in a terminal state.
            share: part of a batch, above 0 and below 1.

        Raises:
            ValueError: the share is out of range, or the transitions are empty or of other sizes.
        """
        if not 0 < share < 1:
            raise ValueError(f"share: expected above 0 and below 1, got {share}")
        sizes = len(old.states[:1]), old.states.shape[1], old.actions.shape[1]
        if sizes != (1, self.obs_shape[0], self.action_dim):
            raise ValueError(
                f"expected old transitions of {self.obs_shape[0]} numbers of an observation and {self.action_dim} of "
                f"an action, got {len(old)} of {sizes[1]} and {sizes[2]}"
            )
        states, actions, following, rewards = (
            block.cpu().numpy() for block in (old.states, old.actions, old.next_states, old.rewards[:, None])
        )
        kind = self.observations.dtype
        dones = np.zeros_like(rewards)
        self._old = states.astype(kind), actions, following.astype(kind), dones, rewards
        self._share = share

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Sample rows whose rewards are there, and old transitions after them; errors as of `VLPReplayBuffer`."""
        count = round(self._share * batch_size)
        if not count:
            return super().sample(batch_size, env)
        new = super().sample(batch_size - count, env)
        rows = np.random.randint(0, len(self._old[0]), size=count)  # noqa: NPY002  # as the rows of ReplayBuffer
        states, actions, following, dones, rewards = (block[rows] for block in self._old)
        old = (
            self._normalize_obs(states, env), actions, self._normalize_obs(following, env), dones,
            self._normalize_reward(rewards, env),
        )  # fmt: skip
        both = zip(new[:5], map(self.to_torch, old), strict=True)
        return ReplayBufferSamples(*(torch.cat(parts) for parts in both))


@torch.no_grad()
def start_from(agent: SAC | TD3, learner: Learner[Any], *, seed: int | None = None, deviation: float = 0.3) -> None:
    """Copy the networks of an offline learner into a new agent; its mean action is then the learner's.

    Critics are copied from a learner that has them; the agent's target networks follow.

    Args:
        agent: a SAC or TD3 model with ``policy_kwargs={"net_arch": list(learner.options.hidden)}`` and two critics.
        learner: an offline learner after its training.
        seed: one of the learner's; default: the first.
        deviation: the standard deviation of SAC's actions before its tanh, in every state; training changes it.

    Raises:
        ValueError: the agent's networks are of other sizes, or the learner has no such seed.
    """
    row = 0 if seed is None else learner.seeds.index(seed)
    policy: Any = agent.policy
    if isinstance(agent, SAC):
        _copy(learner.actor.net, row, [*_linears(policy.actor.latent_pi), policy.actor.mu], "actor")
        nn.init.zeros_(policy.actor.log_std.weight)
        nn.init.constant_(policy.actor.log_std.bias, math.log(deviation))
    else:
        _copy(learner.actor.net, row, _linears(policy.actor.mu), "actor")
        policy.actor_target.load_state_dict(policy.actor.state_dict())
    if isinstance(learner, ActorCritic):
        critics = policy.critic.q_networks
        if len(critics) != learner.critic.each:
            raise ValueError(f"expected an agent with {learner.critic.each} critics, got {len(critics)}")
        for number, critic in enumerate(critics):
            _copy(learner.critic, learner.critic.each * row + number, _linears(critic), "critic")
        policy.critic_target.load_state_dict(policy.critic.state_dict())


def _linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def _copy(stacked: StackedMLP, number: int, linears: list[nn.Linear], name: str) -> None:
    """Copy one network of a stack into linear layers."""
    layers = [(weight[number].T, bias[number, 0]) for weight, bias in stacked.layers()]
    ours, theirs = [list(weight.shape) for weight, _ in layers], [list(linear.weight.shape) for linear in linears]
    if ours != theirs:
        raise ValueError(
            f"expected the {name}'s layers to be {ours} (outputs, inputs), got {theirs}; "
            'give the agent the learner\'s hidden layers as policy_kwargs={"net_arch": [...]}'
        )
    for linear, (weight, bias) in zip(linears, layers, strict=True):
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
