"""A reward comes late only to those who take late rewards; to all others each step returns its own."""

from __future__ import annotations

import copy
import pickle
import time

import gymnasium as gym
import pytest
from late import SENTENCE, GatedModel, SlowModel

from vlp_gym.rewards.delivery import Deliveries, Delivery, Receipt
from vlp_gym.rewards.stream import NOBODY_TAKES
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames

LENGTHS = (5, 1, 3)


def make(**options):
    return VLPRewardWrapper(PaintedEnv(LENGTHS), SENTENCE, SlowModel(), **{"mode": "async", **options})


def exact(episodes=3):
    return [painted_value(0, e, t) for e in range(episodes) for t in range(1, LENGTHS[e] + 1)]


def paid(env, episodes=3, after=lambda info: None):
    """The rewards that the steps return; `after` gets the info of every reset and step."""
    rewards = []
    for _ in range(episodes):
        after(env.reset()[1])
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(0)
            rewards.append(reward)
            after(info)
            over = terminated or truncated
    return rewards


@pytest.mark.parametrize(
    "outer",
    [
        lambda env: env,
        gym.wrappers.RecordEpisodeStatistics,
        lambda env: gym.wrappers.TransformReward(env, lambda reward: reward),
        lambda env: VLPRewardWrapper(env, SENTENCE, PaintedModel(), env_reward_weight=1.0, scale=0.0),
    ],
)
def test_a_loop_that_takes_nothing_gets_exact_rewards(outer, caplog):  # fault 67
    env = outer(make())
    with caplog.at_level("WARNING", "vlp_gym"):
        assert paid(env) == exact()
    assert caplog.messages == [NOBODY_TAKES]
    env.close()


@pytest.mark.parametrize(
    "look",
    [
        lambda info: copy.deepcopy(info),  # as DummyVecEnv does
        lambda info: copy.copy(info["vlp"]["delivered"]),
        lambda info: pickle.dumps(info),  # as worker processes do
        lambda info: str(info),
        lambda info: info["vlp"]["delivered"] == [],
    ],
)
def test_carrying_an_info_on_is_no_taking(look):
    env = make()
    assert paid(env, after=look) == exact()
    env.close()


TAKE = {
    "reads": lambda env, info: list(info["vlp"]["delivered"]),
    "reads a copy": lambda env, info: len(copy.deepcopy(info)["vlp"]["delivered"]),
    "indexes": lambda env, info: info["vlp"]["delivered"][:1],
    "polls": lambda env, info: env.poll(),
}


@pytest.mark.parametrize("way", TAKE)
def test_whoever_takes_late_rewards_does_not_wait(way, caplog):
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((200,)), SENTENCE, model, mode="async")
    _, info = env.reset()
    env.flush()
    model.open = False
    for _ in range(150):
        TAKE[way](env, info)
        _, reward, _, _, info = env.step(0)
        assert reward == 0.0  # the placeholder
    model.open = True
    rewards = [delivery.reward for delivery in env.flush()]
    assert rewards == [painted_value(0, 0, step) for step in range(1, 151)]
    assert caplog.messages == []
    env.close()


def test_one_that_stops_taking_waits_from_then_on():
    env = make()
    assert paid(env, 1, after=lambda info: list(info["vlp"]["delivered"])) != exact(1)
    env.reset()
    env.step(0)
    assert env.reset()[1]["vlp"]["ticket"].episode == 2  # nothing was read since
    assert env.step(0)[1] == painted_value(0, 2, 1)
    env.close()


def test_a_reset_in_mid_episode_ends_what_was_said_once_and_for_all():
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((2, 5, 5)), SENTENCE, model, mode="async")
    env.reset()
    env.take_late_rewards()
    model.open = False
    assert [env.step(0)[1] for _ in range(2)] == [0.0, 0.0]
    env.reset()  # the episode was over
    assert env.step(0)[1] == 0.0
    model.open = True
    env.reset()  # this one was not: it may be an evaluation
    assert [env.step(0)[1] for _ in range(2)] == [painted_value(0, 2, 1), painted_value(0, 2, 2)]
    env.take_late_rewards()
    model.open = False
    waited = time.monotonic()
    env.step(0)
    assert time.monotonic() - waited < 1.0
    model.open = True
    env.close()


@pytest.mark.parametrize("ask", ["poll", "flush"])
def test_who_has_polled_does_not_wait_until_the_next_reset(ask):
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((3, 5)), SENTENCE, model, mode="async")
    env.reset()
    assert env.step(0)[1] == painted_value(0, 0, 1)
    getattr(env, ask)()
    model.open = False
    newest = painted_value(0, 0, 1)
    assert [env.step(0)[1] for _ in range(2)] == [newest] * 2
    model.open = True
    assert [delivery.reward for delivery in env.flush()] == [painted_value(0, 0, 2), painted_value(0, 0, 3)]
    env.reset()
    assert [env.step(0)[1] for _ in range(2)] == [painted_value(0, 1, 1), painted_value(0, 1, 2)]
    env.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("vector", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_wrappers_in_a_vector_environment(vector):
    options = {"context": "spawn"} if vector is gym.vector.AsyncVectorEnv else {}
    venv = vector([make, make], **options)
    venv.reset(seed=0)
    rewards = [list(venv.step(venv.action_space.sample())[1]) for _ in range(5)]
    assert rewards == [[painted_value(0, 0, step)] * 2 for step in range(1, 6)]
    venv.close()


@pytest.mark.parametrize("takes", [False, True])
def test_the_vector_wrapper(takes):
    model = GatedModel()
    venv = gym.vector.SyncVectorEnv(capture_frames([lambda: PaintedEnv((9,)), lambda: PaintedEnv((9,), env=1)]))
    venv = VLPVectorRewardWrapper(venv, SENTENCE, model, mode="async")
    _, infos = venv.reset(seed=0)
    venv.flush() if takes else None
    model.open = not takes
    for step in range(1, 7):
        if takes:
            assert [len(deliveries) for deliveries in infos["vlp"]["delivered"]] == [0, 0]
        _, rewards, _, _, infos = venv.step(venv.action_space.sample())
        assert list(rewards) == ([0.0, 0.0] if takes else [painted_value(env, 0, step) for env in range(2)])
    model.open = True
    venv.close()


def test_numbers_stay_numbers_where_infos_become_tensors():
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers import NumpyToTorch

    env = NumpyToTorch(VLPRewardWrapper(PaintedEnv((6,)), SENTENCE, SlowModel(), mode="async"))
    env.reset(seed=0)
    tickets, late = [], []
    import torch

    for _ in range(6):
        info = env.step(torch.tensor(0))[4]["vlp"]
        tickets.append(info["ticket"])
        late += info["delivered"]
    late += env.get_wrapper_attr("flush")()
    assert [delivery.ticket for delivery in late] == tickets
    assert {type(number) for ticket in tickets for number in ticket} == {int}
    rewards = [delivery.reward for delivery in late]
    assert (rewards, {type(reward) for reward in rewards}) == ([painted_value(0, 0, t) for t in range(1, 7)], {float})
    env.close()


def test_deliveries_are_a_list_that_notes_its_readers():
    receipt = Receipt()
    one = Delivery._make([None, 1, 2, None, 3, 0])
    assert one == (None, 1.0, 2.0, None, 3.0, False)
    deliveries = Deliveries([one], receipt)
    twin = copy.deepcopy(deliveries)
    assert (twin, type(pickle.loads(pickle.dumps(deliveries)))) == (deliveries, list)  # noqa: S301  # our own
    assert not receipt.signed
    assert [*twin] == [one]
    assert receipt.signed
