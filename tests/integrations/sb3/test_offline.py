from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import SAC, TD3

from tests.learners_by_hand import ACTIONS, STATES, transitions
from vlp_gym.integrations.sb3 import OldDataReplayBuffer, VLPReplayBuffer, start_from
from vlp_gym.policies import BC, IQL, train
from vlp_gym.policies.bc import BCOptions
from vlp_gym.policies.iql import IQLOptions
from vlp_gym.policies.policy import Policy

HIDDEN = (8, 6)


class Drift(gym.Env):
    """Pays 2 a step, for ever."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (STATES,))
    action_space = gym.spaces.Box(-1, 1, (ACTIONS,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=STATES), {}

    def step(self, action):
        return self.np_random.normal(size=STATES), 2.0, False, False, {}


def agent(kind=SAC, net_arch=HIDDEN, buffer=OldDataReplayBuffer, **options):
    return kind(
        "MlpPolicy", Drift(), policy_kwargs={"net_arch": list(net_arch), **options}, replay_buffer_class=buffer,
        buffer_size=200, learning_starts=10, batch_size=8, seed=0, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    made = IQL(IQLOptions(hidden=HIDDEN, batch=5, steps=20), (4, 1), transitions=transitions(dtype=torch.float32))
    train(made, tmp_path_factory.mktemp("iql"), progress_bar=False)
    return made


@pytest.mark.parametrize("kind", [SAC, TD3])
@pytest.mark.parametrize(("seed", "row"), [(None, 0), (1, 1)])
def test_it_acts_and_judges_as_the_learner(kind, seed, row, learner):
    made = agent(kind)
    start_from(made, learner, seed=seed)
    states, given = torch.randn(2, 7, STATES), torch.rand(2, 7, ACTIONS)
    expected = Policy.of(learner, 20).use_seed(learner.seeds[row]).predict(states[row].numpy())[0]
    assert made.predict(states[row].numpy(), deterministic=True)[0] == pytest.approx(expected, abs=1e-6)
    values = learner.critic(torch.cat([states, given], 2))[row, ..., 0]
    for critic in (made.critic, made.critic_target):
        torch.testing.assert_close(torch.stack(critic(states[row], given[row]))[..., 0], values)
    if kind is TD3:
        for (name, ours), theirs in zip(made.actor.named_parameters(), made.actor_target.parameters(), strict=True):
            assert torch.equal(ours, theirs), name
    else:
        _, log_std, _ = made.actor.get_action_dist_params(states[row])
        torch.testing.assert_close(log_std.detach(), torch.full((7, ACTIONS), math.log(0.3)))
    made.learn(30)  # and it learns on
    assert made.predict(states[row].numpy(), deterministic=True)[0] != pytest.approx(expected, abs=1e-6)


def test_a_learner_without_critics_gives_the_actor_only():
    made, before = agent(), agent().critic.state_dict()
    start_from(made, BC(BCOptions(hidden=HIDDEN), (0,), transitions=transitions(dtype=torch.float32)))
    assert all(torch.equal(ours, before[name]) for name, ours in made.critic.state_dict().items())


def test_other_networks_are_refused(learner):
    with pytest.raises(ValueError) as error:
        start_from(agent(net_arch=(8, 8)), learner)
    assert str(error.value) == (
        "expected the actor's layers to be [[8, 3], [6, 8], [2, 6]] (outputs, inputs), got [[8, 3], [8, 8], [2, 8]]; "
        'give the agent the learner\'s hidden layers as policy_kwargs={"net_arch": [...]}'
    )
    with pytest.raises(ValueError, match=r"^expected an agent with 2 critics, got 3$"):
        start_from(agent(n_critics=3), learner)


def test_half_of_a_batch_is_old():
    old, made = transitions(dtype=torch.float32), agent()
    made.replay_buffer.use_old(old)
    made.learn(60)
    batch = made.replay_buffer.sample(8)
    assert batch.rewards[:4, 0].tolist() == [2.0] * 4
    assert batch.dones.tolist() == [[0.0]] * 8
    assert batch.observations.shape == (8, STATES)
    for row in range(4, 8):
        number = (old.rewards == batch.rewards[row, 0]).nonzero().item()
        for name, ours in (("states", "observations"), ("actions", "actions"), ("next_states", "next_observations")):
            assert torch.equal(getattr(batch, ours)[row].float(), getattr(old, name)[number]), name
    counts = [round(share * 10) for share in (0.1, 0.5, 0.9)]
    for count in counts:
        made.replay_buffer.use_old(old, count / 10)
        assert (made.replay_buffer.sample(10).rewards != 2.0).sum() == count


def test_without_old_data_nothing_differs():
    weights = []
    for buffer in (OldDataReplayBuffer, VLPReplayBuffer):
        made = agent(buffer=buffer)
        made.learn(40)
        weights.append(list(made.policy.parameters()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


def test_an_agent_is_saved_without_the_old_data(tmp_path):
    old, made = transitions(20_000, dtype=torch.float32), agent()
    made.replay_buffer.use_old(old)
    made.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").stat().st_size < 100_000 < 4 * old.states.numel()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match=f"^share: expected above 0 and below 1, got {share}$"):
        agent().replay_buffer.use_old(transitions(), share)


def test_old_data_of_another_size():
    old = transitions(dtype=torch.float32)
    wrong = type(old)(old.states[:, :2], old.actions, old.next_states[:, :2], old.rewards, old.weights)
    message = "expected old transitions of 3 numbers of an observation and 2 of an action, got 30 of 2 and 2"
    with pytest.raises(ValueError, match=f"^{message}$"):
        agent().replay_buffer.use_old(wrong)
