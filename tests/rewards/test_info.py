"""What is in an info: the same keys and types at every reset and step, in both modes, in every wrapper."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NumpyToTorch
from stable_baselines3.common.vec_env import DummyVecEnv

from vlp_gym import VLPRewardWrapper, VLPVecReward, VLPVectorRewardWrapper, capture_frames
from vlp_gym.engine.tickets import FrameScore, Ticket
from vlp_gym.rewards.info import numbers, ours_in, put, ticket_in
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value

SENTENCE = "press the button"
FLOATS = dict.fromkeys(("env_reward", "score", "progress", "relevance"), np.dtype(np.float64))
INTEGERS = dict.fromkeys(("env", "episode", "step"), np.dtype(np.int64))


def wrap(env, **options):
    return VLPRewardWrapper(env, SENTENCE, PaintedModel(**options.pop("model", {})), **options)


def structure(ours):
    """The keys and what NumPy makes of their values."""
    return {name: np.asarray(value).dtype for name, value in ours.items() if not name.startswith("_")}


def expected(mode, lacking=("relevance",)):
    floats = {name: dtype for name, dtype in FLOATS.items() if name not in lacking}
    return {**floats, "success": np.dtype(np.bool_), **(INTEGERS if mode == "async" else {})}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("model", "lacking"),
    [({}, ["relevance"]), ({"relevance": 1.0}, []), ({"progress": False}, ["progress", "relevance"])],
)
def test_a_single_environment(mode, flat, model, lacking):
    reward = "progress" if model.get("progress", True) else "preference"
    env = wrap(PaintedEnv((2,)), mode=mode, flat_info=flat, model=model, reward=reward, untaken="wait")
    for _ in range(2):
        infos = [env.reset()[1], *(env.step(0)[4] for _ in range(2))]
        assert [structure(ours_in(info)) for info in infos] == [expected(mode, lacking)] * 3
        assert [("vlp" in info, "vlp/score" in info) for info in infos] == [(not flat, flat)] * 3
        assert all(np.shape(value) == () for info in infos for value in ours_in(info).values())
        assert ours_in(infos[0])["env_reward"] == 0.0
        assert ours_in(infos[1])["env_reward"] == -1.0
        if not flat:
            assert [head for head in ("progress", "relevance") if np.isnan(infos[1]["vlp"][head])] == lacking
    env.close()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ["captured", "wrapped one by one"])
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_gymnasiums_vectors(autoreset, kind, mode, flat):
    options = {"mode": mode, "flat_info": flat, "untaken": "wait"}
    fns = [partial(PaintedEnv, (2,), env=env) for env in range(2)]
    if kind == "captured":
        envs = SyncVectorEnv(capture_frames(fns), autoreset_mode=autoreset)
        envs = VLPVectorRewardWrapper(envs, SENTENCE, PaintedModel(), **options)
    else:
        envs = SyncVectorEnv([lambda fn=fn: wrap(fn(), **options) for fn in fns], autoreset_mode=autoreset)
    infos = [envs.reset(seed=0)[1], *(envs.step(np.zeros(2, np.int64))[4] for _ in range(6))]
    for info in infos:
        ours = ours_in(info)
        assert structure(ours) == expected(mode)
        masks = info if flat else ours
        assert all(masks[f"_vlp/{name}" if flat else f"_{name}"].all() for name in expected(mode))
        assert {np.shape(ours[name]) for name in expected(mode)} == {(2,)}
    assert not ours_in(infos[0])["env_reward"].any()
    envs.close()


def test_numbers_and_back():
    heads = {"heads": ["progress", "relevance"]}
    ours = numbers(None, 0.5, FrameScore(0.1, 0.25, 2.0), **heads, success=True, ticket=Ticket(3, 4, 5))
    assert np.isnan(ours["env_reward"])
    assert (ours["score"], ours["progress"], ours["relevance"], ours["success"]) == (0.5, 0.25, 2.0, True)
    for flat in (False, True):
        info = put({"own": 1, "vlpx": 2}, ours, flat=flat)
        assert (info["own"], info["vlpx"]) == (1, 2)
        assert ticket_in(ours_in(info)) == Ticket(3, 4, 5)
        assert {type(number) for number in ticket_in(ours_in(info))} == {int}
    assert ours_in({"own": 1}) is None
    assert ticket_in(numbers(1.0, 0.5, None, **heads, success=False, ticket=None)) is None


def test_stacked_and_compared_by_gymnasium():
    """`check_env` takes two NaN for a difference: there are none."""
    env = wrap(PaintedEnv((3,)), reward="final")
    for ours in (env.reset()[1]["vlp"], env.step(0)[4]["vlp"]):
        assert data_equivalence(ours, type(ours)(ours))
    env.close()


@pytest.mark.parametrize("convert", [lambda env: env, NumpyToTorch])
def test_ticket_and_deliveries_are_answered_too(convert):
    """Though they are not among the keys: tensors made of the numbers do no harm."""
    env = convert(wrap(PaintedEnv((6,)), mode="async"))
    env.reset(seed=0)
    rows, rewards = {}, {}
    for t in range(6):
        ours = env.step(torch.tensor(0))[4]["vlp"]
        assert not {"ticket", "delivered"} & set(ours)
        rows[ours["ticket"]] = t
        for delivery in ours["delivered"]:
            rewards[rows[delivery.ticket]] = delivery.reward
        assert ours["delivered"] == []
    for delivery in env.get_wrapper_attr("flush")():
        rewards[rows[delivery.ticket]] = delivery.reward
    assert [rewards[t] * 2**24 for t in range(6)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(KeyError, match="other"):
        ours["other"]
    env.close()


def test_deliveries_of_two_environments_of_one_wrapper():
    envs = VLPVecReward(
        DummyVecEnv(capture_frames([PaintedEnv, partial(PaintedEnv, env=1)])), SENTENCE, PaintedModel(), mode="async"
    )
    envs.reset()
    infos = envs.step(np.zeros(2, np.int64))[3]
    for env, info in enumerate(infos):
        [delivery] = info["vlp"]["delivered"]
        assert delivery.ticket == info["vlp"]["ticket"]
        assert delivery.reward == pytest.approx(painted_value(env, 0, 1))
    envs.close()


def test_deliveries_of_a_wrapper_that_is_gone_or_sync():
    env = wrap(PaintedEnv(), mode="sync")
    with pytest.raises(KeyError):
        env.reset()[1]["vlp"]["delivered"]
    ours = numbers(None, 0.5, None, heads=[], success=False, ticket=Ticket(2**40, 0, 1))
    with pytest.raises(KeyError, match=r"poll\(\)"):
        ours["delivered"]
